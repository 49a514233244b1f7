//! Smarthosts, groups of them, and the routes that lead to them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tasuki_core::{BuildError, seal::Secret};
use tasuki_proto::{
    names::{Domain, Mailbox},
    smtp::client::{Protocol, Security},
};

use super::{Pool, SourceConfig, bad};

mod oauth;
mod presets;
mod reach;
#[cfg(test)]
mod tests;

pub(crate) use oauth::{Granting, OAuth};
pub use oauth::{OAuthConfig, OAuthFlow};
use presets::Preset;
pub(crate) use presets::ProviderSpf;

/// A way for some mail. What is given must all match; of the routes that match, one with a principal wins over one with
/// a sender's address, that over a sender's domain, and then the longest recipient domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The recipients' domain, with its subdomains.
    #[serde(default)]
    pub domain: Option<Domain>,
    /// The sender (MAIL FROM): an address, or a domain with its subdomains.
    #[serde(default)]
    pub sender: Option<String>,
    /// The service or person that handed it in.
    #[serde(default)]
    pub principal: Option<String>,
    /// `direct`, or the name of a smarthost or group.
    pub via: String,
    /// The pool of addresses that it goes out from; `mail.default_source` if absent.
    #[serde(default)]
    pub source: Option<String>,
}

/// Smarthosts that stand in for each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmarthostGroupConfig {
    /// Its name; not one of a smarthost.
    pub name: String,
    /// Names of smarthosts. The one that works and connects fastest is used; equal ones in this order.
    pub members: Vec<String>,
}

/// How a smarthost's connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmarthostTls {
    /// STARTTLS, certificate verified.
    Starttls,
    /// TLS from the first octet (465), certificate verified.
    Implicit,
    /// STARTTLS where offered, not verified; no login.
    Opportunistic,
    /// None; no login.
    None,
}

/// What a smarthost speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmarthostProtocol {
    /// SMTP.
    #[default]
    Smtp,
    /// LMTP: a mail store, which answers for each recipient.
    Lmtp,
}

/// A server that takes our mail. What is not given comes from the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmarthostConfig {
    /// Its name here.
    pub name: String,
    /// A known provider: sendgrid, ses, mailgun, sakura, microsoft365, gmail.
    #[serde(default)]
    pub preset: Option<String>,
    /// Its host name or IP address.
    #[serde(default)]
    pub host: Option<String>,
    /// Its port; 587.
    #[serde(default)]
    pub port: Option<u16>,
    /// SMTP or LMTP.
    #[serde(default)]
    pub protocol: SmarthostProtocol,
    /// Protection; starttls.
    #[serde(default)]
    pub tls: Option<SmarthostTls>,
    /// Login name, if it wants one.
    #[serde(default)]
    pub username: Option<String>,
    /// The password itself. Better: one of the next two.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file with the password in its first line.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The name of a sealed secret in the store; `tasuki mail smarthost password` puts it there.
    #[serde(default)]
    pub password_secret: Option<String>,
    /// A login by access tokens (XOAUTH2); the password is the application's secret then.
    #[serde(default)]
    pub oauth: Option<OAuthConfig>,
    /// Most connections to it at a time; 20.
    #[serde(default)]
    pub connections: Option<usize>,
    /// Most mails over one connection; 10000.
    #[serde(default)]
    pub mails_per_connection: Option<usize>,
}

/// Where a recipient's mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Direct,
    /// A smarthost or a group.
    Smarthost(Arc<str>),
}

/// A smarthost, ready for use.
#[derive(Clone, Debug)]
pub(crate) struct Smarthost {
    pub(crate) name: Arc<str>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) security: Security,
    pub(crate) username: Option<String>,
    pub(crate) password: Password,
    /// Access tokens are used in place of the password, which is the application's secret.
    pub(crate) oauth: Option<OAuth>,
    pub(crate) connections: usize,
    pub(crate) mails_per_connection: usize,
    /// Parts of replies by which it says that our account is used up, not that the mail is bad.
    pub(crate) quota: &'static [&'static str],
    /// What domains that send through it have in their SPF records, if that is known.
    pub(crate) spf: Option<ProviderSpf>,
}

