//! Reads TOML with errors that name file, line and key.

use serde::de::DeserializeOwned;

use super::ConfigError;

/// Reads `text`; `file` is its name in errors.
///
/// # Errors
/// What is wrong, with line and key where they can be told.
pub fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map(|span| span.start.min(text.len()));
        ConfigError {
            file: file.to_owned(),
            line: at.map(|at| line_of(text, at)),
            key: at.and_then(|at| key_at(text, at)),
            problem: plain(error.message()),
        }
    })
}

/// The file's bytes as text.
///
/// # Errors
/// Names the line with the first byte that is no UTF-8.
pub fn utf8<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        ConfigError {
            file: file.to_owned(),
            line: Some(before.iter().filter(|b| **b == b'\n').count() + 1),
            key: None,
            problem: "a byte that is no UTF-8: is this a TOML file?".to_owned(),
        }
    })
}

/// The reader's message without the names of our types, and with an example where it gives none.
fn plain(message: &str) -> String {
    const EXAMPLES: [(&str, &str); 2] = [
        (
            "invalid IP address syntax",
            "a network is written as 192.0.2.0/24 or 2001:db8::/32, a single address as 192.0.2.7/32",
        ),
        (
            "invalid socket address syntax",
            "address and port are expected, for example \"127.0.0.1:25\" or \"[::]:25\"; a port is a number from 0 to 65535",
        ),
    ];
    if let Some((what, _)) = message.split_once("expected struct ") {
        return format!("{what}expected a table");
    }
    // What fits into 16 bits is a port or a number of that size.
    if let Some(what) = message.strip_suffix("expected u16") {
        return format!("{what}expected a number from 0 to 65535");
    }
    match EXAMPLES.iter().find(|(start, _)| message == *start) {
        Some((_, example)) => format!("{message}; {example}"),
        None => message.to_owned(),
    }
}

/// An error about `key`, found after reading.
#[must_use]
pub fn error_at(file: &str, text: &str, key: &str, problem: String) -> ConfigError {
    ConfigError {
        file: file.to_owned(),
        line: line_of_key(text, key),
        key: Some(key.to_owned()),
        problem,
    }
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct File {
        mail: Mail,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Mail {
        #[serde(with = "crate::config::size")]
        max_size: u64,
    }

    #[test]
    fn a_mistake_names_file_line_and_key() {
        for (text, line, key) in [
            ("[mail]\nmax_sice = \"1MiB\"\n", 2, "mail.max_sice"),
            ("\n[mail]\n\nmax_size = \"1MB\"\n", 4, "mail.max_size"),
            ("[mail]\nmax_size = 7\n", 2, "mail.max_size"),
            ("colour = 1\n", 1, "colour"),
        ] {
            let error = super::parse::<File>("t.toml", text).expect_err(text);
            assert_eq!(
                (error.line, error.key.as_deref()),
                (Some(line), Some(key)),
                "{text}"
            );
            assert!(
                error.to_string().starts_with(&format!("t.toml:{line}: {key}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_their_line() {
        let error = super::utf8("t.toml", b"[mail]\nname = \"\xff\"\n").expect_err("no UTF-8");
        assert!(error.to_string().starts_with("t.toml:2: "), "{error}");
        assert_eq!(
            super::utf8("t.toml", "a = \"\u{e9}\"".as_bytes()).expect("text"),
            "a = \"\u{e9}\""
        );
    }

    #[test]
    fn a_later_finding_has_the_line_of_its_key() {
        let text = "[mail]\nmax_size = \"1MiB\"\n";
        let error = super::error_at("t.toml", text, "mail.max_size", "too small".into());
        assert_eq!(error.to_string(), "t.toml:2: mail.max_size: too small");
    }
}
