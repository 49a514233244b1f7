//! TLS connections to the gateway's front door, straight or through an HTTP proxy, and the tasks that keep a way's
//! connections up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::ServerName;
use tasuki_proto::tunnel::{
    HttpProxy, MAX_PROXY_ANSWER, Preface, ProxyAnswer, SERVER_NAME, WayId, read_proxy_answer,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::dial::{DIAL_TLS, Gateway, HeldWay, resolve, with_one_retry};
use super::session::Why;
use crate::quic;
use crate::tls::KeyExchange;
use crate::way::{Way, prepare_line};

/// Connections of one way: packets behind a lost one in TCP wait, and the others of the session must not.
const LINES: usize = 3;
/// One address.
const CONNECT: Duration = Duration::from_secs(3);
/// Waits before a connection of the way is made again; doubled each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// Port of the front door, if nothing else is said.
const HTTPS: u16 = 443;

/// Makes connections of one way.
#[derive(Clone)]
pub(super) struct Dialler {
    target: String,
    proxy: Option<HttpProxy>,
    hybrid: Client,
    classic: Client,
    quic: quinn::ClientConfig,
    name: ServerName<'static>,
    way: WayId,
}

/// TLS settings, and whether another key was shown than the pinned one.
type Client = (Arc<rustls::ClientConfig>, Arc<AtomicBool>);

impl Dialler {
    pub(super) fn new(gateway: &Gateway<'_>) -> Result<Self, Why> {
        let config = gateway.config;
        let client = |exchange| {
            let (client, mismatch) = gateway.client(exchange)?;
            Ok::<_, Why>((Arc::new(client), mismatch))
        };
        let hybrid = client(KeyExchange::Hybrid)?;
        let crypto = QuicClientConfig::try_from(Arc::clone(&hybrid.0));
        let crypto = crypto.map_err(|error| Why::Lost(error.to_string()))?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        quic.transport_config(Arc::new(quic::in_way(quic::agent_transport(false))));
        let host = config.gateway.rsplit_once(':').map_or("", |(host, _)| host);
        let target = config.tls.clone().unwrap_or_else(|| format!("{host}:{HTTPS}"));
        // A name that looks as usual where the gateway has one; it is known by its key either way.
        let named = target.rsplit_once(':').map_or("", |(host, _)| host);
        let name = ServerName::try_from(named.to_owned())
            .ok()
            .filter(|name| matches!(name, ServerName::DnsName(_)));
        let name = match name {
            Some(name) => name,
            None => ServerName::try_from(SERVER_NAME).map_err(|error| Why::Lost(error.to_string()))?,
        };
        Ok(Self {
            target,
            proxy: config.proxy.clone(),
            hybrid,
            classic: client(KeyExchange::Classic)?,
            quic,
            name,
            way: WayId(rand::random()),
        })
    }

    /// `HOST:PORT` of the front door.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    pub(super) fn quic(&self) -> quinn::ClientConfig {
        self.quic.clone()
    }

    /// A connection that belongs to the way, and where it leads.
    pub(super) async fn connect(&self) -> Result<(TlsStream<TcpStream>, SocketAddr), Why> {
        let (mut stream, peer) = with_one_retry(|exchange| self.shake_hands(exchange)).await?;
        let preface = Preface { way: self.way };
        let sending = stream.write_all(&preface.encode()).await;
        sending.map_err(|error| Why::Lost(format!("{}: {error}", self.target)))?;
        Ok((stream, peer))
    }

    async fn shake_hands(&self, exchange: KeyExchange) -> Result<(TlsStream<TcpStream>, SocketAddr), Why> {
        let (config, mismatch) = match exchange {
            KeyExchange::Hybrid => &self.hybrid,
            KeyExchange::Classic => &self.classic,
        };
        let (tcp, peer) = self.reach().await?;
        let connector = TlsConnector::from(Arc::clone(config));
        match connector.connect(self.name.clone(), tcp).await {
            Ok(stream) => Ok((stream, peer)),
            // Any web server may stand there: no reason to give up for good.
            Err(_) if mismatch.load(Ordering::Relaxed) => Err(Why::Lost(format!(
                "what answers at {} over TCP is not the gateway's front door",
                self.target
            ))),
            Err(error) => Err(Why::Lost(format!("{}: {error}", self.target))),
        }
    }

    /// TCP to the front door, through the proxy if there is one.
    async fn reach(&self) -> Result<(TcpStream, SocketAddr), Why> {
        let Some(proxy) = &self.proxy else {
            return open(&self.target).await;
        };
        let (mut tcp, peer) = open(&proxy.address).await?;
        let refused = |words: String| Why::Lost(format!("the proxy {}: {words}", proxy.address));
        let broken = |error: std::io::Error| refused(error.to_string());
        tcp.write_all(&proxy.request(&self.target))
            .await
            .map_err(broken)?;
        let mut head = Vec::new();
        while head.len() < MAX_PROXY_ANSWER {
            // One octet at a time: what follows the head is not ours to take.
            head.push(tcp.read_u8().await.map_err(broken)?);
            match read_proxy_answer(&head) {
                ProxyAnswer::Incomplete => {}
                ProxyAnswer::Connected => return Ok((tcp, peer)),
                ProxyAnswer::Refused(words) => return Err(refused(words)),
                ProxyAnswer::Malformed => break,
            }
        }
        Err(refused("no answer in HTTP".into()))
    }

    /// Keeps the connections of the way, of which the first is there.
    pub(super) fn hold(&self, way: Arc<Way>, first: TlsStream<TcpStream>) -> HeldWay {
        let mut first = Some(first);
        let lines = (0..LINES).map(|_| {
            let line = self.clone().keep(Arc::clone(&way), first.take());
            AbortOnDropHandle::new(tokio::spawn(line))
        });
        let lines = lines.collect();
        HeldWay { way, lines }
    }

    /// One connection, made again whenever it breaks, until the way ends.
    async fn keep(self, way: Arc<Way>, mut ready: Option<TlsStream<TcpStream>>) {
        let mut wait = AGAIN.0;
        while !way.is_over() {
            let stream = match ready.take() {
                Some(stream) => Ok(stream),
                None => tokio::select! {
                    // What answers over TCP and then falls silent would hold the line for good.
                    made = tokio::time::timeout(DIAL_TLS, self.connect()) => match made {
                        Ok(made) => made.map(|(stream, _)| stream),
                        Err(_) => Err(Why::Lost(format!("{} does not answer", self.target))),
                    },
                    () = way.ended() => return,
                },
            };
            match stream {
                Ok(stream) => {
                    wait = AGAIN.0;
                    if let Err(error) = way.carry(stream).await {
                        tracing::debug!(%error, "a connection to the gateway broke");
                    }
                }
                Err(_) => wait = (wait * 2).min(AGAIN.1),
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = way.ended() => return,
            }
        }
    }
}

/// TCP to the first address that takes it.
async fn open(target: &str) -> Result<(TcpStream, SocketAddr), Why> {
    let mut last = Why::Lost(format!("{target} has no address"));
    for address in resolve(target).await? {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                prepare_line(&tcp);
                return Ok((tcp, address));
            }
            Ok(Err(error)) => last = Why::Lost(format!("{address} over TCP: {error}")),
            Err(_) => last = Why::Lost(format!("{address} does not answer over TCP")),
        }
    }
    Err(last)
}
