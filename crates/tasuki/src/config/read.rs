//! Reads the file; errors name file, line and key.

use tasuki_core::BuildError;
use tasuki_core::config::{self, ConfigError};

use super::Config;

/// Reads and checks `text`; `file` is its name in errors.
pub(super) fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let parsed: Config = config::parse(file, text)?;
    parsed.check().map_err(|error| match error {
        BuildError::Config { key, problem } => config::error_at(file, text, &key, problem),
        other => ConfigError {
            file: file.to_owned(),
            line: None,
            key: None,
            problem: other.to_string(),
        },
    })?;
    Ok(parsed)
}
