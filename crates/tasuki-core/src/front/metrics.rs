//! Figures of the front door: `tasuki_front_…`.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::Branch;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Refusal {
    reason: Reason,
}

/// Why a connection was closed before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reason {
    /// The address is banned for all engines.
    Banned,
    /// The address holds too many connections.
    TooMany,
    /// No PROXY header where one is required.
    ProxyHeader,
    /// The first bytes are no ClientHello, or came too slowly.
    Hello,
    /// The TLS handshake failed.
    Handshake,
    /// The client asks for a name that nobody here has.
    UnknownName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Answered {
    class: Class,
}

/// The class of an answer's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Class {
    Success,
    Redirect,
    ClientError,
    ServerError,
}

#[derive(Clone, Debug)]
pub(super) struct FrontMetrics {
    /// Connections open now.
    pub(super) open: Gauge,
    connections: Counter,
    refused: Family<Refusal, Counter>,
    requests: Family<Answered, Counter>,
}

impl FrontMetrics {
    pub(super) fn new(branch: &Branch) -> Self {
        Self {
            open: branch.register(
                "open_connections",
                "Connections open on the web ports.",
                Gauge::default(),
            ),
            connections: branch.register(
                "connections",
                "Connections accepted on the web ports.",
                Counter::default(),
            ),
            refused: branch.register(
                "refused_connections",
                "Connections closed before they were served, by reason.",
                Family::default(),
            ),
            requests: branch.register(
                "requests",
                "Requests answered on the web ports, by class of the status.",
                Family::default(),
            ),
        }
    }

    /// Counts a connection in; it counts itself out.
    pub(super) fn enter(&self) -> Open {
        self.connections.inc();
        self.open.inc();
        Open(self.open.clone())
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&Refusal { reason }).inc();
    }

    pub(super) fn answered(&self, status: http::StatusCode) {
        let class = match status.as_u16() {
            300..400 => Class::Redirect,
            400..500 => Class::ClientError,
            500.. => Class::ServerError,
            _ => Class::Success,
        };
        self.requests.get_or_create(&Answered { class }).inc();
    }
}

/// One open connection.
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
