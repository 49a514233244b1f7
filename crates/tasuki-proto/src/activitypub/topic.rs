//! Topic relays: actors beside the whole relay's, each with the posts of one hashtag, instance, language or list.
//!
//! A topic has one spelling: what is pasted, the inbox in the actor's document and the path of a request are the same bytes,
//! because Mastodon and Iceshrimp.NET compare them (`Relay.find_by(inbox_url:)`).

use std::fmt;
use std::sync::Arc;

use idna::punycode;

use super::ids::Authority;
use super::words::tag_of;

/// Longest name of a hashtag or list, in characters.
pub const MAX_NAME_CHARS: usize = 64;

/// Which of the relay's actors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// The whole relay.
    All,
    /// Posts with a hashtag, as [`tag_of`] writes it.
    Tag(Arc<str>),
    /// Posts from one host.
    Instance(Authority),
    /// Posts in a language: a BCP 47 tag in lower case, which holds those below it (`pt` holds `pt-br`).
    Language(Arc<str>),
    /// A list of the operator's.
    List(Arc<str>),
}

/// Not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a topic: write tag/NAME, instance/HOST, lang/CODE or list/NAME")]
pub struct NotATopic(String);

impl Topic {
    /// Reads the name of a topic as [`fmt::Display`] writes it; nothing is the whole relay. Hashtags, hosts and languages may
    /// come in any case.
    ///
    /// # Errors
    /// [`NotATopic`].
    pub fn parse(text: &str) -> Result<Self, NotATopic> {
        if text.is_empty() {
            return Ok(Self::All);
        }
        let refuse = || NotATopic(text.chars().take(100).collect());
        let (kind, name) = text.split_once('/').ok_or_else(refuse)?;
        Self::named(kind, name).ok_or_else(refuse)
    }

