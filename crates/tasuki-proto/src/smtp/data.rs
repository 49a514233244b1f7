//! Message data on the wire: the receiver behind DATA and BDAT, and the dot-stuffing sender.
//!
//! Only `CRLF . CRLF` ends a message, and a first line of a single dot ends an empty one (RFC 5321 4.1.1.4). Anything
//! else that some server somewhere takes for an end (`LF . LF`, `CR . CR`, `CRLF . CR CRLF`, a NUL in between) makes the
//! message refused, after reading on to the true end, so that what follows is never mistaken for commands.

use bytes::{Buf, Bytes, BytesMut};

use super::Reply;

mod nesting;
#[cfg(test)]
mod tests;

use nesting::Nesting;

/// What a message may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataLimits {
    /// Most octets of a message, after dot-unstuffing.
    pub max_size: u64,
    /// Most octets of a text line, with CRLF (RFC 5321 4.5.3.1.6 says 1000).
    pub max_line: usize,
    /// Most octets of the header section.
    pub max_header_size: usize,
    /// Most lines of the header section.
    pub max_header_lines: usize,
    /// Most multiparts and enclosed messages within each other.
    pub max_mime_depth: usize,
    /// Take a bare LF for a line end, for old devices; it is never part of the end of the data. Otherwise it is refused.
    pub repair_bare_lf: bool,
    /// Most `Received` fields before the message counts as looping (RFC 5321 6.3).
    pub max_received: usize,
}

impl Default for DataLimits {
    fn default() -> Self {
        Self {
            max_size: 25 * 1024 * 1024,
            max_line: 1000,
            max_header_size: 256 * 1024,
            max_header_lines: 1000,
            max_mime_depth: 100,
            max_received: 50,
            repair_bare_lf: false,
        }
    }
}

/// Why a message is refused. The first reason found is kept; the receiver reads on to the true end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// LF without CR before it.
    #[error("the message has a bare LF")]
    BareLf,
    /// CR without LF after it.
    #[error("the message has a bare CR")]
    BareCr,
    /// A NUL octet.
    #[error("the message has a NUL octet")]
    Nul,
    /// A line over the limit.
    #[error("the message has a line that is too long")]
    LineTooLong,
    /// Over the size limit.
    #[error("the message is too big")]
    TooBig,
    /// Header section over its limits.
    #[error("the header section is too long")]
    HeaderTooLong,
    /// Too many parts within each other.
    #[error("the parts of the message are nested too deeply")]
    TooDeep,
    /// Too many `Received` fields.
    #[error("the message has passed too many hops")]
    Loop,
}

