//! Durations as texts: `"250ms"`, `"30s"`, `"5m"`, `"4h"`, `"3d"`. Use with `#[serde(with = "config::duration")]`.

use std::time::Duration;

use serde::{Deserializer, Serializer};

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Reads a duration.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let expected =
        || format!("{text:?} is not a duration; write a number with ms, s, m, h or d, for example \"30s\"");
    let number: u64 = number.parse().map_err(|_| expected())?;
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(expected)?;
    number
        .checked_mul(*factor)
        .map(Duration::from_millis)
        .ok_or_else(expected)
}

/// Writes a duration in its largest whole unit.
#[must_use]
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = UNITS
        .iter()
        .rev()
        .find(|(_, f)| millis >= *f && millis % f == 0)
        .unwrap_or(&("ms", 1));
    format!("{}{unit}", millis / factor)
}

/// For serde.
///
/// # Errors
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse(&super::text(d, "a duration such as \"30s\"")?).map_err(serde::de::Error::custom)
}

/// For serde.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&format(*duration))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn durations_survive_their_text_form() {
        for text in ["250ms", "30s", "90s", "5m", "4h", "3d"] {
            assert_eq!(super::format(super::parse(text).expect(text)), text);
        }
        assert_eq!(super::parse("120s").expect("valid"), Duration::from_secs(120));
    }

    #[test]
    fn a_text_that_is_no_duration_is_refused() {
        for text in ["", "5", "m", "-1s", "1.5h", "99999999999999999999d", "1y"] {
            assert!(super::parse(text).is_err(), "{text}");
        }
    }
}
