//! `[mail.rewrite]`: what is changed of mail on its way through.

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_proto::names::{Domain, MailHost, Mailbox};

use super::bad;

/// Most addresses behind one alias.
const MAX_TARGETS: usize = 100;

/// Changes to mail. Senders and header fields are changed only for logins, networks and devices; aliases count for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewriteConfig {
    /// Leave the client's name and address out of our Received field.
    pub hide_client: bool,
    /// Header fields to take out.
    pub remove_headers: Vec<String>,
    /// Header fields to put in.
    pub add_headers: Vec<HeaderConfig>,
    /// Senders that become others, in MAIL FROM and From. What they become must be granted.
    pub senders: Vec<SenderConfig>,
    /// Recipients that become others. Their domain need not be in `relay_domains`.
    pub aliases: Vec<AliasConfig>,
}

/// A header field to put in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderConfig {
    /// Such as `X-Relayed-By`.
    pub name: String,
    /// One line of ASCII.
    pub value: String,
}

/// A sender that becomes another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenderConfig {
    /// An address, or `@domain` for all of exactly that domain.
    pub from: Pattern,
    /// What it becomes.
    pub to: Mailbox,
}

/// A recipient that becomes others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasConfig {
    /// An address, or `@domain` for all of exactly that domain that no other alias names.
    pub address: Pattern,
    /// What it becomes, 1 to 100 addresses; they are not looked up again.
    pub to: Vec<Mailbox>,
}

/// An address, or all of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pattern {
    /// One address; its local part in any case.
    Mailbox(Mailbox),
    /// `@domain`.
    Domain(Domain),
}

impl Pattern {
    fn key(&self) -> Self {
        match self {
            Self::Mailbox(mailbox) => Self::of(mailbox),
            Self::Domain(_) => self.clone(),
        }
    }

    /// The key of one address: local parts are compared without case, as all servers do that people use.
    fn of(mailbox: &Mailbox) -> Self {
        let local = mailbox.local().to_lowercase();
        // Lower case may be longer than 64 octets in rare scripts; then only the exact form counts.
        let lower = Mailbox::from_parts(local, mailbox.host().clone());
        Self::Mailbox(lower.unwrap_or_else(|_| mailbox.clone()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let parsed = match text.strip_prefix('@') {
            Some(domain) => Domain::parse(domain).map(Self::Domain).map_err(|e| e.to_string()),
            None => Mailbox::parse(&text)
                .map(Self::Mailbox)
                .map_err(|e| e.to_string()),
        };
        parsed.map_err(|e| format!("{text:?}: an address or @domain is expected ({e})"))
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Mailbox(mailbox) => mailbox.to_string(),
            Pattern::Domain(domain) => format!("@{domain}"),
        }
    }
}

/// [`RewriteConfig`], ready for use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rewrite {
    pub(crate) hide_client: bool,
    /// In lower case.
    pub(crate) remove_headers: Vec<String>,
    /// Whole lines with CRLF.
    pub(crate) add_headers: String,
    senders: std::collections::HashMap<Pattern, Mailbox>,
    aliases: std::collections::HashMap<Pattern, Vec<Mailbox>>,
}

fn find<'a, T>(table: &'a std::collections::HashMap<Pattern, T>, mailbox: &Mailbox) -> Option<&'a T> {
    if table.is_empty() {
        return None;
    }
    let exact = table.get(&Pattern::of(mailbox));
    exact.or_else(|| match mailbox.host() {
        MailHost::Domain(domain) => table.get(&Pattern::Domain(domain.clone())),
        MailHost::Literal(_) => None,
    })
}

impl Rewrite {
    /// What this sender becomes, if it does.
    pub(crate) fn sender(&self, sender: &Mailbox) -> Option<&Mailbox> {
        find(&self.senders, sender)
    }

    /// What this recipient becomes, if it does.
    pub(crate) fn alias(&self, recipient: &Mailbox) -> Option<&[Mailbox]> {
        find(&self.aliases, recipient).map(Vec::as_slice)
    }
}

