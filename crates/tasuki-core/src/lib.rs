//! Policy and plumbing that the three engines share.
//!
//! What is here: configuration types and reload, identity, access control, limits, bans, sealed secrets, events,
//! metrics, TLS, the front door of the web ports, the accept loop, the CPU pool, the byte budget, clock and shutdown,
//! and the storage traits (SQL itself lives only in `tasuki-store`).
//!
//! What is not here: protocol logic (pure, in `tasuki-proto`) and anything that one engine alone needs.
//!
//! The agent links this crate too, on systems that are no Unix as well: what only a gateway needs of Unix is in modules
//! behind `cfg(unix)`, what else differs is in `os`.
//!
//! **Invariant:** engines do not know each other; they meet only through the types of this crate.

#[cfg(unix)]
pub mod accept;
pub mod accounts;
pub mod acl;
pub mod bans;
pub mod budget;
pub mod clock;
pub mod config;
pub mod engine;
pub mod events;
pub mod failure;
pub mod files;
#[cfg(unix)]
pub mod front;
#[cfg(unix)]
pub mod handover;
pub mod health;
pub mod ids;
pub mod limits;
pub mod metrics;
pub mod net;
mod os;
pub mod pool;
pub mod resolver;
pub mod seal;
pub mod shutdown;
#[cfg(unix)]
pub mod sockets;
pub mod store;
pub mod tls;

#[cfg(unix)]
pub use engine::Deps;
pub use engine::{Applied, BuildError, EngineKind, Shared, Snapshot};
