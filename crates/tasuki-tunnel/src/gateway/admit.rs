//! Who may hold a session, and who may visit: the decisions about people, apart from what an agent exposes
//! ([`super::grants`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::EngineKind;
use tasuki_core::accounts::{CodeError, PrincipalKind};
use tasuki_core::acl::{Action, Question};
use tasuki_core::bans::Standing;
use tasuki_core::events::What;
use tasuki_core::limits::{Rate, Who};
use tasuki_core::store::accounts::Principal;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{CloseCode, Hello, VERSION};

use super::Inner;
use super::session::Session;
use crate::tls::Fingerprint;

/// A session that is not let in, or not any longer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: CloseCode,
    /// For the agent's owner.
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(code: CloseCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The reason as a metric's label.
    pub(crate) fn label(&self) -> &'static str {
        match self.code {
            CloseCode::Done => "done",
            CloseCode::Protocol => "protocol",
            CloseCode::Version => "version",
            CloseCode::BadCode => "bad_code",
            CloseCode::UnknownKey => "unknown_key",
            CloseCode::Revoked => "revoked",
            CloseCode::Replaced => "replaced",
            CloseCode::GoingAway => "closing",
            CloseCode::Slow => "too_many",
            CloseCode::Denied => "denied",
            CloseCode::Unavailable => "unavailable",
            CloseCode::HandedOver => "handed_over",
        }
    }
}

/// Sessions from one address: plenty for a house full of agents, far too few to try keys or codes.
const SESSIONS: Rate = Rate {
    burst: 60,
    per_period: 2,
    period: Duration::from_secs(1),
};

fn refused_address(
    inner: &Inner,
    from: IpAddr,
    action: Action,
    domain: Option<&Domain>,
) -> Option<&'static str> {
    if let Standing::Banned(_) = inner.deps.bans.standing(EngineKind::Tunnel, from) {
        return Some("banned");
    }
    let question = Question {
        engine: EngineKind::Tunnel,
        action,
        from: Some(from),
        principal: None,
        domain,
    };
    inner.deps.acl.decide(&question).is_denied().then_some("denied")
}

/// Whether this address may begin a session at all; asked before the handshake costs anything.
pub(crate) fn may_connect(inner: &Inner, from: IpAddr) -> Result<(), Refusal> {
    match refused_address(inner, from, Action::Connect, None) {
        None => Ok(()),
        Some("banned") => Err(Refusal::new(
            CloseCode::Denied,
            format!(
                "the gateway has banned {from}; its operator can lift that with `tasuki ban remove {from}`"
            ),
        )),
        Some(_) => Err(Refusal::new(
            CloseCode::Denied,
            format!(
                "an access rule of the gateway keeps {from} out; its operator sees which one with \
                 `tasuki acl explain {from}`"
            ),
        )),
    }
}

/// Whether this address may visit, by port or by this name. The error is a metric's label.
pub(crate) fn may_visit(inner: &Inner, from: IpAddr, name: Option<&Domain>) -> Result<(), &'static str> {
    refused_address(inner, from, Action::Connect, name)
        .or_else(|| refused_address(inner, from, Action::Visit, name))
        .map_or(Ok(()), Err)
}

/// Decides about a Hello: the agent that it is, and whether its key was enrolled just now.
pub(crate) async fn admit(
    inner: &Inner,
    key: Fingerprint,
    hello: &Hello,
    from: IpAddr,
) -> Result<(Arc<Principal>, bool), Refusal> {
    if hello.version != VERSION {
        let text = format!(
            "this gateway speaks version {VERSION} of the tunnel, the agent {}",
            hello.version
        );
        return Err(Refusal::new(CloseCode::Version, text));
    }
    inner
        .deps
        .limits
        .take(EngineKind::Tunnel, "session", Who::Address(from), SESSIONS)
        .map_err(|wait| {
            Refusal::new(
                CloseCode::Slow,
                format!("too many sessions; wait {} s", wait.as_secs() + 1),
            )
        })?;
    let accounts = &inner.deps.accounts;
    let unavailable = || Refusal::new(CloseCode::Unavailable, "the gateway cannot look up agents now");
    // A key that is enrolled already needs no code, so the command that enrolled it may be run again.
    let known = accounts
        .agent_by_key(&key.to_string(), from)
        .await
        .map_err(|error| {
            tracing::warn!(error = %error, "agents cannot be looked up");
            unavailable()
        })?;
    if let Some(agent) = known {
        return Ok((agent, false));
    }
    let Some(code) = &hello.code else {
        inner.deps.events.emit(What::LoginRefused {
            name: key.to_string(),
            from,
            reason: "unknown agent key",
        });
        let text =
            "this agent's key is not enrolled here (or was revoked); ask the gateway's operator for a code";
        return Err(Refusal::new(CloseCode::UnknownKey, text));
    };
    match accounts.redeem_code(&code.0, &key.to_string(), from).await {
        Ok(agent) if agent.kind == PrincipalKind::Agent && !agent.disabled => Ok((agent, true)),
        Ok(_) => Err(Refusal::new(
            CloseCode::Revoked,
            "this agent is switched off at the gateway",
        )),
        Err(error @ CodeError::Refused) => Err(Refusal::new(CloseCode::BadCode, error.to_string())),
        Err(error @ CodeError::TooMany) => Err(Refusal::new(CloseCode::Slow, error.to_string())),
        Err(CodeError::Unavailable(error)) => {
            tracing::warn!(error = %error, "enrolment codes cannot be checked");
            Err(unavailable())
        }
    }
}

/// Whether a running session may go on. An outage of our own store ends nobody's session.
pub(crate) async fn still_welcome(inner: &Inner, session: &Session) -> Result<(), Refusal> {
    let from = session.address().ip();
    may_connect(inner, from)?;
    match inner
        .deps
        .accounts
        .agent_by_key(&session.fingerprint.to_string(), from)
        .await
    {
        Ok(Some(agent)) if agent.id == session.agent && !agent.disabled => {
            session.visitors.set_scope(&agent);
            Ok(())
        }
        Ok(_) => Err(Refusal::new(
            CloseCode::Revoked,
            "this agent was revoked at the gateway",
        )),
        Err(_) => Ok(()),
    }
}
