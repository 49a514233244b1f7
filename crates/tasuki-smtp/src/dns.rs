//! Name lookups for delivery, behind a trait so that tests bring their own answers.

mod secure;

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{LookupIpStrategy, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{dnssec::TrustAnchors, rr::RData},
};

use tasuki_proto::smtp::zone;

use self::secure::Secure;
use crate::config::DnsConfig;

/// How long all queries for one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// What a domain's MX records say (RFC 5321 5.1, RFC 7505).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MxAnswer {
    /// Preference and host of each, in no order.
    Hosts(Vec<(u16, String)>),
    /// The domain takes no mail: the null MX.
    Null,
    /// No MX records; the domain's own addresses are its mail server.
    Implicit,
    /// The domain does not exist.
    NoDomain,
}

/// A lookup that did not answer; a matter of the way there, never of the mail.
#[derive(Debug, Clone, thiserror::Error)]
#[error("looking up {name} failed: {problem}")]
pub struct LookupError {
    /// What was asked for.
    pub name: String,
    /// SERVFAIL, a timeout, ...
    pub problem: String,
}

/// A TLSA record (RFC 6698 2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TlsaRecord {
    /// Which certificate of the chain is meant.
    pub usage: u8,
    /// All of it, or its key.
    pub selector: u8,
    /// As it is, or its SHA-256 or SHA-512.
    pub matching: u8,
    /// What it must be.
    pub data: Vec<u8>,
}

impl std::fmt::Display for TlsaRecord {
    /// As a zone file has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} ", self.usage, self.selector, self.matching)?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02X}"))
    }
}

/// A mail server's TLSA records, and the name that they are at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlsa {
    /// The host, or where its CNAME records lead to (RFC 7672 2.2.3); TLS asks for a certificate of this name.
    pub base: String,
    /// Empty if there are none.
    pub records: Vec<TlsaRecord>,
}

impl Tlsa {
    /// No records.
    pub(crate) fn none(host: &str) -> Self {
        Self {
            base: host.to_owned(),
            records: Vec::new(),
        }
    }
}

/// Asks for names.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The mail servers of a domain.
    async fn mx(&self, domain: &str) -> Result<MxAnswer, LookupError>;
    /// The addresses of a host, IPv4 first; empty if there are none.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError>;
    /// The TXT records of a name, the strings of each joined; empty if there are none.
    async fn txt(&self, name: &str) -> Result<Vec<String>, LookupError>;
    /// The names that an address's PTR records give, in lower case; empty if there are none.
    async fn names(&self, ip: IpAddr) -> Result<Vec<String>, LookupError>;
    /// One that asks the same servers and remembers nothing yet: who has just published a record wants to see it. `None`
    /// if this one remembers nothing itself.
    ///
    /// # Errors
    /// See [`ResolverError`].
    fn afresh(&self) -> Result<Option<Arc<dyn Resolver>>, ResolverError> {
        Ok(None)
    }
    /// The TLSA records of a domain's mail server, if DNSSEC proves them and all that leads to them; empty if not, or if
    /// there are none. An error means that something on the way is forged or does not answer: no mail may go there now.
    async fn tlsa(&self, domain: &str, host: &str, port: u16) -> Result<Tlsa, LookupError> {
        let _ = (domain, port);
        Ok(Tlsa::none(host))
    }
    /// Whether DNSSEC proves that this host is one of a domain's mail servers.
    async fn mx_is_signed(&self, domain: &str, host: &str) -> Result<bool, LookupError> {
        let _ = (domain, host);
        Ok(false)
    }
}

