//! Peers that do not keep to the protocol: what they are told, as a client sees it that shares no code with the agent.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::world::{ANY_PORT, World, echo, exchange, minecraft_to, soon, tcp_to};

/// Trusts every gateway.
#[derive(Debug)]
pub(crate) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A QUIC client of our own making, with a key or without, speaking this protocol.
struct Raw {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Raw {
    async fn dial(gateway: SocketAddr, with_key: bool, alpn: &[u8]) -> Result<Self, ConnectionError> {
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut tls = if with_key {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["raw.invalid".to_owned()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            let der = PrivatePkcs8KeyDer::from(key.serialize_der());
            builder
                .with_client_auth_cert(vec![certificate.der().clone()], der.into())
                .unwrap()
        } else {
            builder.with_no_client_auth()
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, gateway, "raw.invalid").unwrap();
        Ok(Self {
            connection: soon("the handshake", connecting).await?,
            _endpoint: endpoint,
        })
    }

    /// Sends these bytes on a control stream.
    async fn say(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, receive)
    }

    /// Code and words with which the gateway closes.
    async fn closed(&self) -> (u64, String) {
        closed_by(soon("the close", self.connection.closed()).await)
    }
}

fn closed_by(error: ConnectionError) -> (u64, String) {
    match error {
        ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("not closed by the application: {other}"),
    }
}

fn frame(json: &str) -> Vec<u8> {
    let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn hello(version: u32, code: Option<&str>) -> Vec<u8> {
    let code = code
        .map(|code| format!(r#","code":"{code}""#))
        .unwrap_or_default();
    frame(&format!(
        r#"{{"type":"hello","version":{version},"software":"raw"{code}}}"#
    ))
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_how_before_it_is_let_in() {
    let world = World::start().await;
    let look = frame(r#"{"type":"look"}"#);
    let cases: [(&str, Vec<u8>, u64, &str); 11] = [
        ("no JSON", frame("{]"), 1, "a malformed control frame"),
        (
            "JSON of the wrong kind",
            frame(r#"{"type":"hello","version":"x"}"#),
            1,
            "a malformed control frame",
        ),
        (
            "not UTF-8",
            b"\0\0\0\x02\xff\xfe".to_vec(),
            1,
            "a malformed control frame",
        ),
        (
            "4 GiB promised",
            b"\xff\xff\xff\xff".to_vec(),
            1,
            "a control frame of 4294967295 bytes; at most 65536 are allowed",
        ),
        (
            "one byte too long",
            b"\x00\x01\x00\x01".to_vec(),
            1,
            "a control frame of 65537 bytes; at most 65536 are allowed",
        ),
        (
            "another frame first",
            frame(r#"{"type":"goodbye"}"#),
            1,
            "the first frame must be a hello",
        ),
        (
            "a frame that nobody knows",
            frame(r#"{"type":"teleport"}"#),
            1,
            "the first frame must be a hello",
        ),
        (
            "a second look",
            look.repeat(2),
            1,
            "the first frame must be a hello",
        ),
        (
            "a version of the future",
            hello(99, None),
            2,
            "this gateway speaks version 1 of the tunnel, the agent 99",
        ),
        (
            "no code",
            hello(1, None),
            4,
            "this agent's key is not enrolled here",
        ),
        ("a wrong code", hello(1, Some("tsc_guess")), 3, "code"),
    ];
    for (what, bytes, code, text) in cases {
        let raw = Raw::dial(world.quic, true, b"tasuki/1").await.unwrap();
        let _streams = raw.say(&bytes).await;
        let (closed, words) = raw.closed().await;
        assert_eq!(closed, code, "{what}: {words}");
        assert!(words.contains(text), "{what}: {words}");
        assert!(!words.contains("tsc_guess"), "{what}: the code comes back");
    }
    let raw = Raw::dial(world.quic, true, b"tasuki/1").await.unwrap();
    let (mut send, _receive) = raw.say(&[]).await;
    send.finish().unwrap();
    assert_eq!(
        raw.closed().await,
        (1, "the control stream ended before a hello".to_owned())
    );
}

#[tokio::test]
async fn a_peer_without_a_key_or_with_another_protocol_gets_no_session() {
    let world = World::start().await;
    // TLS alerts 116 (certificate required) and 120 (no application protocol), as QUIC carries them.
    for (with_key, alpn, alert) in [(false, &b"tasuki/1"[..], 0x174_u64), (true, b"h3", 0x178)] {
        let error = match Raw::dial(world.quic, with_key, alpn).await {
            // The client's handshake ends before the gateway has looked at its key.
            Ok(raw) => soon("the close", raw.connection.closed()).await,
            Err(error) => error,
        };
        let ConnectionError::ConnectionClosed(close) = error else {
            panic!("{error}");
        };
        assert_eq!(u64::from(close.error_code), alert);
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_closed_after_the_time() {
    let world =
        World::with(|config| config.quic.handshake_timeout = std::time::Duration::from_millis(500)).await;
    let raw = Raw::dial(world.quic, true, b"tasuki/1").await.unwrap();
    assert_eq!(raw.closed().await, (1, "no hello within 0.5 s".to_owned()));
    world
        .counted(r#"tasuki_tunnel_agent_sessions_refused_total{reason="timeout"} 1"#)
        .await;
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_later_is_told_how_and_new_frames_are_skipped() {
    let world = World::start().await;
    let too_many: Vec<String> = (0..65)
        .map(|id| format!(r#"{{"id":{id},"label":"e{id}","kind":"tcp","port":0}}"#))
        .collect();
    let declare = format!(r#"{{"type":"declare","endpoints":[{}]}}"#, too_many.join(","));
    for (name, bytes, code, text) in [
        ("one", hello(1, None), 1, "a second hello"),
        ("two", frame("nonsense"), 1, "a malformed control frame"),
        (
            "three",
            frame(&declare),
            1,
            "65 endpoints; at most 64 are allowed",
        ),
    ] {
        let enrol = world.code(name, &[ANY_PORT]).await;
        let raw = Raw::dial(world.quic, true, b"tasuki/1").await.unwrap();
        let mut bytes_of_both = hello(1, Some(&enrol));
        bytes_of_both.extend(frame(r#"{"type":"teleport","to":[1,2,3]}"#));
        bytes_of_both.extend(frame(r#"{"type":"declare","endpoints":[],"later":true}"#));
        let (mut send, mut receive) = raw.say(&bytes_of_both).await;
        // Accepted, then the answer to the declaration: the frame between was skipped.
        let mut words = String::new();
        while !words.contains(r#""type":"endpoints""#) {
            let chunk = soon("the answers", receive.read_chunk(1 << 16, true))
                .await
                .unwrap();
            words.push_str(&String::from_utf8_lossy(&chunk.unwrap().bytes));
        }
        assert!(words.contains(r#""type":"accepted""#), "{words}");
        send.write_all(&bytes).await.unwrap();
        assert_eq!(raw.closed().await, (code, text.to_owned()));
    }
}

#[tokio::test]
async fn random_bytes_at_every_door_harm_nobody() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT, "tunnel:default"]).await;
    let endpoints = vec![tcp_to(echo().await), minecraft_to(None, echo().await)];
    let mut agent =
        crate::world::Running::start(world.config(endpoints), crate::world::new_key(), Some(code));
    let port = agent.open_port().await;
    let mut rng = StdRng::seed_from_u64(5);
    for round in 0..40 {
        let mut bytes = vec![0; rng.random_range(1..1500)];
        rng.fill_bytes(&mut bytes);
        // Every other round begins like a frame, so that the inner readers are reached.
        if round % 2 == 0 {
            let length = (bytes.len() as u32).min(60_000);
            let mut framed = length.to_be_bytes().to_vec();
            framed.append(&mut bytes);
            bytes = framed;
        }
        let mut player = TcpStream::connect(world.players).await.unwrap();
        let _ = player.write_all(&bytes).await;
        let datagrams = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        datagrams.send_to(&bytes, world.quic).await.unwrap();
        if round % 4 == 0 {
            let raw = Raw::dial(world.quic, true, b"tasuki/1").await.unwrap();
            let (mut send, _receive) = raw.say(&bytes).await;
            let _ = send.finish();
            assert_eq!(raw.closed().await.0, 1);
        }
    }
    assert_eq!(exchange(port, b"still here").await, b"still here");
}
