//! Identity: principals, what they may do, and how they prove who they are.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tasuki_proto::names::Domain;

use crate::bans::Bans;
use crate::clock::Clock;
use crate::engine::EngineKind;
use crate::events::EventBus;
use crate::pool::CpuPool;
use crate::store::StoreError;
use crate::store::accounts::{AccountStore, Principal};

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
    /// `fedi:publish`: publish without being subscribed.
    Publish,
    /// `tunnel:name:DOMAIN`: expose this host name and its subdomains.
    ExposeName(Domain),
    /// `tunnel:default`: be the default route of the Minecraft port.
    ExposeDefault,
    /// `tunnel:port:FROM-TO` (or one port): expose these TCP ports.
    ExposePorts(u16, u16),
}

/// The text is not a grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a grant; known: mail:send:DOMAIN, mail:send:*, mail:send:<>, fedi:publish, tunnel:name:DOMAIN, tunnel:default, tunnel:port:FROM-TO"
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
            ["fedi", "publish"] => Ok(Self::Publish),
            ["tunnel", "name", d] => domain(d).map(Self::ExposeName),
            ["tunnel", "default"] => Ok(Self::ExposeDefault),
            ["tunnel", "port", ports] => {
                let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
                let (from, to): (u16, u16) =
                    (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
                if from == 0 || from > to {
                    Err(bad())
                } else {
                    Ok(Self::ExposePorts(from, to))
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
            Self::Publish => f.write_str("fedi:publish"),
            Self::ExposeName(d) => write!(f, "tunnel:name:{d}"),
            Self::ExposeDefault => f.write_str("tunnel:default"),
            Self::ExposePorts(a, b) if a == b => write!(f, "tunnel:port:{a}"),
            Self::ExposePorts(a, b) => write!(f, "tunnel:port:{a}-{b}"),
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

/// Why somebody was not let in. Peers see one generic text for all of these but the last two.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Unknown name, wrong secret, disabled or expired: which one is never said.
    #[error("name or secret is wrong")]
    Refused,
    /// Too many failures from this address; try later.
    #[error("too many failed logins; try again later")]
    TooMany,
    /// The store or the CPU pool could not answer; not the caller's fault.
    #[error("logins cannot be checked now")]
    Unavailable(#[source] crate::failure::BoxError),
}

/// Why an enrolment code was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Unknown, spent or expired.
    #[error("this code is wrong, was used already, or has expired; ask the gateway's operator for a new one")]
    Refused,
    /// Too many failures from this address.
    #[error("too many wrong codes from this address; try again later")]
    TooMany,
    /// The store could not answer.
    #[error("codes cannot be checked now")]
    Unavailable(#[source] StoreError),
}

/// The door where names and secrets are checked; cheap to clone.
///
/// Passwords are argon2id on the CPU pool, with a short cache of successes; generated secrets (at least 128 random
/// bits) are compared by SHA-256. Every failure is told to [`Bans`], the same wrong secret only once.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

#[expect(dead_code, reason = "filled in with the implementation")]
struct Inner {
    store: Arc<dyn AccountStore>,
    bans: Bans,
    pool: CpuPool,
    clock: Clock,
    events: EventBus,
}

impl Accounts {
    /// The door on top of `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn AccountStore>,
        bans: Bans,
        pool: CpuPool,
        clock: Clock,
        events: EventBus,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                bans,
                pool,
                clock,
                events,
            }),
        }
    }

    /// Checks a login with a password, an app password or a token as secret, for `engine`, from `from`.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn login(
        &self,
        engine: EngineKind,
        name: &str,
        secret: &str,
        from: IpAddr,
    ) -> Result<Arc<Principal>, AuthError> {
        let _ = (engine, name, secret, from);
        todo!("core1")
    }

    /// Checks an API token.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn token(&self, token: &str, from: IpAddr) -> Result<Arc<Principal>, AuthError> {
        let _ = (token, from);
        todo!("core1")
    }

    /// Spends a one-time code for the agent whose key has this fingerprint (hex SHA-256 of its SPKI).
    ///
    /// # Errors
    /// See [`CodeError`].
    pub async fn redeem_code(
        &self,
        code: &str,
        fingerprint: &str,
        from: IpAddr,
    ) -> Result<Arc<Principal>, CodeError> {
        let _ = (code, fingerprint, from);
        todo!("core1")
    }

    /// The enabled agent with this key fingerprint, if there is one.
    ///
    /// # Errors
    /// The store's.
    pub async fn agent_by_key(
        &self,
        fingerprint: &str,
        from: IpAddr,
    ) -> Result<Option<Arc<Principal>>, StoreError> {
        let _ = (fingerprint, from);
        todo!("core1")
    }

    /// The principal of this name, from a cache that follows the store's version.
    ///
    /// # Errors
    /// The store's.
    pub async fn by_name(&self, name: &str) -> Result<Option<Arc<Principal>>, StoreError> {
        let _ = name;
        todo!("core1")
    }

    /// The principal of this number, from the same cache.
    ///
    /// # Errors
    /// The store's.
    pub async fn by_id(&self, id: crate::ids::PrincipalId) -> Result<Option<Arc<Principal>>, StoreError> {
        let _ = id;
        todo!("core1")
    }
}
