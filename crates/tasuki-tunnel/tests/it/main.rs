//! Gateway and agent in one process, over real sockets, with the SQLite store in a temporary directory.
#![allow(clippy::unwrap_used)]

mod admission;
mod doctor;
mod fallback;
mod flows;
mod handover;
mod hostile;
mod limits;
mod path;
mod players;
mod proxied;
mod release;
mod resume;
mod scopes;
mod seen;
mod udp;
mod wake;
mod world;
