//! What TLS a domain's mail servers must have, and what becomes of mail when they have not.

use std::{sync::Arc, time::Duration};

use rustls::NamedGroup;
use tasuki_core::{
    clock::Clock,
    events::EventBus,
    store::trail::End,
    tls::{Tls, TlsConfig},
};
use tasuki_smtp::{MailConfig, MxAnswer, TlsLevel, TlsPolicyConfig};

use crate::{
    sink::{Script, Sink},
    support::{House, Names},
};

/// A mail server of y.org and others, with a certificate for `name` from a CA of its own.
pub(crate) struct Server {
    pub(crate) sink: Sink,
    pub(crate) trust: TlsConfig,
    _keys: tempfile::TempDir,
}

pub(crate) fn server_tls(name: &str) -> (Tls, tempfile::TempDir) {
    tasuki_core::tls::install_provider();
    let keys = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let events = EventBus::new(clock.clone());
    let tls = Tls::load(&TlsConfig::default(), keys.path(), Some(name), clock, events).unwrap();
    (tls, keys)
}

impl Server {
    pub(crate) async fn start(name: &str) -> Self {
        Self::scripted(name, Arc::new(|_| None)).await
    }

    async fn scripted(name: &str, script: Script) -> Self {
        Self::offering(name, &["PIPELINING"], script).await
    }

