//! Name lookups for delivery, behind a trait so that tests bring their own answers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};

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

/// Asks for names.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The mail servers of a domain.
    async fn mx(&self, domain: &str) -> Result<MxAnswer, LookupError>;
    /// The addresses of a host, IPv4 first; empty if there are none.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError>;
    /// The TXT records of a name, the strings of each joined; empty if there are none.
    async fn txt(&self, name: &str) -> Result<Vec<String>, LookupError>;
}

/// The real one, with a cache that keeps to the records' times within bounds.
pub struct Hickory(TokioResolver);

impl Hickory {
    /// Asks `server`, or whom the system asks.
    ///
    /// # Errors
    /// The system's resolver configuration cannot be read.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, NetError> {
        let mut builder = match server {
            None => TokioResolver::builder_tokio()?,
            Some(server) => {
                let at_port = |mut connection: ConnectionConfig| {
                    connection.port = server.port();
                    connection
                };
                let connections = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
                let server = NameServerConfig::new(server.ip(), true, connections);
                let config = ResolverConfig::from_name_servers(vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        bound(builder.options_mut());
        builder.build().map(Self)
    }
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
        let lookup = match in_time(domain, self.0.mx_lookup(absolute(domain))).await? {
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
        let lookup = match in_time(host, self.0.lookup_ip(absolute(host))).await? {
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
        let lookup = match in_time(name, self.0.txt_lookup(absolute(name))).await? {
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
}
