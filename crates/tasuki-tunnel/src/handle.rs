//! What the command line and the admin API ask of a running engine.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::PrincipalId;
use tasuki_proto::tunnel::{CloseCode, EndpointKind, EndpointState};

use crate::gateway::Inner;
use crate::gateway::session::Session;
use crate::tls::Fingerprint;
use crate::transport::Transport;

/// A view of the engine that outlives nothing and can be cloned freely.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

/// One connected agent.
#[derive(Clone, Debug, Serialize)]
pub struct AgentLine {
    /// The agent's number.
    pub agent: PrincipalId,
    /// Its name.
    pub name: String,
    /// Name and version of its program.
    pub software: String,
    /// Since when it is connected.
    pub since: Timestamp,
    /// Where it is now.
    pub address: SocketAddr,
    /// How its packets travel.
    pub transport: Transport,
    /// Round trip between gateway and agent, in microseconds.
    pub rtt_us: u64,
    /// Fingerprint of its key, in hexadecimal.
    pub key: String,
    /// Where it was when the session began.
    pub came_from: SocketAddr,
    /// The largest UDP payload that passes to it, in bytes, as far as it was tried.
    pub payload_bytes: u16,
    /// Packets sent to it in this session.
    pub sent_packets: u64,
    /// Those of them that did not arrive.
    pub lost_packets: u64,
    /// Visitors' connections now.
    pub connections: u32,
    /// Bytes sent to it on the wire in this session.
    pub sent_bytes: u64,
    /// Bytes received from it on the wire in this session.
    pub received_bytes: u64,
    /// What it exposes.
    pub endpoints: Vec<EndpointLine>,
}

/// One endpoint of a connected agent.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointLine {
    /// The agent's own name for it.
    pub label: String,
    /// `tcp`, `minecraft` and so on.
    pub kind: EndpointKind,
    /// Whether visitors can come.
    pub open: bool,
    /// What to tell visitors, if it is open.
    pub address: Option<String>,
    /// Why it is not open.
    pub problem: Option<String>,
}

impl EndpointLine {
    pub(crate) fn new(label: &str, kind: EndpointKind, state: &EndpointState) -> Self {
        let (address, problem) = match state {
            EndpointState::Open { address, .. } => (Some(address.clone()), None),
            EndpointState::Refused { text, .. } => (None, Some(text.clone())),
            EndpointState::Unknown => (None, None),
        };
        Self {
            label: label.to_owned(),
            kind,
            open: address.is_some(),
            address,
            problem,
        }
    }
}

impl Handle {
    /// The connected agents, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentLine> {
        let mut lines: Vec<AgentLine> = self
            .inner
            .registry
            .sessions()
            .iter()
            .map(|session| line(session))
            .collect();
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        lines
    }

    /// What visitors type: the gateway's public name, and the Minecraft port if it is open.
    #[must_use]
    pub fn doors(&self) -> (String, Option<u16>) {
        let bound = self.inner.config().minecraft.listen.ip();
        (self.inner.public_host(bound), self.inner.minecraft_port)
    }

    /// Where a web endpoint is reached, if the gateway has a port for it.
    #[must_use]
    pub fn web_url(&self, kind: &tasuki_core::store::tunnel::EndpointKind) -> Option<String> {
        use tasuki_core::store::tunnel::EndpointKind;
        let doors = self.inner.web.get()?;
        match kind {
            EndpointKind::Https { name } => doors.https_url(name),
            EndpointKind::Http { name } => doors.http_url(name),
            _ => None,
        }
    }

    /// Whether this agent is connected.
    #[must_use]
    pub fn is_connected(&self, agent: PrincipalId) -> bool {
        self.inner.registry.session(agent).is_some()
    }

    /// Ends the agent's session and all its visitors at once, because it was revoked: it will not come back by itself.
    /// False if it is not connected. The key itself is removed in the accounts.
    pub fn revoke(&self, agent: PrincipalId) -> bool {
        if let Some(session) = self.inner.registry.session(agent) {
            session.visitors.gone.cancel();
        }
        self.close(agent, CloseCode::Revoked, "this agent was revoked at the gateway")
    }

    /// Ends the agent's session; the agent connects again, with the grants of then. False if it is not connected.
    pub fn disconnect(&self, agent: PrincipalId) -> bool {
        self.close(
            agent,
            CloseCode::GoingAway,
            "disconnected by the gateway's operator",
        )
    }

    /// Rules, bans or accounts have changed: agents and visitors who may not be here any more are cut now.
    pub fn look_again(&self) {
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    fn close(&self, agent: PrincipalId, code: CloseCode, text: &str) -> bool {
        let session = self.inner.registry.session(agent);
        if let Some(session) = &session {
            session.close(code, text);
        }
        session.is_some()
    }

    /// The fingerprint of the gateway's tunnel key: what agents pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.inner.fingerprint
    }
}

fn line(session: &Session) -> AgentLine {
    let stats = session.connection.stats();
    AgentLine {
        agent: session.agent,
        name: session.name.clone(),
        software: session.software.clone(),
        since: session.since,
        address: session.address(),
        transport: session.transport,
        rtt_us: u64::try_from(session.connection.rtt().as_micros()).unwrap_or(u64::MAX),
        key: session.fingerprint.to_string(),
        came_from: session.from,
        payload_bytes: stats.path.current_mtu,
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        connections: session.visitors.count(),
        sent_bytes: stats.udp_tx.bytes,
        received_bytes: stats.udp_rx.bytes,
        endpoints: session
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone(),
    }
}