    fn named(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "tag" => {
                let tag = tag_of(name);
                let is_letter = |c: char| c.is_alphanumeric() || matches!(c, '_' | '·' | '・');
                (is_name(&tag) && tag.chars().all(is_letter)).then(|| Self::Tag(tag.into()))
            }
            "instance" => {
                let host = Authority::parse(name).ok()?;
                (!host.as_str().starts_with('[')).then_some(Self::Instance(host))
            }
            "lang" => language(name).map(|code| Self::Language(code.into())),
            "list" => {
                let is_letter =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
                let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
                let is_list = is_name(name)
                    && name.chars().all(is_letter)
                    && is_edge(name.chars().next())
                    && is_edge(name.chars().next_back());
                is_list.then(|| Self::List(name.into()))
            }
            _ => None,
        }
    }

    /// The topic whose actor has this path, in the one spelling.
    pub fn of_path(path: &str) -> Option<Self> {
        if path == "/actor" {
            return Some(Self::All);
        }
        let text = percent_decoded(path.strip_prefix('/')?)?;
        let topic = Self::parse(&text).ok()?;
        (topic != Self::All && topic.path() == path).then_some(topic)
    }

    /// The topic whose inbox has this path.
    pub fn of_inbox_path(path: &str) -> Option<Self> {
        match path.strip_suffix("/inbox")? {
            "" => Some(Self::All),
            actor => Self::of_path(actor).filter(|topic| *topic != Self::All),
        }
    }

    /// The path of its actor.
    pub fn path(&self) -> String {
        match self {
            Self::All => "/actor".to_owned(),
            Self::Tag(name) => format!("/tag/{}", percent_encoded(name)),
            other => format!("/{other}"),
        }
    }

    /// The account's name, in letters that Mastodon and Misskey take in names: a hashtag in other letters is in Punycode
    /// (RFC 3492), and the port of a host follows `_`.
    pub fn account_name(&self) -> String {
        match self {
            Self::All => "relay".to_owned(),
            Self::Tag(name) if name.is_ascii() => format!("tag.{name}"),
            Self::Tag(name) => format!("tag.xn--{}", punycode::encode_str(name).unwrap_or_default()),
            Self::Instance(host) => format!("instance.{}", host.as_str().replace(':', "_")),
            Self::Language(code) => format!("lang.{code}"),
            Self::List(name) => format!("list.{name}"),
        }
    }

    /// The topic of an account's name.
    pub fn of_account_name(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("relay") {
            return Some(Self::All);
        }
        let (kind, name) = name.split_once('.')?;
        match (kind, name.strip_prefix("xn--")) {
            ("tag", Some(encoded)) => Self::named("tag", &punycode::decode_to_string(encoded)?),
            ("instance", _) => Self::named("instance", &name.replace('_', ":")),
            _ => Self::named(kind, name),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Tag(name) => write!(f, "tag/{name}"),
            Self::Instance(host) => write!(f, "instance/{host}"),
            Self::Language(code) => write!(f, "lang/{code}"),
            Self::List(name) => write!(f, "list/{name}"),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= MAX_NAME_CHARS
}

/// A language tag as it is compared: lower case, with `-` between its parts (BCP 47); `None` for what is none.
pub fn language(text: &str) -> Option<String> {
    let code = text.trim().to_ascii_lowercase().replace('_', "-");
    let mut parts = code.split('-');
    let primary = parts.next()?;
    let is_primary = (2..=3).contains(&primary.len()) && primary.bytes().all(|b| b.is_ascii_lowercase());
    let mut is_part =
        |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    (is_primary && code.len() <= 20 && parts.all(&mut is_part)).then_some(code)
}

/// Whether `language` is `wanted` or below it.
pub fn is_language_within(language: &str, wanted: &str) -> bool {
    language
        .strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Topic, is_language_within};

    #[test]
    fn names_paths_and_accounts_lead_back_to_the_topic() {
        for (name, path, account) in [
            ("", "/actor", "relay"),
            ("tag/cats", "/tag/cats", "tag.cats"),
            ("tag/猫", "/tag/%E7%8C%AB", "tag.xn--z7x"),
            ("instance/a.example", "/instance/a.example", "instance.a.example"),
            (
                "instance/a.example:8443",
                "/instance/a.example:8443",
                "instance.a.example_8443",
            ),
            ("lang/pt-br", "/lang/pt-br", "lang.pt-br"),
            ("list/nihon-1", "/list/nihon-1", "list.nihon-1"),
        ] {
            let topic = Topic::parse(name).unwrap();
            assert_eq!(topic.to_string(), name);
            assert_eq!(
                (topic.path().as_str(), topic.account_name().as_str()),
                (path, account)
            );
            assert_eq!(Topic::of_path(path).as_ref(), Some(&topic), "{path}");
            assert_eq!(
                Topic::of_account_name(account).as_ref(),
                Some(&topic),
                "{account}"
            );
            let inbox = if name.is_empty() {
                "/inbox".to_owned()
            } else {
                format!("{path}/inbox")
            };
            assert_eq!(Topic::of_inbox_path(&inbox), Some(topic));
        }
        assert_eq!(
            Topic::parse("tag/#CATS").unwrap(),
            Topic::parse("tag/cats").unwrap()
        );
    }

    #[test]
    fn what_is_no_topic_or_another_spelling_is_none() {
        for text in [
            "tag/",
            "tag/a b",
            "tag/a/b",
            "tag/a-b",
            "tag/..",
            "cats",
            "lang/english-",
            "lang/e",
            "lang/ja/x",
            "list/A",
            "list/-a",
            "instance/",
            "instance/a b",
            "instance/[::1]",
            "user/a",
            &format!("tag/{}", "x".repeat(65)),
        ] {
            assert!(Topic::parse(text).is_err(), "{text}");
        }
        for path in [
            "/tag/Cats",
            "/tag/%63ats",
            "/tag/猫",
            "/tag/%e7%8c%ab",
            "/instance/A.example",
            "/lang/JA",
            "/",
            "/inbox",
            "/tag/%",
            "/tag/%ff",
            "/tag/cats/",
            "//actor",
        ] {
            assert_eq!(Topic::of_path(path), None, "{path}");
        }
        assert_eq!(Topic::of_inbox_path("/actor/inbox"), None);
    }

    #[test]
    fn a_language_holds_those_below_it() {
        assert!(is_language_within("pt-br", "pt") && is_language_within("ja", "ja"));
        assert!(!is_language_within("pt", "pt-br") && !is_language_within("jav", "ja"));
    }
}
