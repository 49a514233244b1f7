//! What principals are and may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tasuki_proto::names::{Domain, Mailbox, ReversePath};

use crate::config::size;
use crate::store::accounts::Principal;

/// Bytes a second below which a bandwidth would only make visitors time out.
const LEAST_BANDWIDTH: u64 = 128 * 1024;

fn is_group(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&text.len()) && text.chars().all(is_plain)
}

/// What kind of being a principal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalKind {
    /// A human with a password.
    Person,
    /// An app or network that sends mail.
    Service,
    /// A tunnel client.
    Agent,
    /// A fediverse host.
    Instance,
}

/// What a principal may do to the gateway itself, beside its grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Nothing.
    #[default]
    None,
    /// Read.
    Viewer,
    /// Run it: bans, queue, subscribers, agents.
    Operator,
    /// Everything, also people and keys.
    Admin,
}

impl Role {
    /// All roles, from the least.
    pub const ALL: [Self; 4] = [Self::None, Self::Viewer, Self::Operator, Self::Admin];

    /// The name in commands and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("{text:?} is not a role; known: none, viewer, operator, admin"))
    }
}

/// What kind of mail a service sends; it decides the turns in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailClass {
    /// To one person who waits for it: orders, passwords, receipts.
    #[default]
    Transactional,
    /// To many who do not wait: newsletters.
    Bulk,
    /// From copiers, cameras, power supplies.
    Device,
}

impl MailClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Transactional, Self::Bulk, Self::Device];

    /// The name in commands and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Bulk => "bulk",
            Self::Device => "device",
        }
    }
}

/// One thing a principal may do through an engine. Written as text, for example `mail:send:example.com`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Grant {
    /// `mail:send:DOMAIN`: send mail as any address of this domain and its subdomains.
    SendAs(Domain),
    /// `mail:send:*`: send mail as any address.
    SendAsAny,
    /// `mail:send:<>`: send with the null reverse-path (bounces of a mail system behind us).
    SendNull,
    /// `mail:class:transactional`, `bulk` or `device`: what kind of mail it sends. Without it, transactional.
    MailClass(MailClass),
    /// `mail:daily:N`: to how many recipients it may send in a day (UTC). Without it, any number.
    MailDaily(u32),
    /// `mail:hourly:N`: to how many recipients it may send in an hour. Without it, any number, or what people may.
    MailHourly(u32),
    /// `mail:addresses:N`: from how many addresses it may send within an hour. Without it, any number, or what people may.
    MailAddresses(u32),
    /// `fedi:publish`: publish without being subscribed.
    Publish,
    /// `tunnel:name:DOMAIN`: expose this host name and its subdomains.
    ExposeName(Domain),
    /// `tunnel:default`: be the default route of the Minecraft port.
    ExposeDefault,
    /// `tunnel:port:FROM-TO` (or one port): expose these TCP ports.
    ExposePorts(u16, u16),
    /// `tunnel:udp:FROM-TO` (or one port): expose these UDP ports.
    ExposeUdp(u16, u16),
    /// `tunnel:share:GROUP`: agents of one group are one owner of names and ports, and share their visitors.
    ShareWith(String),
    /// `tunnel:bandwidth:N`: so many bytes a second in each direction. Without it, as many as there is room for.
    Bandwidth(u64),
    /// `tunnel:connections:N`: so many visitors' connections at once, if the configuration allows no fewer.
    Connections(u32),
}

/// The text is not a grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a grant; known: mail:send:DOMAIN, mail:send:*, mail:send:<>, mail:class:transactional|bulk|device, mail:daily:N, mail:hourly:N, mail:addresses:N, fedi:publish, tunnel:name:DOMAIN, tunnel:default, tunnel:port:FROM-TO, tunnel:udp:FROM-TO, tunnel:share:GROUP, tunnel:bandwidth:BYTES, tunnel:connections:N"
)]
pub struct BadGrant(pub String);

