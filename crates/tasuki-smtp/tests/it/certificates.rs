//! Logins by a client's certificate: AUTH EXTERNAL over a real TLS session.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, HandshakeKind,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tasuki_core::{
    accounts::{MakeError, Role, Terms},
    ids::CredentialId,
    store::{StoreError, audit::Actor},
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::{sink::Sink, support::House, talk::Talk};

const DAY: Duration = Duration::from_secs(86_400);

/// A self-signed certificate with its key, good for ten days.
struct Shown {
    pem: String,
    key: CertifiedKey,
}

impl Shown {
    fn make(house: &House) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["app.example".to_owned()]).unwrap();
        let now = house.clock.wall();
        params.not_before = now.minus(DAY).to_utc();
        params.not_after = now.plus(10 * DAY).to_utc();
        let cert = params.self_signed(&key).unwrap();
        let der = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self {
            pem: cert.pem(),
            key: CertifiedKey::from_der(vec![cert.der().clone()], der, &tasuki_core::tls::provider())
                .unwrap(),
        }
    }

    /// A client that shows it, and resumes its sessions.
    fn client(&self, house: &House) -> Arc<ClientConfig> {
        let mut config = (*house.tls.client()).clone();
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(self.key.clone()));
        Arc::new(config)
    }

    async fn list(&self, house: &House, name: &str, terms: Terms) -> Result<CredentialId, MakeError> {
        let actor = Actor::gateway("test");
        let added = house
            .accounts
            .add_certificate(name, self.pem.as_bytes(), terms, &actor)
            .await?;
        Ok(added.0.id)
    }
}

type Tls = Talk<TlsStream<TcpStream>>;

async fn asking(sink: &Sink) -> House {
    House::with_sink(sink, |c| c.client_certificates = true).await
}

/// After STARTTLS and EHLO at the submission port; what EHLO said.
async fn secured(house: &House, client: Arc<ClientConfig>) -> (Tls, String) {
    let mut talk = Talk::connect(house.addrs.submission[0]).await;
    talk.expect("EHLO c", "250").await;
    talk.expect("STARTTLS", "220").await;
    let mut talk = talk.start_tls_by(client).await;
    let offers = talk.expect("EHLO c", "250").await;
    (talk, offers)
}

