//! The log: lines for people or JSON for programs, and one reader that turns events into lines.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tasuki_core::events::{Event, EventBus, What};
use tasuki_core::shutdown::Shutdown;
use tokio::sync::broadcast::error::RecvError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// What is logged: error, warn, info, debug, trace, or targets as in RUST_LOG (which wins).
    pub level: String,
    /// How lines look.
    pub format: Format,
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Human,
        }
    }
}

impl LogConfig {
    /// The filter, if it is one.
    pub(crate) fn filter(&self) -> Result<EnvFilter, String> {
        // What the database driver tells at info is for its developers ("relation already exists, skipping"); who wants
        // it names the target `sqlx`.
        let driver = match self.level.as_str() {
            "info" | "debug" | "trace" => "sqlx=warn,",
            _ => "",
        };
        EnvFilter::try_new(format!("{driver}{}", self.level)).map_err(|e| {
            format!(
                "{:?} is not a log level ({e}); write error, warn, info, debug, trace, or for example \"info,tasuki_smtp=debug\"",
                self.level
            )
        })
    }

    fn effective(&self) -> EnvFilter {
        EnvFilter::try_from_default_env()
            .or_else(|_| self.filter())
            .unwrap_or_else(|_| EnvFilter::new("info"))
    }
}

/// Changes the level while the gateway runs.
#[derive(Clone)]
pub(crate) struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Puts the level of `config` in force, unless RUST_LOG says otherwise.
    pub(crate) fn apply(&self, config: &LogConfig) {
        if self.0.reload(config.effective()).is_err() {
            tracing::warn!("the log level cannot be changed any more");
        }
    }
}

/// Starts the log on standard error. Called once, before anything that may log.
pub(crate) fn start(config: &LogConfig) -> LogHandle {
    let (filter, handle) = reload::Layer::new(config.effective());
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let _ = match config.format {
        Format::Human => registry
            .with(
                lines
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    LogHandle(handle)
}

/// Reads the event bus until the shutdown begins, one line for each event.
pub(crate) async fn read_events(events: EventBus, shutdown: Shutdown) {
    let mut reader = events.reader();
    loop {
        let event = tokio::select! {
            event = reader.next() => event,
            () = shutdown.begun() => return,
        };
        match event {
            Ok(event) => write(&event),
            Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "the log was too slow and lost events"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// One line. Things that happen once for each mail, activity or connection are for debugging; mailboxes and peers'
/// addresses are never above that.
fn write(event: &Event) {
    let engine = event.engine.map_or("core", |e| e.name());
    match &event.what {
        What::MailAccepted {
            mail,
            size_bytes,
            recipients,
            ..
        } => tracing::debug!(engine, mail.id = %mail, size_bytes, recipients, "mail accepted"),
        What::MailDelivered {
            mail,
            recipients,
            attempts,
        } => tracing::debug!(engine, mail.id = %mail, recipients, attempts, "mail delivered"),
        What::MailDeferred {
            mail,
            recipients,
            attempts,
            reason,
        } => tracing::debug!(engine, mail.id = %mail, recipients, attempts, reason, "mail deferred"),
        What::MailBounced {
            mail,
            recipients,
            reason,
            reported,
        } => tracing::info!(engine, mail.id = %mail, recipients, reason, reported, "mail bounced"),
        What::AddressSuppressed {
            address,
            principal,
            reason,
        } => {
            let principal = principal.map(|id| id.to_string()).unwrap_or_default();
            tracing::debug!(engine, address, principal, reason, "address suppressed");
        }
        What::DailyCapNear {
            principal,
            name,
            used,
            cap,
        } => {
            tracing::warn!(engine, principal = %principal, name, used, cap, "the daily cap of recipients is near or reached")
        }
        What::PrincipalLocked {
            principal,
            name,
            reason,
        } => tracing::error!(engine, principal = %principal, name, reason, "account locked"),
        What::HostSubscribed { host } => tracing::info!(engine, actor.host = host, "instance subscribed"),
        What::HostUnsubscribed { host } => tracing::info!(engine, actor.host = host, "instance left"),
        What::HostSuspended { host, failing_since } => {
            tracing::info!(engine, actor.host = host, since = %failing_since, "instance suspended: nothing reaches it");
        }
        What::OutageBegan { reason } => tracing::warn!(engine, reason, "the fault seems to be here"),
        What::OutageEnded { lasted_s } => tracing::info!(engine, lasted_s, "other instances answer again"),
        What::ActivityRelayed { id, hosts } => {
            tracing::debug!(engine, activity.id = id, hosts, "activity relayed")
        }
        What::ActivityDelivered { host, taken } => {
            tracing::debug!(engine, actor.host = host, taken, "activity delivered");
        }
        What::AgentUp { agent, from } => {
            tracing::info!(engine, tunnel.id = %agent, "agent connected");
            tracing::debug!(engine, tunnel.id = %agent, peer.addr = %from, "agent's address");
        }
        What::AgentResumed { agent, visitors, .. } => {
            tracing::info!(engine, tunnel.id = %agent, visitors, "visitors go on in the agent's new session");
        }
        What::AgentDown { agent, reason } => tracing::info!(engine, tunnel.id = %agent, reason, "agent gone"),
        What::VisitorJoined {
            agent,
            endpoint,
            from,
            player,
        } => {
            tracing::debug!(engine, tunnel.id = %agent, endpoint, peer.addr = %from, player, "visitor joined");
        }
        What::VisitorLeft {
            agent,
            endpoint,
            from,
            player,
            bytes_in,
            bytes_out,
        } => {
            tracing::debug!(engine, tunnel.id = %agent, endpoint, peer.addr = %from, player, bytes_in, bytes_out, "visitor left");
        }
        What::LoginRefused { name, from, reason } => {
            tracing::debug!(engine, name, peer.addr = %from, reason, "login refused");
        }
        What::PasswordUsed { name } => tracing::debug!(engine, name, "password used"),
        What::Banned { net, reason, until } => tracing::info!(engine, %net, reason, %until, "address banned"),
        // The engine has warned already.
        What::RouteDown { route, reason } => tracing::debug!(engine, route, reason, "route down"),
        What::RouteUp { route } => tracing::info!(engine, route, "route up again"),
        What::TlsFailing {
            domain,
            host,
            result,
            reason,
        } => tracing::info!(
            engine,
            domain,
            host,
            result,
            reason,
            "a mail server's TLS is not what its domain's policy asks"
        ),
        What::TlsWorks { domain, host } => {
            tracing::info!(
                engine,
                domain,
                host,
                "a mail server's TLS is what its domain's policy asks again"
            );
        }
        What::CertificateReplaced { names, days_left } => {
            tracing::info!(engine, names = names.join(" "), days_left, "certificate replaced");
        }
        What::Reloaded {
            changed,
            needs_restart,
        } => tracing::info!(
            engine,
            changed = changed.join(" "),
            needs_restart = needs_restart.join(" "),
            "configuration applied"
        ),
        other => tracing::debug!(engine, event = ?other, "event"),
    }
}

#[cfg(test)]
mod tests {
    use super::LogConfig;

    #[test]
    fn the_database_driver_is_heard_only_when_it_warns_or_is_named() {
        for (level, filter) in [
            ("info", "sqlx=warn,info"),
            ("debug", "sqlx=warn,debug"),
            ("error", "error"),
            ("info,sqlx=debug", "sqlx=debug,info"),
        ] {
            let config = LogConfig {
                level: level.to_owned(),
                ..LogConfig::default()
            };
            assert_eq!(config.filter().unwrap().to_string(), filter);
        }
    }
}