impl DataError {
    /// The final reply to DATA.
    pub fn reply(self) -> Reply {
        match self {
            Self::BareLf => Reply::new(550, (5, 5, 2), "bare LF in the message; lines end with CRLF"),
            Self::BareCr => Reply::new(550, (5, 5, 2), "bare CR in the message; lines end with CRLF"),
            Self::Nul => Reply::new(550, (5, 5, 2), "NUL octet in the message"),
            Self::LineTooLong => Reply::new(550, (5, 6, 0), "a line of the message is too long"),
            Self::TooBig => Reply::new(552, (5, 3, 4), "the message is over the size limit"),
            Self::HeaderTooLong => Reply::new(552, (5, 3, 4), "the header section is over its limit"),
            Self::TooDeep => Reply::new(554, (5, 6, 0), "the parts of the message are nested too deeply"),
            Self::Loop => Reply::new(554, (5, 4, 6), "too many hops, this message is looping"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// After CRLF, or at the very beginning.
    LineStart,
    /// After a bare LF that was repaired: a line starts, and no end of the data does.
    LfStart,
    /// After a dot at such a line start.
    LfDot,
    /// Within a line.
    Text,
    /// After a CR that is not yet judged.
    Cr,
    /// After a dot that starts a line.
    Dot,
    /// After a dot that starts a line, and CR.
    DotCr,
}

/// Where the header section of a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeaderEnd {
    /// Octets of the header fields, without the empty line.
    pub len: usize,
    /// Whether an empty line follows; if not, the body starts at once (or there is none).
    pub separated: bool,
}

/// Receives one message: feed it, take what it has decoded, ask for its end.
#[derive(Debug)]
pub struct DataReceiver {
    limits: DataLimits,
    /// Whether a dot at a line start means anything: after DATA, not in chunks (RFC 3030 2).
    dots: bool,
    at: At,
    out: BytesMut,
    size: u64,
    line_len: usize,
    /// Start of the current line in `out`, while the header section lasts.
    line_start: usize,
    header_lines: usize,
    received: usize,
    nesting: Nesting,
    header: Option<HeaderEnd>,
    eight_bit: bool,
    failure: Option<DataError>,
    ended: bool,
}

impl DataReceiver {
    /// A receiver at the octet after `354`'s CRLF.
    pub fn new(limits: DataLimits) -> Self {
        Self {
            limits,
            dots: true,
            at: At::LineStart,
            out: BytesMut::new(),
            size: 0,
            line_len: 0,
            line_start: 0,
            header_lines: 0,
            received: 0,
            nesting: Nesting::new(limits.max_mime_depth),
            header: None,
            eight_bit: false,
            failure: None,
            ended: false,
        }
    }

    /// A receiver for BDAT: its end is told by [`DataReceiver::finish`], and dots are dots. Line ends are as strict as
    /// after DATA, since BINARYMIME is not offered (RFC 3030 3).
    pub fn chunked(limits: DataLimits) -> Self {
        Self {
            dots: false,
            ..Self::new(limits)
        }
    }

    /// Takes a part of a chunk.
    pub fn receive_chunk(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() {
            let used = match self.at {
                At::Text => self.text(octets),
                _ => self.octet(octets[0]),
            };
            octets = &octets[used..];
        }
    }

    /// The last chunk is over. A last line without CRLF gets one: what is stored are whole lines.
    pub fn finish(&mut self) {
        match self.at {
            At::Cr => self.fail(DataError::BareCr),
            At::Text => {
                self.keep(b"\r\n");
                self.line_end();
            }
            At::LineStart | At::LfStart | At::LfDot | At::Dot | At::DotCr => {}
        }
        self.end();
    }

    /// Takes input up to the end of the message; returns whether the end was there. What follows it stays in `input`.
    pub fn receive(&mut self, input: &mut BytesMut) -> bool {
        while !self.ended && !input.is_empty() {
            let used = match self.at {
                At::Text => self.text(input),
                _ => self.octet(input[0]),
            };
            input.advance(used);
        }
        self.ended
    }

    /// Whether the header section is complete, so that [`DataReceiver::take`] may begin with all of it.
    pub fn header(&self) -> Option<HeaderEnd> {
        self.header
    }

    /// Octets decoded and not yet taken.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Takes what is decoded. Not before the header section is complete, so that the first piece holds all of it.
    pub fn take(&mut self) -> Bytes {
        if self.header.is_none() {
            Bytes::new()
        } else {
            self.out.split().freeze()
        }
    }

    /// The first reason to refuse the message.
    pub fn failure(&self) -> Option<DataError> {
        self.failure
    }

    /// Octets of the message so far, unstuffed; counted on after a failure.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether any octet is over 127.
    pub fn is_eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// The run of ordinary octets at the front of `input`, and the CRLF after it where it is all there.
    fn text(&mut self, input: &[u8]) -> usize {
        let Some(run) = memchr::memchr3(b'\r', b'\n', 0, input) else {
            self.keep(input);
            return input.len();
        };
        if input[run..].starts_with(b"\r\n") {
            self.keep(&input[..run + 2]);
            self.line_end();
            return run + 2;
        }
        self.keep(&input[..run]);
        match input[run] {
            b'\r' => self.at = At::Cr,
            b'\n' if self.limits.repair_bare_lf => {
                self.keep(b"\r\n");
                self.line_end();
                self.at = At::LfStart;
            }
            b'\n' => self.odd(DataError::BareLf, b"\n"),
            _ => self.odd(DataError::Nul, b"\0"),
        }
        run + 1
    }

    /// One octet in a state where it may mean something.
    fn octet(&mut self, b: u8) -> usize {
        match (self.at, b) {
            (At::LineStart, b'.') if self.dots => self.at = At::Dot,
            (At::LfStart, b'.') if self.dots => self.at = At::LfDot,
            (At::Dot, b'\r') => self.at = At::DotCr,
            (At::DotCr, b'\n') => self.end(),
            (At::Cr, b'\n') => {
                self.keep(b"\r\n");
                self.line_end();
            }
            // The CR was bare. Whatever follows is judged as text, so CR CR LF is a bare CR and a line end, and a dot
            // after it starts no line.
            (At::Cr | At::DotCr, _) => {
                self.odd(DataError::BareCr, b"\r");
                return 0;
            }
            // Who sends bare LFs may not double dots either: only a doubled one is halved, a single one is text.
            (At::LfDot, b) if b != b'.' => {
                self.keep(b".");
                self.at = At::Text;
                return 0;
            }
            (At::Dot, b'\n') if self.limits.repair_bare_lf => {
                self.keep(b".");
                self.at = At::Text;
                return 0;
            }
            // RFC 5321 4.5.2: the dot is dropped, what follows it is text.
            (At::LineStart | At::LfStart | At::LfDot | At::Dot | At::Text, _) => {
                self.at = At::Text;
                return 0;
            }
        }
        1
    }

    fn odd(&mut self, error: DataError, octet: &[u8]) {
        self.keep(octet);
        self.fail(error);
        self.at = At::Text;
    }

    fn fail(&mut self, error: DataError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            // Memory of a refused message is given back at once; `header` stays unset so that nothing is taken.
            self.out = BytesMut::new();
        }
    }

    fn keep(&mut self, octets: &[u8]) {
        self.size += octets.len() as u64;
        self.line_len += octets.len();
        if self.failure.is_some() {
            return;
        }
        if self.size > self.limits.max_size {
            return self.fail(DataError::TooBig);
        }
        if self.line_len > self.limits.max_line {
            return self.fail(DataError::LineTooLong);
        }
        self.eight_bit |= !octets.is_ascii();
        self.out.extend_from_slice(octets);
        if self.header.is_none() && self.out.len() > self.limits.max_header_size {
            self.fail(DataError::HeaderTooLong);
        }
        if !self.nesting.feed(octets) {
            self.fail(DataError::TooDeep);
        }
    }

    fn line_end(&mut self) {
        self.at = At::LineStart;
        self.line_len = 0;
        if self.header.is_none() && self.failure.is_none() {
            self.header_line();
        }
    }

    fn header_line(&mut self) {
        let line = &self.out[self.line_start..];
        match super::header::line_kind(line) {
            super::header::LineKind::End => {
                self.header = Some(HeaderEnd {
                    len: self.line_start,
                    separated: true,
                });
                return;
            }
            super::header::LineKind::Body => {
                self.header = Some(HeaderEnd {
                    len: self.line_start,
                    separated: false,
                });
                return;
            }
            // A continuation without a field to continue is no header.
            super::header::LineKind::Folded if self.line_start == 0 => {
                self.header = Some(HeaderEnd::default());
                return;
            }
            super::header::LineKind::Folded => {}
            super::header::LineKind::Field(name) => {
                if name.eq_ignore_ascii_case(b"received") {
                    self.received += 1;
                }
            }
        }
        self.header_lines += 1;
        self.line_start = self.out.len();
        if self.received > self.limits.max_received {
            self.fail(DataError::Loop);
        } else if self.header_lines > self.limits.max_header_lines {
            self.fail(DataError::HeaderTooLong);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.header.is_none() && self.failure.is_none() {
            self.header = Some(HeaderEnd {
                len: self.out.len(),
                separated: false,
            });
        }
    }
}

/// Makes a message fit for the wire: dots at line starts doubled, `CRLF . CRLF` at the end (RFC 5321 4.5.2).
///
/// The message must have only CRLF line ends; that was decided at the door. A bare CR or LF that slipped in would not end
/// the message here either, since a dot is doubled after any LF.
#[derive(Debug)]
pub struct DotStuffer {
    line_start: bool,
}

impl Default for DotStuffer {
    fn default() -> Self {
        Self { line_start: true }
    }
}

impl DotStuffer {
    /// The wire form of the next piece of the message. Without a dot at a line start it is the piece itself.
    pub fn stuff(&mut self, piece: Bytes) -> Bytes {
        let Some(&last) = piece.last() else { return piece };
        let first_dot = self.line_start && piece[0] == b'.';
        self.line_start = last == b'\n';
        let dots = memchr::memmem::find_iter(&piece, b"\n.").count();
        if dots == 0 && !first_dot {
            return piece;
        }
        let mut out = BytesMut::with_capacity(piece.len() + dots + 1);
        if first_dot {
            out.extend_from_slice(b".");
        }
        let mut from = 0;
        for at in memchr::memmem::find_iter(&piece, b"\n.") {
            out.extend_from_slice(&piece[from..=at]);
            out.extend_from_slice(b".");
            from = at + 1;
        }
        out.extend_from_slice(&piece[from..]);
        out.freeze()
    }

    /// What ends the message: the final CRLF once, and the dot.
    pub fn finish(self) -> &'static [u8] {
        if self.line_start { b".\r\n" } else { b"\r\n.\r\n" }
    }
}
