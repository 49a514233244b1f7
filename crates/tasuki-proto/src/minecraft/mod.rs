//! The part of Minecraft's Java protocol that a relay must understand, and no more.
//!
//! It reads what a player says before the game begins (handshake, Login Start, the three legacy pings), finds the
//! name the player typed under every decoration that clients and proxies put around it, and writes the few answers a
//! relay gives by itself: a status page, a pong, a kick text. It does not read the game.
//!
//! Invariant: nothing here allocates more than the caller's limit, and no input can panic. Reading is a function of
//! the bytes so far, so the way they were split over packets never matters.

mod address;
mod edition;
mod legacy;
mod opening;
mod status;
mod texts;
mod varint;

#[cfg(test)]
mod tests;

pub use address::{Target, rebuild_address, target_of};
pub use edition::{Edition, begins_raknet};
pub use legacy::{LegacyPing, encode_legacy_reply};
pub use opening::{
    Handshake, LoginStart, NextState, Opening, OpeningError, OpeningLimits, read_opening, settle_legacy,
};
pub use status::{StatusPage, StatusTalk, TalkEvent, encode_login_disconnect};
pub use texts::Page;
pub use varint::{VarIntTooLong, read_varint, write_varint};
