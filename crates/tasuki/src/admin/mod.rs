//! The admin API: HTTP with JSON on the control socket and on a TCP listener.
//!
//! Who may do what is decided in `auth` alone. Every change is written to the audit in its own transaction, with the
//! caller's name: the peer's user id on the control socket, the token's owner elsewhere.

mod access;
mod accounts;
mod auth;
mod backup;
mod brake;
mod certificates;
mod dkim;
mod dns;
mod doctor;
mod engines;
mod explain;
mod listen;
mod mail;
mod moderation;
mod networks;
mod players;
mod problem;
mod recipients;
mod secrets;
mod show;
mod smarthosts;
mod suppress;
mod system;
mod takeover;
#[cfg(test)]
mod tests;
mod tls_report;
mod topics;
mod trace;
mod upgrade;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, patch, post, put};
use http::StatusCode;
use serde_json::{Value, json};
use tasuki_core::accounts::Accounts;
use tasuki_core::acl::{Acl, Effect, Origin, RuleSpec};
use tasuki_core::bans::{Bans, Exempt};
use tasuki_core::budget::Budget;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::front::FrontDoor;
use tasuki_core::health::Health;
use tasuki_core::metrics::Metrics;
use tasuki_core::seal::Secrets;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::accounts::{Principal, StoredRule};
use tasuki_core::store::{Store, StoreError};
use tasuki_core::tls::Tls;
use tasuki_core::{Applied, EngineKind};

use self::problem::Problem;
use crate::app::Order;
use crate::config::Config;
use crate::exit::Fail;
use crate::place::DataDir;
use crate::reload::{Live, Reloader};

pub(crate) use self::accounts::FIRST_ADMIN;
pub(crate) use self::auth::Caller;
pub(crate) use self::backup::SIZE as BACKUP_SIZE;
pub(crate) use self::listen::{bind_socket, serve_socket, serve_tcp};
pub(crate) use self::secrets::password as new_password;

/// The request that takes longer than others.
const UPGRADE: &str = "/v1/upgrade";
/// Bodies of requests are small documents.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The same where lists of hosts come in.
const MAX_LIST_BYTES: usize = 16 << 20;

/// What is known of the running engines.
pub(crate) struct Engines {
    pub(crate) mail: Option<tasuki_smtp::Handle>,
    pub(crate) fediverse: Option<tasuki_activitypub::Handle>,
    pub(crate) tunnel: Option<tasuki_tunnel::Handle>,
}

/// What the handlers need.
pub(crate) struct Admin {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) store_kind: &'static str,
    pub(crate) accounts: Accounts,
    pub(crate) acl: Acl,
    pub(crate) bans: Bans,
    pub(crate) budget: Budget,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) secrets: Secrets,
    pub(crate) tls: Tls,
    pub(crate) front: Option<FrontDoor>,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
    pub(crate) data: DataDir,
    pub(crate) started_at: Timestamp,
    pub(crate) listeners: BTreeMap<String, SocketAddr>,
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) reloader: Reloader,
    pub(crate) engines: Engines,
    /// To go on in another process.
    pub(crate) orders: tokio::sync::mpsc::Sender<Order>,
}

