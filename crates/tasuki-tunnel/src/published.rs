//! What the DNS says of visitors' names: do they lead to the gateway?

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::{NetError, runtime::TokioRuntimeProvider};
use hickory_resolver::proto::rr::RData;

/// The port that Minecraft clients take when neither a person nor the DNS says another.
pub const JAVA: u16 = 25565;
/// How long all queries for one name may take.
const PATIENCE: Duration = Duration::from_secs(6);

/// Asks the DNS.
pub struct Published(TokioResolver);

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To the gateway.
    There,
    /// To the gateway, but not to the port: there is no SRV record, so visitors have to type it.
    WithPort,
    /// Nowhere.
    Nowhere,
    /// To other addresses.
    Elsewhere(Vec<IpAddr>),
    /// Its SRV record names another host or port.
    BySrv {
        /// The host.
        target: String,
        /// The port.
        port: u16,
    },
    /// The DNS does not answer.
    Unknown(String),
}

impl Published {
    /// Asks this name server, or whom the system asks.
    ///
    /// # Errors
    /// The system's configuration cannot be used.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, String> {
        let mut builder = match server {
            None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
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
        builder.build().map(Self).map_err(|error| error.to_string())
    }

    /// The addresses of a host or of an address in writing; empty if there are none.
    ///
    /// # Errors
    /// The DNS does not answer.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let found = in_time(self.0.lookup_ip(format!("{host}."))).await?;
        Ok(found.map(|found| found.iter().collect()).unwrap_or_default())
    }

    /// Port and host of each SRV record.
    async fn srv(&self, name: &str) -> Result<Vec<(u16, String)>, String> {
        let found = in_time(self.0.srv_lookup(format!("{name}."))).await?;
        let records = found.iter().flat_map(|found| found.answers());
        let services = records.filter_map(|record| match &record.data {
            RData::SRV(srv) => {
                let target = srv.target.to_ascii();
                Some((srv.port, target.trim_end_matches('.').to_ascii_lowercase()))
            }
            _ => None,
        });
        Ok(services.collect())
    }

    /// Where a web server's name leads, with the gateway at these addresses.
    pub async fn web(&self, name: &str, gateway: &[IpAddr]) -> Leads {
        match self.addresses(name).await {
            Err(problem) => Leads::Unknown(problem),
            Ok(found) if found.is_empty() => Leads::Nowhere,
            Ok(found) if found.iter().any(|address| gateway.contains(address)) => Leads::There,
            Ok(found) => Leads::Elsewhere(found),
        }
    }

    /// Where a Minecraft server's name leads, with the gateway's door at this port. As the client does it: an SRV record
    /// wins over the name's own addresses.
    pub async fn game(&self, name: &str, gateway: &[IpAddr], port: u16) -> Leads {
        let services = match self.srv(&format!("_minecraft._tcp.{name}")).await {
            Ok(services) => services,
            Err(problem) => return Leads::Unknown(problem),
        };
        if services.is_empty() {
            return match self.web(name, gateway).await {
                Leads::There if port != JAVA => Leads::WithPort,
                leads => leads,
            };
        }
        for (at, target) in services {
            if at != port || self.web(&target, gateway).await != Leads::There {
                return Leads::BySrv { target, port: at };
            }
        }
        Leads::There
    }
}

fn bound(options: &mut ResolverOpts) {
    options.timeout = Duration::from_secs(2);
    options.attempts = 2;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
}

/// What was found; `None` if the DNS says that there is nothing.
async fn in_time<T>(lookup: impl Future<Output = Result<T, NetError>>) -> Result<Option<T>, String> {
    match tokio::time::timeout(PATIENCE, lookup).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