/// Where a smarthost's password is.
#[derive(Clone, Debug)]
pub(crate) enum Password {
    None,
    Given(Secret),
    File(PathBuf),
    Sealed(String),
}

/// Who sends a mail, as far as routes care.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin<'a> {
    pub(crate) principal: Option<&'a str>,
    pub(crate) sender: Option<&'a Mailbox>,
}

#[derive(Clone, Debug)]
struct Route {
    domain: Option<Domain>,
    sender: Option<SenderRule>,
    principal: Option<String>,
    via: Via,
    source: Option<Arc<Pool>>,
}

#[derive(Clone, Debug)]
enum SenderRule {
    Address(Mailbox),
    Domain(Domain),
}

/// All ways mail can go.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    default: Via,
    default_source: Option<Arc<Pool>>,
    /// The most specific first.
    routes: Vec<Route>,
    /// Smarthosts as groups of one, and groups.
    members: HashMap<Arc<str>, Vec<Arc<Smarthost>>>,
}

impl Ways {
    pub(crate) fn new(
        smarthosts: &[SmarthostConfig],
        groups: &[SmarthostGroupConfig],
        routes: &[RouteConfig],
        default: &str,
    ) -> Result<Self, BuildError> {
        let mut ways = Self {
            default: Via::Direct,
            default_source: None,
            routes: Vec::new(),
            members: HashMap::new(),
        };
        for config in smarthosts {
            let smarthost = Arc::new(config.check()?);
            let name = Arc::clone(&smarthost.name);
            ways.name("mail.smarthosts.name", name, vec![smarthost])?;
        }
        let singles = ways.members.clone();
        for group in groups {
            let mut members = Vec::new();
            let mut seen = HashSet::new();
            for name in &group.members {
                let member = singles.get(name.as_str()).and_then(|one| one.first());
                let known = member.filter(|_| seen.insert(name));
                members.extend(known.cloned());
                if known.is_none() {
                    let problem = format!("{}: {name:?} is no smarthost, or is named twice", group.name);
                    return Err(bad("mail.smarthost_groups.members", problem));
                }
            }
            if members.is_empty() {
                let problem = format!("{}: a group has at least one member", group.name);
                return Err(bad("mail.smarthost_groups.members", problem));
            }
            ways.name(
                "mail.smarthost_groups.name",
                Arc::from(group.name.as_str()),
                members,
            )?;
        }
        for route in routes {
            let compiled = ways.route(route)?;
            ways.routes.push(compiled);
        }
        ways.routes.sort_by_key(|route| std::cmp::Reverse(route.weight()));
        ways.default = ways.via("mail.default_route", default)?;
        Ok(ways)
    }

