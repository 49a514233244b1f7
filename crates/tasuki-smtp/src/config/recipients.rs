//! `[[mail.recipients]]`: which addresses of a domain there are.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_proto::names::{Domain, Mailbox};

use super::bad;

/// The addresses that there are in a domain, so that others are refused at RCPT and not bounced later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipientsConfig {
    /// The domain, with its subdomains.
    pub domain: Domain,
    /// Local parts, in any case; `*` stands for any number of characters.
    #[serde(default)]
    pub list: Vec<String>,
    /// Also those in the store: `tasuki mail recipients add ADDRESS`.
    #[serde(default)]
    pub table: bool,
    /// Ask the next hop about the others; answers are remembered for a while.
    #[serde(default)]
    pub call_out: bool,
}

/// [`RecipientsConfig`], ready for use: the longest domain first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recipients(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    domain: Domain,
    exact: HashSet<String>,
    patterns: Vec<String>,
    table: bool,
    call_out: bool,
}

/// What the configuration knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// It is there, or nothing is said of its domain.
    Yes,
    /// It is not in the list; these know more.
    Ask {
        /// The store's table.
        table: bool,
        /// The next hop.
        call_out: bool,
    },
    /// It is not there.
    No,
}

impl Recipients {
    pub(crate) fn check(config: &[RecipientsConfig]) -> Result<Self, BuildError> {
        let mut entries: Vec<Entry> = Vec::new();
        for given in config {
            let domain = &given.domain;
            if entries.iter().any(|entry| entry.domain == *domain) {
                return Err(bad("mail.recipients.domain", format!("{domain} is given twice")));
            }
            if given.list.is_empty() && !given.table && !given.call_out {
                let problem = format!("{domain}: needs a list, table or call_out, or it would have nobody");
                return Err(bad("mail.recipients.list", problem));
            }
            let strange = |item: &&String| item.is_empty() || item.len() > 64 || item.contains('@');
            if let Some(item) = given.list.iter().find(strange) {
                let problem = format!("{item:?}: a part before the @ is expected, or a pattern of one");
                return Err(bad("mail.recipients.list", problem));
            }
            let lower = given.list.iter().map(|item| item.to_lowercase());
            let (patterns, exact): (Vec<_>, Vec<_>) = lower.partition(|item| item.contains('*'));
            entries.push(Entry {
                domain: domain.clone(),
                exact: exact.into_iter().collect(),
                patterns,
                table: given.table,
                call_out: given.call_out,
            });
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.domain.as_str().len()));
        Ok(Self(entries))
    }

    /// What is known of an address. Postmaster is everywhere (RFC 5321 4.5.1).
    pub(crate) fn look(&self, mailbox: &Mailbox) -> Listed {
        let within = |entry: &&Entry| mailbox.domain().is_some_and(|d| d.is_within(&entry.domain));
        let Some(entry) = self.0.iter().find(within) else {
            return Listed::Yes;
        };
        let local = mailbox.local().to_lowercase();
        let listed = local == "postmaster"
            || entry.exact.contains(&local)
            || entry.patterns.iter().any(|pattern| matches(pattern, &local));
        match (listed, entry.table, entry.call_out) {
            (true, ..) => Listed::Yes,
            (false, false, false) => Listed::No,
            (false, table, call_out) => Listed::Ask { table, call_out },
        }
    }
}

/// Whether a pattern with `*` matches all of a text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_match_whole_local_parts() {
        for (pattern, text, expect) in [
            ("*", "", true),
            ("sales-*", "sales-jp", true),
            ("sales-*", "sales-", true),
            ("sales-*", "presales-jp", false),
            ("*-jp", "sales-jp", true),
            ("*-jp", "sales-jp-x", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(matches(pattern, text), expect, "{pattern} {text}");
        }
    }

    #[test]
    fn the_longest_domain_speaks_and_postmaster_is_everywhere() {
        let entry = |domain: &str, list: &[&str], call_out| RecipientsConfig {
            domain: Domain::parse(domain).unwrap(),
            list: list.iter().map(|i| (*i).to_owned()).collect(),
            table: false,
            call_out,
        };
        let config = [
            entry("x.org", &["Anna", "sales-*"], false),
            entry("sub.x.org", &["bob"], true),
        ];
        let recipients = Recipients::check(&config).unwrap();
        let look = |text: &str| recipients.look(&Mailbox::parse(text).unwrap());
        let ask = Listed::Ask {
            table: false,
            call_out: true,
        };
        for (address, expect) in [
            ("ANNA@x.org", Listed::Yes),
            ("sales-de@x.org", Listed::Yes),
            ("bob@x.org", Listed::No),
            ("bob@sub.x.org", Listed::Yes),
            ("anna@sub.x.org", ask),
            ("anna@other.x.org", Listed::Yes),
            ("PostMaster@x.org", Listed::Yes),
            ("anybody@y.org", Listed::Yes),
            ("anybody@[192.0.2.1]", Listed::Yes),
        ] {
            assert_eq!(look(address), expect, "{address}");
        }
        assert!(Recipients::check(&[entry("x.org", &[], false)]).is_err());
        assert!(Recipients::check(&[entry("x.org", &["a@x.org"], false)]).is_err());
        assert!(Recipients::check(&[entry("x.org", &["a"], false), entry("X.org", &["b"], false)]).is_err());
    }
}
