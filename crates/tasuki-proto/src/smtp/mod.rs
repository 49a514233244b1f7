//! SMTP, both sides, as values: the server session, the client, the receiver of message data, delivery notices.
//!
//! The machines follow RFC 5321 and the extensions they advertise, and nothing else. They keep three promises that a
//! relay stands on: only `CRLF . CRLF` ends a message (in and out), the final reply to DATA is never given before the
//! shell answers for the message, and nothing a peer sends is echoed, buffered without bound, or able to panic.

pub mod client;
pub mod data;
mod date;
pub mod dkim;
pub mod dmarc;
pub mod dsn;
mod envelope;
pub mod header;
pub mod mta_sts;
pub mod pace;
mod params;
mod reply;
pub mod server;
pub mod spf;
pub mod tlsrpt;
mod xtext;
pub mod zone;

pub use date::rfc5322_date;
pub use envelope::{
    BadOriginalRecipient, BodyType, Envelope, Notify, OriginalRecipient, Recipient, ReturnPart,
};
pub use params::{ForwardPath, ParamError, parse_mail, parse_mailbox, parse_rcpt};
pub use reply::{EnhancedCode, Reply, ReplyError, ReplyParser};
pub use xtext::{decode_xtext, encode_xtext};
