//! How deeply the parts of a message are nested, told while it streams by.
//!
//! Nothing here opens parts; but whoever reads the mail does, often by recursion, and a few kilobytes nest deeper than any
//! stack. A level is a multipart or an enclosed message (RFC 2046 5.1, 5.2.1). Of a body's line only what begins like a
//! boundary is looked at; the memory is bounded by the number of levels allowed.

/// Most octets of a line that are looked at, and of a Content-Type with its continuation lines.
const LOOK: usize = 1000;
/// RFC 2046 5.1.1 has at most 70; some programs write longer ones.
const MAX_BOUNDARY: usize = 200;

/// Counts levels.
#[derive(Debug)]
pub(super) struct Nesting {
    max: usize,
    levels: Vec<Level>,
    in_header: bool,
    /// The start of the current line, where it matters.
    line: Vec<u8>,
    /// The rest of this line does not matter.
    skips: bool,
    content_type: Vec<u8>,
    /// The field before was the Content-Type, so that a continuation belongs to it.
    continues: bool,
}

#[derive(Debug)]
enum Level {
    Multipart { boundary: Vec<u8>, digest: bool },
    Message,
}

impl Nesting {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            levels: Vec::new(),
            in_header: true,
            line: Vec::new(),
            skips: false,
            content_type: Vec::new(),
            continues: false,
        }
    }

    /// Takes the next octets; whether the message is within its depth. Once it is not, no more is to be given.
    pub(super) fn feed(&mut self, mut octets: &[u8]) -> bool {
        while !octets.is_empty() && self.levels.len() <= self.max {
            let end = memchr::memchr(b'\n', octets).map(|at| at + 1);
            let (piece, rest) = octets.split_at(end.unwrap_or(octets.len()));
            octets = rest;
            self.look(piece);
            if end.is_some() {
                self.line_end();
            }
        }
        self.levels.len() <= self.max
    }

    fn look(&mut self, piece: &[u8]) {
        let may_matter = self.in_header || !self.levels.is_empty() && piece.starts_with(b"-");
        self.skips |= self.line.is_empty() && !may_matter;
        if !self.skips {
            let room = LOOK.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        }
    }

    fn line_end(&mut self) {
        if std::mem::take(&mut self.skips) {
            return;
        }
        let line = std::mem::take(&mut self.line);
        let text = line.trim_ascii_end();
        if !self.is_boundary(text) && self.in_header {
            self.header_line(text);
        }
        self.line = line;
        self.line.clear();
    }

    /// A boundary of any open multipart ends all levels within it.
    fn is_boundary(&mut self, line: &[u8]) -> bool {
        let Some(rest) = line.strip_prefix(b"--") else {
            return false;
        };
        let found = self.levels.iter().enumerate().rev().find_map(|(at, level)| {
            let Level::Multipart { boundary, .. } = level else {
                return None;
            };
            match rest.strip_prefix(boundary.as_slice())? {
                b"" => Some((at + 1, true)),
                b"--" => Some((at, false)),
                _ => None,
            }
        });
        let Some((left, begins)) = found else {
            return false;
        };
        self.levels.truncate(left);
        self.in_header = begins;
        self.content_type.clear();
        self.continues = false;
        true
    }

    fn header_line(&mut self, line: &[u8]) {
        if line.is_empty() {
            return self.header_end();
        }
        if !line.starts_with(b" ") && !line.starts_with(b"\t") {
            let Some(colon) = memchr::memchr(b':', line) else {
                return self.header_end();
            };
            let name = line[..colon].trim_ascii_end();
            self.continues = self.content_type.is_empty() && name.eq_ignore_ascii_case(b"content-type");
            if self.continues {
                self.content_type
                    .extend_from_slice(line[colon + 1..].trim_ascii());
            }
        } else if self.continues && self.content_type.len() < LOOK {
            self.content_type.push(b' ');
            self.content_type.extend_from_slice(line.trim_ascii());
        }
    }

    fn header_end(&mut self) {
        let content_type = std::mem::take(&mut self.content_type);
        self.continues = false;
        let kind = content_type.split(|b| *b == b';').next().unwrap_or_default();
        let kind = kind.trim_ascii().to_ascii_lowercase();
        let in_digest = matches!(self.levels.last(), Some(Level::Multipart { digest: true, .. }));
        // RFC 2046 5.1.5: a part of a digest is a message unless it says otherwise.
        if kind == b"message/rfc822" || kind == b"message/global" || kind.is_empty() && in_digest {
            self.levels.push(Level::Message);
            return;
        }
        self.in_header = false;
        if kind.starts_with(b"multipart/")
            && let Some(boundary) = boundary(&content_type)
        {
            let digest = kind == b"multipart/digest";
            self.levels.push(Level::Multipart { boundary, digest });
        }
    }
}

/// The parameter `boundary`, unquoted.
fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    const NAME: &[u8] = b"boundary";
    let lower = content_type.to_ascii_lowercase();
    let value = memchr::memmem::find_iter(&lower, NAME).find_map(|at| {
        let starts = lower[..at].trim_ascii_end().ends_with(b";");
        let value = content_type[at + NAME.len()..].trim_ascii_start();
        value.strip_prefix(b"=").filter(|_| starts)
    })?;
    let value = value.trim_ascii_start();
    let mut out = Vec::new();
    match value.strip_prefix(b"\"") {
        Some(quoted) => {
            let mut octets = quoted.iter();
            while let Some(&b) = octets.next() {
                match b {
                    b'"' => break,
                    b'\\' => out.extend(octets.next()),
                    b => out.push(b),
                }
            }
        }
        None => out.extend(
            value
                .iter()
                .take_while(|b| !b.is_ascii_whitespace() && **b != b';'),
        ),
    }
    out.truncate(out.trim_ascii_end().len());
    (1..=MAX_BOUNDARY).contains(&out.len()).then_some(out)
}
