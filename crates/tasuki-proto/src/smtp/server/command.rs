//! One command line: its octets judged, its verb known, its argument cut out.

use super::auth::AuthError;
use crate::smtp::Reply;

/// Longest line of any kind, with CRLF: a SASL answer (RFC 4954 4.2).
pub(super) const MAX_LINE: usize = 12_288;
/// MAIL and RCPT with the parameters we advertise: 512 for the command (RFC 5321 4.5.3.1.4), and SIZE 26 (RFC 1870),
/// SMTPUTF8 10 and a path of UTF-8 (RFC 6531), AUTH 500 (RFC 4954), ENVID and RET, or NOTIFY and ORCPT 500 (RFC 3461).
const MAX_PATH_COMMAND: usize = 2048;
/// All others (RFC 5321 4.5.3.1.4).
const MAX_COMMAND: usize = 512;

/// A command with its argument.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Ehlo(&'a str),
    Helo(&'a str),
    StartTls,
    Auth(&'a str, Option<&'a str>),
    Mail(&'a str),
    Rcpt(&'a str),
    Data,
    Bdat(&'a str),
    Rset,
    Noop,
    Vrfy,
    Expn,
    Help,
    Quit,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineError {
    BareLf,
    TooLong,
    Control,
    NotAscii,
    Unknown,
    UnexpectedArgument,
    MissingArgument,
    OtherProtocol,
    Auth(AuthError),
}

impl LineError {
    pub(super) fn reply(self) -> Reply {
        match self {
            Self::BareLf => Reply::new(500, (5, 5, 2), "a command ends with CRLF, not with a bare LF"),
            Self::TooLong => super::replies::LINE_TOO_LONG,
            Self::Control => Reply::new(500, (5, 5, 2), "a control character in the command"),
            Self::NotAscii => Reply::new(500, (5, 5, 2), "the command is not ASCII"),
            Self::Unknown => Reply::new(500, (5, 5, 1), "command not recognised"),
            Self::UnexpectedArgument => Reply::new(501, (5, 5, 4), "this command takes no argument"),
            Self::MissingArgument => Reply::new(501, (5, 5, 4), "this command needs an argument"),
            Self::OtherProtocol => super::replies::WRONG_PROTOCOL,
            Self::Auth(error) => error.reply(),
        }
    }
}

/// Whether the line is a RCPT, before anything else about it is known.
pub(super) fn is_rcpt(line: &[u8]) -> bool {
    line.get(..4)
        .is_some_and(|verb| verb.eq_ignore_ascii_case(b"RCPT"))
}

/// Parses a line that ends with LF.
pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, LineError> {
    let text = text(line)?;
    let (verb, argument) = match text.split_once(' ') {
        Some((verb, argument)) => (verb, argument.trim_matches(' ')),
        None => (text, ""),
    };
    let mut upper = [0; 8];
    let known = upper.get_mut(..verb.len()).map(|upper| {
        upper.copy_from_slice(verb.as_bytes());
        upper.make_ascii_uppercase();
        &*upper
    });
    let verb = known.unwrap_or_default();
    let limit = match verb {
        b"MAIL" | b"RCPT" => MAX_PATH_COMMAND,
        b"AUTH" => MAX_LINE,
        _ => MAX_COMMAND,
    };
    if line.len() > limit {
        return Err(LineError::TooLong);
    }
    if !text.is_ascii() && !matches!(verb, b"MAIL" | b"RCPT") {
        return Err(LineError::NotAscii);
    }
    let bare = |command| {
        if argument.is_empty() {
            Ok(command)
        } else {
            Err(LineError::UnexpectedArgument)
        }
    };
    match verb {
        b"EHLO" => Ok(Command::Ehlo(argument)),
        b"HELO" => Ok(Command::Helo(argument)),
        b"STARTTLS" => bare(Command::StartTls),
        b"AUTH" => auth(argument),
        b"MAIL" => Ok(Command::Mail(argument)),
        b"RCPT" => Ok(Command::Rcpt(argument)),
        b"DATA" => bare(Command::Data),
        b"BDAT" => Ok(Command::Bdat(argument)),
        b"RSET" => bare(Command::Rset),
        b"QUIT" => bare(Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help),
        b"EXPN" => Ok(Command::Expn),
        b"VRFY" if argument.is_empty() => Err(LineError::MissingArgument),
        b"VRFY" => Ok(Command::Vrfy),
        // A browser or proxy that was talked into speaking to us; its "body" would come as commands.
        b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" => Err(LineError::OtherProtocol),
        _ => Err(LineError::Unknown),
    }
}

fn auth(argument: &str) -> Result<Command<'_>, LineError> {
    let mut words = argument.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some(""), ..) => Err(LineError::MissingArgument),
        (Some(mechanism), initial, None) => Ok(Command::Auth(mechanism, initial)),
        _ => Err(LineError::UnexpectedArgument),
    }
}

/// The text of a client's line within an AUTH exchange.
pub(super) fn auth_answer(line: &[u8]) -> Result<&str, LineError> {
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong);
    }
    text(line)
}

/// The line without CRLF, free of control characters.
fn text(line: &[u8]) -> Result<&str, LineError> {
    let line = line.strip_suffix(b"\r\n").ok_or(LineError::BareLf)?;
    if line.iter().any(|b| b.is_ascii_control()) {
        return Err(LineError::Control);
    }
    std::str::from_utf8(line).map_err(|_| LineError::NotAscii)
}

/// RFC 5321 4.1.1.1 wants a domain or an address literal. Real clients say what their host is called, so any text of
/// letters, digits and the punctuation of names and literals will do; it is never trusted.
pub(super) fn is_helo_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(ok)
}
