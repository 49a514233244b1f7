//! Reads the file; errors name file, line and key.

use tasuki_core::BuildError;
use tasuki_core::config::ConfigError;

use super::Config;

/// Reads and checks `text`; `file` is its name in errors.
pub(super) fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| {
        let at = error.span().map(|span| span.start.min(text.len()));
        ConfigError {
            file: file.to_owned(),
            line: at.map(|at| line_of(text, at)),
            key: at.and_then(|at| key_at(text, at)),
            problem: error.message().to_owned(),
        }
    })?;
    config.check().map_err(|error| {
        let (key, problem) = match error {
            BuildError::Config { key, problem } => (Some(key), problem),
            other => (None, other.to_string()),
        };
        ConfigError {
            file: file.to_owned(),
            line: key.as_deref().and_then(|key| line_of_key(text, key)),
            key,
            problem,
        }
    })?;
    Ok(config)
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
}

/// The key on the line at `at`, with the table it stands in.
fn key_at(text: &str, at: usize) -> Option<String> {
    let mut table = String::new();
    let wanted = line_of(text, at);
    let mut last_key = None;
    for (number, line) in text.lines().enumerate().take(wanted) {
        let line = line.trim();
        if let Some(header) = header(line) {
            table = header;
            last_key = None;
        } else if let Some((key, _)) = line.split_once('=')
            && is_key(key.trim())
        {
            last_key = Some(key.trim().to_owned());
        }
        if number + 1 == wanted {
            return match last_key {
                Some(key) if table.is_empty() => Some(key),
                Some(key) => Some(format!("{table}.{key}")),
                None if table.is_empty() => None,
                None => Some(table),
            };
        }
    }
    None
}

/// The line on which `key` (or the nearest table above it) is written.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let mut table = String::new();
    let mut nearest = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = header(line) {
            if key.starts_with(&format!("{header}.")) || key == header {
                nearest = Some(number + 1);
            }
            table = header;
        } else if let Some((name, _)) = line.split_once('=') {
            let full = if table.is_empty() {
                name.trim().to_owned()
            } else {
                format!("{table}.{}", name.trim())
            };
            if full == key {
                return Some(number + 1);
            }
        }
    }
    nearest
}

fn header(line: &str) -> Option<String> {
    let inner = line
        .strip_prefix("[[")
        .and_then(|rest| rest.split_once("]]"))
        .or_else(|| line.strip_prefix('[').and_then(|rest| rest.split_once(']')))?
        .0
        .trim();
    is_key(inner).then(|| inner.to_owned())
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.\"' ".contains(&b))
}
