//! The header section: which lines are fields, which fields are there, and the small edits a submission server makes.
//!
//! Fields are found by name and kept byte for byte; nothing is decoded or reordered.

use std::ops::Range;

use crate::names::Mailbox;

#[cfg(test)]
mod tests;

/// What one line of a header section is. The line includes its CRLF.
#[derive(Debug, PartialEq, Eq)]
pub enum LineKind<'a> {
    /// The empty line.
    End,
    /// Starts with white space: continues the field before.
    Folded,
    /// A field with this name.
    Field(&'a [u8]),
    /// Nothing of a header: the body started without an empty line.
    Body,
}

/// Classifies a line of a header section (RFC 5322 2.2).
pub fn line_kind(line: &[u8]) -> LineKind<'_> {
    match line {
        b"\r\n" => return LineKind::End,
        [b' ' | b'\t', ..] => return LineKind::Folded,
        _ => {}
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return LineKind::Body;
    };
    // RFC 5322 4.5: obsolete syntax allows white space before the colon.
    let name = line[..colon].trim_ascii_end();
    let valid = !name.is_empty() && name.iter().all(|b| (b'!'..=b'~').contains(b));
    if valid {
        LineKind::Field(name)
    } else {
        LineKind::Body
    }
}

/// Whether the mail says that a program wrote it (RFC 3834 5), or that it goes to a list (RFC 2919, RFC 2369). Its
/// reverse-path is seldom that of somebody who waits for an answer.
pub fn is_automatic(fields: &Header<'_>) -> bool {
    let submitted = fields.value("auto-submitted");
    let by_program = submitted.is_some_and(|value| {
        let keyword = value.split(';').next().unwrap_or_default();
        !keyword.trim().eq_ignore_ascii_case("no")
    });
    let precedence = fields.value("precedence");
    let in_bulk = precedence.is_some_and(|value| {
        let word = value.trim();
        ["bulk", "list", "junk"]
            .iter()
            .any(|bulk| word.eq_ignore_ascii_case(bulk))
    });
    let of_list = fields.count("list-id") > 0 || fields.count("list-unsubscribe") > 0;
    by_program || in_bulk || of_list
}

/// The fields of a header section.
#[derive(Debug)]
pub struct Header<'a> {
    bytes: &'a [u8],
    fields: Vec<Field>,
}

/// Where one field lies: its name, and all of it with its continuation lines and CRLF.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: Range<usize>,
    whole: Range<usize>,
}

impl<'a> Header<'a> {
    /// Reads the fields of `bytes`, which end where a line is none.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |n| at + n + 1);
            match (line_kind(&bytes[at..end]), fields.last_mut()) {
                (LineKind::Field(name), _) => fields.push(Field {
                    name: at..at + name.len(),
                    whole: at..end,
                }),
                (LineKind::Folded, Some(field)) => field.whole.end = end,
                _ => break,
            }
            at = end;
        }
        Self { bytes, fields }
    }

    /// How many fields have this name.
    pub fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|f| self.is_named(f, name)).count()
    }

    /// The unfolded, trimmed value of the first field of this name; octets that are not UTF-8 become U+FFFD.
    pub fn value(&self, name: &str) -> Option<String> {
        self.fields
            .iter()
            .find(|f| self.is_named(f, name))
            .map(|f| self.value_of(f))
    }

    /// The values of all fields of this name.
    pub fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = String> + 's {
        self.fields
            .iter()
            .filter(move |f| self.is_named(f, name))
            .map(|f| self.value_of(f))
    }

    /// All fields of this name as they stand, with their line ends.
    pub fn fields_named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        let named = self.fields.iter().filter(move |f| self.is_named(f, name));
        named.map(|f| &self.bytes[f.whole.clone()])
    }

    /// Appends the fields whose names pass.
    pub fn write_where(&self, keep: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
        for field in &self.fields {
            // Names are printable ASCII, or the line would be no field.
            let name = std::str::from_utf8(&self.bytes[field.name.clone()]).unwrap_or_default();
            if keep(name) {
                out.extend_from_slice(&self.bytes[field.whole.clone()]);
            }
        }
    }

    fn is_named(&self, field: &Field, name: &str) -> bool {
        self.bytes[field.name.clone()].eq_ignore_ascii_case(name.as_bytes())
    }

    fn value_of(&self, field: &Field) -> String {
        let whole = &self.bytes[field.whole.clone()];
        let value = memchr::memchr(b':', whole).map_or(&[][..], |colon| &whole[colon + 1..]);
        let text = String::from_utf8_lossy(value);
        text.replace(['\r', '\n'], "").trim().to_owned()
    }
}

