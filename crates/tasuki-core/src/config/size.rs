//! Sizes as texts: `"512B"`, `"64KiB"`, `"25MiB"`, `"1GiB"`. Use with `#[serde(with = "config::size")]`.

use serde::{Deserializer, Serializer};

const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a size in bytes.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let expected =
        || format!("{text:?} is not a size; write a number with B, KiB, MiB or GiB, for example \"25MiB\"");
    let number: u64 = number.parse().map_err(|_| expected())?;
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(expected)?;
    number.checked_mul(*factor).ok_or_else(expected)
}

/// Writes a size in its largest whole unit.
#[must_use]
pub fn format(bytes: u64) -> String {
    let (unit, factor) = UNITS
        .iter()
        .rev()
        .find(|(_, f)| bytes >= *f && bytes.is_multiple_of(*f))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// For serde.
///
/// # Errors
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    parse(&super::text(d, "a size such as \"25MiB\"")?).map_err(serde::de::Error::custom)
}

/// For serde.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(bytes: &u64, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&format(*bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_survive_their_text_form() {
        for text in ["1B", "64KiB", "25MiB", "1GiB", "1500B"] {
            assert_eq!(super::format(super::parse(text).expect(text)), text);
        }
    }

    #[test]
    fn a_text_that_is_no_size_is_refused() {
        for text in ["", "5", "MiB", "-1B", "1.5GiB", "10MB", "99999999999999GiB"] {
            assert!(super::parse(text).is_err(), "{text}");
        }
    }
}