    fn name(&mut self, key: &str, name: Arc<str>, members: Vec<Arc<Smarthost>>) -> Result<(), BuildError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) || &*name == "direct" {
            let problem = format!("{name:?}: 1 to 64 letters, digits, hyphens, dots; \"direct\" is taken");
            return Err(bad(key, problem));
        }
        match self.members.insert(Arc::clone(&name), members) {
            None => Ok(()),
            Some(_) => Err(bad(key, format!("{name:?} is given twice"))),
        }
    }

    fn via(&self, key: &str, name: &str) -> Result<Via, BuildError> {
        if name == "direct" {
            return Ok(Via::Direct);
        }
        let known = self.members.get_key_value(name);
        known
            .map(|(name, _)| Via::Smarthost(Arc::clone(name)))
            .ok_or_else(|| {
                let problem = format!(
                    "there is no smarthost or group {name:?} in mail.smarthosts (or write \"direct\")"
                );
                bad(key, problem)
            })
    }

    fn route(&self, config: &RouteConfig) -> Result<Route, BuildError> {
        let sender = match config.sender.as_deref() {
            None => None,
            Some(text) if text.contains('@') => {
                let parsed = Mailbox::parse(text).map(SenderRule::Address);
                Some(parsed.map_err(|e| bad("mail.routes.sender", format!("{text:?}: {e}")))?)
            }
            Some(text) => {
                let parsed = Domain::parse(text).map(SenderRule::Domain);
                Some(parsed.map_err(|e| bad("mail.routes.sender", format!("{text:?}: {e}")))?)
            }
        };
        if sender.is_none() && config.domain.is_none() && config.principal.is_none() {
            let problem = "a route needs domain, sender or principal; for all mail use mail.default_route";
            return Err(bad("mail.routes", problem.to_owned()));
        }
        Ok(Route {
            domain: config.domain.clone(),
            sender,
            principal: config.principal.clone(),
            via: self.via("mail.routes.via", &config.via)?,
            source: None,
        })
    }

    /// Puts in the pools of our own addresses.
    pub(crate) fn with_sources(
        mut self,
        pools: &[SourceConfig],
        routes: &[RouteConfig],
        default: Option<&str>,
    ) -> Result<Self, BuildError> {
        let mut by_name = HashMap::new();
        for pool in pools {
            if by_name.insert(pool.name.as_str(), pool.check()?).is_some() {
                return Err(bad(
                    "mail.sources.name",
                    format!("{:?} is given twice", pool.name),
                ));
            }
        }
        let named = |key: &str, name: Option<&str>| match name {
            None => Ok(None),
            Some(name) => by_name.get(name).cloned().map(Some).ok_or_else(|| {
                let problem = format!("there is no pool {name:?} in mail.sources");
                bad(key, problem)
            }),
        };
        self.default_source = named("mail.default_source", default)?;
        self.routes.clear();
        for config in routes {
            let mut route = self.route(config)?;
            route.source = named("mail.routes.source", config.source.as_deref())?;
            self.routes.push(route);
        }
        self.routes.sort_by_key(|route| std::cmp::Reverse(route.weight()));
        Ok(self)
    }

    /// The pool of addresses that this mail to this recipient goes out from; `None` leaves it to the system.
    pub(crate) fn source(&self, origin: Origin<'_>, recipient: &Mailbox) -> Option<&Arc<Pool>> {
        let mut matching = self
            .routes
            .iter()
            .filter(|route| route.matches(origin, recipient));
        let route = matching.next().and_then(|route| route.source.as_ref());
        route.or(self.default_source.as_ref())
    }

    /// Whether any mail goes out from a pool.
    pub(crate) fn has_sources(&self) -> bool {
        self.default_source.is_some() || self.routes.iter().any(|route| route.source.is_some())
    }

    /// The way of this mail to this recipient.
    pub(crate) fn choose(&self, origin: Origin<'_>, recipient: &Mailbox) -> &Via {
        let mut matching = self
            .routes
            .iter()
            .filter(|route| route.matches(origin, recipient));
        matching.next().map_or(&self.default, |route| &route.via)
    }

    /// Whether it matters who handed a mail in.
    pub(crate) fn asks_for_principal(&self) -> bool {
        self.routes.iter().any(|route| route.principal.is_some())
    }

    /// All smarthosts, once each.
    pub(crate) fn smarthosts(&self) -> impl Iterator<Item = &Arc<Smarthost>> {
        let named = self.members.iter();
        named.filter_map(|(name, members)| members.first().filter(|first| first.name == *name))
    }

    /// The smarthost of this name and the groups it belongs to.
    pub(crate) fn ways_through(&self, smarthost: &str) -> Vec<Arc<str>> {
        let through = |members: &&[Arc<Smarthost>]| members.iter().any(|m| &*m.name == smarthost);
        let ways = self.members.iter();
        let ways = ways.filter(|(_, members)| through(&members.as_slice()));
        ways.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// A smarthost as a group of one, or a group.
    pub(crate) fn members(&self, name: &str) -> Option<&[Arc<Smarthost>]> {
        self.members.get(name).map(Vec::as_slice)
    }
}

impl Route {
    fn weight(&self) -> (bool, u8, usize) {
        let sender = match self.sender {
            Some(SenderRule::Address(_)) => 2,
            Some(SenderRule::Domain(_)) => 1,
            None => 0,
        };
        let domain = self.domain.as_ref().map_or(0, |domain| domain.as_str().len());
        (self.principal.is_some(), sender, domain)
    }

