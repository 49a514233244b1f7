//! What the engine counts. Bytes move their counters while they move, not when a connection ends.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tasuki_core::metrics::Branch;

use crate::splice::{End, Totals};

/// By which door a visitor came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Tcp,
    Minecraft,
    Udp,
    Https,
    Http,
}

impl Door {
    /// The door of this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Minecraft, Self::Udp, Self::Https, Self::Http]
            .into_iter()
            .find(|door| door.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Minecraft => "minecraft",
            Self::Udp => "udp",
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDoor {
    door: &'static str,
}

/// How a visitor's connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    door: &'static str,
    result: &'static str,
}

/// Why a visitor or an agent was not let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// Opened = closed + open, and every accepted socket is either opened or refused.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    opened: Family<ByDoor, Counter>,
    closed: Family<Closed, Counter>,
    refused: Family<Refused, Counter>,
    pub(crate) open: Gauge,
    pub(crate) agents: Gauge,
    pub(crate) agent_sessions: Counter,
    agents_refused: Family<Refused, Counter>,
    datagrams_dropped: Family<Refused, Counter>,
    pub(crate) resumed: Counter,
    pub(crate) totals: Totals,
}

impl Metrics {
    pub(crate) fn register(branch: &Branch) -> Self {
        let bytes: Family<Direction, Counter> = Family::default();
        let direction = |direction| bytes.get_or_create_owned(&Direction { direction });
        // On the gateway a visitor's bytes go into the stream, a server's come out of it.
        let totals = Totals {
            to_stream: direction("to_agent"),
            to_tcp: direction("to_visitor"),
        };
        branch.register(
            "payload_bytes",
            "Visitors' bytes carried, counted while they move",
            bytes,
        );
        Self {
            opened: branch.register(
                "connections_opened",
                "Visitors' connections joined to an agent",
                Family::default(),
            ),
            closed: branch.register(
                "connections_closed",
                "Visitors' connections that ended, by result",
                Family::default(),
            ),
            refused: branch.register(
                "connections_refused",
                "Visitors' connections that were not joined to an agent, by reason",
                Family::default(),
            ),
            open: branch.register(
                "connections_open",
                "Visitors' connections joined to an agent now",
                Gauge::default(),
            ),
            agents: branch.register("agents_connected", "Agents connected now", Gauge::default()),
            agent_sessions: branch.register(
                "agent_sessions",
                "Agents' sessions accepted",
                Counter::default(),
            ),
            agents_refused: branch.register(
                "agent_sessions_refused",
                "Agents' sessions refused, by reason",
                Family::default(),
            ),
            datagrams_dropped: branch.register(
                "datagrams_dropped",
                "Datagrams of UDP visitors that were not carried, by reason",
                Family::default(),
            ),
            resumed: branch.register(
                "connections_resumed",
                "Visitors' connections that went on in another session of their agent",
                Counter::default(),
            ),
            totals,
        }
    }

    /// The counter of datagrams that were dropped for this reason.
    pub(crate) fn datagrams_dropped(&self, reason: &'static str) -> Counter {
        self.datagrams_dropped.get_or_create_owned(&Refused { reason })
    }

    pub(crate) fn opened(&self, door: Door) {
        self.opened.get_or_create(&ByDoor { door: door.name() }).inc();
        self.open.inc();
    }

    pub(crate) fn closed(&self, door: Door, end: End) {
        let result = match end {
            End::Clean => "clean",
            End::TcpReset => "visitor_reset",
            End::StreamReset => "agent_reset",
            End::Stalled => "stalled",
            End::Denied => "denied",
        };
        self.closed
            .get_or_create(&Closed {
                door: door.name(),
                result,
            })
            .inc();
        self.open.dec();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    pub(crate) fn agent_refused(&self, reason: &'static str) {
        self.agents_refused.get_or_create(&Refused { reason }).inc();
    }
}
