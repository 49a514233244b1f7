//! Looks whether the gateway and the local servers can be reached, without disturbing a running session.

use std::net::SocketAddr;
use std::time::Duration;

use tasuki_proto::minecraft::{Handshake, NextState};
use tasuki_proto::proxy_protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dial::{Carrier as _, with_one_retry};
use super::look::PathReport;
use super::tls_line::Dialler;
use super::{AgentConfig, AgentKey, Final, LocalDoor, LocalEndpoint, dial, look, session};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// What was found out about the gateway.
#[derive(Debug)]
pub enum GatewayProbe {
    /// It answers, with the pinned key.
    Answers {
        /// From here.
        address: SocketAddr,
        /// What packets meet on the way there.
        path: PathReport,
    },
    /// Its name leads nowhere.
    NoAddress(String),
    /// Another key than the pinned one.
    WrongKey,
    /// No packet comes back.
    Silent(Vec<SocketAddr>),
    /// It answers and refuses.
    Refuses(String),
}

/// What was found out about a local server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalProbe {
    /// It takes connections, and answers as it is spoken to.
    Well,
    /// Nothing to ask: datagrams.
    Unasked,
    /// It takes no connections.
    Closed,
    /// It takes connections and says nothing.
    Mute,
    /// It answers only without the PROXY header that the endpoint sends.
    TakesNoProxy,
    /// It answers only with a PROXY header, which the endpoint does not send.
    WantsProxy,
}

/// Makes a connection to the gateway and ends it before saying who we are.
pub async fn gateway(config: &AgentConfig, key: &AgentKey) -> GatewayProbe {
    let networks = dial::Networks::default();
    let gateway = dial::Gateway {
        config,
        identity: &key.0,
        networks: &networks,
    };
    let addresses = match dial::resolve(&config.gateway).await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => return GatewayProbe::NoAddress("the name has no address".into()),
        Err(why) => return GatewayProbe::NoAddress(words(why)),
    };
    let mut last = GatewayProbe::Silent(addresses.clone());
    for address in addresses {
        let dialling = with_one_retry(|exchange| dial::dial(&gateway, address, exchange));
        match tokio::time::timeout(PATIENCE, dialling).await {
            Ok(Ok((endpoint, connection))) => {
                let path = look::along(&gateway, &endpoint, connection).await;
                return GatewayProbe::Answers { address, path };
            }
            Ok(Err(session::Why::Final(Final::WrongKey))) => last = GatewayProbe::WrongKey,
            Ok(Err(why)) => last = GatewayProbe::Refuses(words(why)),
            Err(_) => {}
        }
    }
    last
}

/// Makes a connection over TLS to the gateway's front door, as on a network that lets no UDP out: where that is, and the
/// round trip.
///
/// # Errors
/// The same place, and why there is none.
pub async fn front_door(
    config: &AgentConfig,
    key: &AgentKey,
) -> Result<(String, Duration), (String, String)> {
    let networks = dial::Networks::default();
    let gateway = dial::Gateway {
        config,
        identity: &key.0,
        networks: &networks,
    };
    let dialler = Dialler::new(&gateway).map_err(|why| (config.gateway.clone(), words(why)))?;
    let target = dialler.target().to_owned();
    match dialler.dial().await {
        Ok(reached) => {
            let rtt = reached.connection.rtt();
            look::leave(&reached.endpoint, &reached.connection).await;
            Ok((target, rtt))
        }
        Err(why) => Err((target, words(why))),
    }
}

fn words(why: session::Why) -> String {
    match why {
        session::Why::Lost(reason) => reason,
        session::Why::Final(reason) => reason.to_string(),
        session::Why::Shutdown => String::new(),
    }
}

/// Connects to an endpoint's local server as the agent does for a visitor; a Minecraft server is asked for its status.
pub async fn local(endpoint: &LocalEndpoint) -> LocalProbe {
    match endpoint.door {
        LocalDoor::Udp(_) => LocalProbe::Unasked,
        LocalDoor::Tcp(_) | LocalDoor::Https(_) | LocalDoor::Http(_) => match connect(endpoint).await {
            Some(_) => LocalProbe::Well,
            None => LocalProbe::Closed,
        },
        LocalDoor::Minecraft(_) => {
            if connect(endpoint).await.is_none() {
                return LocalProbe::Closed;
            }
            let usual = endpoint.proxy_protocol;
            if has_status(endpoint, usual).await {
                return LocalProbe::Well;
            }
            match (has_status(endpoint, !usual).await, usual) {
                (false, _) => LocalProbe::Mute,
                (true, true) => LocalProbe::TakesNoProxy,
                (true, false) => LocalProbe::WantsProxy,
            }
        }
    }
}

async fn connect(endpoint: &LocalEndpoint) -> Option<TcpStream> {
    let connecting = TcpStream::connect(endpoint.target.as_str());
    tokio::time::timeout(PATIENCE, connecting).await.ok()?.ok()
}

/// Whether the server answers a status request with a frame of JSON.
pub(super) async fn has_status(endpoint: &LocalEndpoint, with_proxy: bool) -> bool {
    let asking = async {
        let mut stream = connect(endpoint).await?;
        let (from, to) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        let mut bytes = Vec::new();
        if with_proxy {
            bytes = proxy_protocol::encode_v2(from, to);
        }
        let handshake = Handshake {
            protocol: 765,
            address: to.ip().to_string(),
            port: to.port(),
            next: NextState::Status,
        };
        bytes.extend(handshake.encode_with(&handshake.address));
        bytes.extend([1, 0]);
        stream.write_all(&bytes).await.ok()?;
        // The frame's length, packet id 0 and the text's length take at most seven bytes.
        let mut head = Vec::new();
        (&mut stream).take(8).read_to_end(&mut head).await.ok()?;
        head.contains(&b'{').then_some(())
    };
    matches!(tokio::time::timeout(PATIENCE, asking).await, Ok(Some(())))
}