async fn revoke(house: &House, id: CredentialId) {
    let actor = Actor::gateway("test");
    house
        .accounts
        .remove_credential(id, "certificate", &actor)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_certificate_logs_in_everywhere_and_sends_only_as_its_owner_may() {
    let sink = Sink::start().await;
    let house = asking(&sink).await;
    let shown = Shown::make(&house);
    shown.list(&house, "app", Terms::default()).await.unwrap();
    let client = shown.client(&house);
    let mut talks = Vec::new();
    for addr in [house.addrs.submission[0], house.addrs.relay[0]] {
        let mut talk = Talk::connect(addr).await;
        let offers = talk.expect("EHLO c", "250").await;
        assert!(
            !offers.contains("EXTERNAL"),
            "before TLS nothing is shown: {offers}"
        );
        talk.expect("STARTTLS", "220").await;
        talks.push(talk.start_tls_by(Arc::clone(&client)).await);
    }
    let stream = TcpStream::connect(house.addrs.submissions[0]).await.unwrap();
    let mut implicit = Talk::by(stream, Arc::clone(&client)).await;
    assert!(implicit.reply().await.starts_with("220"));
    talks.push(implicit);
    for talk in &mut talks {
        let offers = talk.expect("EHLO c", "250").await;
        assert!(
            offers.contains("AUTH PLAIN LOGIN") && offers.contains(" EXTERNAL\n"),
            "{offers}"
        );
        talk.expect("AUTH EXTERNAL =", "235").await;
        talk.expect("AUTH EXTERNAL =", "503").await;
        for forged in ["a@bank.org", "", "a@x.org.bank.org"] {
            talk.expect(&format!("MAIL FROM:<{forged}>"), "550 5.7.1").await;
        }
        let reply = talk
            .mail("a@x.org", &["b@y.org"], "From: boss@bank.org\r\n\r\nx")
            .await;
        assert!(reply.starts_with("550 5.7.1"), "{reply}");
        let reply = talk.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        assert!(reply.starts_with("250"), "{reply}");
    }
    for mail in sink.wait(3).await {
        assert!(mail.text.contains("with ESMTPSA id"), "{}", mail.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_listed_certificate_external_is_neither_offered_nor_taken() {
    let sink = Sink::start().await;
    let house = asking(&sink).await;
    let shown = Shown::make(&house);
    let unlisted = shown.client(&house);
    for client in [house.tls.client(), Arc::clone(&unlisted)] {
        let (mut talk, offers) = secured(&house, client).await;
        assert!(!offers.contains("EXTERNAL"), "{offers}");
        talk.expect("AUTH EXTERNAL =", "504").await;
        talk.expect("MAIL FROM:<a@x.org>", "530 5.7.0").await;
    }
    // Its owner's name is all that may be asked for.
    shown.list(&house, "app", Terms::default()).await.unwrap();
    for (wanted, expect) in [("office", "535"), ("app", "235")] {
        let (mut talk, _) = secured(&house, shown.client(&house)).await;
        talk.expect(&format!("AUTH EXTERNAL {}", STANDARD.encode(wanted)), expect)
            .await;
    }
    // Nobody is asked unless the configuration says so; what a ticket of then remembers does not count.
    let mut config = house.config.clone();
    config.client_certificates = false;
    let shared = Arc::new(tasuki_core::Shared {
        host: Some("relay.example".parse().unwrap()),
        ..tasuki_core::Shared::default()
    });
    let client = shown.client(&house);
    let (mut talk, offers) = secured(&house, Arc::clone(&client)).await;
    assert!(offers.contains("EXTERNAL"), "{offers}");
    talk.expect("QUIT", "221").await;
    house.handle.apply(&tasuki_core::Snapshot {
        shared,
        engine: config,
    });
    let (mut talk, offers) = secured(&house, client).await;
    assert!(!offers.contains("EXTERNAL"), "{offers}");
    talk.expect("AUTH EXTERNAL =", "504").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_ends_open_sessions_and_resumed_ones_know_it() {
    let sink = Sink::start().await;
    let house = asking(&sink).await;
    let shown = Shown::make(&house);
    let id = shown.list(&house, "app", Terms::default()).await.unwrap();
    let client = shown.client(&house);
    let (mut open, _) = secured(&house, Arc::clone(&client)).await;
    open.expect("AUTH EXTERNAL =", "235").await;
    open.expect("MAIL FROM:<a@x.org>", "250").await;
    open.expect("RSET", "250").await;
    // A resumed session shows the certificate of the first.
    let (mut resumed, offers) = secured(&house, Arc::clone(&client)).await;
    assert_eq!(
        resumed.stream().get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
    assert!(offers.contains("EXTERNAL"), "{offers}");
    resumed.expect("NOOP", "250").await;

    revoke(&house, id).await;
    resumed.expect("AUTH EXTERNAL =", "535").await;
    open.expect("MAIL FROM:<a@x.org>", "421 4.7.0").await;
    assert_eq!(open.reply().await, "", "and that is the end");
    let (mut again, offers) = secured(&house, Arc::clone(&client)).await;
    assert_eq!(
        again.stream().get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
    assert!(!offers.contains("EXTERNAL"), "{offers}");
    again.expect("AUTH EXTERNAL =", "504").await;

    // The same with its owner switched off, and back on.
    shown.list(&house, "app", Terms::default()).await.unwrap();
    let actor = Actor::gateway("test");
    for (disabled, offered) in [(true, false), (false, true)] {
        house
            .accounts
            .set_disabled("app", disabled, &actor)
            .await
            .unwrap();
        let (_, offers) = secured(&house, Arc::clone(&client)).await;
        assert_eq!(offers.contains("EXTERNAL"), offered, "{offers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_good_no_longer_than_it_says_and_no_longer_than_it_was_listed_for() {
    let sink = Sink::start().await;
    let house = asking(&sink).await;
    let (short, long) = (Shown::make(&house), Shown::make(&house));
    let for_a_day = Terms {
        valid_for: Some(DAY),
        ..Terms::default()
    };
    short.list(&house, "app", for_a_day).await.unwrap();
    long.list(&house, "office", Terms::default()).await.unwrap();
    for (days, short_is_good, long_is_good) in [(0, true, true), (2, false, true), (9, false, false)] {
        house.clock.advance(days * DAY);
        for (shown, is_good) in [(&short, short_is_good), (&long, long_is_good)] {
            let (_, offers) = secured(&house, shown.client(&house)).await;
            assert_eq!(offers.contains("EXTERNAL"), is_good, "{days}: {offers}");
        }
    }
    let late = long.list(&house, "app", Terms::default()).await;
    assert!(matches!(late, Err(MakeError::BadCertificate(_))), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_belongs_to_one_person_or_service() {
    let sink = Sink::start().await;
    let house = asking(&sink).await;
    let shown = Shown::make(&house);
    shown.list(&house, "app", Terms::default()).await.unwrap();
    for name in ["app", "office"] {
        let again = shown.list(&house, name, Terms::default()).await;
        let is_conflict = matches!(again, Err(MakeError::Store(StoreError::Conflict(_))));
        assert!(is_conflict, "{name}: {again:?}");
    }
    let actor = Actor::gateway("test");
    let agent = house
        .accounts
        .create_agent_code("home", vec![], DAY, &actor)
        .await
        .unwrap();
    let other = Shown::make(&house);
    let refused = other.list(&house, &agent.principal.name, Terms::default()).await;
    assert!(matches!(refused, Err(MakeError::WrongKind { .. })), "{refused:?}");
    for nonsense in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let refused = house
            .accounts
            .add_certificate("app", nonsense.as_bytes(), Terms::default(), &actor)
            .await;
        assert!(
            matches!(refused, Err(MakeError::BadCertificate(_))),
            "{refused:?}"
        );
    }
    // A person too.
    let password = tasuki_core::seal::Secret::new("correct horse battery".to_owned());
    let grants = vec!["mail:send:x.org".parse().unwrap()];
    house
        .accounts
        .create_person("hanako", &password, Role::None, grants, &actor)
        .await
        .unwrap();
    other.list(&house, "hanako", Terms::default()).await.unwrap();
    let (mut talk, _) = secured(&house, other.client(&house)).await;
    talk.expect("AUTH EXTERNAL =", "235").await;
    talk.expect("MAIL FROM:<hanako@x.org>", "250").await;
}
