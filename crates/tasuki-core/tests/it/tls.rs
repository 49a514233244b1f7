//! Certificates from files and from the private CA, over real handshakes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, ServerName};
use tasuki_core::clock::Clock;
use tasuki_core::events::{EventBus, What};
use tasuki_core::tls::{self, Source, Tls, TlsConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn load(config: &TlsConfig, dir: &Path, clock: &Clock) -> Tls {
    let events = EventBus::new(clock.clone());
    Tls::load(config, dir, Some("relay.example"), clock.clone(), events).unwrap()
}

/// Shakes hands in memory; gives the certificate that the client saw and verified.
async fn handshake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    name: &str,
) -> std::io::Result<CertificateDer<'static>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serving = tokio::spawn(TlsAcceptor::from(server).accept(far));
    let stream = TlsConnector::from(client).connect(name, near).await?;
    let seen = stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned();
    drop(serving.await);
    Ok(seen)
}

#[tokio::test]
async fn the_private_ca_certifies_every_own_name_and_its_key_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let clock = Clock::system();
    let first = load(&TlsConfig::default(), &keys, &clock);
    assert_eq!(first.status().source, Source::PrivateCa);
    assert_eq!(first.days_left(), 89);
    let server = first.server(&[b"h2", b"http/1.1"]);
    for name in ["relay.example", "localhost", "127.0.0.1", "::1"] {
        let seen = handshake(server.clone(), first.client(), name).await.unwrap();
        assert_eq!(tls::spki_fingerprint(&seen).unwrap(), first.fingerprint());
    }
    handshake(server.clone(), first.client(), "other.example")
        .await
        .expect_err("a name that is not on the certificate is refused");
    let stranger = tls::client_config(&[], &[]).unwrap();
    handshake(server, stranger, "localhost")
        .await
        .expect_err("who does not know the private CA refuses it");

    let again = load(&TlsConfig::default(), &keys, &clock);
    assert_eq!(again.fingerprint(), first.fingerprint());
    assert_eq!(again.private_ca(), first.private_ca());
    for file in ["ca.key", "server.key", "ca.pem"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(keys.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn the_private_cas_certificate_is_reissued_at_a_third_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::adjustable();
    let tls = load(&TlsConfig::default(), dir.path(), &clock);
    let server = tls.server(&[]);
    let pin = tls.fingerprint();
    clock.advance(Duration::from_secs(59 * 86_400));
    tls.refresh().await;
    assert_eq!(tls.days_left(), 30, "not yet");
    clock.advance(Duration::from_secs(2 * 86_400));
    tls.refresh().await;
    assert_eq!(tls.days_left(), 89);
    assert_eq!(tls.fingerprint(), pin, "the key stays");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(TlsAcceptor::from(server).accept(far));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(tls.client()).connect(name, near).await;
    // The machine's own clock, which the client goes by, is behind the new certificate's beginning.
    let error = stream
        .expect_err("the old configuration presents the new certificate")
        .to_string();
    assert!(error.contains("not valid yet"), "{error}");
    drop(serving.await);
}

struct Pair {
    cert: std::path::PathBuf,
    key: std::path::PathBuf,
}

impl Pair {
    fn write(dir: &Path, names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pair = Self {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        std::fs::write(&pair.cert, made.cert.pem()).unwrap();
        std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
        pair
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            cert: Some(self.cert.clone()),
            key: Some(self.key.clone()),
            extra_ca: vec![self.cert.clone()],
            ..TlsConfig::default()
        }
    }
}

#[tokio::test]
async fn changed_files_are_presented_without_restart_and_bad_ones_keep_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let pair = Pair::write(dir.path(), &["one.example"]);
    let clock = Clock::system();
    let events = EventBus::new(clock.clone());
    let mut reader = events.subscribe();
    let tls = Tls::load(&pair.config(), &keys, None, clock, events).unwrap();
    let server = tls.server(&[]);
    handshake(server.clone(), tls.client(), "one.example")
        .await
        .unwrap();

    let pair = Pair::write(dir.path(), &["two.example", "one.example"]);
    tls.refresh().await;
    assert_eq!(tls.status().names, ["two.example", "one.example"]);
    assert!(matches!(
        reader.recv().await.unwrap().what,
        What::CertificateReplaced { .. }
    ));
    tls.apply(&pair.config(), None).unwrap();
    handshake(server.clone(), tls.client(), "two.example")
        .await
        .unwrap();

    std::fs::write(&pair.cert, "nonsense").unwrap();
    tls.refresh().await;
    assert_eq!(tls.status().names, ["two.example", "one.example"]);
    let trouble = tls.status().trouble.unwrap();
    assert!(trouble.contains("cert.pem"), "{trouble}");
    tls.apply(&pair.config(), None).expect_err("a reload says so too");
    handshake(server, tls.client(), "two.example").await.unwrap();
}

#[tokio::test]
async fn a_key_of_another_certificate_and_half_a_pair_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let pair = Pair::write(dir.path(), &["one.example"]);
    let other = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&pair.key, other.serialize_pem()).unwrap();
    let refuse = |config: &TlsConfig| {
        let clock = Clock::system();
        Tls::load(config, &keys, None, clock.clone(), EventBus::new(clock))
            .unwrap_err()
            .to_string()
    };
    let text = refuse(&pair.config());
    assert!(text.contains("the key belongs to another certificate"), "{text}");
    let half = TlsConfig {
        key: None,
        ..pair.config()
    };
    let text = refuse(&half);
    assert!(text.starts_with("tls.key"), "{text}");
    let mut acme = TlsConfig::default();
    acme.acme.enabled = true;
    let text = refuse(&acme);
    assert!(text.starts_with("tls.acme.names"), "{text}");
}
