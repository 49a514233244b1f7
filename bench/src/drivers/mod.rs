//! The parts of a run that are processes of their own.

pub(crate) mod dns;
pub(crate) mod fedi_hosts;
pub(crate) mod fedi_load;
pub(crate) mod fill_queue;
pub(crate) mod quic;
pub(crate) mod smtp_load;
pub(crate) mod smtp_sink;
pub(crate) mod tcp;
pub(crate) mod udp;

// The store's own measurements fill with the same.
#[path = "../../../crates/tasuki-store/benches/long_queue.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "a part of a run ends with the reason, as a test does"
)]
mod long_queue;
