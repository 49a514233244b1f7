//! The front door over real sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tasuki_core::clock::Clock;
use tasuki_core::engine::{EngineKind, Shared, Snapshot};
use tasuki_core::events::EventBus;
use tasuki_core::front::{
    FrontConfig, FrontDeps, FrontDoor, Guest, Guests, RawConnection, RawHandler, Route, WebBody, WebService,
    full,
};
use tasuki_core::metrics::Metrics;
use tasuki_core::net::ClientAddr;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::tls::{Tls, TlsConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::support::no_bans;

const LONG: Duration = Duration::from_secs(20);

/// Says who asked for what; `/slow` answers when it is told to, and reads the body first.
#[derive(Default)]
pub(crate) struct Echo {
    arrived: Notify,
    go: Notify,
}

#[async_trait]
impl WebService for Echo {
    async fn call(&self, request: Request<Incoming>, client: ClientAddr) -> Response<WebBody> {
        let path = request.uri().path().to_owned();
        if path == "/slow" {
            self.arrived.notify_one();
            self.go.notified().await;
        }
        let size = request
            .into_body()
            .collect()
            .await
            .map_or(0, |body| body.to_bytes().len());
        Response::new(full(format!("{} {path} {size}", client.0)))
    }
}

struct House {
    door: FrontDoor,
    echo: Arc<Echo>,
    tls: Tls,
    metrics: Metrics,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<Drained>,
    _dir: tempfile::TempDir,
}

pub(crate) fn tls_in(dir: &Path, config: &TlsConfig, host: Option<&str>) -> Tls {
    let clock = Clock::system();
    Tls::load(config, dir, host, clock.clone(), EventBus::new(clock)).unwrap()
}

pub(crate) fn on_free_ports() -> FrontConfig {
    let any = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    FrontConfig {
        listen: any.clone(),
        tls_listen: any,
        ..FrontConfig::default()
    }
}

fn relay_example() -> Shared {
    Shared {
        host: Some(tasuki_proto::names::Domain::parse("relay.example").unwrap()),
        public_url: Some("https://relay.example".to_owned()),
        trusted_proxies: Vec::new(),
    }
}

fn open(config: FrontConfig, shared: Shared) -> House {
    let dir = tempfile::tempdir().unwrap();
    let tls = tls_in(
        dir.path(),
        &TlsConfig::default(),
        shared.host.as_ref().map(|h| h.as_str()),
    );
    let metrics = Metrics::new();
    let deps = FrontDeps {
        tls: tls.clone(),
        bans: no_bans(&Clock::system()),
        metrics: metrics.core("front"),
        shared: Arc::new(shared),
        sockets: Default::default(),
    };
    let door = FrontDoor::build(config, deps).unwrap();
    let echo = Arc::new(Echo::default());
    door.routes().set_own(Route {
        service: echo.clone(),
        engine: EngineKind::Fediverse,
    });
    let shutdown = Shutdown::new(LONG);
    let running = tokio::spawn(door.clone().run(shutdown.child()));
    House {
        door,
        echo,
        tls,
        metrics,
        shutdown,
        running,
        _dir: dir,
    }
}

impl House {
    fn plain(&self) -> SocketAddr {
        self.door.addrs().plain[0]
    }

    fn secure(&self) -> SocketAddr {
        self.door.addrs().tls[0]
    }

    /// Sends bytes to the plain port, gives all that comes back until the server closes.
    async fn say(&self, bytes: &str) -> String {
        say(self.plain(), bytes).await
    }

    async fn fetch(&self, host: &str, headers: &str) -> String {
        self.say(&format!(
            "GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    async fn over_tls(&self, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut config = self.tls.client().as_ref().clone();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.secure()).await.unwrap();
        let name = ServerName::try_from("relay.example").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

async fn say(addr: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn own_name_is_served_and_unknown_names_are_misdirected() {
    let house = open(on_free_ports(), relay_example());
    for host in ["relay.example", "Relay.Example.:8080"] {
        let answer = house.fetch(host, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("127.0.0.1:"),
            "{answer}"
        );
    }
    let answer = house.fetch("other.example", "").await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    assert!(
        answer.contains("application/problem+json") && answer.contains("other.example"),
        "{answer}"
    );
    let answer = house.fetch("127.0.0.1", "").await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    for head in [
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@relay.example\r\nConnection: close\r\n\r\n",
    ] {
        let answer = house.say(head).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    assert!(
        house
            .metrics
            .encode()
            .contains("tasuki_front_requests_total{class=\"Success\"} 2")
    );
}

#[tokio::test]
async fn without_a_host_addresses_and_localhost_are_the_own_name() {
    let house = open(on_free_ports(), Shared::default());
    for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "192.0.2.9"] {
        let answer = house.fetch(host, "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert!(house.fetch("relay.example", "").await.starts_with("HTTP/1.1 421"));
}

#[tokio::test]
async fn http_2_and_1_are_spoken_over_tls_with_the_houses_certificate() {
    let house = open(on_free_ports(), relay_example());
    let request = || {
        Request::get("https://relay.example/x")
            .header("host", "relay.example")
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let stream = house.over_tls(&[b"h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let _driver = tokio::spawn(connection);
    let answer = sender.send_request(request()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    let stream = house.over_tls(&[]).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let _driver = tokio::spawn(connection);
    let answer = sender.send_request(request()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"/x 0"), "{body:?}");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so() {
    let house = open(on_free_ports(), relay_example());
    let answer = say(house.secure(), "GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("https://"),
        "{answer}"
    );
}

#[tokio::test]
async fn forwarding_headers_of_an_unlisted_proxy_are_ignored_and_warned_about() {
    let house = open(on_free_ports(), relay_example());
    assert_eq!(house.door.warnings(), Vec::<String>::new());
    let answer = house
        .fetch("relay.example", "X-Forwarded-For: 198.51.100.9\r\n")
        .await;
    assert!(answer.contains("127.0.0.1:"), "{answer}");
    assert!(house.door.warnings()[0].contains("server.trusted_proxies"));

    let mut shared = relay_example();
    shared.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    house.door.apply(&Snapshot {
        shared: Arc::new(shared),
        engine: on_free_ports(),
    });
    assert_eq!(house.door.warnings(), Vec::<String>::new());
    let answer = house
        .fetch("relay.example", "X-Forwarded-For: 1.1.1.1, 198.51.100.9\r\n")
        .await;
    assert!(answer.contains("198.51.100.9:0"), "{answer}");
}

#[tokio::test]
async fn listed_peers_must_begin_with_a_proxy_header() {
    let config = FrontConfig {
        proxy_protocol_from: vec!["127.0.0.0/8".parse().unwrap()],
        max_connections_per_address: 1,
        ..on_free_ports()
    };
    let house = open(config, relay_example());
    let get = "GET /x HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n";
    let answer = house
        .say(&format!("PROXY TCP4 198.51.100.9 192.0.2.1 77 80\r\n{get}"))
        .await;
    assert!(answer.contains("198.51.100.9:77"), "{answer}");
    assert_eq!(house.say(get).await, "");
    let refused = "tasuki_front_refused_connections_total{reason=\"ProxyHeader\"} 1";
    assert!(house.metrics.encode().contains(refused));

    // One address may hold one connection, another one is not hindered by it.
    let mut held = TcpStream::connect(house.plain()).await.unwrap();
    held.write_all(
        b"PROXY TCP4 198.51.100.9 192.0.2.1 78 80\r\nGET /x HTTP/1.1\r\nHost: relay.example\r\n\r\n",
    )
    .await
    .unwrap();
    timeout(LONG, held.read_u8()).await.unwrap().unwrap();
    let answer = house
        .say(&format!("PROXY TCP4 198.51.100.9 192.0.2.1 79 80\r\n{get}"))
        .await;
    assert_eq!(answer, "");
    let answer = house
        .say(&format!("PROXY TCP4 198.51.100.10 192.0.2.1 79 80\r\n{get}"))
        .await;
    assert!(answer.contains("198.51.100.10:79"), "{answer}");
}

#[tokio::test]
async fn plain_requests_are_redirected_only_if_configured_and_not_already_https() {
    let config = FrontConfig {
        redirect_to_https: true,
        ..on_free_ports()
    };
    let mut shared = relay_example();
    shared.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    let house = open(config, shared);
    let answer = house.fetch("relay.example", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 308") && answer.contains("https://relay.example/x"),
        "{answer}"
    );
    let answer = house.fetch("relay.example", "X-Forwarded-Proto: https\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn slow_headers_and_endless_requests_are_cut() {
    let config = FrontConfig {
        header_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        ..on_free_ports()
    };
    let house = open(config, relay_example());
    let long = format!(
        "GET / HTTP/1.1\r\nHost: relay.example\r\nCookie: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let (header, request, length) = tokio::join!(
        house.say("GET / HTTP/1.1\r\nHost: relay"),
        house.say("POST /x HTTP/1.1\r\nHost: relay.example\r\nContent-Length: 9\r\n\r\nhalf"),
        house.say(&long),
    );
    assert!(
        header.is_empty() || header.starts_with("HTTP/1.1 408"),
        "{header}"
    );
    assert!(request.starts_with("HTTP/1.1 408"), "{request}");
    assert!(length.starts_with("HTTP/1.1 431"), "{length}");
}

#[tokio::test]
async fn idle_http_2_connections_are_told_to_go() {
    let config = FrontConfig {
        idle_timeout: Duration::from_secs(1),
        ..on_free_ports()
    };
    let house = open(config, relay_example());
    let stream = house.over_tls(&[b"h2"]).await;
    let (_sender, connection) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    timeout(LONG, connection)
        .await
        .expect("the server ends it")
        .unwrap();
}

#[tokio::test]
async fn a_request_under_way_is_answered_when_the_house_closes() {
    let house = open(on_free_ports(), relay_example());
    let addr = house.plain();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: relay.example\r\n\r\n")
        .await
        .unwrap();
    timeout(LONG, idle.read_u8()).await.unwrap().unwrap();
    let slow = tokio::spawn(say(
        addr,
        "GET /slow HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n",
    ));
    timeout(LONG, house.echo.arrived.notified()).await.unwrap();
    house.shutdown.begin();
    let mut rest = Vec::new();
    timeout(LONG, idle.read_to_end(&mut rest))
        .await
        .expect("the idle one is closed")
        .unwrap();
    house.echo.go.notify_one();
    let answer = slow.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let drained = timeout(LONG, house.running).await.unwrap().unwrap();
    assert_eq!(drained.late, 0);
}

struct Collect(tokio::sync::mpsc::Sender<(Option<String>, u8)>);

#[async_trait]
impl RawHandler for Collect {
    async fn handle(&self, mut connection: RawConnection, _shutdown: Shutdown) {
        let first = connection.stream.read_u8().await.unwrap();
        self.0.send((connection.hello.server_name, first)).await.unwrap();
    }
}

/// Knows `home.example`, and tries to be the gateway itself.
struct Home(Guest);

impl Guests for Home {
    fn find(&self, host: &str) -> Option<Guest> {
        ["home.example", "relay.example"]
            .contains(&host)
            .then(|| self.0.clone())
    }
}

/// A ClientHello with this name and these protocols, and what the door says to it before it closes.
async fn greeted(door: SocketAddr, name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = tasuki_core::tls::client_config(&[], &[])
        .unwrap()
        .as_ref()
        .clone();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut said = Vec::new();
    timeout(LONG, stream.read_to_end(&mut said))
        .await
        .unwrap()
        .unwrap();
    said
}

#[tokio::test]
async fn a_name_that_nobody_has_is_refused_with_an_alert() {
    let house = open(on_free_ports(), relay_example());
    // RFC 8446 6: alert, fatal, unrecognized_name.
    let alert = [21, 3, 3, 0, 2, 2, 112];
    assert_eq!(greeted(house.secure(), "stranger.example", &[]).await, alert);
    // decode_error
    let mut stream = TcpStream::connect(house.secure()).await.unwrap();
    stream.write_all(&[22, 3, 1, 0, 4, 9, 9, 9, 9]).await.unwrap();
    let mut said = Vec::new();
    timeout(LONG, stream.read_to_end(&mut said))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(said, [21, 3, 3, 0, 2, 2, 50]);
    house.over_tls(&[]).await;
}

#[tokio::test]
async fn a_guest_answers_the_proofs_of_acme_for_its_own_name() {
    let house = open(on_free_ports(), relay_example());
    let (sender, mut seen) = tokio::sync::mpsc::channel(1);
    let guests = Home(Guest::Raw(Arc::new(Collect(sender))));
    house.door.routes().set_guests(Arc::new(guests));
    greeted(house.secure(), "home.example", &[b"acme-tls/1"]).await;
    let (name, _) = timeout(LONG, seen.recv()).await.unwrap().unwrap();
    assert_eq!(name.as_deref(), Some("home.example"));
    // For the gateway's own name nobody else answers.
    let said = greeted(house.secure(), "relay.example", &[b"acme-tls/1"]).await;
    assert_eq!(said.first(), Some(&21), "no order is open: {said:?}");
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn plain_requests_for_a_name_of_tls_alone_are_sent_there() {
    let house = open(on_free_ports(), relay_example());
    let (sender, _seen) = tokio::sync::mpsc::channel(1);
    let guests = Home(Guest::Raw(Arc::new(Collect(sender))));
    house.door.routes().set_guests(Arc::new(guests));
    let answer = house.fetch("home.example", "").await;
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    assert!(
        answer.contains("location: https://home.example/x\r\n"),
        "{answer}"
    );
    let own = house.fetch("relay.example", "").await;
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
}

#[tokio::test]
async fn a_name_with_a_raw_handler_is_handed_over_undecrypted() {
    let house = open(on_free_ports(), relay_example());
    let (sender, mut seen) = tokio::sync::mpsc::channel(1);
    house
        .door
        .routes()
        .set_guests(Arc::new(Home(Guest::Raw(Arc::new(Collect(sender))))));
    let stream = TcpStream::connect(house.secure()).await.unwrap();
    let name = ServerName::try_from("home.example").unwrap();
    let _ = TlsConnector::from(house.tls.client()).connect(name, stream).await;
    let (name, first) = timeout(LONG, seen.recv()).await.unwrap().unwrap();
    assert_eq!((name.as_deref(), first), (Some("home.example"), 0x16));
    house.over_tls(&[]).await;
}