impl FromStr for Grant {
    type Err = BadGrant;
    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let bad = || BadGrant(text.chars().take(80).collect());
        let domain = |d: &str| d.parse::<Domain>().map_err(|_| bad());
        match text.splitn(3, ':').collect::<Vec<_>>()[..] {
            ["mail", "send", "*"] => Ok(Self::SendAsAny),
            ["mail", "send", "<>"] => Ok(Self::SendNull),
            ["mail", "send", d] => domain(d).map(Self::SendAs),
            ["mail", "class", name] => MailClass::ALL
                .into_iter()
                .find(|class| class.name() == name)
                .map(Self::MailClass)
                .ok_or_else(bad),
            ["mail", cap @ ("daily" | "hourly" | "addresses"), n] => match (cap, n.parse()) {
                ("daily", Ok(n)) if n > 0 => Ok(Self::MailDaily(n)),
                ("hourly", Ok(n)) if n > 0 => Ok(Self::MailHourly(n)),
                ("addresses", Ok(n)) if n > 0 => Ok(Self::MailAddresses(n)),
                _ => Err(bad()),
            },
            ["fedi", "publish"] => Ok(Self::Publish),
            ["tunnel", "name", d] => domain(d).map(Self::ExposeName),
            ["tunnel", "default"] => Ok(Self::ExposeDefault),
            ["tunnel", "share", group] if is_group(group) => Ok(Self::ShareWith(group.to_owned())),
            ["tunnel", "bandwidth", text] => match size::parse(text) {
                Ok(bytes) if bytes >= LEAST_BANDWIDTH => Ok(Self::Bandwidth(bytes)),
                _ => Err(bad()),
            },
            ["tunnel", "connections", n] => match n.parse() {
                Ok(n) if n > 0 => Ok(Self::Connections(n)),
                _ => Err(bad()),
            },
            ["tunnel", kind @ ("port" | "udp"), ports] => {
                let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
                let (from, to): (u16, u16) =
                    (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
                match kind {
                    _ if from == 0 || from > to => Err(bad()),
                    "port" => Ok(Self::ExposePorts(from, to)),
                    _ => Ok(Self::ExposeUdp(from, to)),
                }
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SendAs(d) => write!(f, "mail:send:{d}"),
            Self::SendAsAny => f.write_str("mail:send:*"),
            Self::SendNull => f.write_str("mail:send:<>"),
            Self::MailClass(class) => write!(f, "mail:class:{}", class.name()),
            Self::MailDaily(n) => write!(f, "mail:daily:{n}"),
            Self::MailHourly(n) => write!(f, "mail:hourly:{n}"),
            Self::MailAddresses(n) => write!(f, "mail:addresses:{n}"),
            Self::Publish => f.write_str("fedi:publish"),
            Self::ExposeName(d) => write!(f, "tunnel:name:{d}"),
            Self::ExposeDefault => f.write_str("tunnel:default"),
            Self::ExposePorts(a, b) if a == b => write!(f, "tunnel:port:{a}"),
            Self::ExposePorts(a, b) => write!(f, "tunnel:port:{a}-{b}"),
            Self::ExposeUdp(a, b) if a == b => write!(f, "tunnel:udp:{a}"),
            Self::ExposeUdp(a, b) => write!(f, "tunnel:udp:{a}-{b}"),
            Self::ShareWith(group) => write!(f, "tunnel:share:{group}"),
            Self::Bandwidth(bytes) => write!(f, "tunnel:bandwidth:{}", size::format(*bytes)),
            Self::Connections(n) => write!(f, "tunnel:connections:{n}"),
        }
    }
}

impl From<Grant> for String {
    fn from(g: Grant) -> Self {
        g.to_string()
    }
}

impl TryFrom<String> for Grant {
    type Error = BadGrant;
    fn try_from(text: String) -> Result<Self, BadGrant> {
        text.parse()
    }
}

impl Principal {
    /// Whether it may send mail with this reverse-path. An address literal needs `mail:send:*`.
    #[must_use]
    pub fn may_send_as(&self, sender: &ReversePath) -> bool {
        match sender {
            ReversePath::Null => self.holds(|g| *g == Grant::SendNull),
            ReversePath::Mailbox(mailbox) => self.may_send_from(mailbox),
        }
    }

