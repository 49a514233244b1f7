//! The queue in an operator's hands: which part of it, and what is to become of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tasuki_proto::names::Mailbox;

use super::mail::{Envelope, LaneKey};
use crate::clock::Timestamp;
use crate::ids::{MailId, PrincipalId};

/// What an operator has ordered for a deferred delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// What it waits for.
    pub state: DeliveryState,
    /// The lane was chosen by an operator: it stays, whatever the configuration says.
    pub rerouted: bool,
}

/// What a deferred delivery waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// For its next attempt.
    #[default]
    Waiting,
    /// For its release. It still expires.
    Held,
    /// To be returned to its sender without another attempt.
    Bounce,
    /// To be dropped without telling anybody.
    Delete,
}

/// The states that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueState {
    /// Not tried to its end yet: it is in the memory of a gateway.
    Fresh,
    /// Waits for its next attempt.
    Deferred,
    /// Held by an operator.
    Held,
    /// About to be returned or dropped.
    Ending,
}

impl QueueState {
    /// All states, in the order of a mail's life.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Deferred, Self::Held, Self::Ending];

    /// The name in commands and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Deferred => "deferred",
            Self::Held => "held",
            Self::Ending => "ending",
        }
    }
}

impl From<DeliveryState> for QueueState {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Waiting => Self::Deferred,
            DeliveryState::Held => Self::Held,
            DeliveryState::Bounce | DeliveryState::Delete => Self::Ending,
        }
    }
}

/// An order for deferred deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Try them no more until they are released; they expire all the same.
    Hold,
    /// Try held ones again, now.
    Release,
    /// Try waiting ones now.
    Retry,
    /// Send them through this lane from now on, and try them now.
    Reroute(LaneKey),
    /// Return them to their senders.
    Bounce,
    /// Drop them; nobody is told.
    Delete,
}

impl Order {
    /// Whether it changes anything for a delivery in this state.
    #[must_use]
    pub fn applies_to(&self, state: DeliveryState) -> bool {
        match self {
            Self::Hold | Self::Retry => state == DeliveryState::Waiting,
            Self::Release => state == DeliveryState::Held,
            Self::Reroute(_) | Self::Bounce | Self::Delete => {
                matches!(state, DeliveryState::Waiting | DeliveryState::Held)
            }
        }
    }
}

/// One attempt that failed for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended, by the store's clock.
    pub at: Timestamp,
    /// Which one, from 1.
    pub attempt: u32,
    /// Through which lane.
    pub lane: LaneKey,
    /// What went wrong, in the peer's own words where it said any.
    pub words: String,
}

/// Which part of the queue. An absent field matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueFilter {
    /// Part of the reverse-path, without regard to case.
    pub sender: Option<String>,
    /// The recipients' domain.
    pub recipient_domain: Option<String>,
    /// Part of a recipient, without regard to case.
    pub recipient: Option<String>,
    /// Only this Message-ID, without angle brackets.
    pub message_id: Option<String>,
    /// Only this mail.
    pub mail: Option<MailId>,
    /// Only this state.
    pub state: Option<QueueState>,
    /// Only mail taken before this.
    pub taken_before: Option<Timestamp>,
    /// Only mail that this principal handed in.
    pub principal: Option<PrincipalId>,
    /// Only this lane.
    pub lane: Option<LaneKey>,
    /// Only these mails; none named means all.
    pub mails: BTreeSet<MailId>,
    /// Only ids after this one (paging).
    pub after: Option<MailId>,
}

impl QueueFilter {
    /// Whether a mail matches, as far as its envelope can tell.
    #[must_use]
    pub fn matches_mail(&self, id: MailId, envelope: &Envelope, accepted_at: Timestamp) -> bool {
        let sender = |part: &String| contains(&envelope.reverse_path.to_string(), part);
        self.mail.is_none_or(|wanted| wanted == id)
            && (self.mails.is_empty() || self.mails.contains(&id))
            && self.after.is_none_or(|after| id > after)
            && self.taken_before.is_none_or(|before| accepted_at < before)
            && self
                .principal
                .is_none_or(|wanted| envelope.principal == Some(wanted))
            && self.sender.as_ref().is_none_or(sender)
            && self
                .message_id
                .as_ref()
                .is_none_or(|wanted| envelope.message_id() == Some(wanted))
    }

    /// Whether one of its deliveries matches.
    #[must_use]
    pub fn matches_delivery<'a>(
        &self,
        lane: &LaneKey,
        state: QueueState,
        recipients: impl Iterator<Item = &'a Mailbox> + Clone,
    ) -> bool {
        let in_domain = |wanted: &String| {
            recipients
                .clone()
                .filter_map(Mailbox::domain)
                .any(|d| d.as_str().eq_ignore_ascii_case(wanted))
        };
        let named = |part: &String| recipients.clone().any(|r| contains(&r.to_string(), part));
        self.lane.as_ref().is_none_or(|wanted| wanted == lane)
            && self.state.is_none_or(|wanted| wanted == state)
            && self.recipient_domain.as_ref().is_none_or(in_domain)
            && self.recipient.as_ref().is_none_or(named)
    }
}

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

/// How much of the queue matches a filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueMatch {
    /// Mails with at least one delivery that matches.
    pub mails: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// Those among them that are fresh.
    pub fresh: u64,
    /// Bytes of the mails' bodies.
    pub size_bytes: u64,
}

/// What an order did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Deliveries that it changed.
    pub deliveries: u64,
    /// The last mail that was looked at, if there may be more behind it.
    pub after: Option<MailId>,
}

/// A lane to which nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// The lane.
    pub lane: LaneKey,
    /// Since when.
    pub since: Timestamp,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub reason: String,
}
