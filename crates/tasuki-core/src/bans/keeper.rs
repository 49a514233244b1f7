//! The one task that stores what the table decided, and follows what other gateways decided.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Bans, describe, rules};
use crate::clock::Timestamp;
use crate::engine::EngineKind;
use crate::events::What;
use crate::shutdown::Shutdown;
use crate::store::bans::NewBan;
use crate::store::{Actor, StoreResult};

/// What the keeper is asked to store.
#[derive(Debug)]
pub(super) enum Order {
    /// A ban, the length of a first one, and the engine that saw the offence.
    Ban(NewBan, Duration, EngineKind),
    /// Somebody proved themselves there.
    Proved(IpAddr, Timestamp),
}

/// How often the stored bans are read again, if other gateways may have changed them.
const REFRESH: Duration = Duration::from_secs(30);
/// How often all is read again, so that what has ended takes no memory.
const TIDY: Duration = Duration::from_secs(3600);
/// Orders taken at once.
const BATCH: usize = 256;

/// Runs until the shutdown has begun and what was ordered before is stored.
pub(super) async fn run(bans: Bans, mut orders: mpsc::Receiver<Order>, shutdown: Shutdown) {
    // The start has just loaded everything.
    let [mut refresh, mut tidy] = [REFRESH, TIDY].map(|period| {
        let mut tick = tokio::time::interval_at(Instant::now() + period, period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick
    });
    let is_shared = bans.inner.store.is_shared();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => break,
            _ = orders.recv_many(&mut batch, BATCH) => keep(&bans, &mut batch).await,
            _ = refresh.tick(), if is_shared => heard(bans.refresh().await),
            _ = tidy.tick() => heard(read_all(&bans).await),
        }
    }
    orders.close();
    while orders.recv_many(&mut batch, BATCH).await > 0 {
        keep(&bans, &mut batch).await;
    }
}

async fn read_all(bans: &Bans) -> StoreResult<()> {
    bans.refresh().await?;
    bans.reload_proofs().await
}

fn heard(result: StoreResult<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the bans could not be read again; those known before hold on");
    }
}

async fn keep(bans: &Bans, batch: &mut Vec<Order>) {
    let mut proved = Vec::new();
    let mut to_ban = Vec::new();
    for order in batch.drain(..) {
        match order {
            Order::Proved(ip, at) => proved.push((ip, at)),
            Order::Ban(new, first, seen_by) => to_ban.push((new, first, seen_by)),
        }
    }
    if !proved.is_empty()
        && let Err(error) = bans.inner.store.note_proved(&proved).await
    {
        tracing::warn!(%error, "proven addresses could not be noted; they are known until the restart");
    }
    for (new, first, seen_by) in to_ban {
        let net = new.net;
        if let Err(error) = keep_ban(bans, new, first, seen_by).await {
            tracing::warn!(%error, "a ban could not be stored; it holds in memory");
            tracing::debug!(%net, "this is the ban that could not be stored");
        }
    }
}

async fn keep_ban(bans: &Bans, mut new: NewBan, first: Duration, seen_by: EngineKind) -> StoreResult<()> {
    let repeats = bans.inner.store.ban_repeats(new.net, new.since).await?;
    let until = new.since.plus(rules::length(first, repeats));
    new.until = Some(until);
    let audit =
        Actor::gateway(seen_by.name()).entry(new.since, "ban.add", new.net.to_string(), describe(&new));
    let ban = bans.store_ban(new, audit).await?;
    bans.inner.events.emit(What::Banned {
        net: ban.net,
        reason: ban.reason,
        until,
    });
    Ok(())
}
