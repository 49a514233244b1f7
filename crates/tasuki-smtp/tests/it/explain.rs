//! What `tasuki mail explain` is told, beside what sessions are told.

use tasuki_core::store::audit::Actor;
use tasuki_proto::{names::ReversePath, smtp::dkim::Algorithm};
use tasuki_smtp::{AliasConfig, Explanation, MxAnswer, NetworkConfig, RouteConfig, SenderConfig, Whom};

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

async fn explain(house: &House, from: &str, to: &str, whom: Whom) -> Explanation {
    let from = ReversePath::parse(from).unwrap();
    house
        .handle
        .explain(&from, &to.parse().unwrap(), &whom)
        .await
        .unwrap()
}

fn app() -> Whom {
    Whom::Named("app".into())
}

fn contains(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

/// The same question to `explain` and to a session at the relay listener: one reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_explanation_and_the_session_give_one_reply() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.relay_domains = vec!["ours.example".parse().unwrap()];
        c.rewrite.aliases.push(AliasConfig {
            address: "info@alias.example".to_owned().try_into().unwrap(),
            to: vec!["a@y.org".parse().unwrap()],
        });
    })
    .await;
    let stranger = || Whom::Address("127.0.0.1".parse().unwrap());
    for to in [
        "a@ours.example",
        "info@alias.example",
        "other@alias.example",
        "a@elsewhere.org",
        "a%elsewhere.org@ours.example",
        "postmaster@relay.example",
    ] {
        let told = explain(&house, "s@bank.org", to, stranger()).await;
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        client.expect("MAIL FROM:<s@bank.org>", "250").await;
        let said = client.ask(&format!("RCPT TO:<{to}>")).await;
        assert_eq!(said.trim_end(), told.reply, "{to}: {told:?}");
        assert_eq!(told.accepted, said.starts_with("250"), "{to}");
    }
    assert!(sink.received().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_rewrite_route_signature_and_limits_are_explained_and_nothing_is_sent() {
    let sink = Sink::start().await;
    let hop = plain_smarthost(sink.addr);
    let names = Names(
        vec![
            ("null.example", MxAnswer::Null),
            ("y.org", MxAnswer::Hosts(vec![(10, "mx.y.org".into())])),
        ],
        vec![("mx.y.org", "192.0.2.9".parse().unwrap())],
        std::sync::Arc::default(),
    );
    let house = House::start(names, |c| {
        c.delivery.danger_private_addresses = true;
        c.smarthosts = vec![hop];
        c.routes = vec![RouteConfig {
            domain: Some("z.org".parse().unwrap()),
            via: "hop".into(),
            ..RouteConfig::default()
        }];
        c.rewrite.senders.push(SenderConfig {
            from: "@host.internal".to_owned().try_into().unwrap(),
            to: "ops@x.org".parse().unwrap(),
        });
        c.mynetworks = vec![NetworkConfig {
            net: "198.51.100.0/24".parse().unwrap(),
            service: "app".into(),
        }];
    })
    .await;
    let actor = Actor::gateway("test");
    house
        .handle
        .dkim_add(
            "x.org".parse().unwrap(),
            &[Algorithm::Ed25519Sha256],
            Some("s1"),
            &actor,
        )
        .await
        .unwrap();
    house.next_morning();
    let password = house
        .service("news", &["mail:send:x.org", "mail:class:bulk", "mail:daily:3"])
        .await;
    let news = || Whom::Named("news".into());

    let told = explain(&house, "root@host.internal", "b@y.org", news()).await;
    assert!(told.accepted, "{told:?}");
    assert!(contains(&told.grant, "mail:send:x.org"), "{told:?}");
    assert!(
        contains(&told.rewrite, "the sender becomes <ops@x.org>"),
        "{told:?}"
    );
    assert!(told.header.contains(&"From: <ops@x.org>".to_owned()), "{told:?}");
    let route = &told.routes[0];
    assert_eq!(route.lane, "mx:y.org");
    assert_eq!(route.servers, ["mx.y.org at 192.0.2.9:25"]);
    assert!(contains(&route.tls, "mx.y.org: TLS where it works"), "{told:?}");
    assert!(
        contains(&told.signature, "d=x.org s=s1 ed25519-sha256"),
        "{told:?}"
    );
    assert!(contains(&told.limits, "0 of 3 recipients of today"), "{told:?}");

    let told = explain(
        &house,
        "a@x.org",
        "b@z.org",
        Whom::Address("198.51.100.7".parse().unwrap()),
    )
    .await;
    assert!(
        told.accepted && contains(&told.grant, "by its network app"),
        "{told:?}"
    );
    assert_eq!(told.routes[0].lane, "via:hop");
    assert!(contains(&told.routes[0].tls, "hop: no TLS"), "{told:?}");

    let told = explain(&house, "a@bank.org", "b@y.org", app()).await;
    assert!(!told.accepted && told.reply.starts_with("550 5.7.1"), "{told:?}");
    let told = explain(&house, "a@x.org", "b@null.example", app()).await;
    assert!(told.reply.starts_with("556 5.1.10"), "{told:?}");
    let told = explain(&house, "a@x.org", "b@y.org", Whom::Named("nobody".into())).await;
    assert!(!told.accepted && told.reply.starts_with("535"), "{told:?}");

    // A cap that is used up refuses here as in a session.
    let mut client = house.login("news", &password).await;
    for to in ["1@z.org", "2@z.org", "3@z.org"] {
        let reply = client.mail("a@x.org", &[to], "From: a@x.org\r\n\r\nx").await;
        assert!(reply.starts_with("250"), "{reply}");
    }
    sink.wait(3).await;
    let told = explain(&house, "a@x.org", "b@y.org", news()).await;
    assert!(
        !told.accepted && told.reply.starts_with("451 4.7.1 the daily cap of 3"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receivers_pace_and_what_becomes_of_requiretls_are_explained_also_for_carriers_addresses() {
    let mut fast = plain_smarthost("127.0.0.1:9".parse().unwrap());
    fast.connections = Some(7);
    let names = Names(
        vec![
            (
                "docomo.ne.jp",
                MxAnswer::Hosts(vec![(10, "mfsmax.docomo.ne.jp".into())]),
            ),
            ("y.org", MxAnswer::Hosts(vec![(10, "mx.y.org".into())])),
        ],
        vec![
            ("mfsmax.docomo.ne.jp", "192.0.2.8".parse().unwrap()),
            ("mx.y.org", "192.0.2.9".parse().unwrap()),
        ],
        std::sync::Arc::default(),
    );
    let house = House::start(names, |c| {
        c.delivery.danger_private_addresses = true;
        c.smarthosts = vec![fast];
        c.routes = vec![RouteConfig {
            domain: Some("z.org".parse().unwrap()),
            via: "hop".into(),
            ..RouteConfig::default()
        }];
        c.tls_policy = vec![tasuki_smtp::TlsPolicyConfig {
            domains: vec!["docomo.ne.jp".parse().unwrap()],
            level: tasuki_smtp::TlsLevel::Verify,
            mx: vec!["mfsmax.docomo.ne.jp".to_owned().try_into().unwrap()],
        }];
    })
    .await;
    let to = house.handle.mailbox("foo..bar@docomo.ne.jp").unwrap();
    assert!(house.handle.mailbox("foo..bar@y.org").is_none());
    let from = ReversePath::parse("a@x.org").unwrap();
    let told = house.handle.explain(&from, &to, &app()).await.unwrap();
    assert!(told.accepted, "{told:?}");
    let route = &told.routes[0];
    assert_eq!(route.recipient, "\"foo..bar\"@docomo.ne.jp");
    let pace = "site:mfsmax.docomo.ne.jp: the rule \"docomo\" for this receiver: 2 connections at a time, \
                2 to begin with, 20 mails over each, one mail every 1000 ms";
    assert_eq!(route.pace, [pace]);
    let host = "mfsmax.docomo.ne.jp";
    assert!(contains(&route.tls, "(mail.tls_policy: verify)"), "{told:?}");
    let goes = format!("{host}: mail with REQUIRETLS goes there if the server offers that");
    assert!(contains(&route.tls, &goes), "{told:?}");

    let told = explain(&house, "a@x.org", "b@y.org", app()).await;
    let route = &told.routes[0];
    assert!(contains(&route.pace, "no rule for this receiver"), "{told:?}");
    assert!(contains(&route.pace, "5 connections at a time"), "{told:?}");
    assert!(
        contains(&route.tls, "mx.y.org: mail with REQUIRETLS does not go there"),
        "{told:?}"
    );

    let told = explain(&house, "a@x.org", "b@z.org", app()).await;
    let route = &told.routes[0];
    assert!(contains(&route.pace, "hop: 7 connections at a time"), "{told:?}");
    assert!(
        contains(&route.tls, "hop: mail with REQUIRETLS does not go there"),
        "{told:?}"
    );
}
