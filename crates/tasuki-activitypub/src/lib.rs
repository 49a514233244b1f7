//! The fediverse engine: an ActivityPub relay.
//!
//! An instance subscribes with `https://HOST/inbox`; from then on each public activity that it publishes is fanned out to
//! all other subscribed instances, and theirs to it. The engine serves the relay's documents, proves what comes in, decides,
//! stores one row for each activity, and delivers by durable lanes, one for each host.
//!
//! What it does not: wire formats and rules (pure, in `tasuki_proto::activitypub`), SQL (`tasuki-store`), TLS and ports (the
//! front door of `tasuki-core` hands requests in).
//!
//! **Invariants:** nobody publishes without a decision of [`policy`]; the signer is the actor; `202` is said after the
//! commit; no request leaves for a private address unless the operator allows it; a slow host holds up only itself.

mod applicants;
mod authors;
mod brake;
mod carried;
mod config;
mod engine;
mod fetch;
mod filters;
mod guard;
mod handle;
mod inbox;
mod joining;
mod keys;
mod lanes;
mod life;
mod metrics;
mod moderate;
mod moderation;
mod outage;
mod page;
mod policy;
mod problem;
mod publication;
mod publish;
mod purge;
mod receivers;
mod rotate;
mod routes;
mod scout;
mod selfservice;
mod signer;
mod statistics;
mod subscribe;
mod subscribers;
mod takeover;
mod time;
mod topics;
mod trail;
mod verify;

pub use applicants::Applicant;
pub use config::{FediConfig, Mode, TopicMode, TopicsConfig};
pub use engine::{Addrs, Engine};
pub use filters::FilterStatus;
pub use handle::{Handle, HandleError, Status, SubscriberStatus};
pub use lanes::{LaneStatus, SignatureUse};
pub use life::{DeadHost, PruneReport};
pub use moderate::{BlockListReport, Why};
pub use purge::{Purge, PurgeReport, Silencer};
pub use rotate::KeyRotation;
pub use signer::RELAY_KEY;
pub use takeover::{KeyOutcome, TakeoverReport};
pub use topics::ListStatus;
pub use trail::{Judged, Line, Sent};

/// How the relay names itself to other servers.
const USER_AGENT: &str = concat!("tasuki/", env!("CARGO_PKG_VERSION"));

/// A name for something new: 128 random bits in hexadecimal.
fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}
