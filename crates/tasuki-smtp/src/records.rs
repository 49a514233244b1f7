//! The DNS records that mail sent through this gateway needs, and whether they are published.
//!
//! What is needed follows from the configuration, the keys and the addresses that mail leaves from; what is there is asked
//! for now, past the cache that delivery has. Nothing is changed anywhere.

use std::net::IpAddr;

use serde::Serialize;
use tasuki_core::store::StoreError;
use tasuki_proto::names::Domain;

use self::exits::{Exits, Sources};
use crate::{
    config::Settings,
    context::Context,
    dkim::DkimKey,
    dns::{LookupError, Resolver},
    engine::Handle,
};

mod domain;
mod exits;
mod host;
mod incoming;
mod spf;

/// How a record is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// As needed.
    Ok,
    /// It works, and is unwise.
    Warning,
    /// Not at all.
    Missing,
    /// Otherwise.
    Differs,
    /// The DNS does not answer, or what is needed is not known.
    Unknown,
}

/// A record that is needed.
#[derive(Clone, Debug, Serialize)]
pub struct DnsRecord {
    /// The host or domain that needs it.
    pub of: String,
    /// What it is for: `address`, `reverse`, `mx`, `spf`, `dkim`, `dmarc`, `tlsa`, `tls-rpt`, `mta-sts`.
    pub what: &'static str,
    /// Its name, without a final dot.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What to publish; `None` if that is for somebody else to know.
    pub value: Option<String>,
    /// What is there.
    pub found: Vec<String>,
    /// Whether that will do.
    pub state: RecordState,
    /// Mail suffers without it; otherwise it is a hint.
    pub needed: bool,
    /// What is wrong, and what to do; or what else there is to say.
    pub says: String,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct DnsReport {
    /// The gateway's name.
    pub host: String,
    /// The public addresses that mail leaves from, as far as they are known.
    pub addresses: Vec<IpAddr>,
    /// Whether all that is needed is there.
    pub complete: bool,
    /// What there is to say besides.
    pub notes: Vec<String>,
    /// The host's records first, then each domain's.
    pub records: Vec<DnsRecord>,
}

impl DnsRecord {
    fn new(of: &str, what: &'static str, name: impl Into<String>, kind: &'static str) -> Self {
        Self {
            of: of.to_owned(),
            what,
            name: name.into(),
            kind,
            value: None,
            found: Vec::new(),
            state: RecordState::Ok,
            needed: true,
            says: String::new(),
        }
    }

    fn with(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    fn found(mut self, found: impl IntoIterator<Item = impl ToString>) -> Self {
        self.found = found.into_iter().map(|one| one.to_string()).collect();
        self
    }

    fn is(mut self, state: RecordState, says: impl Into<String>) -> Self {
        self.state = state;
        self.says = says.into();
        self
    }

    fn unanswered(self, error: &LookupError) -> Self {
        self.is(RecordState::Unknown, error.to_string())
    }

    /// Good to have, no more.
    fn hint(mut self) -> Self {
        self.needed = false;
        self
    }
}

/// What the looks at the single records share.
struct Look<'a> {
    context: &'a Context,
    resolver: &'a dyn Resolver,
    settings: &'a Settings,
    keys: &'a [DkimKey],
}

impl Handle {
    /// The domains that have DKIM keys, in order.
    ///
    /// # Errors
    /// See [`crate::DkimError`].
    pub async fn dkim_domains(&self) -> Result<Vec<Domain>, crate::DkimError> {
        let keys = self.context.dkim.list().await?;
        let mut domains: Vec<Domain> = keys.into_iter().map(|key| key.domain).collect();
        domains.sort();
        domains.dedup();
        Ok(domains)
    }

    /// The records that mail of these domains needs, and how they are published. `addresses` are the public ones that mail
    /// leaves from, if they are known better than from this machine. The domains whose mail we receive are looked at if
    /// they are among the domains, or if `all` is asked for.
    ///
    /// # Errors
    /// The store's, when keys or principals cannot be read.
    pub async fn dns_report(
        &self,
        domains: &[Domain],
        all: bool,
        addresses: &[IpAddr],
    ) -> Result<DnsReport, StoreError> {
        let context = &*self.context;
        let settings = context.settings.load_full();
        let mut notes = Vec::new();
        let fresh = context.resolver.afresh().unwrap_or_else(|error| {
            notes.push(format!(
                "what the DNS said before is told, since it cannot be asked anew: {error}"
            ));
            None
        });
        let (keys, unreadable) = match context.dkim.list().await {
            Ok(keys) => (keys, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let look = Look {
            context,
            resolver: fresh.as_deref().unwrap_or(&*context.resolver),
            settings: &settings,
            keys: &keys,
        };
        notes.extend(unreadable);
        if settings.host.as_str() == "localhost" {
            notes.push(
                "server.host is not set: without a public name in EHLO much mail is refused".to_owned(),
            );
        }
        let mut exits = Vec::new();
        for domain in domains {
            exits.push(Exits::of(&look, domain, addresses).await?);
        }
        let mut sources = Sources::default();
        for exits in exits.iter().filter(|exits| exits.is_direct) {
            sources.add(&exits.sources);
        }
        if domains.is_empty() {
            notes.push(
                "no domain sends through this gateway yet: `tasuki mail dkim add DOMAIN` or `tasuki service add` begins one"
                    .to_owned(),
            );
            sources = Sources::of_all(&look, addresses);
        }
        notes.extend(sources.hidden_in_words());
        let mut incoming: Vec<&Domain> = settings.relay_domains.iter().collect();
        if !all {
            incoming.retain(|domain| domains.contains(domain));
        }
        let of_domains = domains.iter().zip(&exits);
        let of_domains = of_domains.map(|(domain, exits)| look.domain(domain, exits));
        let of_incoming = incoming.iter().map(|domain| look.incoming(domain, &sources));
        let (host, of_domains, of_incoming) = tokio::join!(
            look.host(
                &sources,
                exits.iter().any(|exits| exits.is_direct),
                !incoming.is_empty()
            ),
            futures_util::future::join_all(of_domains),
            futures_util::future::join_all(of_incoming),
        );
        for (domain, exits) in domains.iter().zip(&exits) {
            notes.extend(exits.in_words(domain));
        }
        let mut records = host;
        records.extend(of_domains.into_iter().chain(of_incoming).flatten());
        let fine = |record: &DnsRecord| matches!(record.state, RecordState::Ok | RecordState::Warning);
        Ok(DnsReport {
            host: settings.host.to_string(),
            addresses: sources.public.iter().map(|source| source.ip).collect(),
            complete: records.iter().all(|record| !record.needed || fine(record)),
            notes,
            records,
        })
    }
}
