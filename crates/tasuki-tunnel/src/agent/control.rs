//! What the home host's own commands ask of a running agent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

use quinn::Connection;
use serde::{Deserialize, Serialize};
use tasuki_proto::minecraft::Edition;
use tasuki_proto::tunnel::EndpointState;

use super::rules::{Rules, Who};
use super::{Inner, Notice};
use crate::transport::Transport;

/// A view of the agent that can be cloned freely.
#[derive(Clone)]
pub struct Control {
    pub(super) inner: Arc<Inner>,
}

/// How the agent stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `HOST:PORT` of the gateway.
    pub gateway: String,
    /// Whether there is a session.
    pub connected: bool,
    /// The agent's name at the gateway, if it was told.
    pub agent: Option<String>,
    /// The gateway's program.
    pub software: Option<String>,
    /// Where the gateway is.
    pub address: Option<SocketAddr>,
    /// How the bytes travel.
    pub transport: Option<String>,
    /// Round trip between agent and gateway.
    pub rtt_ms: Option<f64>,
    /// Seconds since the session began.
    pub connected_s: Option<u64>,
    /// Bytes sent to the gateway on the wire in this session.
    pub sent_bytes: u64,
    /// Bytes received from it on the wire in this session.
    pub received_bytes: u64,
    /// Why there is no session.
    pub problem: Option<String>,
    /// Visitors' connections now.
    pub visitors: usize,
    /// What is served.
    pub endpoints: Vec<ServedLine>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedLine {
    /// Its label.
    pub label: String,
    /// What visitors type, while it is open.
    pub address: Option<String>,
    /// The local server.
    pub target: String,
    /// Why visitors cannot come, as the gateway or the local server says it.
    pub problem: Option<String>,
}

/// One visitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitorLine {
    /// The name that a Minecraft client claims; none for others and for a look at the server list.
    pub player: Option<String>,
    /// Where the visitor is.
    pub address: SocketAddr,
    /// The endpoint's label.
    pub endpoint: String,
    /// Which Minecraft the visitor plays, if it is one.
    #[serde(default)]
    pub edition: Option<Edition>,
    /// Round trip between the visitor and the gateway, in microseconds, as the gateway told it last: of players whose
    /// connection the gateway knows, a few seconds after they joined.
    #[serde(default)]
    pub visitor_rtt_us: Option<u64>,
    /// Round trip between the gateway and this agent, in microseconds; none for visitors from this home's own network.
    #[serde(default)]
    pub gateway_rtt_us: Option<u64>,
    /// How long the local server took for the connection, in microseconds: one round trip when it began.
    #[serde(default)]
    pub local_rtt_us: Option<u64>,
    /// Seconds since the connection began.
    pub seconds: u64,
    /// Bytes from the visitor to the local server.
    pub bytes_in: u64,
    /// Bytes from the local server to the visitor.
    pub bytes_out: u64,
}

/// What the session knows, kept for whoever asks.
#[derive(Default)]
pub(super) struct Standing(Mutex<Known>);

#[derive(Default)]
struct Known {
    session: Option<(Connection, Transport, Instant)>,
    agent: Option<(String, String)>,
    states: Vec<(String, EndpointState)>,
    problem: Option<String>,
}

impl Standing {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn session_began(&self, connection: &Connection, transport: Transport) {
        let mut known = self.lock();
        known.session = Some((connection.clone(), transport, Instant::now()));
        known.problem = None;
    }

    /// Keeps what a notice says.
    pub(super) fn note(&self, notice: &Notice) {
        let mut known = self.lock();
        match notice {
            Notice::Connected { agent, software, .. } => {
                known.agent = Some((agent.clone(), software.clone()))
            }
            Notice::Endpoint { label, state } => {
                known.states.retain(|(known, _)| known != label);
                known.states.push((label.clone(), state.clone()));
            }
            Notice::Lost { reason, .. } => {
                known.session = None;
                known.states.clear();
                known.problem = Some(reason.clone());
            }
            _ => {}
        }
    }
}

impl Control {
    /// How the agent stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        let known = self.inner.standing.lock();
        let session = known.session.as_ref();
        let stats = session.map(|(connection, ..)| connection.stats());
        let endpoints = self.inner.endpoints_by_id.values().map(|served| {
            let endpoint = &served.endpoint;
            let state = known.states.iter().find(|(label, _)| *label == endpoint.label);
            let (address, refused) = match state {
                Some((_, EndpointState::Open { address, .. })) => (Some(address.clone()), None),
                Some((_, EndpointState::Refused { text, .. })) => (None, Some(text.clone())),
                Some((_, EndpointState::Unknown)) | None => (None, None),
            };
            ServedLine {
                label: endpoint.label.clone(),
                address,
                target: endpoint.target.clone(),
                problem: refused.or_else(|| served.problem()),
            }
        });
        let mut endpoints: Vec<ServedLine> = endpoints.collect();
        endpoints.sort_by(|a, b| a.label.cmp(&b.label));
        Status {
            gateway: self.inner.config.gateway.clone(),
            connected: session.is_some(),
            agent: known.agent.as_ref().map(|(agent, _)| agent.clone()),
            software: known.agent.as_ref().map(|(_, software)| software.clone()),
            address: session.map(|(connection, ..)| connection.remote_address()),
            transport: session.map(|(_, transport, _)| transport.to_string()),
            rtt_ms: session.map(|(connection, ..)| connection.rtt().as_secs_f64() * 1000.0),
            connected_s: session.map(|(_, _, since)| since.elapsed().as_secs()),
            sent_bytes: stats.map_or(0, |stats| stats.udp_tx.bytes),
            received_bytes: stats.map_or(0, |stats| stats.udp_rx.bytes),
            problem: known.problem.clone(),
            visitors: self.inner.visitors.all().len(),
            endpoints,
        }
    }

    /// Networks in which something else than UDP worked last, for the next start.
    #[must_use]
    pub fn networks(&self) -> Vec<(String, Transport)> {
        self.inner.networks.all()
    }

    /// Who visits now.
    #[must_use]
    pub fn visitors(&self) -> Vec<VisitorLine> {
        let all = self.inner.visitors.all();
        let rtt_us = {
            let known = self.inner.standing.lock();
            let session = known.session.as_ref();
            session.map(|(connection, ..)| u64::try_from(connection.rtt().as_micros()).unwrap_or(u64::MAX))
        };
        let lines = all.iter().map(|visitor| VisitorLine {
            player: visitor.player.clone(),
            address: visitor.from,
            endpoint: visitor.label.clone(),
            edition: visitor.edition(),
            visitor_rtt_us: visitor.to_gateway_us(),
            gateway_rtt_us: rtt_us.filter(|_| !visitor.is_at_home),
            local_rtt_us: visitor.local_us(),
            seconds: visitor.since.elapsed().as_secs(),
            bytes_in: visitor.meter.to_tcp(),
            bytes_out: visitor.meter.to_stream(),
        });
        lines.collect()
    }

    /// Cuts the connections of everybody who is meant; how many.
    #[must_use]
    pub fn kick(&self, who: &Who) -> usize {
        self.inner.visitors.cut(who)
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules::clone(&self.inner.visitors.rules())
    }

    /// Puts rules in force, also for those who are here; how many connections were cut.
    pub fn set_rules(&self, rules: Rules) -> usize {
        self.inner.visitors.set_rules(rules)
    }
}
