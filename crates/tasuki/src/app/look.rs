//! What only the whole gateway can see of its health: mail that waits too long, routes that are down, agents that are
//! away. The rest is looked at in `tasuki_core::health`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::EngineKind;
use tasuki_core::accounts::PrincipalKind;
use tasuki_core::events::{Event, EventBus, What};
use tasuki_core::health::{Code, Condition};
use tasuki_core::ids::PrincipalId;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::StoreError;
use tokio::sync::broadcast::error::RecvError;

use crate::admin::{Admin, FIRST_ADMIN};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(15);
/// Agents that are missing at so many looks in a row are away: a restart of either side takes less.
const LOOKS_AWAY: u32 = 4;
/// Mail that waits for longer is somebody's business; a greylisting host lets in far sooner.
const OLD_MAIL: Duration = Duration::from_secs(4 * 3600);

/// Looks until `own` begins.
pub(super) async fn watch(admin: Arc<Admin>, events: EventBus, own: Shutdown) {
    let mut reader = events.reader();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut missing_looks_by_agent = HashMap::new();
    let mut locked = HashSet::new();
    loop {
        tokio::select! {
            () = own.begun() => return,
            _ = tick.tick() => {
                look_at_mail(&admin).await;
                // What cannot be read now stays as it was seen last; the store's own condition says why.
                let _ = look_at_agents(&admin, &mut missing_looks_by_agent).await;
                let _ = look_at_locks(&admin, &mut locked).await;
            }
            event = reader.next() => match event {
                Ok(Event { what: What::PrincipalLocked { .. }, .. }) => {
                    let _ = look_at_locks(&admin, &mut locked).await;
                }
                Ok(event) => note(&admin, event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn note(admin: &Admin, event: Event) {
    match event.what {
        // Somebody else's mail server is not the operator's; a smarthost is.
        What::RouteDown { route, reason } if route.starts_with("via:") => {
            let sentence = format!("the route {route} is down: {reason}");
            admin.health.set(
                &format!("mail.route.{route}"),
                Some(Condition::warning(Code::RouteDown, sentence)),
            );
        }
        What::RouteUp { route } => admin.health.set(&format!("mail.route.{route}"), None),
        What::PasswordUsed { name } if name == FIRST_ADMIN => admin.forget_initial_password(),
        _ => {}
    }
}

async fn look_at_mail(admin: &Admin) {
    if admin.engines.mail.is_none() {
        return;
    }
    let Ok(counts) = admin.store.queue_counts().await else {
        return;
    };
    let now = admin.clock.wall();
    let old = counts.oldest.filter(|oldest| now.since(*oldest) > OLD_MAIL);
    let condition = old.map(|oldest| {
        let sentence = format!(
            "mail waits since {oldest} ({} in the queue): see `tasuki mail queue`",
            counts.mails
        );
        Condition::warning(Code::QueueAge, sentence)
    });
    admin.health.set("mail.queue", condition);
}

/// Who is locked now, on whichever gateway it happened; `before` is who was at the last look.
async fn look_at_locks(admin: &Admin, before: &mut HashSet<String>) -> Result<(), StoreError> {
    let locks = admin.accounts.locks().await?;
    let key = |name: &str| format!("account.locked.{name}");
    before.retain(|name| {
        let still = locks.iter().any(|lock| lock.name == *name);
        if !still {
            admin.health.set(&key(name), None);
        }
        still
    });
    for lock in locks {
        let sentence = format!(
            "{name} is locked since {since}: {reason} Give it new passwords, then: tasuki user unlock {name}",
            name = lock.name,
            since = lock.since,
            reason = lock.reason,
        );
        admin
            .health
            .set(&key(&lock.name), Some(Condition::warning(Code::Locked, sentence)));
        before.insert(lock.name);
    }
    Ok(())
}

async fn look_at_agents(
    admin: &Admin,
    missing_looks_by_agent: &mut HashMap<PrincipalId, u32>,
) -> Result<(), StoreError> {
    let Some(tunnel) = &admin.engines.tunnel else {
        return Ok(());
    };
    let endpoints = admin.store.endpoints().await?;
    let agents: Vec<_> = admin
        .store
        .principals()
        .await?
        .into_iter()
        .filter(|p| {
            p.kind == PrincipalKind::Agent && !p.disabled && endpoints.iter().any(|e| e.agent == p.id)
        })
        .collect();
    let key = |id: &PrincipalId| format!("{}.agent.{id}", EngineKind::Tunnel);
    missing_looks_by_agent.retain(|id, _| {
        let known = agents.iter().any(|agent| agent.id == *id);
        if !known {
            admin.health.set(&key(id), None);
        }
        known
    });
    for agent in &agents {
        let missing = missing_looks_by_agent.entry(agent.id).or_default();
        *missing = if tunnel.is_connected(agent.id) {
            0
        } else {
            missing.saturating_add(1)
        };
        let away = (*missing >= LOOKS_AWAY).then(|| {
            let sentence = format!(
                "the agent {} is away: is its machine on, and does `tasuki-agent run` run there?",
                agent.name
            );
            Condition::warning(Code::AgentAway, sentence)
        });
        admin.health.set(&key(&agent.id), away);
    }
    Ok(())
}
