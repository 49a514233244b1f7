//! Moderation: who may not publish or receive, and what is not relayed. Compiled from the store's rules, shared and replaced
//! as a whole.

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};
use tasuki_core::store::fedi::{ModerationEffect, ModerationKind, ModerationRule};
use tasuki_proto::activitypub::ids::{ActorId, Authority};
use tasuki_proto::activitypub::words::{Words, tag_of};

use crate::handle::HandleError;

/// Longest subject and reason kept, in bytes.
const MAX_SUBJECT_BYTES: usize = 500;
/// Memory that one regular expression may take when compiled; its running time is linear in the text.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// The rules, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Moderation {
    rules: Vec<ModerationRule>,
    hosts: HashMap<String, usize>,
    opted_out: HashMap<String, usize>,
    actors: HashMap<String, usize>,
    software: HashMap<String, usize>,
    tags: HashMap<String, usize>,
    keywords: Vec<(String, usize)>,
    patterns: Vec<(Regex, usize)>,
}

/// The last two labels of a name, without a port.
fn ending(host: &str) -> &str {
    let host = match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    };
    let mut dots = host.rmatch_indices('.').map(|(at, _)| at + 1);
    &host[dots.nth(1).unwrap_or(0)..]
}

impl Moderation {
    pub(crate) fn compile(rules: Vec<ModerationRule>) -> Self {
        let mut all = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            let subject = rule.subject.clone();
            match rule.kind {
                ModerationKind::Host => drop(all.hosts.insert(subject, index)),
                ModerationKind::OptOut => drop(all.opted_out.insert(subject, index)),
                ModerationKind::Actor => drop(all.actors.insert(subject, index)),
                ModerationKind::Software => drop(all.software.insert(subject, index)),
                ModerationKind::Tag => drop(all.tags.insert(subject, index)),
                ModerationKind::Keyword => all.keywords.push((subject, index)),
                ModerationKind::Regex => match pattern(&subject) {
                    Ok(pattern) => all.patterns.push((pattern, index)),
                    Err(error) => {
                        tracing::warn!(rule = %subject, error = %error, "a rule of moderation cannot be used");
                    }
                },
            }
        }
        all.rules = rules;
        all
    }

    /// The rule about a host: its own, with the port if the rule has one, or that of a domain above it.
    pub(crate) fn host(&self, host: &Authority) -> Option<&ModerationRule> {
        within(&self.hosts, host).map(|index| &self.rules[index])
    }

    /// The wish of a host, or of a domain above it, not to be relayed.
    pub(crate) fn opt_out(&self, host: &Authority) -> Option<&ModerationRule> {
        within(&self.opted_out, host).map(|index| &self.rules[index])
    }

    /// Domains that do not want to be relayed.
    pub(crate) fn opted_out(&self) -> usize {
        self.opted_out.len()
    }

    /// How many of them end in the same two labels as this host.
    pub(crate) fn opted_out_of_ending(&self, host: &Authority) -> usize {
        let wanted = ending(host.as_str());
        let alike = self.opted_out.keys().filter(|one| ending(one) == wanted);
        alike.count()
    }

    /// The rule about one account.
    pub(crate) fn actor(&self, actor: &ActorId) -> Option<&ModerationRule> {
        self.actors.get(actor.as_str()).map(|index| &self.rules[*index])
    }

    /// The rule about what a host runs.
    pub(crate) fn software(&self, software: Option<&str>) -> Option<&ModerationRule> {
        let name = software?.split(' ').next()?;
        self.software.get(name).map(|index| &self.rules[*index])
    }

    /// Whether posts have to be read for filters.
    pub(crate) fn has_filters(&self) -> bool {
        !(self.tags.is_empty() && self.keywords.is_empty() && self.patterns.is_empty())
    }

    /// The rule about a hashtag.
    pub(crate) fn tag(&self, tag: &str) -> Option<&ModerationRule> {
        self.tags.get(tag).map(|index| &self.rules[*index])
    }

    /// The rule that keeps a post from being relayed.
    pub(crate) fn silences(&self, words: &Words) -> Option<&ModerationRule> {
        let tag = words.tags.iter().find_map(|tag| self.tags.get(tag));
        let keyword = || {
            let found = self
                .keywords
                .iter()
                .find(|(keyword, _)| words.text.contains(keyword));
            found.map(|(_, index)| index)
        };
        let pattern = || {
            let found = self
                .patterns
                .iter()
                .find(|(pattern, _)| pattern.is_match(&words.text));
            found.map(|(_, index)| index)
        };
        tag.or_else(keyword)
            .or_else(pattern)
            .map(|index| &self.rules[*index])
    }
}