/// All routes.
pub(crate) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/healthz", get(system::healthz))
        .route("/readyz", get(system::readyz))
        .route("/metrics", get(system::metrics))
        .route("/v1/status", get(system::status))
        .route("/v1/reload", post(system::reload))
        .route(UPGRADE, post(upgrade::upgrade))
        .route("/v1/backup", post(backup::take))
        .route("/v1/users", get(accounts::users).post(accounts::add_user))
        .route("/v1/users/{name}", delete(accounts::remove_user))
        .route("/v1/users/{name}/password", put(accounts::set_password))
        .route("/v1/principals/{name}", patch(accounts::change))
        .route(
            "/v1/services",
            get(accounts::services).post(accounts::add_service),
        )
        .route("/v1/services/{name}", delete(accounts::remove_service))
        .route("/v1/tokens", get(accounts::tokens).post(accounts::add_token))
        .route("/v1/tokens/{id}", delete(accounts::remove_token))
        .route(
            "/v1/app-passwords",
            get(accounts::app_passwords).post(accounts::add_app_password),
        )
        .route("/v1/app-passwords/{id}", delete(accounts::remove_app_password))
        .route(
            "/v1/certificates",
            get(certificates::list).post(certificates::add),
        )
        .route("/v1/certificates/{id}", delete(certificates::remove))
        .route("/v1/acl", get(access::rules).post(access::add_rule))
        .route("/v1/acl/{id}", delete(access::remove_rule))
        .route("/v1/acl/explain", post(access::explain))
        .route("/v1/bans", get(access::bans).post(access::add_ban))
        .route("/v1/bans/{ban}", delete(access::remove_ban))
        .route("/v1/audit", get(access::audit))
        .route("/v1/keys/relay/export", post(system::export_relay_key))
        .route("/v1/mail/queue", get(mail::queue))
        .route("/v1/mail/queue/count", get(mail::count))
        .route("/v1/mail/queue/order", post(mail::order))
        .route("/v1/mail/lanes", get(mail::lanes))
        .route("/v1/mail/lanes/{lane}", get(mail::why))
        .route("/v1/mail/lanes/{lane}/pause", post(mail::pause))
        .route("/v1/mail/lanes/{lane}/resume", post(mail::resume))
        .route("/v1/mail/trace", get(trace::trace))
        .route("/v1/mail/explain", get(explain::mail))
        .route("/v1/mail/dns", get(dns::report))
        .route("/v1/mail/tls-report", get(tls_report::day))
        .route("/v1/mail/tls-report/{domain}", get(tls_report::file))
        .route("/v1/mail/smarthosts", get(smarthosts::list))
        .route(
            "/v1/mail/smarthosts/{name}/password",
            put(smarthosts::set_password),
        )
        .route("/v1/mail/smarthosts/{name}/login", post(smarthosts::begin_login))
        .route(
            "/v1/mail/smarthosts/{name}/login/poll",
            post(smarthosts::poll_login),
        )
        .route("/v1/mail/dkim", get(dkim::list).post(dkim::add))
        .route("/v1/mail/dkim/{domain}", delete(dkim::remove))
        .route("/v1/mail/dkim/{domain}/rotate", post(dkim::rotate))
        .route(
            "/v1/mail/recipients",
            get(recipients::list).post(recipients::change),
        )
        .route(
            "/v1/mail/suppressed",
            get(suppress::list)
                .post(suppress::change)
                .layer(DefaultBodyLimit::max(MAX_LIST_BYTES)),
        )
        .route("/v1/fediverse/subscribers", get(engines::subscribers))
        .route("/v1/fediverse/pending", get(engines::applicants))
        .route(
            "/v1/fediverse/subscribers/{host}",
            delete(engines::remove_subscriber),
        )
        .route(
            "/v1/fediverse/subscribers/{host}/approve",
            post(engines::approve_subscriber),
        )
        .route("/v1/fediverse/subscribers/{host}/form", put(engines::choose_form))
        .route(
            "/v1/fediverse/rules",
            get(moderation::rules).post(moderation::add_rule),
        )
        .route("/v1/fediverse/filters", get(topics::filters))
        .route(
            "/v1/fediverse/filters/{host}",
            put(topics::set_filter).delete(topics::clear_filter),
        )
        .route("/v1/fediverse/lists", get(topics::lists).put(topics::put_list))
        .route("/v1/fediverse/lists/{name}", delete(topics::remove_list))
        .route("/v1/fediverse/rules/lift", post(moderation::lift_rule))
        .route(
            "/v1/fediverse/blocklist",
            get(moderation::export_blocklist)
                .post(moderation::import_blocklist)
                .layer(DefaultBodyLimit::max(MAX_LIST_BYTES)),
        )
        .route("/v1/fediverse/why", get(moderation::why))
        .route("/v1/fediverse/key/rotate", post(takeover::rotate_key))
        .route("/v1/fediverse/pause", post(brake::pause))
        .route("/v1/fediverse/resume", post(brake::resume))
        .route("/v1/fediverse/purge", post(brake::purge))
        .route("/v1/fediverse/follow", get(brake::follow))
        .route(
            "/v1/fediverse/import",
            post(takeover::take_over).layer(DefaultBodyLimit::max(MAX_LIST_BYTES)),
        )
        .route("/v1/fediverse/prune", get(brake::dead_hosts).post(brake::prune))
        .route("/v1/tunnel/agents", get(engines::agents).post(engines::enrol))
        .route("/v1/tunnel/players", get(players::list))
        .route("/v1/tunnel/doctor", get(doctor::look))
        .route(
            "/v1/tunnel/agents/{name}",
            get(show::agent).delete(engines::revoke_agent),
        )
        .route(
            "/v1/tunnel/agents/{name}/endpoints/{label}",
            delete(engines::release_endpoint),
        )
        .fallback(|| async {
            Problem::missing("there is no such resource; see `tasuki --help` for what can be asked")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this resource does not take this method",
            )
        })
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&admin),
            engines::look_again_after_changes,
        ))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&admin),
            auth::guard,
        ))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(admin)
}

impl Admin {
    /// Reads the configuration again; a mistake changes nothing.
    pub(crate) async fn reload(&self) -> Result<Applied, Fail> {
        let applied = self.reloader.reload(&self.live, &self.engines).await?;
        self.compile_rules().await.map_err(|_| {
            Fail::new(
                crate::exit::UNAVAILABLE,
                "the access rules that were added by command cannot be read from the store now; the file's are in force at the next reload",
            )
        })?;
        Ok(applied)
    }