    /// Whether it may send mail from this mailbox (envelope or header).
    #[must_use]
    pub fn may_send_from(&self, mailbox: &Mailbox) -> bool {
        self.holds(|grant| match grant {
            Grant::SendAsAny => true,
            Grant::SendAs(domain) => mailbox.domain().is_some_and(|d| d.is_within(domain)),
            _ => false,
        })
    }

    /// Whether it may send mail at all.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.holds(|g| matches!(g, Grant::SendAs(_) | Grant::SendAsAny | Grant::SendNull))
    }

    /// What kind of mail it sends.
    #[must_use]
    pub fn mail_class(&self) -> MailClass {
        self.named_mail_class().unwrap_or_default()
    }

    /// The same, if somebody said so.
    #[must_use]
    pub fn named_mail_class(&self) -> Option<MailClass> {
        self.grants.iter().find_map(|grant| match grant {
            Grant::MailClass(class) => Some(*class),
            _ => None,
        })
    }

    /// To how many recipients it may send mail in a day; the smallest number counts, `None` is any number.
    #[must_use]
    pub fn mail_daily(&self) -> Option<u32> {
        let caps = self.grants.iter().filter_map(|grant| match grant {
            Grant::MailDaily(n) => Some(*n),
            _ => None,
        });
        caps.min()
    }

    /// To how many recipients it may send mail in an hour; the smallest number counts.
    #[must_use]
    pub fn mail_hourly(&self) -> Option<u32> {
        let caps = self.grants.iter().filter_map(|grant| match grant {
            Grant::MailHourly(n) => Some(*n),
            _ => None,
        });
        caps.min()
    }

    /// From how many addresses it may send mail within an hour; the smallest number counts.
    #[must_use]
    pub fn mail_addresses(&self) -> Option<u32> {
        let caps = self.grants.iter().filter_map(|grant| match grant {
            Grant::MailAddresses(n) => Some(*n),
            _ => None,
        });
        caps.min()
    }

    /// Whether it may publish through the fediverse relay without being subscribed.
    #[must_use]
    pub fn may_publish(&self) -> bool {
        self.holds(|g| *g == Grant::Publish)
    }

    /// Whether it may expose this host name.
    #[must_use]
    pub fn may_expose_name(&self, name: &Domain) -> bool {
        self.holds(|g| matches!(g, Grant::ExposeName(domain) if name.is_within(domain)))
    }

    /// Whether it may be the default route of the Minecraft port.
    #[must_use]
    pub fn may_expose_default(&self) -> bool {
        self.holds(|g| *g == Grant::ExposeDefault)
    }

    /// Whether it may expose this port.
    #[must_use]
    pub fn may_expose_port(&self, port: u16) -> bool {
        self.holds(|g| matches!(g, Grant::ExposePorts(from, to) if (*from..=*to).contains(&port)))
    }

    /// The group whose agents are one owner with it, if it is in one.
    #[must_use]
    pub fn share_group(&self) -> Option<&str> {
        self.grants.iter().find_map(|grant| match grant {
            Grant::ShareWith(group) => Some(group.as_str()),
            _ => None,
        })
    }

    /// Bytes a second that its visitors may move in each direction; the smallest number counts, `None` is any number.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u64> {
        let caps = self.grants.iter().filter_map(|grant| match grant {
            Grant::Bandwidth(bytes) => Some(*bytes),
            _ => None,
        });
        caps.min()
    }

    /// Visitors' connections that it may have at once; the smallest number counts, `None` is any number.
    #[must_use]
    pub fn max_connections(&self) -> Option<u32> {
        let caps = self.grants.iter().filter_map(|grant| match grant {
            Grant::Connections(n) => Some(*n),
            _ => None,
        });
        caps.min()
    }

    /// Whether its role reaches `role`.
    #[must_use]
    pub fn is_at_least(&self, role: Role) -> bool {
        !self.disabled && self.role >= role
    }

    /// A disabled principal holds nothing.
    fn holds(&self, grant: impl Fn(&Grant) -> bool) -> bool {
        !self.disabled && self.grants.iter().any(grant)
    }
}
