//! The JSON Canonicalization Scheme (RFC 8785): one text for one JSON value, so that it can be hashed.
//!
//! It works on the text, not on a parsed value: `serde_json` reads a number of more than 15 digits as a neighbour of the double
//! that it stands for, and the hash would be another. Numbers are read by the standard library and written as ECMAScript does
//! (RFC 8785 3.2.2.3) by the crate `ryu-js`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The members of a JSON object, as they were written.
pub struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Members<'a> {
    /// Reads an object; `None` for anything else.
    pub fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    /// The text of a member.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.get())
    }

    /// The canonical text of the object as if it had none of these members.
    pub fn canonical_without(&self, names: &[&str]) -> Option<String> {
        let kept = self.0.iter().filter(|(name, _)| !names.contains(&name.as_str()));
        let mut out = String::new();
        write_members(kept.map(|(name, value)| (name, *value)).collect(), &mut out)?;
        Some(out)
    }
}

/// The texts of the items of an array; `None` for anything else.
pub fn items(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// The canonical text of a value; `None` when the text is not JSON.
pub fn canonical(text: &str) -> Option<String> {
    let mut out = String::new();
    write(serde_json::from_str(text).ok()?, &mut out)?;
    Some(out)
}

/// Recursion is bounded by the depth of what [`super::json::read`] lets through.
fn write(value: &RawValue, out: &mut String) -> Option<()> {
    let text = value.get();
    match text.bytes().next()? {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            write_members(members.iter().map(|(name, value)| (name, *value)).collect(), out)?;
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            out.push('[');
            for (index, item) in items.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out)?;
            }
            out.push(']');
        }
        b'"' => write_string(&serde_json::from_str::<String>(text).ok()?, out),
        b't' | b'f' | b'n' => out.push_str(text),
        _ => {
            let double: f64 = text.parse().ok()?;
            if !double.is_finite() {
                return None;
            }
            out.push_str(ryu_js::Buffer::new().format_finite(double));
        }
    }
    Some(())
}

fn write_members(mut members: Vec<(&String, &RawValue)>, out: &mut String) -> Option<()> {
    // RFC 8785 3.2.3: by UTF-16 code units, which is not the order of UTF-8 bytes.
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    out.push('{');
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        write(value, out)?;
    }
    out.push('}');
    Some(())
}

/// RFC 8785 3.2.2.2: the two-character escapes that exist, `\u00xx` for other control characters, everything else as it is.
fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}