    fn matches(&self, origin: Origin<'_>, recipient: &Mailbox) -> bool {
        let domain = self.domain.as_ref();
        let to = domain.is_none_or(|ours| recipient.domain().is_some_and(|d| d.is_within(ours)));
        let from = match (&self.sender, origin.sender) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(SenderRule::Address(address)), Some(sender)) => address == sender,
            (Some(SenderRule::Domain(ours)), Some(sender)) => {
                sender.domain().is_some_and(|domain| domain.is_within(ours))
            }
        };
        let by = self.principal.as_deref();
        to && from && by.is_none_or(|name| origin.principal == Some(name))
    }
}

impl SmarthostConfig {
    fn check(&self) -> Result<Smarthost, BuildError> {
        let wrong = |key: &str, problem: String| {
            bad(
                &format!("mail.smarthosts.{key}"),
                format!("{}: {problem}", self.name),
            )
        };
        let preset = match &self.preset {
            None => Preset::default(),
            Some(name) => Preset::named(name).map_err(|problem| wrong("preset", problem))?,
        };
        let host = self.host.clone().or(preset.host.map(str::to_owned));
        let host = host.ok_or_else(|| wrong("host", preset.host_hint.to_owned()))?;
        if host.parse::<IpAddr>().is_err() && Domain::parse(&host).is_err() {
            return Err(wrong(
                "host",
                format!("{host:?} is neither a host name nor an IP address"),
            ));
        }
        let username = self.username.clone().or(preset.username.map(str::to_owned));
        let mut given = Vec::new();
        given.extend(self.password.clone().map(Password::Given));
        given.extend(self.password_file.clone().map(Password::File));
        given.extend(self.password_secret.clone().map(Password::Sealed));
        let oauth = self.oauth.as_ref().map(|oauth| oauth.check(self, &preset));
        let oauth = oauth.transpose().map_err(|(key, problem)| wrong(key, problem))?;
        let flow = self.oauth.as_ref().map(|oauth| oauth.flow);
        let password = match (given.len(), &username, flow) {
            (0, _, Some(OAuthFlow::ServiceAccount | OAuthFlow::DeviceCode)) => Password::None,
            (_, _, Some(OAuthFlow::ServiceAccount)) => {
                let problem = "a service account has oauth.key_file in place of a password";
                return Err(wrong("password", problem.to_owned()));
            }
            (1, _, Some(_)) => given.remove(0),
            (_, _, Some(_)) => {
                let problem =
                    "the application's secret goes into one of password, password_file and password_secret";
                return Err(wrong("password", problem.to_owned()));
            }
            (0, None, None) => Password::None,
            (1, Some(_), None) => given.remove(0),
            _ => {
                let problem = "username needs exactly one of password, password_file and password_secret";
                return Err(wrong("username", problem.to_owned()));
            }
        };
        let (protocol, default_tls) = match self.protocol {
            SmarthostProtocol::Smtp => (Protocol::Smtp, SmarthostTls::Starttls),
            SmarthostProtocol::Lmtp => (Protocol::Lmtp, SmarthostTls::None),
        };
        let security = match self.tls.unwrap_or(default_tls) {
            SmarthostTls::Starttls => Security::Required,
            SmarthostTls::Implicit => Security::Implicit,
            SmarthostTls::Opportunistic => Security::Opportunistic,
            SmarthostTls::None => Security::Plain,
        };
        if username.is_some() && matches!(security, Security::Plain | Security::Opportunistic) {
            let problem =
                "a login needs tls = \"starttls\" or \"implicit\", or its password could be read on the way";
            return Err(wrong("tls", problem.to_owned()));
        }
        let connections = self.connections.unwrap_or(preset.connections);
        let mails_per_connection = self.mails_per_connection.unwrap_or(preset.mails_per_connection);
        for (key, value) in [
            ("connections", connections),
            ("mails_per_connection", mails_per_connection),
        ] {
            if value == 0 {
                return Err(wrong(key, "must be at least 1".to_owned()));
            }
        }
        let default_port = match protocol {
            Protocol::Lmtp => 24,
            Protocol::Smtp if security == Security::Implicit => 465,
            Protocol::Smtp => 587,
        };
        Ok(Smarthost {
            name: Arc::from(self.name.as_str()),
            host,
            port: self.port.unwrap_or(default_port),
            protocol,
            security,
            username,
            password,
            oauth,
            connections,
            mails_per_connection,
            quota: preset.quota,
            spf: preset.spf,
        })
    }
}
