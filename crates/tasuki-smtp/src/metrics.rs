//! The engine's figures. In recipients: accepted + inherited = delivered + bounced + dropped + waiting, always.
//!
//! `inherited` are recipients of mails that an earlier life of this gateway, or another gateway, had taken: they are
//! counted when this one settles them, and are not part of `waiting`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tasuki_core::metrics::Branch;
use tasuki_proto::smtp::tlsrpt::PolicyType;

/// Why a session ended or a mail was refused; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

/// How the TLS of a session ended, under which kind of policy; closed sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TlsResult {
    pub(crate) policy: &'static str,
    pub(crate) result: &'static str,
}

/// How an act ended; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Ended {
    pub(crate) result: &'static str,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) sessions: Counter,
    pub(crate) sessions_open: Gauge,
    pub(crate) accepted_mails: Counter,
    pub(crate) accepted_bytes: Counter,
    pub(crate) accepted: Counter,
    pub(crate) inherited: Counter,
    pub(crate) delivered: Counter,
    pub(crate) bounced: Counter,
    pub(crate) dropped: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) deferrals: Counter,
    pub(crate) attempts: Counter,
    pub(crate) connections: Counter,
    pub(crate) connections_open: Gauge,
    pub(crate) refused: Family<Reason, Counter>,
    pub(crate) suppressed: Counter,
    tls_sessions: Family<TlsResult, Counter>,
    pub(crate) tls_uncounted: Counter,
    tls_reports: Family<Ended, Counter>,
}

impl Metrics {
    pub(crate) fn new(branch: &Branch) -> Self {
        let counter = |name: &str, help: &str| branch.register(name, help, Counter::default());
        let gauge = |name: &str, help: &str| branch.register(name, help, <Gauge>::default());
        Self {
            sessions: counter("sessions", "SMTP sessions that began"),
            sessions_open: gauge("sessions_open", "SMTP sessions that are open"),
            accepted_mails: counter(
                "accepted_mails",
                "Mails committed and acknowledged, our own notices included",
            ),
            accepted_bytes: counter("accepted_bytes", "Octets of the mails committed and acknowledged"),
            accepted: counter(
                "accepted_recipients",
                "Recipients of the mails committed and acknowledged",
            ),
            inherited: counter(
                "inherited_recipients",
                "Recipients settled here whose mails an earlier life or another gateway had taken",
            ),
            delivered: counter("delivered_recipients", "Recipients whose next hop took the mail"),
            bounced: counter("bounced_recipients", "Recipients that failed for good"),
            dropped: counter(
                "dropped_recipients",
                "Recipients given up without a notice being possible",
            ),
            waiting: gauge(
                "waiting_recipients",
                "Recipients of mails taken in this life that are not settled yet",
            ),
            deferrals: counter("deferrals", "Deliveries put off after a failed attempt"),
            attempts: counter("attempts", "Attempts to deliver"),
            connections: counter("connections_out", "Connections made to next hops"),
            connections_open: gauge("connections_out_open", "Connections to next hops that are open"),
            refused: branch.register(
                "refused",
                "Commands refused by policy",
                Family::<Reason, Counter>::default(),
            ),
            suppressed: counter(
                "suppressed_addresses",
                "Addresses suppressed because their server says that there is no such mailbox",
            ),
            tls_sessions: branch.register(
                "tls_sessions",
                "Sessions with domains' mail servers, by how their TLS ended (RFC 8460)",
                Family::<TlsResult, Counter>::default(),
            ),
            tls_uncounted: counter(
                "tls_sessions_uncounted",
                "Sessions that are missing in TLS reports because there were too many different ones",
            ),
            tls_reports: branch.register(
                "tls_reports",
                "TLS reports to other domains, by place they were to be sent to",
                Family::<Ended, Counter>::default(),
            ),
        }
    }

    pub(crate) fn tls_session(&self, policy: PolicyType, result: &'static str) {
        let policy = policy.name();
        self.tls_sessions
            .get_or_create(&TlsResult { policy, result })
            .inc();
    }

    pub(crate) fn tls_report(&self, result: &'static str) {
        self.tls_reports.get_or_create(&Ended { result }).inc();
    }

    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}