/// Why the author of a message cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorError {
    /// No `From` field, or more than one (RFC 5322 3.6).
    #[error("a message has exactly one From field")]
    NotOne,
    /// An address in it that is not understood; what is not understood is not trusted.
    #[error("an address in the From field is malformed")]
    Malformed,
}

/// The mailboxes of the one `From` field. Comments, display names, quoted strings and groups are understood; an address
/// that hides in a display name is not an author.
pub fn authors(header: &Header<'_>) -> Result<Vec<Mailbox>, AuthorError> {
    let mut values = header.values("from");
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(AuthorError::NotOne);
    };
    let mailboxes = address_list(&value).ok_or(AuthorError::Malformed)?;
    if mailboxes.is_empty() {
        Err(AuthorError::Malformed)
    } else {
        Ok(mailboxes)
    }
}

/// Splits an address list (RFC 5322 3.4) and parses each address; `None` if anything is left over or malformed.
fn address_list(value: &str) -> Option<Vec<Mailbox>> {
    let mut mailboxes = Vec::new();
    let mut item = Item::default();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '(' => skip_comment(&mut chars)?,
            '"' => {
                let mut text = String::from('"');
                loop {
                    let c = chars.next()?;
                    text.push(c);
                    match c {
                        '\\' => text.push(chars.next()?),
                        '"' => break,
                        _ => {}
                    }
                }
                item.push_str(&text);
            }
            '<' => item.open()?,
            '>' => item.close()?,
            // A group `name: a, b;`: its name is dropped like a display name.
            ':' if item.angle.is_none() => item = Item::default(),
            ',' | ';' if !item.inside => mailboxes.extend(std::mem::take(&mut item).finish()?),
            c => item.push_str(c.encode_utf8(&mut [0; 4])),
        }
    }
    mailboxes.extend(item.finish()?);
    Some(mailboxes)
}

/// One item of an address list while it is read.
#[derive(Default)]
struct Item {
    /// What stands outside angle brackets: a display name, or the address itself.
    plain: String,
    /// What stands inside.
    angle: Option<String>,
    inside: bool,
}

impl Item {
    fn push_str(&mut self, text: &str) {
        match &mut self.angle {
            Some(angle) if self.inside => angle.push_str(text),
            _ => self.plain.push_str(text),
        }
    }

    fn open(&mut self) -> Option<()> {
        if self.angle.is_some() {
            return None;
        }
        self.angle = Some(String::new());
        self.inside = true;
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        std::mem::take(&mut self.inside).then_some(())
    }

    fn finish(self) -> Option<Option<Mailbox>> {
        if self.inside {
            return None;
        }
        let text = self.angle.as_deref().unwrap_or(&self.plain).trim();
        if text.is_empty() && self.angle.is_none() {
            return Some(None);
        }
        Mailbox::parse(text).ok().map(Some)
    }
}

fn skip_comment(chars: &mut std::str::Chars<'_>) -> Option<()> {
    let mut depth = 1;
    while depth > 0 {
        match chars.next()? {
            '(' => depth += 1,
            ')' => depth -= 1,
            '\\' => {
                chars.next()?;
            }
            _ => {}
        }
    }
    Some(())
}
