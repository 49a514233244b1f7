//! The replies of the machine itself. Policy brings its own.

use bytes::BytesMut;

use super::ServerConfig;
use crate::smtp::Reply;

pub(super) const OK: Reply = Reply::new(250, (2, 0, 0), "ok");
pub(super) const START_TLS: Reply = Reply::new(220, (2, 0, 0), "ready to start TLS");
pub(super) const BYE: Reply = Reply::new(221, (2, 0, 0), "bye");
// RFC 5321 3.5.3: 252 says neither yes nor no.
pub(super) const VRFY: Reply = Reply::new(252, (2, 0, 0), "send the mail and see");
pub(super) const HELP: Reply = Reply::new(
    214,
    (2, 0, 0),
    "EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT",
);

pub(super) const DRAINING: Reply = Reply::new(421, (4, 3, 2), "shutting down, come back in a minute");
pub(super) const IDLE: Reply = Reply::new(421, (4, 4, 2), "nothing came for too long, closing");
pub(super) const SESSION_TOO_LONG: Reply = Reply::new(421, (4, 4, 2), "the session lasted too long, closing");
pub(super) const TOO_SLOW: Reply = Reply::new(421, (4, 4, 2), "the message comes too slowly, closing");
pub(super) const TOO_MANY_ERRORS: Reply = Reply::new(421, (4, 7, 0), "too many errors, closing");
pub(super) const TOO_MANY_AUTH_FAILURES: Reply =
    Reply::new(421, (4, 7, 0), "too many refused logins, closing");
pub(super) const TOO_MANY_RECIPIENTS: Reply =
    Reply::new(452, (4, 5, 3), "too many recipients, send the rest apart");

pub(super) const LINE_TOO_LONG: Reply = Reply::new(500, (5, 5, 2), "the command line is too long");
pub(super) const BAD_HELO: Reply = Reply::new(
    501,
    (5, 5, 4),
    "EHLO and HELO need a host name or address literal",
);
pub(super) const NOT_IMPLEMENTED: Reply = Reply::new(502, (5, 5, 1), "command not implemented");
pub(super) const BAD_SEQUENCE: Reply = Reply::new(503, (5, 5, 1), "not at this point of the session");
pub(super) const HELO_FIRST: Reply = Reply::new(503, (5, 5, 1), "send EHLO first");
pub(super) const MAIL_FIRST: Reply = Reply::new(503, (5, 5, 1), "send MAIL first");
pub(super) const NESTED_MAIL: Reply =
    Reply::new(503, (5, 5, 1), "a mail is already under way, RSET drops it");
pub(super) const CHUNKS_UNDER_WAY: Reply =
    Reply::new(503, (5, 5, 1), "the message comes by BDAT already, RSET drops it");
// Where the chunk ends cannot be told, so nothing after it can be read.
pub(super) const BAD_CHUNK: Reply = Reply::new(501, (5, 5, 4), "syntax: BDAT octets [LAST]; closing");
pub(super) const NO_RECIPIENTS: Reply = Reply::new(554, (5, 5, 1), "no valid recipients");
pub(super) const AUTH_FAILED: Reply = Reply::new(535, (5, 7, 8), "authentication failed");
pub(super) const AUTH_NEEDS_TLS: Reply = Reply::new(538, (5, 7, 11), "encryption required: STARTTLS first");
pub(super) const EARLY_TALKER: Reply = Reply::new(554, (5, 5, 1), "wait for the greeting before you talk");
pub(super) const UNSYNCHRONISED: Reply = Reply::new(
    554,
    (5, 5, 1),
    "wait for the reply to this command before you send more",
);
pub(super) const WRONG_PROTOCOL: Reply = Reply::new(554, (5, 5, 1), "this is a mail server");

/// What EHLO may offer at this point of the session.
#[derive(Clone, Copy)]
pub(super) struct Offers {
    pub(super) starttls: bool,
    pub(super) auth: bool,
    pub(super) scram: bool,
    pub(super) plus: bool,
    pub(super) external: bool,
    pub(super) require_tls: bool,
}

/// EHLO's reply; every line is true at this point of the session.
pub(super) fn write_ehlo(config: &ServerConfig, offers: Offers, out: &mut BytesMut) {
    use std::fmt::Write as _;
    // Writing to a BytesMut cannot fail; it grows.
    let _ = write!(
        out,
        "250-{}\r\n250-PIPELINING\r\n250-SIZE {}\r\n",
        config.host, config.data.max_size
    );
    if offers.starttls {
        out.extend_from_slice(b"250-STARTTLS\r\n");
    }
    if offers.auth {
        out.extend_from_slice(b"250-AUTH PLAIN LOGIN");
        if offers.scram {
            out.extend_from_slice(b" SCRAM-SHA-256");
        }
        if offers.scram && offers.plus {
            out.extend_from_slice(b" SCRAM-SHA-256-PLUS");
        }
        if offers.external {
            out.extend_from_slice(b" EXTERNAL");
        }
        out.extend_from_slice(b"\r\n");
    }
    if offers.require_tls {
        out.extend_from_slice(b"250-REQUIRETLS\r\n");
    }
    // RFC 9422 4.1: a limit has one to six digits; a larger one is none.
    if config.max_recipients < 1_000_000 {
        let _ = write!(out, "250-LIMITS RCPTMAX={}\r\n", config.max_recipients);
    }
    out.extend_from_slice(
        b"250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 DSN\r\n",
    );
}
