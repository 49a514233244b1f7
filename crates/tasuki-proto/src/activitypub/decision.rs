//! What is sent to whom: the table of the relay, as one pure function.

use super::activity::{Activity, Kind, LdSignature};

/// What the operator of a relay may want beyond the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Relay posts that have Public in `cc` only.
    pub unlisted: bool,
    /// Relay boosts by people. Each makes every subscriber fetch the boosted post.
    pub boosts: bool,
}

/// How a subscriber takes what the relay sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Mastodon, Misskey: the author's own bytes, believed by their Linked Data signature; an Announce when they have none.
    Forward,
    /// Pleroma, Akkoma and whoever refuses other people's activities: an Announce of the object, which they fetch.
    Announce,
}

/// What happens to one activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// For subscribers that take forwards.
    pub to_forward: Action,
    /// For subscribers that take announces.
    pub to_announce: Action,
}

impl Decision {
    const fn both(action: Action) -> Self {
        Self {
            to_forward: action,
            to_announce: action,
        }
    }

    /// The column for one subscriber.
    pub fn for_subscriber(self, delivery: Delivery) -> Action {
        match delivery {
            Delivery::Forward => self.to_forward,
            Delivery::Announce => self.to_announce,
        }
    }
}

/// One cell of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The received bytes.
    Forward,
    /// An Announce of the object, written by the relay.
    Announce,
    /// Nothing, and it is counted why.
    Drop(Why),
}

/// Why an activity goes no further. A closed set: it is a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Not addressed to Public in `to`.
    NotPublic,
    /// An Update, Delete, Undo, Move, Add or Remove without a Linked Data signature: nobody would believe it.
    Unsigned,
    /// It cannot be announced, and this subscriber takes nothing else.
    CannotBeAnnounced,
    /// A person's boost: each would make every subscriber fetch the boosted post.
    Boost,
    /// A type that relays do not carry.
    Kind,
}

impl Why {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotPublic => "not_public",
            Self::Unsigned => "unsigned",
            Self::CannotBeAnnounced => "cannot_be_announced",
            Self::Boost => "boost",
            Self::Kind => "kind",
        }
    }
}

/// The table (FEP-ae0c and what servers accept).
///
/// | incoming | signed by its actor | not signed |
/// |---|---|---|
/// | Create | forward, or announce | announce to all |
/// | Update, Delete, Undo, Move, Add, Remove | forward, or nothing | nothing |
/// | Announce by a person | nothing (an option: forward) | nothing |
///
/// A LitePub relay's Announce is not asked about here: it is fetched, checked and announced by its own path.
pub fn decide(activity: &Activity, options: Options) -> Decision {
    if !activity.is_public(options.unlisted) {
        return Decision::both(Action::Drop(Why::NotPublic));
    }
    let signed = activity.ld_signature == LdSignature::ByActor;
    match activity.kind {
        Kind::Create if signed => Decision {
            to_forward: Action::Forward,
            to_announce: Action::Announce,
        },
        Kind::Create => Decision::both(Action::Announce),
        Kind::Update | Kind::Delete | Kind::Undo | Kind::Move | Kind::Add | Kind::Remove if signed => {
            Decision {
                to_forward: Action::Forward,
                to_announce: Action::Drop(Why::CannotBeAnnounced),
            }
        }
        Kind::Update | Kind::Delete | Kind::Undo | Kind::Move | Kind::Add | Kind::Remove => {
            Decision::both(Action::Drop(Why::Unsigned))
        }
        Kind::Announce if options.boosts && signed => Decision {
            to_forward: Action::Forward,
            to_announce: Action::Drop(Why::CannotBeAnnounced),
        },
        Kind::Announce if options.boosts => Decision::both(Action::Drop(Why::Unsigned)),
        Kind::Announce => Decision::both(Action::Drop(Why::Boost)),
        Kind::Follow | Kind::Accept | Kind::Reject | Kind::Other => Decision::both(Action::Drop(Why::Kind)),
    }
}
