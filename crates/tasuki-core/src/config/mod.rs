//! Configuration: how values are written, and how a file is read with errors that name file, line and key.
//!
//! Each part's struct lives beside its owner; the composition root puts them together. Every struct is
//! `#[serde(default, deny_unknown_fields)]`, so a misspelt key is an error.

pub mod duration;
mod read;
pub mod size;

pub use read::{error_at, parse, utf8};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}{}{}: {problem}", line.map(|l| format!(":{l}")).unwrap_or_default(), key.as_deref().map(|k| format!(": {k}")).unwrap_or_default())]
pub struct ConfigError {
    /// The file's path.
    pub file: String,
    /// The line, from 1, if it can be told.
    pub line: Option<usize>,
    /// The key, for example `mail.max_size`, if it can be told.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Reads a text; a value of another type is refused by saying what is expected.
fn text<'de, D: serde::Deserializer<'de>>(d: D, expected: &'static str) -> Result<String, D::Error> {
    struct Text(&'static str);

    impl serde::de::Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    d.deserialize_str(Text(expected))
}
