//! What the DNS says of visitors' names: do they lead to the gateway?

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tasuki_proto::dns::{self, Found, Kind, NoAnswer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::agent::any_port_towards;
use crate::os;

/// The port that Minecraft clients take when neither a person nor the DNS says another.
pub const JAVA: u16 = 25565;
/// How long a name server may take, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// Name servers that are asked, one after another (resolv.conf(5) takes as many).
const MAX_SERVERS: usize = 3;

/// Asks the DNS. A few lines of our own: a resolver of a library would be a fifth of the agent.
pub struct Published {
    servers: Vec<SocketAddr>,
    /// Names of this machine and its network count too.
    asks_system: bool,
}

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
    /// Asks this name server, or whom the system asks. On a system that does not say whom, only addresses are found.
    #[must_use]
    pub fn new(server: Option<SocketAddr>) -> Self {
        let servers = match server {
            Some(server) => vec![server],
            None => named_in(&os::resolv_conf().unwrap_or_default()),
        };
        Self {
            servers,
            asks_system: server.is_none(),
        }
    }

    /// The addresses of a host or of an address in writing; empty if there are none.
    ///
    /// # Errors
    /// The DNS does not answer.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        if self.asks_system
            && let Ok(found) = tokio::net::lookup_host((host, 0)).await
        {
            let mut found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            found.dedup();
            return Ok(found);
        }
        // The system does not tell a name that is not there from a DNS that is not.
        let mut found = self.ask(host, Kind::A).await?;
        found.extend(self.ask(host, Kind::Aaaa).await?);
        let addresses = found.into_iter().filter_map(|found| match found {
            Found::Address(address) => Some(address),
            Found::Service { .. } => None,
        });
        Ok(addresses.collect())
    }

    /// Port and host of each SRV record.
    async fn srv(&self, name: &str) -> Result<Vec<(u16, String)>, String> {
        let found = self.ask(name, Kind::Srv).await?;
        let services = found.into_iter().filter_map(|found| match found {
            Found::Service { port, target } => Some((port, target)),
            Found::Address(_) => None,
        });
        Ok(services.collect())
    }

    async fn ask(&self, name: &str, kind: Kind) -> Result<Vec<Found>, String> {
        let mut last = "this system names no DNS server".to_owned();
        for server in self.servers.iter().cycle().take(self.servers.len() * TRIES) {
            match tokio::time::timeout(PATIENCE, exchange(*server, name, kind)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(problem)) => last = problem,
                Err(_) => last = format!("{server} does not answer"),
            }
        }
        Err(last)
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

/// The name servers of a resolv.conf(5).
fn named_in(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        let address: IpAddr = value.trim().parse().ok()?;
        (key == "nameserver").then_some(SocketAddr::new(address, 53))
    });
    servers.take(MAX_SERVERS).collect()
}

/// One question and its answer: over UDP, and over TCP if it does not fit.
async fn exchange(server: SocketAddr, name: &str, kind: Kind) -> Result<Vec<Found>, String> {
    let question = dns::question(rand::random(), name, kind).ok_or("not a name")?;
    let outcome = match over_udp(server, &question).await {
        Ok(Err(NoAnswer::Truncated)) => over_tcp(server, &question).await,
        outcome => outcome,
    };
    let found = outcome.map_err(|error| format!("{server}: {error}"))?;
    found.map_err(|error| format!("{server}: {error}"))
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Result<Vec<Found>, NoAnswer>> {
    let socket = UdpSocket::bind(any_port_towards(server)).await?;
    // Only answers from there are taken.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut bytes = [0; dns::MAX_ANSWER];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match dns::answer(question, &bytes[..length]) {
            Err(NoAnswer::Strange) => {}
            outcome => return Ok(outcome),
        }
    }
}

/// RFC 1035 4.2.2: each message after its length.
async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Result<Vec<Found>, NoAnswer>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(dns::answer(question, &bytes))
}

#[cfg(test)]
mod tests {
    use super::{Leads, Published, named_in};

    #[tokio::test]
    async fn a_system_that_names_no_server_still_finds_addresses() {
        let published = Published {
            servers: named_in(""),
            asks_system: true,
        };
        let here = published.addresses("localhost").await.unwrap_or_default();
        assert!(here.iter().any(std::net::IpAddr::is_loopback), "{here:?}");
        assert_eq!(published.web("localhost", &here).await, Leads::There);
        let game = published.game("localhost", &here, 1).await;
        assert!(matches!(game, Leads::Unknown(_)), "{game:?}");
    }

    #[test]
    fn the_systems_name_servers_are_read() {
        let text =
            "# from DHCP\nsearch lan\nnameserver 192.0.2.53\n nameserver\t2001:db8::53\nnameserver lan\n";
        let servers = named_in(text);
        let shown: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.53:53", "[2001:db8::53]:53"]);
    }
}