    /// Puts the file's access rules and the added ones in force.
    pub(crate) async fn compile_rules(&self) -> Result<(), StoreError> {
        let stored = self.store.rules().await?;
        let live = self.live.load();
        let rules = compiled(&live.config.acl, stored);
        self.bans.set_exempt(exempt(&live.config, &rules));
        self.acl.replace(rules);
        if let Some(tunnel) = &self.engines.tunnel {
            tunnel.look_again();
        }
        Ok(())
    }

    /// The first password was used or changed: its file has done its work.
    pub(crate) fn forget_initial_password(&self) {
        match std::fs::remove_file(self.data.initial_password()) {
            Ok(()) => tracing::info!("the first password of admin was used or changed; its file is deleted"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "data/initial-admin-password cannot be deleted; delete it by hand")
            }
        }
    }

    /// Why the gateway is not healthy, one sentence each.
    fn reasons(&self) -> Vec<String> {
        let stopping = self
            .shutdown
            .has_begun()
            .then(|| "the gateway is stopping".to_owned());
        let conditions = self.health.conditions().into_iter().map(|(_, c)| c.sentence);
        stopping.into_iter().chain(conditions).collect()
    }

    /// What works, but perhaps not as it was meant.
    pub(crate) async fn warnings(&self) -> Vec<String> {
        let mut warnings = self.live.load().warnings();
        warnings.extend(self.front.iter().flat_map(FrontDoor::warnings));
        warnings.extend(tls_report::warnings(self));
        warnings.extend(tls_report::unsigned(self).await);
        warnings.extend(networks::without_any_sender(self).await);
        warnings.extend(mail::paused_all(self).await);
        warnings
    }

    /// An engine's figures for `status`.
    async fn figures(&self, engine: EngineKind) -> Value {
        let unknown = |e: StoreError| json!({"problem": e.to_string()});
        match engine {
            EngineKind::Mail => self.store.queue_counts().await.map_or_else(unknown, |counts| {
                json!({"mails": counts.mails, "deferred": counts.deferred, "oldest": counts.oldest.map(|t| t.to_string())})
            }),
            EngineKind::Fediverse => self.store.subscriptions().await.map_or_else(unknown, |s| json!({"subscribers": s.len()})),
            EngineKind::Tunnel => {
                let agents = self.engines.tunnel.as_ref().map(tasuki_tunnel::Handle::agents).unwrap_or_default();
                json!({"agents": agents.len(), "connections": agents.iter().map(|a| a.connections).sum::<u32>()})
            }
        }
    }

    /// Where agents dial, as they must write it.
    fn tunnel_address(&self) -> String {
        crate::first_start::tunnel_address(&self.live.load().config, &self.listeners)
    }

    /// Where agents find the front door, if they have to be told.
    fn tls_address(&self) -> Option<String> {
        crate::first_start::tls_address(&self.live.load().config, &self.listeners)
    }

    /// A command that sends a first mail as this service.
    fn mail_example(&self, service: &Principal, password: &str) -> Option<String> {
        crate::first_start::mail_command(
            &self.live.load().config,
            &self.listeners,
            &self.data,
            Some((service, password)),
        )
    }
}

/// The file's rules first, then the added ones.
pub(crate) fn compiled(file: &[RuleSpec], stored: Vec<StoredRule>) -> Vec<(Origin, RuleSpec)> {
    let file = file
        .iter()
        .enumerate()
        .map(|(n, rule)| (Origin::File(n + 1), rule.clone()));
    let stored = stored.into_iter().map(|s| (Origin::Store(s.id), s.rule));
    file.chain(stored).collect()
}

/// Who is never banned: loopback anyway, trusted proxies, device networks, and whom a rule allows in.
pub(crate) fn exempt(config: &Config, rules: &[(Origin, RuleSpec)]) -> Vec<Exempt> {
    let mut nets: Vec<Exempt> = Vec::new();
    let proxies = config
        .server
        .trusted_proxies
        .iter()
        .chain(&config.front.proxy_protocol_from)
        .chain(&config.mail.proxy_protocol_from)
        .chain(&config.tunnel.minecraft.proxy_protocol_from)
        .chain(&config.tunnel.tcp.proxy_protocol_from);
    nets.extend(proxies.map(|net| Exempt {
        net: *net,
        engine: None,
        why: "the trusted proxies".to_owned(),
    }));
    nets.extend(config.mail.mynetworks.iter().map(|network| Exempt {
        net: network.net,
        engine: Some(EngineKind::Mail),
        why: "mail.mynetworks".to_owned(),
    }));
    let devices = config.mail.devices.list.iter().flat_map(|device| &device.net);
    nets.extend(devices.map(|net| Exempt {
        net: *net,
        engine: Some(EngineKind::Mail),
        why: "mail.devices".to_owned(),
    }));
    for (origin, rule) in rules.iter().filter(|(_, rule)| rule.effect == Effect::Allow) {
        nets.extend(rule.from.iter().map(|net| Exempt {
            net: *net,
            engine: rule.engine,
            why: origin.to_string(),
        }));
    }
    nets
}