/// The rule about a host: its own, with the port if the rule has one, or that of a domain above it.
fn within(rules: &HashMap<String, usize>, host: &Authority) -> Option<usize> {
    if rules.is_empty() {
        return None;
    }
    let mut candidates = vec![host.as_str()];
    let mut rest = Some(host.host());
    while let Some(name) = rest {
        candidates.push(name);
        rest = name.split_once('.').map(|(_, above)| above);
    }
    candidates.into_iter().find_map(|name| rules.get(name).copied())
}

pub(crate) fn pattern(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(MAX_REGEX_BYTES)
        .build()
}

/// The subject of a rule as it is stored and compared.
pub(crate) fn subject_of(
    effect: ModerationEffect,
    kind: ModerationKind,
    text: &str,
) -> Result<String, HandleError> {
    let refuse = |why: String| Err(HandleError::NotARule(why));
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_SUBJECT_BYTES {
        return refuse(format!(
            "a rule's subject has from 1 to {MAX_SUBJECT_BYTES} bytes"
        ));
    }
    let is_filter = matches!(
        kind,
        ModerationKind::Tag | ModerationKind::Keyword | ModerationKind::Regex
    );
    let is_wish = kind == ModerationKind::OptOut;
    if is_filter != (effect == ModerationEffect::Silence) || is_wish != (effect == ModerationEffect::OptOut) {
        return refuse(
            "hosts, accounts and software are blocked or limited; tags, words and patterns are silenced; domains opt out"
                .into(),
        );
    }
    match kind {
        ModerationKind::Host | ModerationKind::OptOut => {
            match Authority::parse(text.strip_prefix("*.").unwrap_or(text)) {
                Ok(host) => Ok(host.to_string()),
                Err(_) => Err(HandleError::NotAHost(text.chars().take(100).collect())),
            }
        }
        ModerationKind::Actor => match ActorId::parse(text) {
            Ok(actor) => Ok(actor.as_str().to_owned()),
            Err(error) => refuse(format!(
                "{text:?} is not an account: name it by its id, such as https://example.org/users/name ({error})"
            )),
        },
        ModerationKind::Software => Ok(text.to_lowercase()),
        ModerationKind::Tag => match tag_of(text) {
            tag if tag.is_empty() => refuse("a tag has at least one letter".into()),
            tag => Ok(tag),
        },
        ModerationKind::Keyword => Ok(text.to_lowercase()),
        ModerationKind::Regex => match pattern(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => refuse(format!("{text:?} is not a regular expression: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tasuki_core::clock::Timestamp;
    use tasuki_core::store::fedi::{ModerationEffect as Effect, ModerationKind as Kind, ModerationRule};
    use tasuki_proto::activitypub::ids::{ActorId, Authority};
    use tasuki_proto::activitypub::words::Words;

    use super::{Moderation, subject_of};

    fn compiled(rules: &[(Effect, Kind, &str)]) -> Moderation {
        let rule = |(effect, kind, text): &(Effect, Kind, &str)| ModerationRule {
            effect: *effect,
            kind: *kind,
            subject: subject_of(*effect, *kind, text).unwrap(),
            reason: String::new(),
            at: Timestamp(0),
        };
        Moderation::compile(rules.iter().map(rule).collect())
    }

    #[test]
    fn hosts_are_matched_at_label_boundaries() {
        let all = compiled(&[
            (Effect::Block, Kind::Host, "*.Evil.example"),
            (Effect::Limit, Kind::Host, "1.2.3.4:8080"),
        ]);
        let asks = |host: &str| all.host(&Authority::parse(host).unwrap()).map(|rule| rule.effect);
        for blocked in [
            "evil.example",
            "a.evil.example",
            "b.a.EVIL.example",
            "evil.example:8443",
        ] {
            assert_eq!(asks(blocked), Some(Effect::Block), "{blocked}");
        }
        for free in ["notevil.example", "example", "evil.example.org", "1.2.3.4"] {
            assert_eq!(asks(free), None, "{free}");
        }
        assert_eq!(asks("1.2.3.4:8080"), Some(Effect::Limit));
    }

    #[test]
    fn a_wish_not_to_be_relayed_stands_beside_the_operators_rule() {
        let all = compiled(&[
            (Effect::OptOut, Kind::OptOut, "*.Shy.example"),
            (Effect::Block, Kind::Host, "a.shy.example"),
        ]);
        let host = |text: &str| Authority::parse(text).unwrap();
        for shy in ["shy.example", "a.shy.example", "shy.example:8443"] {
            assert!(all.opt_out(&host(shy)).is_some(), "{shy}");
        }
        assert!(all.opt_out(&host("notshy.example")).is_none());
        for (other, alike) in [
            ("b.shy.example:8443", 1),
            ("shy.example", 1),
            ("notshy.example", 0),
            ("example", 0),
            ("[2001:db8::1]:80", 0),
        ] {
            assert_eq!(all.opted_out_of_ending(&host(other)), alike, "{other}");
        }
        assert!(all.host(&host("shy.example")).is_none() && all.host(&host("a.shy.example")).is_some());
        assert!(!all.has_filters());
    }

    #[test]
    fn accounts_software_and_words_are_matched() {
        let all = compiled(&[
            (Effect::Block, Kind::Actor, "https://a.example/users/troll"),
            (Effect::Limit, Kind::Software, "Spamware"),
            (Effect::Silence, Kind::Tag, "#NSFW"),
            (Effect::Silence, Kind::Keyword, "Cheap Pills"),
            (Effect::Silence, Kind::Regex, r"b[i1]tc[o0]in\s+now"),
        ]);
        assert!(
            all.actor(&ActorId::parse("https://a.example/users/troll").unwrap())
                .is_some()
        );
        assert!(
            all.actor(&ActorId::parse("https://a.example/users/other").unwrap())
                .is_none()
        );
        assert!(all.software(Some("spamware 1.0")).is_some() && all.software(Some("spam 1")).is_none());
        let silences = |text: &str, tag: &str| {
            let words = Words {
                text: text.into(),
                tags: vec![tag.into()],
            };
            all.silences(&words).map(|rule| rule.kind)
        };
        assert_eq!(silences("x", "nsfw"), Some(Kind::Tag));
        assert_eq!(silences("buy cheap pills here", ""), Some(Kind::Keyword));
        assert_eq!(silences("B1TCOIN  NOW", ""), Some(Kind::Regex));
        assert_eq!(silences("an honest post", "cats"), None);
        assert!(!Moderation::default().has_filters() && all.has_filters());
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        for (effect, kind, text, reason) in [
            (Effect::Block, Kind::Host, "no host/", "not a host name"),
            (Effect::Silence, Kind::Host, "a.example", "blocked or limited"),
            (Effect::OptOut, Kind::Host, "a.example", "domains opt out"),
            (Effect::Block, Kind::OptOut, "a.example", "domains opt out"),
            (Effect::Block, Kind::Keyword, "word", "silenced"),
            (Effect::Block, Kind::Actor, "@troll@a.example", "by its id"),
            (Effect::Silence, Kind::Regex, "(", "not a regular expression"),
            (
                Effect::Silence,
                Kind::Regex,
                r"\w{1000}{1000}",
                "not a regular expression",
            ),
            (Effect::Silence, Kind::Tag, "#", "at least one letter"),
            (Effect::Silence, Kind::Keyword, " ", "from 1 to 500"),
        ] {
            let error = subject_of(effect, kind, text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
