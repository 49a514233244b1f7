//! Strict JSON for bytes on which trust is decided.
//!
//! A document that two parsers can read differently is refused: duplicate keys, a byte order mark, bytes that are not
//! UTF-8, numbers that do not survive a round trip. Depth, count of values and size are bounded before anything is built.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How large a document may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole document.
    pub bytes: usize,
    /// Nesting of objects and arrays.
    pub depth: usize,
    /// Objects, arrays, strings, numbers and keys together; bounds what the parsed form weighs.
    pub values: usize,
}

impl Default for Limits {
    /// 1 MiB as Mastodon's inbox, 32 deep, 50 000 values.
    fn default() -> Self {
        Self {
            bytes: 1024 * 1024,
            depth: 32,
            values: 50_000,
        }
    }
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// More bytes than allowed.
    #[error("the document is longer than {0} bytes")]
    TooLong(usize),
    /// A byte order mark in front (RFC 8259 8.1 forbids it).
    #[error("the document begins with a byte order mark")]
    ByteOrderMark,
    /// Not UTF-8 (RFC 8259 8.1).
    #[error("the document is not UTF-8")]
    NotUtf8,
    /// Nested deeper than allowed.
    #[error("the document is nested deeper than {0} levels")]
    TooDeep(usize),
    /// More values than allowed.
    #[error("the document has more than {0} values")]
    TooManyValues(usize),
    /// A number with more digits than any parser keeps.
    #[error("a number in the document is too large")]
    HugeNumber,
    /// The same key twice in one object.
    #[error("the key {0:?} occurs twice in one object")]
    DuplicateKey(String),
    /// Not JSON.
    #[error("the document is not JSON: {0}")]
    Syntax(String),
}

/// Longest number, in bytes: sign, 17 significant digits, exponent, and room for leading zeros of a fraction.
const MAX_NUMBER_BYTES: usize = 32;

/// Reads one document.
///
/// # Errors
/// [`JsonError`] for everything that two readers could understand differently, and for all that exceeds `limits`.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Value, JsonError> {
    if bytes.len() > limits.bytes {
        return Err(JsonError::TooLong(limits.bytes));
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return Err(JsonError::ByteOrderMark);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
    measure(text.as_bytes(), limits)?;
    serde_json::from_str::<Strict>(text)
        .map(|strict| strict.0)
        .map_err(|e| classify(&e))
}

/// One pass over the raw bytes that builds nothing: bounds first, so that a bomb is never unpacked.
fn measure(bytes: &[u8], limits: &Limits) -> Result<(), JsonError> {
    let mut depth = 0_usize;
    let mut values = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => {
                depth += 1;
                values += 1;
                if depth > limits.depth {
                    return Err(JsonError::TooDeep(limits.depth));
                }
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b'"' => {
                values += 1;
                at = end_of_string(bytes, at + 1);
            }
            b'-' | b'0'..=b'9' => {
                values += 1;
                let start = at;
                while at < bytes.len() && matches!(bytes[at], b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
                {
                    at += 1;
                }
                if at - start > MAX_NUMBER_BYTES {
                    return Err(JsonError::HugeNumber);
                }
            }
            b't' | b'f' | b'n' => {
                values += 1;
                at += 1;
            }
            _ => at += 1,
        }
        if values > limits.values {
            return Err(JsonError::TooManyValues(limits.values));
        }
    }
    Ok(())
}

fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// Our own errors pass through serde's text; the marks tell them apart again.
const DUPLICATE: &str = "duplicate key: ";
const HUGE: &str = "huge number";

fn classify(error: &serde_json::Error) -> JsonError {
    let text = error.to_string();
    let bare = text.split(" at line ").next().unwrap_or_default();
    if let Some(key) = bare.strip_prefix(DUPLICATE) {
        return JsonError::DuplicateKey(key.chars().take(80).collect());
    }
    if bare.starts_with(HUGE) || bare.starts_with("number out of range") {
        return JsonError::HugeNumber;
    }
    JsonError::Syntax(text.chars().take(200).collect())
}

struct Strict(Value);

impl<'de> serde::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        // Whole numbers beyond 2^64 arrive here rounded: another reader would see another number.
        if v.abs() >= 1.0e19 {
            return Err(E::custom(HUGE));
        }
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom(HUGE))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{DUPLICATE}{key}")));
            }
            let Strict(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
