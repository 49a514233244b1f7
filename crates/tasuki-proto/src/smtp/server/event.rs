//! What the machine says and asks.

use bytes::Bytes;

use super::Credentials;
use crate::{
    names::Mailbox,
    smtp::{
        Envelope,
        data::{DataError, HeaderEnd},
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub(super) u32);

/// What the machine cannot decide by itself. The answer is the reply to the client: 2xx accepts, 421 also closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Are these credentials good? 235 or 535 (454 if it cannot be told now).
    Auth(Credentials),
    /// What is stored of this login's secrets, by [`super::Session::handle_scram`]; nothing of an unknown one, which looks
    /// the same from outside. A reply (4xx) if it cannot be told now.
    ScramKeys(String),
    /// The client has proved this of the keys of the last `ScramKeys`. 235, or 535 if it is not good for this.
    ScramProved(usize),
    /// The client has proved none of them. 535.
    ScramRefused,
    /// Whose is the client's certificate? Empty, or the name that it must be. 235 or 535 (454 if it cannot be told now).
    External(String),
    /// May this client start a mail with [`super::Session::envelope`]'s sender and parameters?
    Mail,
    /// May the mail go to this recipient?
    Recipient(Mailbox),
    /// May the data come (memory, disk)? Any positive answer becomes 354, or lets the first chunk in.
    Data,
}

/// What the shell has to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Write these octets.
    Reply(Bytes),
    /// Answer this.
    Ask(Ticket, Question),
    /// The next piece of the message; the first one starts with the whole header section, which `header` measures.
    Body {
        /// Octets, unstuffed.
        piece: Bytes,
        /// On the first piece only.
        header: Option<HeaderEnd>,
    },
    /// The message is refused for this (the client hears of it at the end of the data), or given up by the client
    /// between two chunks; drop its pieces.
    Discard(Option<DataError>),
    /// The message is complete. Answer after the commit, 250 or why not.
    MessageEnd(Ticket, Message),
    /// Write what was given so far, drop everything read, do the TLS handshake, then call [`super::Session::handle_tls`].
    StartTls,
    /// Write what was given so far and close.
    Close(Why),
}

/// A received message without its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// With the recipients that were accepted.
    pub envelope: Envelope,
    /// Octets, as handed out by [`Event::Body`].
    pub size: u64,
    /// Whether there are octets over 127, whatever the client declared.
    pub eight_bit: bool,
}

/// Why the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// QUIT.
    Quit,
    /// The client closed.
    PeerClosed,
    /// Nothing came for too long.
    Idle,
    /// The session as a whole lasted too long.
    TooLong,
    /// Message data came too slowly.
    TooSlow,
    /// Too many errors.
    TooManyErrors,
    /// Too many refused logins.
    TooManyAuthFailures,
    /// The gateway stops.
    Draining,
    /// Talked before the banner.
    EarlyTalker,
    /// Sent on where the protocol says to wait.
    Unsynchronised,
    /// Speaks another protocol.
    WrongProtocol,
    /// An answer said 421.
    Refused,
}
