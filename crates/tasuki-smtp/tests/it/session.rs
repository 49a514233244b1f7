//! What clients may and may not do, over a real socket.

use base64::Engine as _;
use std::{sync::atomic::Ordering, time::Duration};

use tasuki_core::store::audit::Actor;
use tasuki_smtp::{NetworkConfig, SmarthostTls};

use crate::{
    sink::Sink,
    support::{House, plain_smarthost},
};

/// About thirty ways in which relays have been talked into forwarding, tried at a gateway that takes mail for
/// ours.example only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_relay_is_refused() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.relay_domains = vec!["ours.example".parse().unwrap()]).await;
    let recipients = [
        "victim@elsewhere.org",
        "victim%elsewhere.org@relay.example",
        "victim%elsewhere.org",
        "elsewhere.org!victim",
        "elsewhere.org!victim@relay.example",
        "victim%elsewhere.org@ours.example",
        "elsewhere.org!victim@ours.example",
        "\"victim@elsewhere.org\"@ours.example",
        "\"victim@elsewhere.org\"@relay.example",
        "\"victim@elsewhere.org\"",
        "\"victim%elsewhere.org\"@ours.example",
        "victim@elsewhere.org@ours.example",
        "@ours.example:victim@elsewhere.org",
        "@relay.example,@ours.example:victim@elsewhere.org",
        "victim@[192.0.2.1]",
        "victim@[127.0.0.1]",
        "victim@[IPv6:2001:db8::1]",
        "victim@[IPv6:::1]",
        "victim@192.0.2.1",
        "victim@elsewhere.org.",
        "victim@ours.example.",
        "victim@",
        "victim",
        "@elsewhere.org",
        "victim@notours.example",
        "victim@ours.example.elsewhere.org",
        "victim@elsewhere.org ours.example",
        "victim@elsewhere.org,ours.example",
        "victim(@ours.example)@elsewhere.org",
        "postmaster@elsewhere.org",
        "victim@relay.example",
        "<victim@elsewhere.org>",
        "victim@xn--ours-example.elsewhere.org",
    ];
    for sender in [
        "a@x.org",
        "",
        "a@ours.example",
        "postmaster@relay.example",
        "a@localhost",
    ] {
        for recipient in recipients {
            let mut client = house.relay().await;
            client.expect("EHLO relay.example", "250").await;
            let _ = client.ask(&format!("MAIL FROM:<{sender}>")).await;
            let reply = client.ask(&format!("RCPT TO:<{recipient}>")).await;
            assert!(reply.starts_with('5'), "{sender} to {recipient}: {reply}");
        }
    }
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let reply = client
        .mail(
            "a@x.org",
            &["b@ours.example", "b@sub.ours.example"],
            "Subject: hi\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    assert_eq!(sink.wait(1).await[0].to, ["b@ours.example", "b@sub.ours.example"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submission_needs_a_login_and_a_login_needs_tls() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let mut client = crate::talk::Talk::connect(house.addrs.submission[0]).await;
    let offers = client.expect("EHLO c", "250").await;
    assert!(
        offers.contains("STARTTLS") && !offers.contains("AUTH"),
        "{offers}"
    );
    client.expect("AUTH PLAIN AGFwcABzZWNyZXQ=", "538 5.7.11").await;
    client.expect("MAIL FROM:<a@x.org>", "530 5.7.0").await;
    client.expect("STARTTLS", "220").await;
    let mut client = client.start_tls(&house.tls).await;
    let offers = client.expect("EHLO c", "250").await;
    assert!(
        !offers.contains("STARTTLS") && offers.contains("AUTH PLAIN LOGIN"),
        "{offers}"
    );
    client.expect("MAIL FROM:<a@x.org>", "530 5.7.0").await;
    client
        .expect("AUTH PLAIN AGFwcAB3cm9uZw==", "535 5.7.8 authentication failed")
        .await;
    client
        .expect(
            "AUTH PLAIN AG5vYm9keQB3cm9uZw==",
            "535 5.7.8 authentication failed",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_sends_only_as_what_it_was_granted() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let mut client = house.submission().await;
    client.expect("MAIL FROM:<a@elsewhere.org>", "550 5.7.1").await;
    client.expect("MAIL FROM:<>", "550 5.7.1").await;
    let reply = client
        .mail("a@x.org", &["b@y.org"], "From: Boss <boss@bank.org>\r\n\r\nx")
        .await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
    let reply = client
        .mail(
            "a@x.org",
            &["b@y.org"],
            "Bcc: secret@y.org\r\nSubject: hi\r\nbcc: more@y.org\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let text = sink.wait(1).await[0].text.clone();
    assert!(
        text.contains("with ESMTPSA id") && text.contains("\r\n\tfor <b@y.org>;"),
        "{text}"
    );
    for field in [
        "\r\nDate: ",
        "\r\nMessage-ID: <",
        "\r\nFrom: <a@x.org>",
        "\r\nSubject: hi",
    ] {
        assert!(text.contains(field), "{field} in {text}");
    }
    assert!(!text.to_lowercase().contains("bcc"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn implicit_tls_serves_from_the_first_octet() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let stream = tokio::net::TcpStream::connect(house.addrs.submissions[0])
        .await
        .unwrap();
    let mut client = crate::talk::Talk::over_tls(stream, &house.tls).await;
    assert!(client.reply().await.starts_with("220 relay.example"));
    let offers = client.expect("EHLO c", "250").await;
    assert!(offers.contains("AUTH PLAIN LOGIN") && !offers.contains("STARTTLS"));
    client.expect("AUTH LOGIN YXBw", "334").await;
    client
        .expect(
            &base64::engine::general_purpose::STANDARD.encode(&house.password),
            "235",
        )
        .await;
    let reply = client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_act_as_their_service() {
    let sink = Sink::start().await;
    let net = |service: &str| {
        vec![NetworkConfig {
            net: "127.0.0.0/8".parse().unwrap(),
            service: service.into(),
        }]
    };
    let house = House::with_sink(&sink, |c| c.mynetworks = net("office")).await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@elsewhere.org>", "550 5.7.1").await;
    let reply = client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    // Whoever is in a network never sends as any address, whatever its service may do after a login.
    let any = vec!["mail:send:x.org".parse().unwrap(), "mail:send:*".parse().unwrap()];
    house
        .accounts
        .set_grants("office", any, &Actor::gateway("test"))
        .await
        .unwrap();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@elsewhere.org>", "550 5.7.1").await;
    let reply = client
        .mail("a@x.org", &["b@y.org"], "From: b@elsewhere.org\r\n\r\nx")
        .await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
    let reply = client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    // A service that does not exist gives nobody any right.
    let house = House::with_sink(&sink, |c| c.mynetworks = net("nobody")).await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "550 5.7.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_acknowledged_that_was_not_stored() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    house.store.unavailable.store(true, Ordering::SeqCst);
    let reply = client.mail("a@x.org", &["b@y.org"], "Subject: 1\r\n\r\nx").await;
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
    house.store.unavailable.store(false, Ordering::SeqCst);
    house.store.full.store(true, Ordering::SeqCst);
    let reply = client.mail("a@x.org", &["b@y.org"], "Subject: 2\r\n\r\nx").await;
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    house.store.full.store(false, Ordering::SeqCst);
    let reply = client.mail("a@x.org", &["b@y.org"], "Subject: 3\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    let received = sink.wait(1).await;
    assert!(received.len() == 1 && received[0].text.contains("Subject: 3"));
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_before_the_data() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    house.health.set_disk_full(true);
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "250").await;
    client.expect("DATA", "452 4.3.1").await;
    house.health.set_disk_full(false);
    client.expect("DATA", "354").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_settled_once_the_store_is_back() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let store = std::sync::Arc::clone(&house.store);
    sink.script(move |line| {
        if line == "end" {
            store.unavailable.store(true, Ordering::SeqCst);
        }
        None
    });
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("a@x.org", &["b@y.org"], "Subject: 1\r\n\r\nx").await;
    sink.wait(1).await;
    house
        .until("the delivery", |l| l.figure("delivered_recipients_total") == 1)
        .await;
    assert_eq!(house.look().await.waiting(), 1);
    house.store.unavailable.store(false, Ordering::SeqCst);
    house.nothing_is_lost(0).await;
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_budget_refuses_and_recovers() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let hog = house
        .budget
        .try_take(house.budget.limit_bytes() - house.budget.used_bytes())
        .unwrap();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "250").await;
    client.expect("DATA", "421 4.3.2").await;
    drop(hog);
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    assert!(
        client
            .mail("a@x.org", &["b@y.org"], "Subject: 1\r\n\r\nx")
            .await
            .starts_with("250")
    );
    sink.wait(1).await;
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_mails_pass_whole_without_being_held_in_memory() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for size in [10_000, 100_000, 300_000, 3_000_000] {
        let line = format!("{}\r\n", "x".repeat(70));
        let text = format!("Subject: {size}\r\n\r\n{}", line.repeat(size / line.len()));
        let reply = client.mail("a@x.org", &["b@y.org"], text.trim_end()).await;
        assert!(reply.starts_with("250"), "{reply}");
        let count = sink.received().len();
        let received = sink.wait(count.max(1)).await;
        let got = loop {
            if let Some(got) = sink
                .received()
                .into_iter()
                .find(|r| r.text.contains(&format!("Subject: {size}\r\n")))
            {
                break got;
            }
            sink.wait(received.len() + 1).await;
        };
        assert!(got.text.ends_with(&text), "{} of {}", got.text.len(), text.len());
    }
    house.nothing_is_lost(0).await;
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_big_is_refused_by_declaration_and_by_truth() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.max_size = 1000).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    assert!(client.expect("EHLO c", "250").await.contains("SIZE 1000"));
    client.expect("MAIL FROM:<a@x.org> SIZE=1001", "552 5.3.4").await;
    let reply = client
        .mail("a@x.org", &["b@y.org"], &"0123456789\r\n".repeat(100))
        .await;
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
    client.expect("NOOP", "250").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_mail_is_one_refused_mail() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    for end in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r\n.\r\r\n",
        "\r\n\0.\r\n",
    ] {
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        let text = format!(
            "Subject: x\r\n\r\nhi{end}MAIL FROM:<evil@x.org>\r\nRCPT TO:<v@y.org>\r\nDATA\r\nsmuggled"
        );
        let reply = client.mail("a@x.org", &["b@y.org"], &text).await;
        assert!(reply.starts_with("550 5.5.2"), "{end:?}: {reply}");
        client.expect("NOOP", "250 2.0.0 ok").await;
    }
    assert_eq!(house.figure("accepted_mails_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_answered_in_one_go() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .send("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nRCPT TO:<c@y.org>\r\nDATA\r\n")
        .await;
    for expect in ["250 2.1.0", "250 2.1.5", "250 2.1.5", "354"] {
        let reply = client.reply().await;
        assert!(reply.starts_with(expect), "{reply}");
    }
    client
        .send("Subject: hi\r\n\r\nx\r\n.\r\nMAIL FROM:<>\r\nQUIT\r\n")
        .await;
    for expect in ["250 2.0.0 queued", "250 2.1.0", "221"] {
        let reply = client.reply().await;
        assert!(reply.starts_with(expect), "{reply}");
    }
    assert_eq!(client.reply().await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smarthost_gets_credentials_over_verified_tls_only() {
    let keys = tempfile::tempdir().unwrap();
    tasuki_core::tls::install_provider();
    let clock = tasuki_core::clock::Clock::system();
    let events = tasuki_core::events::EventBus::new(clock.clone());
    // A next hop whose certificate comes from a CA that the gateway does not believe.
    let stranger = tasuki_core::tls::Tls::load(
        &tasuki_core::tls::TlsConfig::default(),
        keys.path(),
        Some("localhost"),
        clock,
        events,
    )
    .unwrap();
    let sink = Sink::with(
        &["PIPELINING", "AUTH PLAIN"],
        Some(stranger.server(&[])),
        std::sync::Arc::new(|_| None),
    )
    .await;
    let mut hop = plain_smarthost(sink.addr);
    hop.host = Some("localhost".into());
    hop.tls = Some(SmarthostTls::Starttls);
    hop.username = Some("u".into());
    hop.password = Some(tasuki_core::seal::Secret::new("p".into()));
    let believe = keys.path().join("ca.pem");
    for believed in [false, true] {
        let tls = tasuki_core::tls::TlsConfig {
            extra_ca: if believed { vec![believe.clone()] } else { vec![] },
            ..Default::default()
        };
        let house = House::trusting(tls, |c| {
            c.smarthosts = vec![hop.clone()];
            c.default_route = "hop".into();
        })
        .await;
        house.allow_loopback();
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        if believed {
            let received = sink.wait(1).await;
            assert!(received[0].tls && received[0].login);
        } else {
            house.until("the deferral", |l| l.errors().len() == 1).await;
            assert!(sink.received().is_empty() && sink.commands().iter().all(|c| !c.starts_with("AUTH")));
            assert_eq!(house.figure("bounced_recipients_total"), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opportunistic_tls_takes_any_certificate_and_falls_back() {
    let keys = tempfile::tempdir().unwrap();
    tasuki_core::tls::install_provider();
    let clock = tasuki_core::clock::Clock::system();
    let events = tasuki_core::events::EventBus::new(clock.clone());
    let stranger = tasuki_core::tls::Tls::load(
        &tasuki_core::tls::TlsConfig::default(),
        keys.path(),
        Some("localhost"),
        clock,
        events,
    )
    .unwrap();
    for broken in [false, true] {
        let script: crate::sink::Script =
            std::sync::Arc::new(move |line| (broken && line == "handshake").then(|| "close".into()));
        let sink = Sink::with(&["PIPELINING"], Some(stranger.server(&[])), script).await;
        let house = House::with_sink(&sink, |c| {
            c.smarthosts[0].tls = Some(SmarthostTls::Opportunistic);
            c.delivery.idle = Duration::from_millis(1);
        })
        .await;
        house.allow_loopback();
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        let received = sink.wait(1).await;
        assert_eq!(received[0].tls, !broken);
        // What is broken is remembered, so the next connection does not try it again.
        house
            .until("the idle end", |h| h.figure("connections_out_open") == 0)
            .await;
        client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        sink.wait(2).await;
        let tried = sink.commands().iter().filter(|c| *c == "STARTTLS").count();
        assert_eq!(tried, if broken { 1 } else { 2 });
        house.nothing_is_lost(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_what_it_says() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let mut config = house.config.clone();
    config.relay_domains = vec!["new.example".parse().unwrap()];
    config.relay.max_connections = 7;
    let shared = std::sync::Arc::new(tasuki_core::Shared {
        host: Some("relay.example".parse().unwrap()),
        ..tasuki_core::Shared::default()
    });
    let applied = house.handle.apply(&tasuki_core::Snapshot {
        shared,
        engine: config,
    });
    assert_eq!(applied.changed, ["mail.relay_domains"]);
    assert_eq!(applied.needs_restart, ["mail.relay"]);
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let reply = client
        .mail("a@x.org", &["b@new.example"], "Subject: hi\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait(1).await;
    tokio::time::timeout(Duration::from_secs(15), house.stop())
        .await
        .unwrap();
}