    async fn offering(name: &str, offers: &[&'static str], script: Script) -> Self {
        let (tls, keys) = server_tls(name);
        Self {
            sink: Sink::with(offers, Some(tls.server(&[])), script).await,
            trust: TlsConfig {
                extra_ca: vec![keys.path().join("ca.pem")],
                ..TlsConfig::default()
            },
            _keys: keys,
        }
    }
}

/// All domains of these tests have one mail server, `mx.y.org`.
fn names() -> Names {
    let at = || MxAnswer::Hosts(vec![(10, "mx.y.org".to_owned())]);
    Names(
        vec![("y.org", at()), ("z.org", at()), ("x.org", at())],
        vec![("mx.y.org", "127.0.0.1".parse().unwrap())],
        Arc::default(),
    )
}

fn direct(config: &mut MailConfig, sink: &Sink) {
    config.delivery.mx_port = sink.addr.port();
    config.delivery.danger_private_addresses = true;
}

fn policy(level: TlsLevel, mx: &[&str]) -> TlsPolicyConfig {
    TlsPolicyConfig {
        domains: vec!["y.org".parse().unwrap()],
        level,
        mx: mx.iter().map(|mx| mx.parse().unwrap()).collect(),
    }
}

pub(crate) async fn send(house: &House, to: &str) {
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("a@x.org", &[to], "Subject: hi\r\n\r\nx").await;
}

async fn delivers(rule: TlsPolicyConfig, sink: &Sink, trust: TlsConfig) -> bool {
    let house = House::with(names(), trust, |c| {
        direct(c, sink);
        c.tls_policy = vec![rule];
    })
    .await;
    send(&house, "b@y.org").await;
    let received = sink.wait(1).await;
    house.nothing_is_lost(0).await;
    let (end, _, tls) = house.fate("b@y.org").await;
    assert_eq!((end, tls.is_some()), (End::Relayed, received[0].tls), "{tls:?}");
    received[0].tls
}

/// The mail waits, the server saw nothing of it, and this is the reason.
async fn waits(rule: TlsPolicyConfig, sink: &Sink, trust: TlsConfig, why: &str) -> House {
    let house = House::with(names(), trust, |c| {
        direct(c, sink);
        c.tls_policy = vec![rule];
    })
    .await;
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    let errors = house.look().await.errors();
    assert!(
        errors[0].starts_with("450 4.7.10 ") && errors[0].contains(why),
        "{errors:?}"
    );
    let commands = sink.commands();
    assert!(commands.iter().all(|c| !c.starts_with("MAIL")), "{commands:?}");
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_met_by_servers_that_are_as_safe_as_it_asks() {
    let good = || Server::start("mx.y.org");
    let mine = |server: &Server| server.trust.clone();
    let server = good().await;
    assert!(delivers(policy(TlsLevel::Verify, &[]), &server.sink, mine(&server)).await);
    let server = good().await;
    assert!(
        delivers(
            policy(TlsLevel::Verify, &["*.y.org"]),
            &server.sink,
            mine(&server)
        )
        .await
    );
    let server = good().await;
    assert!(delivers(policy(TlsLevel::Encrypt, &[]), &server.sink, TlsConfig::default()).await);
    let server = good().await;
    assert!(!delivers(policy(TlsLevel::None, &[]), &server.sink, mine(&server)).await);
    let plain = Sink::start().await;
    assert!(!delivers(policy(TlsLevel::May, &[]), &plain, TlsConfig::default()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_waits_for_a_server_that_does_not_meet_the_policy() {
    let verify = || policy(TlsLevel::Verify, &[]);
    let server = Server::start("mx.y.org").await;
    let why = "the TLS policy for y.org (mail.tls_policy: verify) is not met by mx.y.org: ";
    waits(verify(), &server.sink, TlsConfig::default(), why).await;
    let other = Server::start("mx.other.example").await;
    let trust = other.trust.clone();
    waits(
        verify(),
        &other.sink,
        trust,
        "mx.y.org failed: invalid peer certificate",
    )
    .await;
    let trust = server.trust.clone();
    let names =
        "(mail.tls_policy: verify) names other mail servers than the domain's MX records do (mx.y.org)";
    waits(
        policy(TlsLevel::Verify, &["mx1.y.org"]),
        &server.sink,
        trust,
        names,
    )
    .await;
    let script: Script = Arc::new(|line| (line == "handshake").then(|| "close".into()));
    let broken = Server::scripted("mx.y.org", script).await;
    let encrypt = || policy(TlsLevel::Encrypt, &[]);
    waits(
        encrypt(),
        &broken.sink,
        TlsConfig::default(),
        "TLS with mx.y.org failed",
    )
    .await;
    let script: Script = Arc::new(|line| (line == "STARTTLS").then(|| "454 4.7.0 not now".into()));
    let refuses = Server::scripted("mx.y.org", script).await;
    waits(
        encrypt(),
        &refuses.sink,
        TlsConfig::default(),
        "454 4.7.0 not now",
    )
    .await;
    let script: Script = Arc::new(|line| line.starts_with("EHLO").then(|| "502 what".into()));
    let old = Server::scripted("mx.y.org", script).await;
    waits(encrypt(), &old.sink, TlsConfig::default(), "502").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_no_server_was_safe_enough_for_comes_back_with_the_reason() {
    let sink = Sink::start().await;
    let why = "TLS is required and the server does not offer it";
    let house = waits(policy(TlsLevel::Encrypt, &[]), &sink, TlsConfig::default(), why).await;
    // Mail to others at the same server is not held up.
    send(&house, "b@z.org").await;
    assert_eq!(sink.wait(1).await[0].to, ["b@z.org"]);
    house.clock.advance(Duration::from_secs(6 * 86_400));
    house.handle.retry_now();
    let received = sink.wait(2).await;
    let notice = received.iter().find(|r| r.from.is_empty()).unwrap();
    assert_eq!(notice.to, ["a@x.org"]);
    assert!(
        notice
            .text
            .contains("Final-Recipient: rfc822; b@y.org\r\nAction: failed\r\nStatus: 5.4.7\r\n")
    );
    let text = notice.text.replace("\r\n\t", " ").replace("\r\n ", " ");
    assert!(
        text.contains("mail.tls_policy: encrypt") && text.contains(why),
        "{}",
        notice.text
    );
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_never_goes_to_google_in_the_clear_unless_the_operator_says_so() {
    let mx = "aspmx.l.google.com";
    let google = || {
        let hosts = MxAnswer::Hosts(vec![(10, mx.to_owned())]);
        let at = vec![(mx, "127.0.0.1".parse().unwrap())];
        Names(vec![("y.org", hosts)], at, Arc::default())
    };
    // Neither without STARTTLS nor when the handshake breaks.
    let broken: Script = Arc::new(|line| line.starts_with("STARTTLS").then(|| "454 4.7.0 not now".into()));
    let (tls, _keys) = server_tls("elsewhere.example");
    let both = [
        (Sink::start().await, "the server does not offer it"),
        (
            Sink::with(&["PIPELINING"], Some(tls.server(&[])), broken).await,
            "454 4.7.0 not now",
        ),
    ];
    for (sink, why) in &both {
        let house = House::start(google(), |c| direct(c, sink)).await;
        send(&house, "b@y.org").await;
        house.until("the deferral", |l| l.errors().len() == 1).await;
        let errors = house.look().await.errors();
        assert!(
            errors[0].contains("mail.providers") && errors[0].contains(why),
            "{errors:?}"
        );
        assert!(sink.commands().iter().all(|c| !c.starts_with("MAIL")));
    }
    // Any certificate will do, as elsewhere without a policy.
    let good = Server::start("elsewhere.example").await;
    let house = House::start(google(), |c| direct(c, &good.sink)).await;
    send(&house, "b@y.org").await;
    assert!(good.sink.wait(1).await[0].tls);
    // The operator's own word for the domain stands.
    let sink = Sink::start().await;
    let house = House::start(google(), |c| {
        direct(c, &sink);
        c.tls_policy = vec![policy(TlsLevel::May, &[])];
    })
    .await;
    send(&house, "b@y.org").await;
    assert!(!sink.wait(1).await[0].tls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_not_used_for_mail_that_needs_a_safer_one() {
    let server = Server::start("mx.y.org").await;
    let house = House::with(names(), server.trust.clone(), |c| {
        direct(c, &server.sink);
        c.tls_policy = vec![policy(TlsLevel::Verify, &[])];
        c.delivery.connections_per_site = 1;
        c.delivery.idle = Duration::from_secs(3600);
    })
    .await;
    for (n, to) in ["b@z.org", "b@y.org", "b@z.org", "b@y.org"]
        .into_iter()
        .enumerate()
    {
        send(&house, to).await;
        server.sink.wait(n + 1).await;
    }
    let connections: Vec<_> = server.sink.received().iter().map(|r| r.connection).collect();
    assert_eq!(
        connections,
        [1, 2, 2, 2],
        "the second was verified, and serves all"
    );
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_agreed_on_with_x25519mlkem768_on_both_legs() {
    let server = Server::start("mx.y.org").await;
    let house = House::with(names(), server.trust.clone(), |c| direct(c, &server.sink)).await;
    let client = house.secured().await;
    assert_eq!(client.group(), Some(NamedGroup::X25519MLKEM768));
    send(&house, "b@y.org").await;
    assert_eq!(
        server.sink.wait(1).await[0].group,
        Some(NamedGroup::X25519MLKEM768)
    );
    let verified = House::with(names(), server.trust.clone(), |c| {
        direct(c, &server.sink);
        c.tls_policy = vec![policy(TlsLevel::Verify, &[])];
    })
    .await;
    send(&verified, "b@y.org").await;
    assert_eq!(
        server.sink.wait(2).await[1].group,
        Some(NamedGroup::X25519MLKEM768)
    );
}

/// Sends over TLS, with REQUIRETLS.
pub(crate) async fn require(house: &House, to: &str) {
    let mut client = house.submission().await;
    let offers = client.expect("EHLO client.example", "250").await;
    assert!(offers.contains("REQUIRETLS"), "{offers}");
    client.expect("MAIL FROM:<a@x.org> REQUIRETLS", "250").await;
    client.expect(&format!("RCPT TO:<{to}>"), "250").await;
    client.expect("DATA", "354").await;
    client
        .expect("From: a@x.org\r\nSubject: secret\r\n\r\nx\r\n.", "250")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_requires_tls_goes_to_verified_servers_that_keep_to_it() {
    let script: Script = Arc::new(|_| None);
    let server = Server::offering("mx.y.org", &["PIPELINING", "REQUIRETLS"], script).await;
    let house = House::with(names(), server.trust.clone(), |c| {
        direct(c, &server.sink);
        c.tls_policy = vec![policy(TlsLevel::Verify, &["mx.y.org"])];
    })
    .await;
    let mut plain = house.relay().await;
    let offers = plain.expect("EHLO c", "250").await;
    assert!(!offers.contains("REQUIRETLS"), "only under TLS: {offers}");
    plain.expect("MAIL FROM:<a@x.org> REQUIRETLS", "5").await;
    require(&house, "b@y.org").await;
    assert!(server.sink.wait(1).await[0].tls);
    let mail = server
        .sink
        .commands()
        .into_iter()
        .find(|c| c.starts_with("MAIL"))
        .unwrap();
    assert!(mail.contains(" REQUIRETLS"), "{mail}");
    // z.org has the same server, but nothing says that it must be that one.
    require(&house, "b@z.org").await;
    let notice = server.sink.wait(2).await.pop().unwrap();
    assert_eq!(
        (notice.from.as_str(), notice.to),
        ("", vec!["a@x.org".to_owned()])
    );
    assert!(
        notice
            .text
            .contains("Final-Recipient: rfc822; b@z.org\r\nAction: failed\r\nStatus: 5.7.30\r\n")
    );
    assert!(!notice.text.contains("secret"), "{}", notice.text);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_requires_tls_comes_back_from_servers_that_do_not_offer_it() {
    let server = Server::start("mx.y.org").await;
    let house = House::with(names(), server.trust.clone(), |c| {
        direct(c, &server.sink);
        c.tls_policy = vec![policy(TlsLevel::Verify, &["mx.y.org"])];
    })
    .await;
    require(&house, "b@y.org").await;
    let notice = server.sink.wait(1).await.pop().unwrap();
    assert_eq!(notice.from, "");
    assert!(
        notice
            .text
            .contains("Final-Recipient: rfc822; b@y.org\r\nAction: failed\r\nStatus: 5.7.30\r\n")
    );
    house.nothing_is_lost(0).await;
}