impl RewriteConfig {
    pub(crate) fn check(&self) -> Result<Rewrite, BuildError> {
        let mut rewrite = Rewrite {
            hide_client: self.hide_client,
            ..Rewrite::default()
        };
        for name in &self.remove_headers {
            let name = field_name("mail.rewrite.remove_headers", name)?;
            if ["from", "received"].contains(&name.as_str()) {
                let problem = format!("{name} is needed: it says where the mail comes from");
                return Err(bad("mail.rewrite.remove_headers", problem));
            }
            rewrite.remove_headers.push(name);
        }
        for header in &self.add_headers {
            field_name("mail.rewrite.add_headers", &header.name)?;
            let plain = header.value.len() <= 900 && header.value.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !plain {
                let problem = format!("{}: the value is one line of printable ASCII", header.name);
                return Err(bad("mail.rewrite.add_headers", problem));
            }
            rewrite.add_headers += &format!("{}: {}\r\n", header.name, header.value);
        }
        for sender in &self.senders {
            let before = rewrite.senders.insert(sender.from.key(), sender.to.clone());
            if before.is_some() {
                let problem = format!("{} is given twice", String::from(sender.from.clone()));
                return Err(bad("mail.rewrite.senders", problem));
            }
        }
        for alias in &self.aliases {
            let name = String::from(alias.address.clone());
            if alias.to.is_empty() || alias.to.len() > MAX_TARGETS {
                let problem = format!("{name}: 1 to {MAX_TARGETS} addresses");
                return Err(bad("mail.rewrite.aliases", problem));
            }
            if rewrite
                .aliases
                .insert(alias.address.key(), alias.to.clone())
                .is_some()
            {
                return Err(bad("mail.rewrite.aliases", format!("{name} is given twice")));
            }
        }
        Ok(rewrite)
    }
}

/// The name in lower case, if it can be one.
fn field_name(key: &str, name: &str) -> Result<String, BuildError> {
    let plain =
        (1..=76).contains(&name.len()) && name.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b':');
    if plain {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(bad(key, format!("{name:?} cannot be the name of a header field")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    fn alias(address: &str, to: &[&str]) -> AliasConfig {
        AliasConfig {
            address: Pattern::try_from(address.to_owned()).unwrap(),
            to: to.iter().map(|t| mailbox(t)).collect(),
        }
    }

    #[test]
    fn the_exact_address_comes_before_its_domain() {
        let config = RewriteConfig {
            aliases: vec![
                alias("@x.org", &["all@y.org"]),
                alias("Info@x.org", &["a@y.org", "b@y.org"]),
            ],
            ..RewriteConfig::default()
        };
        let rewrite = config.check().unwrap();
        assert_eq!(rewrite.alias(&mailbox("INFO@X.org")).unwrap().len(), 2);
        assert_eq!(
            rewrite.alias(&mailbox("other@x.org")).unwrap()[0],
            mailbox("all@y.org")
        );
        assert!(rewrite.alias(&mailbox("info@sub.x.org")).is_none());
        assert!(rewrite.alias(&mailbox("info@[192.0.2.1]")).is_none());
    }

    #[test]
    fn what_would_break_mail_is_refused() {
        let remove = |name: &str| RewriteConfig {
            remove_headers: vec![name.to_owned()],
            ..RewriteConfig::default()
        };
        for name in ["From", "received", "X Y", "X:", "", "X\r\nBcc"] {
            assert!(remove(name).check().is_err(), "{name:?}");
        }
        assert!(remove("X-Originating-IP").check().is_ok());
        let add = |value: &str| RewriteConfig {
            add_headers: vec![HeaderConfig {
                name: "X-A".into(),
                value: value.into(),
            }],
            ..RewriteConfig::default()
        };
        assert!(add("b\r\nBcc: c@y.org").check().is_err());
        assert_eq!(add("b").check().unwrap().add_headers, "X-A: b\r\n");
        let twice = RewriteConfig {
            aliases: vec![alias("a@x.org", &["b@y.org"]), alias("A@x.org", &["c@y.org"])],
            ..RewriteConfig::default()
        };
        assert!(twice.check().is_err());
        let nobody = RewriteConfig {
            aliases: vec![alias("a@x.org", &[])],
            ..RewriteConfig::default()
        };
        assert!(nobody.check().is_err());
    }
}
