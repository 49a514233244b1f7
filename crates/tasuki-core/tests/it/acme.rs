//! ACME against pebble, a CA that nobody here wrote: orders are answered by the front door, certificates are replaced
//! while it is open.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tasuki_core::clock::Clock;
use tasuki_core::engine::Shared;
use tasuki_core::events::{Event, EventBus, What};
use tasuki_core::front::{FrontDeps, FrontDoor};
use tasuki_core::metrics::Metrics;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::tls::{AcmeChallenge, AcmeConfig, Source, Tls, TlsConfig, client_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::front::on_free_ports;
use crate::support::no_bans;

const LONG: Duration = Duration::from_secs(60);
const NAME: &str = "relay.example.com";

/// A gateway's TLS and front door, whose CA is a pebble.
struct Scene {
    dir: tempfile::TempDir,
    ca: SocketAddr,
    management: SocketAddr,
    pebble: Option<Child>,
    clock: Clock,
    events: tokio::sync::broadcast::Receiver<Event>,
    tls: Tls,
    door: FrontDoor,
    shutdown: Shutdown,
}

impl Scene {
    async fn set(way: AcmeChallenge) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ca, management) = (free_port(), free_port());
        let cert = write_pebbles_certificate(dir.path());
        let clock = Clock::adjustable();
        let bus = EventBus::new(clock.clone());
        let events = bus.subscribe();
        let config = config(way, ca, cert);
        let tls = Tls::load(&config, &dir.path().join("keys"), None, clock.clone(), bus).unwrap();
        let deps = FrontDeps {
            tls: tls.clone(),
            bans: no_bans(&clock),
            metrics: Metrics::new().core("front"),
            shared: Arc::new(Shared::default()),
            sockets: Default::default(),
        };
        let door = FrontDoor::build(on_free_ports(), deps).unwrap();
        let shutdown = Shutdown::new(LONG);
        tokio::spawn(door.clone().run(shutdown.child()));
        Self {
            dir,
            ca,
            management,
            pebble: None,
            clock,
            events,
            tls,
            door,
            shutdown,
        }
    }

    /// Starts pebble; it looks for proofs of `http-01` on `http_port`, for the others on our TLS port.
    async fn start_pebble(&mut self, http_port: u16) {
        let dns = answer_every_name_with_loopback().await;
        let config = serde_json::json!({ "pebble": {
            "listenAddress": self.ca.to_string(),
            "managementListenAddress": self.management.to_string(),
            "certificate": self.dir.path().join("pebble.pem"),
            "privateKey": self.dir.path().join("pebble.key"),
            "httpPort": http_port,
            "tlsPort": self.door.addrs().tls[0].port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let path = self.dir.path().join("pebble.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let child = Command::new("pebble")
            .args(["-dnsserver", &dns.to_string(), "-config"])
            .arg(&path)
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_VA_ALWAYS_VALID", "0")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("pebble starts (Debian package pebble)");
        self.pebble = Some(child);
        for addr in [self.ca, self.management] {
            timeout(LONG, async {
                while TcpStream::connect(addr).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await
            .expect("pebble listens");
        }
    }

    fn http_port(&self) -> u16 {
        self.door.addrs().plain[0].port()
    }

    /// The certificate that a client sees which believes pebble's root alone.
    async fn seen_by_a_client(&self) -> CertificateDer<'static> {
        let root = self.dir.path().join("root.pem");
        std::fs::write(&root, self.pebbles_root().await).unwrap();
        let client = client_config(&[root], &[]).unwrap();
        let stream = TcpStream::connect(self.door.addrs().tls[0]).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = TlsConnector::from(client).connect(name, stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    }

    async fn pebbles_root(&self) -> String {
        let client = client_config(&[self.dir.path().join("pebble.pem")], &[]).unwrap();
        let stream = TcpStream::connect(self.management).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, stream).await.unwrap();
        stream
            .write_all(b"GET /roots/0 HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        answer[answer.find("-----BEGIN").unwrap()..].to_owned()
    }

    async fn next_event(&mut self) -> What {
        timeout(LONG, self.events.recv()).await.unwrap().unwrap().what
    }
}

fn config(way: AcmeChallenge, ca: SocketAddr, pebbles_cert: PathBuf) -> TlsConfig {
    TlsConfig {
        extra_ca: vec![pebbles_cert],
        acme: AcmeConfig {
            enabled: true,
            directory: format!("https://localhost:{}/dir", ca.port()),
            email: Some("operator@example.com".to_owned()),
            names: vec![NAME.to_owned()],
            challenges: vec![way],
        },
        ..TlsConfig::default()
    }
}

fn write_pebbles_certificate(dir: &Path) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let cert = dir.join("pebble.pem");
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(dir.join("pebble.key"), made.signing_key.serialize_pem()).unwrap();
    cert
}

/// Pebble cannot be told to take any free port.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A DNS server that knows one answer (RFC 1035 4.1): A is 127.0.0.1, all else is empty.
async fn answer_every_name_with_loopback() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((size, from)) = socket.recv_from(&mut packet).await {
            let name_end = 12 + packet[12..size].iter().position(|byte| *byte == 0).unwrap() + 1;
            let question = &packet[12..name_end + 4];
            let is_a = packet[name_end..name_end + 2] == [0, 1];
            let mut reply = packet[..2].to_vec();
            reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            reply.extend(question);
            if is_a {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&reply, from).await;
        }
    });
    addr
}

async fn is_ordered_and_replaced_without_restart(way: AcmeChallenge) {
    let mut scene = Scene::set(way).await;
    let http_port = scene.http_port();
    scene.start_pebble(http_port).await;
    let before = scene.tls.status();
    assert_eq!((before.source, before.wanted), (Source::PrivateCa, Source::Acme));

    scene.tls.refresh().await;
    let status = scene.tls.status();
    assert_eq!((status.source, status.trouble), (Source::Acme, None));
    assert_eq!(status.names, [NAME]);
    assert_eq!(
        status.fingerprint, before.fingerprint,
        "the private CA's pin holds"
    );
    let first = scene.seen_by_a_client().await;
    assert!(matches!(
        scene.next_event().await,
        What::CertificateReplaced { .. }
    ));
    assert_eq!(scene.tls.acme_http_answer("anything"), None);
    scene.tls.refresh().await;
    assert_eq!(
        scene.seen_by_a_client().await,
        first,
        "it is not time for another"
    );

    // A third of its life left: a new one, on the same open door.
    let life = scene.tls.certificate().life();
    scene.clock.advance(life / 3 * 2 + Duration::from_secs(60));
    scene.tls.refresh().await;
    let second = scene.seen_by_a_client().await;
    assert_ne!(first, second);
    assert!(matches!(
        scene.next_event().await,
        What::CertificateReplaced { .. }
    ));

    // The CA is gone: the certificate stays, the operator is told, and there is a pause before the next attempt.
    scene.pebble.take().unwrap().kill().await.unwrap();
    scene.tls.refresh().await;
    let told = scene.next_event().await;
    assert!(matches!(told, What::CertificateFailed { .. }), "{told:?}");
    let trouble = scene.tls.status().trouble.unwrap();
    assert!(trouble.contains("the next attempt is at"), "{trouble}");
    scene.tls.refresh().await;
    assert_eq!(scene.tls.status().trouble.unwrap(), trouble);
    assert!(scene.events.try_recv().is_err());
    assert_eq!(scene.tls.status().source, Source::Acme);

    // A new life of the process presents what the last one got, without asking anybody.
    let keys = scene.dir.path().join("keys");
    let clock = Clock::system();
    let config = config(way, scene.ca, scene.dir.path().join("pebble.pem"));
    let again = Tls::load(&config, &keys, None, clock.clone(), EventBus::new(clock)).unwrap();
    assert_eq!(again.status().source, Source::Acme);
    let kept = CertificateDer::from_pem_file(keys.join("acme/cert.pem")).unwrap();
    assert_eq!(kept, second);
    for entry in std::fs::read_dir(keys.join("acme")).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{entry:?}"
        );
    }
    scene.shutdown.begin();
}

#[tokio::test]
async fn a_certificate_proved_by_http_01_is_ordered_and_replaced_without_restart() {
    is_ordered_and_replaced_without_restart(AcmeChallenge::Http01).await;
}

#[tokio::test]
async fn a_certificate_proved_by_tls_alpn_01_is_ordered_and_replaced_without_restart() {
    is_ordered_and_replaced_without_restart(AcmeChallenge::TlsAlpn01).await;
}

#[tokio::test]
async fn a_refused_order_says_why_and_keeps_the_certificate() {
    let mut scene = Scene::set(AcmeChallenge::Http01).await;
    // Where pebble looks, somebody else answers: the directory itself, which is no proof.
    let management = scene.management.port();
    scene.start_pebble(management).await;
    scene.tls.refresh().await;
    let status = scene.tls.status();
    assert_eq!(status.source, Source::PrivateCa);
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("refused relay.example.com"), "{trouble}");
    assert!(matches!(scene.next_event().await, What::CertificateFailed { .. }));
    scene.shutdown.begin();
}