/// The real one, with a cache that keeps to the records' times within bounds.
pub struct Hickory {
    config: DnsConfig,
    plain: TokioResolver,
    secure: Option<Secure>,
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's configuration cannot be read.
    #[error("the system's resolver configuration cannot be used")]
    System(#[from] NetError),
    /// The file of `mail.dns.trust_anchor` is not one.
    #[error("mail.dns.trust_anchor: {0}")]
    TrustAnchor(String),
}

impl Hickory {
    /// Asks the configured server, or whom the system asks.
    ///
    /// # Errors
    /// See [`ResolverError`].
    pub fn new(config: &DnsConfig) -> Result<Self, ResolverError> {
        let secure = if config.dnssec {
            let anchors = match &config.trust_anchor {
                None => TrustAnchors::default(),
                Some(path) => TrustAnchors::from_file(path)
                    .map_err(|error| ResolverError::TrustAnchor(format!("{}: {error}", path.display())))?,
            };
            let mut builder = builder(config)?.with_trust_anchor(Arc::new(anchors));
            builder.options_mut().validate = true;
            Some(Secure::new(builder.build()?))
        } else {
            None
        };
        let plain = builder(config)?.build()?;
        Ok(Self {
            config: config.clone(),
            plain,
            secure,
        })
    }
}

fn builder(config: &DnsConfig) -> Result<ResolverBuilder<TokioRuntimeProvider>, NetError> {
    let mut builder = tasuki_core::resolver::builder(config.server)?;
    bound(builder.options_mut());
    Ok(builder)
}

fn bound(options: &mut ResolverOpts) {
    options.timeout = Duration::from_secs(5);
    options.attempts = 2;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = 4096;
    options.positive_min_ttl = Some(Duration::from_secs(30));
    options.positive_max_ttl = Some(Duration::from_secs(86_400));
    options.negative_min_ttl = Some(Duration::from_secs(10));
    options.negative_max_ttl = Some(Duration::from_secs(60));
}

/// A name that search lists do not touch.
fn absolute(name: &str) -> String {
    format!("{name}.")
}

async fn in_time<T>(
    name: &str,
    lookup: impl Future<Output = Result<T, NetError>>,
) -> Result<Result<T, NetError>, LookupError> {
    let late = |_| LookupError {
        name: name.to_owned(),
        problem: "no answer in time".to_owned(),
    };
    tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await.map_err(late)
}

fn failed(name: &str, error: &NetError) -> LookupError {
    LookupError {
        name: name.to_owned(),
        problem: error.to_string(),
    }
}

#[async_trait]
impl Resolver for Hickory {
    async fn mx(&self, domain: &str) -> Result<MxAnswer, LookupError> {
        let lookup = match in_time(domain, self.plain.mx_lookup(absolute(domain))).await? {
            Ok(lookup) => lookup,
            Err(error) if error.is_nx_domain() => return Ok(MxAnswer::NoDomain),
            Err(error) if error.is_no_records_found() => return Ok(MxAnswer::Implicit),
            Err(error) => return Err(failed(domain, &error)),
        };
        let mut hosts = Vec::new();
        for record in lookup.answers() {
            if let RData::MX(mx) = &record.data {
                let host = mx.exchange.to_ascii().trim_end_matches('.').to_ascii_lowercase();
                hosts.push((mx.preference, host));
            }
        }
        match hosts.as_slice() {
            [] => Ok(MxAnswer::Implicit),
            // RFC 7505 3: a single record with an empty name.
            [(_, host)] if host.is_empty() => Ok(MxAnswer::Null),
            _ => Ok(MxAnswer::Hosts(hosts)),
        }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        let lookup = match in_time(host, self.plain.lookup_ip(absolute(host))).await? {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(failed(host, &error)),
        };
        let mut addresses: Vec<IpAddr> = lookup.iter().collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.dedup();
        Ok(addresses)
    }

    async fn txt(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let lookup = match in_time(name, self.plain.txt_lookup(absolute(name))).await? {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => return Ok(Vec::new()),
            Err(error) => return Err(failed(name, &error)),
        };
        let texts = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        });
        Ok(texts.collect())
    }

    async fn names(&self, ip: IpAddr) -> Result<Vec<String>, LookupError> {
        let name = zone::reverse_name(ip);
        let lookup = match in_time(&name, self.plain.reverse_lookup(absolute(&name))).await? {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => return Ok(Vec::new()),
            Err(error) => return Err(failed(&name, &error)),
        };
        let names = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::PTR(ptr) => Some(ptr.0.to_ascii().trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        });
        Ok(names.collect())
    }

    fn afresh(&self) -> Result<Option<Arc<dyn Resolver>>, ResolverError> {
        Ok(Some(Arc::new(Self::new(&self.config)?)))
    }

    async fn tlsa(&self, domain: &str, host: &str, port: u16) -> Result<Tlsa, LookupError> {
        match &self.secure {
            Some(secure) => secure.tlsa(domain, host, port).await,
            None => Ok(Tlsa::none(host)),
        }
    }

    async fn mx_is_signed(&self, domain: &str, host: &str) -> Result<bool, LookupError> {
        match &self.secure {
            Some(secure) => secure.mx_is_signed(domain, host).await,
            None => Ok(false),
        }
    }
}
