//! What a player's client calls "server address": the name that was typed, under several decorations.
//!
//! Two readings of it, and they differ on purpose. [`target_of`] finds the name to route by. [`rebuild_address`] makes
//! the address that the local server gets to see: a server behind BungeeCord, Floodgate or TCPShield believes what
//! stands after the name (the player's address and identity), and a player can type that too, so only marks that carry
//! no identity survive.

use std::net::IpAddr;

use crate::names::{Domain, DomainError};

/// Where an address points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name to look up.
    Name(Domain),
    /// Nothing, or an IP address: the player typed the gateway itself.
    Default,
    /// Not a host name in any reading.
    Invalid,
}

/// Finds the name in a client's address. The order matters: each decoration is put around what the earlier ones left.
pub fn target_of(raw: &str) -> Target {
    let text = undecorated(raw);
    // Typed SRV owner names reach us from some launchers.
    let text = text.strip_suffix('.').unwrap_or(text);
    let text = match text.get(..SRV_PREFIX.len()) {
        Some(head) if head.eq_ignore_ascii_case(SRV_PREFIX) => &text[SRV_PREFIX.len()..],
        _ => text,
    };
    let text = without_port(text);
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Target::Default;
    }
    match Domain::parse(text) {
        Ok(name) => Target::Name(name),
        // Digits in other scripts make an address too: no name, but it says "the gateway itself".
        Err(DomainError::Address) => Target::Default,
        Err(_) => Target::Invalid,
    }
}

/// The address to show to a local server: the typed name and, if it stood right behind it, a mod loader's mark.
/// Everything that claims an identity (BungeeCord's `\0ip\0uuid`, Floodgate, TCPShield's `///`) is left out.
pub fn rebuild_address(raw: &str) -> String {
    let name = undecorated(raw);
    match raw.split_once('\0').and_then(|(_, tail)| loader_mark(tail)) {
        Some(mark) => format!("{name}\0{mark}"),
        None => name.to_owned(),
    }
}

const SRV_PREFIX: &str = "_minecraft._tcp.";

/// Cuts at the first NUL (Forge, Floodgate, BungeeCord), at `///` (TCPShield), at `\` (infinity-filter).
fn undecorated(raw: &str) -> &str {
    let text = raw.split('\0').next().unwrap_or("");
    let text = text.split("///").next().unwrap_or("");
    text.split('\\').next().unwrap_or("")
}

/// `FML\0`, `FML2\0`, `FML3\0` of Forge up to 1.20.1, `FORGE`, `FORGE2` after it: the mark with its own ending.
fn loader_mark(tail: &str) -> Option<&str> {
    let (mark, closed) = match tail.split_once('\0') {
        Some((mark, _)) => (mark, true),
        None => (tail, false),
    };
    let digits = mark.strip_prefix("FML").or_else(|| mark.strip_prefix("FORGE"))?;
    let known = digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
    known.then(|| &tail[..mark.len() + usize::from(closed)])
}

fn without_port(text: &str) -> &str {
    if let Some(inside) = text.strip_prefix('[') {
        return inside.split(']').next().unwrap_or("");
    }
    match text.split_once(':') {
        // More than one colon is an IPv6 address without brackets.
        Some((host, port)) if !port.contains(':') => host,
        _ => text,
    }
}
