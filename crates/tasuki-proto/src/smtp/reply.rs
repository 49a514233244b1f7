//! Replies: three digits, an enhanced status code (RFC 3463), a text. Written by our server, parsed from other servers.

use std::{borrow::Cow, fmt};

use bytes::{Buf, BytesMut};

#[cfg(test)]
mod tests;

/// Longest reply line taken from a peer, in octets. RFC 5321 4.5.3.1.5 says 512; some peers explain themselves at length.
const MAX_LINE_LEN: usize = 2048;
/// Most lines in one reply of a peer.
const MAX_LINES: usize = 128;
/// Most text kept of one reply of a peer, in octets; what is longer is cut, not refused.
const MAX_TEXT_LEN: usize = 1024;

/// Class, subject, detail (RFC 3463), such as 5.7.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl EnhancedCode {
    /// Parses `class.subject.detail` with class 2, 4 or 5 and at most three digits in the others.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
        let number = |t: &str| {
            let digits = !t.is_empty() && t.len() <= 3 && t.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| t.parse::<u16>().ok()).flatten()
        };
        let class = match class {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self(class, number(subject)?, number(detail)?))
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The three digits, 200 to 599.
    pub code: u16,
    /// The enhanced status code, where one was given or is due.
    pub enhanced: Option<EnhancedCode>,
    /// The text without codes; lines of a peer's reply are joined by a space, anything but printable ASCII is `?`.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// A reply of our own.
    pub const fn new(code: u16, enhanced: (u8, u16, u16), text: &'static str) -> Self {
        let enhanced = Some(EnhancedCode(enhanced.0, enhanced.1, enhanced.2));
        Self {
            code,
            enhanced,
            text: Cow::Borrowed(text),
        }
    }

    /// A reply of our own with a text made at run time.
    pub fn with_text(code: u16, enhanced: (u8, u16, u16), text: String) -> Self {
        Self {
            text: Cow::Owned(text),
            ..Self::new(code, enhanced, "")
        }
    }

    /// 2xx.
    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// 4xx.
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// 5xx.
    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }

    /// Appends the reply as one line. Characters that could start a new line or confuse a terminal become `?`
    /// (reply injection), however the text was made.
    pub fn write(&self, out: &mut BytesMut) {
        use fmt::Write as _;
        // Writing to a BytesMut cannot fail; it grows.
        let _ = write!(out, "{} ", self.code);
        if let Some(enhanced) = self.enhanced {
            let _ = write!(out, "{enhanced} ");
        }
        for b in self.text.bytes().take(480) {
            out.extend_from_slice(&[printable(b)]);
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        if !self.text.is_empty() {
            write!(f, " {}", self.text)?;
        }
        Ok(())
    }
}

fn printable(b: u8) -> u8 {
    if (b' '..=b'~').contains(&b) { b } else { b'?' }
}

/// Why what a server sent is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line without three digits followed by a space, a hyphen or the end.
    #[error("the server's answer does not start with a reply code")]
    NoCode,
    /// The lines of one reply disagree about the code.
    #[error("the lines of the server's answer have different codes")]
    MixedCodes,
    /// A line over 2048 octets.
    #[error("the server sent an endless line")]
    LineTooLong,
    /// More than 128 lines.
    #[error("the server sent an endless reply")]
    TooManyLines,
}

/// Reads replies of a server, over any number of calls. Bounded: an endless line or reply is an error, not memory.
#[derive(Debug, Default)]
pub struct ReplyParser {
    code: Option<u16>,
    lines: usize,
    enhanced: Option<EnhancedCode>,
    text: String,
    keywords: Vec<String>,
    keep_lines: bool,
}

impl ReplyParser {
    /// Keeps the lines of the next reply apart (for EHLO); they are taken with [`ReplyParser::take_lines`].
    pub fn keep_lines(&mut self) {
        self.keep_lines = true;
    }

    /// The lines kept of the last reply, without codes.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.keep_lines = false;
        std::mem::take(&mut self.keywords)
    }

    /// Takes one whole reply off the front of `input`, or what there is of it.
    pub fn parse(&mut self, input: &mut BytesMut) -> Result<Option<Reply>, ReplyError> {
        while let Some(end) = memchr::memchr(b'\n', input) {
            if end > MAX_LINE_LEN {
                return Err(ReplyError::LineTooLong);
            }
            let last = {
                let line = &input[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                self.line(line)?
            };
            input.advance(end + 1);
            if last {
                let code = self.code.take().ok_or(ReplyError::NoCode)?;
                self.lines = 0;
                let text = Cow::Owned(std::mem::take(&mut self.text));
                return Ok(Some(Reply {
                    code,
                    enhanced: self.enhanced.take(),
                    text,
                }));
            }
        }
        if input.len() > MAX_LINE_LEN {
            Err(ReplyError::LineTooLong)
        } else {
            Ok(None)
        }
    }

    /// Takes in one line; returns whether it ends the reply.
    fn line(&mut self, line: &[u8]) -> Result<bool, ReplyError> {
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(ReplyError::TooManyLines);
        }
        let (&[a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'], rest) =
            line.split_first_chunk::<3>().ok_or(ReplyError::NoCode)?
        else {
            return Err(ReplyError::NoCode);
        };
        let code = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
        if *self.code.get_or_insert(code) != code {
            return Err(ReplyError::MixedCodes);
        }
        let (last, rest) = match rest.split_first() {
            None => (true, rest),
            Some((b' ', rest)) => (true, rest),
            Some((b'-', rest)) => (false, rest),
            Some(_) => return Err(ReplyError::NoCode),
        };
        self.append(code, rest);
        Ok(last)
    }

    fn append(&mut self, code: u16, rest: &[u8]) {
        let text: String = rest.iter().map(|&b| char::from(printable(b))).collect();
        let mut shown = text.as_str();
        let (first, tail) = text.split_once(' ').unwrap_or((&text, ""));
        // RFC 2034: the code's class equals the reply's first digit, else it is text.
        if let Some(code3) = EnhancedCode::parse(first).filter(|e| u16::from(e.0) == code / 100) {
            self.enhanced.get_or_insert(code3);
            shown = tail;
        }
        if self.keep_lines {
            self.keywords.push(shown.to_owned());
        }
        let room = MAX_TEXT_LEN.saturating_sub(self.text.len());
        if room > 1 && !shown.is_empty() {
            if !self.text.is_empty() {
                self.text.push(' ');
            }
            // ASCII only by now, so any cut is at a character boundary.
            self.text.push_str(&shown[..shown.len().min(room - 1)]);
        }
    }
}
