//! Pure protocol machines and codecs: bytes and values in, events and commands out.
//!
//! Nothing here opens a socket, reads a clock, touches a disk or rolls dice: `now` and seeds are arguments, effects are
//! the caller's. That makes every protocol rule testable by a dialogue, and every machine safe to feed with anything.

pub mod activitypub;
pub mod backoff;
pub mod client_hello;
pub mod dns;
pub mod minecraft;
pub mod names;
pub mod oauth;
pub mod proxy_protocol;
pub mod scram;
pub mod smtp;
pub mod tunnel;
