//! Suppressed addresses: those that a principal's mail does not go to, because there is no such mailbox or because an
//! operator says so.

use std::fmt;

use async_trait::async_trait;
use tasuki_proto::names::{Domain, MailHost, Mailbox};

use super::{AuditEntry, StoreResult};
use crate::clock::Timestamp;
use crate::ids::PrincipalId;

/// Longest reason that is kept, in bytes.
pub const MAX_REASON: usize = 300;

/// In place of a local part: the whole domain.
const WHOLE_DOMAIN: &str = "*";

/// What an entry is about: a mailbox by its base address (without `+detail`, in lower case), or a whole domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    domain: Domain,
    local: String,
}

impl Subject {
    /// The base address of a mailbox. `None` for what can be on no list: an address literal, a postmaster (RFC 5321 4.5.1:
    /// it must be reachable, and it is whom one writes to about the rest), and a local part that would read as a domain.
    #[must_use]
    pub fn of(mailbox: &Mailbox) -> Option<Self> {
        let local = mailbox.local();
        let base = match local.find('+') {
            Some(end) if end > 0 => &local[..end],
            _ => local,
        };
        let local = base.to_lowercase();
        if ["", WHOLE_DOMAIN, "postmaster"].contains(&local.as_str()) {
            return None;
        }
        Some(Self {
            domain: mailbox.domain()?.clone(),
            local,
        })
    }

    /// A whole domain; not those below it.
    #[must_use]
    pub fn whole(domain: Domain) -> Self {
        Self {
            domain,
            local: WHOLE_DOMAIN.to_owned(),
        }
    }

    /// What a person writes: an address, or `*@example.org`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("*@") {
            Some(domain) => Domain::parse(domain).ok().map(Self::whole),
            None => {
                let mailbox = Mailbox::parse(text).or_else(|_| Mailbox::parse_legacy(text));
                Self::of(&mailbox.ok()?)
            }
        }
    }

    /// As it is stored.
    #[must_use]
    pub fn from_parts(local: String, domain: Domain) -> Self {
        Self { domain, local }
    }

    /// Its domain.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Its local part, or `*`.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.local
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = MailHost::Domain(self.domain.clone());
        match Mailbox::from_parts(self.local.clone(), host) {
            Ok(mailbox) => mailbox.fmt(f),
            Err(_) => write!(f, "{}@{}", self.local, self.domain),
        }
    }
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Who is not written to.
    pub subject: Subject,
    /// By whom not; `None` for all principals.
    pub principal: Option<PrincipalId>,
    /// Why: the words of the server that refused, or an operator's; at most [`MAX_REASON`] bytes are kept.
    pub reason: String,
    /// Who made it; `None` if it came by itself of a next hop's word.
    pub by: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

/// What became of an entry that was to come by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is new.
    New,
    /// It was there; one that came by itself lasts longer now, an operator's is left as it is.
    Known,
    /// The list is full.
    NoRoom,
}

/// Which entries to list.
#[derive(Clone, Debug, Default)]
pub struct SuppressedFilter {
    /// Only those of this domain.
    pub domain: Option<Domain>,
    /// Only those about mailboxes of this name, and about whole domains.
    pub local: Option<String>,
    /// Only those of this principal.
    pub principal: Option<PrincipalId>,
    /// Only those after this number, see [`SuppressionStore::suppressed`].
    pub after: i64,
}

/// Verbs for the list.
#[async_trait]
pub trait SuppressionStore: Send + Sync {
    /// Enters what next hops said, one answer each; the list holds `most` entries.
    async fn suppress(&self, new: Vec<Suppressed>, most: usize) -> StoreResult<Vec<Entered>>;
    /// Takes out what came by itself about these, whoever's mail it was: they exist. Returns how many entries.
    async fn unsuppress(&self, found: Vec<Subject>) -> StoreResult<usize>;
    /// An operator's changes: adds some (in the place of what is there), removes others (of all scopes, without a
    /// principal). Returns how many were added and removed. The audit line is written if that is anything. `Conflict` if
    /// the list would have more than `most` entries.
    async fn change_suppressed(
        &self,
        add: Vec<Suppressed>,
        remove: Vec<(Subject, Option<PrincipalId>)>,
        most: usize,
        audit: AuditEntry,
    ) -> StoreResult<(usize, usize)>;
    /// The entry by which mail of this principal does not go there at `now`.
    async fn suppression(
        &self,
        subject: &Subject,
        principal: PrincipalId,
        now: Timestamp,
    ) -> StoreResult<Option<Suppressed>>;
    /// Entries with their numbers, in their order. Whatever is new or changed gets a number above all others, and none
    /// comes later with a smaller one.
    async fn suppressed(
        &self,
        filter: &SuppressedFilter,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Suppressed)>>;
    /// Forgets what has ended; returns how many entries.
    async fn prune_suppressed(&self, now: Timestamp) -> StoreResult<usize>;
}
