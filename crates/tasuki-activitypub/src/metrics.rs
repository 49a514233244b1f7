//! What the engine counts. The sums add up: every received activity has one outcome, and every delivery that was due ends
//! as delivered, refused, parked, lost or blanked, or is still waiting.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tasuki_core::metrics::Branch;

/// The one outcome of a received activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Committed for other hosts.
    Relayed,
    /// A Follow, Undo, Accept or Reject that was for the relay itself.
    Subscription,
    /// Known already.
    Duplicate,
    /// Taken and not relayed, by the table or because nobody else is subscribed; the reason is a label of the table.
    Dropped(&'static str),
    /// Refused: not allowed, or not proven.
    Refused,
    /// Refused: not understood.
    Malformed,
    /// Put off: the store or a key is away, or there is too much at once.
    PutOff,
}

impl Outcome {
    /// The label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Subscription => "subscription",
            Self::Duplicate => "duplicate",
            Self::Dropped(why) => why,
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::PutOff => "put_off",
        }
    }

    /// What it means, for the operator.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Relayed => "relayed to the subscribers",
            Self::Subscription => "about the subscription itself",
            Self::Duplicate => "the same request, or the same news, came before",
            Self::Dropped("not_public") => "not relayed: it is not addressed to everybody",
            Self::Dropped("unsigned") => {
                "not relayed: without a Linked Data signature nobody believes a change that somebody else brings \
                 (secure mode at the author's server?)"
            }
            Self::Dropped("boost") => "not relayed: boosts by people are not",
            Self::Dropped("kind") => "not relayed: activities of this type are not",
            Self::Dropped("no_receivers") => "not relayed: nobody else is subscribed",
            Self::Dropped("silenced") => "not relayed: a filter of this relay matches",
            Self::Dropped("not_subscribed" | "unknown_signer") => {
                "taken and forgotten: its host is not subscribed"
            }
            Self::Dropped("gone") => "taken and forgotten: its actor or object is gone",
            Self::Dropped("opted_out") => {
                "not relayed: the author does not want to be (bio or search setting)"
            }
            Self::Dropped("domain_opted_out") => {
                "not relayed: the domain it comes from, or of the post that it boosts, does not want to be"
            }
            Self::Dropped("boosts_blocked") => "not relayed: it boosts a post of a host that is blocked here",
            Self::Dropped("from_relay") => {
                "not relayed: another relay announced it, and relays do not feed relays"
            }
            Self::Dropped("filtered") => "not relayed: the filters of all who would get it leave it out",
            Self::Dropped("off_topic") => {
                "not relayed: its host joined topics only, and it belongs to none of them"
            }
            Self::Dropped("foreign_object") => "not relayed: a server announces only its own posts here",
            Self::Dropped(_) => "taken and not relayed",
            Self::Refused => "refused",
            Self::Malformed => "not understood",
            Self::PutOff => "put off",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// The engine's counters; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    received: Family<OutcomeLabel, Counter>,
    /// Deliveries that became due: one for each entry and host.
    pub(crate) due: Counter,
    pub(crate) delivered: Counter,
    pub(crate) refused: Counter,
    pub(crate) retried: Counter,
    pub(crate) parked: Counter,
    pub(crate) lost: Counter,
    pub(crate) blanked: Counter,
    pub(crate) subscribers: Gauge,
    pub(crate) hosts_behind: Gauge,
    /// Acceptance to the end of a delivery.
    pub(crate) delay: Histogram,
    pub(crate) keys_fetched: Counter,
}

impl Metrics {
    pub(crate) fn register(branch: &Branch) -> Self {
        Self {
            received: branch.register(
                "activities_received",
                "Requests to the inbox by outcome",
                Family::default(),
            ),
            due: branch.register(
                "deliveries_due",
                "Deliveries that became due, one for each activity and host",
                Counter::default(),
            ),
            delivered: branch.register(
                "deliveries_done",
                "Deliveries that a host took",
                Counter::default(),
            ),
            refused: branch.register(
                "deliveries_refused",
                "Deliveries that a host refused for good",
                Counter::default(),
            ),
            retried: branch.register(
                "deliveries_retried",
                "Attempts that failed and are repeated",
                Counter::default(),
            ),
            parked: branch.register(
                "deliveries_parked",
                "Deliveries set aside after three failures while the host took others",
                Counter::default(),
            ),
            lost: branch.register(
                "deliveries_lost",
                "Deliveries that the end of the retention time or of the log's size took away",
                Counter::default(),
            ),
            blanked: branch.register(
                "deliveries_blanked",
                "Deliveries with nothing left to send: a Delete blanked them, or the host takes no Deletes",
                Counter::default(),
            ),
            subscribers: branch.register("subscribers", "Hosts that receive", Gauge::default()),
            hosts_behind: branch.register(
                "hosts_behind",
                "Hosts that do not have everything yet",
                Gauge::default(),
            ),
            delay: branch.register(
                "delivery_delay_seconds",
                "Time from acceptance to delivery",
                Histogram::new(exponential_buckets(0.005, 4.0, 10)),
            ),
            keys_fetched: branch.register(
                "keys_fetched",
                "Keys asked from other servers",
                Counter::default(),
            ),
        }
    }

    /// How many received activities ended so, since the start.
    pub(crate) fn count_of(&self, outcome: Outcome) -> u64 {
        self.received.get_or_create(&OutcomeLabel { outcome }).get()
    }

    pub(crate) fn received(&self, outcome: Outcome) {
        self.received.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
