//! Smarthosts that stand in for each other, and what they say that is not about the mail.

use std::time::Duration;

use tasuki_core::store::trail::End;
use tasuki_smtp::{RouteConfig, SmarthostGroupConfig, SmarthostProtocol};

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

/// A gateway with a group of two.
async fn group(first: &Sink, second: &Sink) -> House {
    let mut hops = vec![plain_smarthost(first.addr), plain_smarthost(second.addr)];
    (hops[0].name, hops[1].name) = ("one".into(), "two".into());
    let house = House::start(Names::default(), |c| {
        c.smarthosts = hops;
        c.smarthost_groups = vec![SmarthostGroupConfig {
            name: "out".into(),
            members: vec!["one".into(), "two".into()],
        }];
        c.default_route = "out".into();
        c.delivery.idle = Duration::from_millis(1);
    })
    .await;
    house.allow_loopback();
    house
}

async fn send(house: &House, count: usize) {
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for _ in 0..count {
        client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        house
            .until("the idle end", |h| h.figure("connections_out_open") == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_smarthost_stands_in_for_one_that_fails_until_it_is_back() {
    for refusal in [
        "banner 421 4.3.2 busy",
        "MAIL 530 5.7.0 login first",
        "MAIL 550 5.7.1 x.org is not allowed to send: limit",
    ] {
        let (key, reply) = refusal.split_once(' ').unwrap();
        let (key, reply) = (key.to_owned(), reply.to_owned());
        let first = Sink::scripted(move |line| line.starts_with(&key).then(|| reply.clone())).await;
        let second = Sink::start().await;
        let mut hops = vec![plain_smarthost(first.addr), plain_smarthost(second.addr)];
        (hops[0].name, hops[1].name) = ("one".into(), "two".into());
        // What a provider says of our account is not about the mail.
        hops[0].preset = Some("mailgun".into());
        let house = House::start(Names::default(), |c| {
            c.smarthosts = hops;
            c.smarthost_groups = vec![SmarthostGroupConfig {
                name: "out".into(),
                members: vec!["one".into(), "two".into()],
            }];
            c.default_route = "out".into();
            c.delivery.idle = Duration::from_millis(1);
        })
        .await;
        house.allow_loopback();
        send(&house, 3).await;
        assert_eq!(second.wait(3).await.len(), 3, "{refusal}");
        assert_eq!(first.connections(), 1, "it rests");
        let conditions = house.health.conditions();
        assert_eq!(conditions[0].0, "mail.smarthost.one");
        assert!(conditions[0].1.sentence.contains("others of its group carry on"));
        house.nothing_is_lost(0).await;
        assert_eq!(house.figure("bounced_recipients_total"), 0);
        if !refusal.starts_with("banner") {
            continue;
        }
        // Back again: it is not measured yet, so it is asked first.
        first.script(|_| None);
        house.clock.advance(Duration::from_secs(600));
        send(&house, 1).await;
        first.wait(1).await;
        assert_eq!(second.received().len(), 3);
        assert!(house.health.conditions().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_waits_while_no_smarthost_of_the_group_works() {
    let down = |line: &str| (line == "banner").then(|| "554 5.7.1 go away".into());
    let (first, second) = (Sink::scripted(down).await, Sink::scripted(down).await);
    let house = group(&first, &second).await;
    send(&house, 1).await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    assert_eq!((first.connections(), second.connections()), (1, 1));
    house.nothing_is_lost(1).await;
    assert_eq!(house.figure("bounced_recipients_total"), 0);
    second.script(|_| None);
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    second.wait(1).await;
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judgement_of_the_mail_is_not_asked_for_twice() {
    let first = Sink::scripted(|line| line.starts_with("RCPT").then(|| "550 5.1.1 unknown".into())).await;
    let second = Sink::start().await;
    let house = group(&first, &second).await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
    house
        .until("the end", |h| h.figure("dropped_recipients_total") == 1)
        .await;
    assert_eq!(second.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_choose_by_sender_and_by_who_handed_it_in() {
    let (usual, sender, app) = (Sink::start().await, Sink::start().await, Sink::start().await);
    let mut hops = vec![
        plain_smarthost(usual.addr),
        plain_smarthost(sender.addr),
        plain_smarthost(app.addr),
    ];
    (hops[1].name, hops[2].name) = ("by-sender".into(), "by-app".into());
    let house = House::start(Names::default(), |c| {
        c.smarthosts = hops;
        c.default_route = "hop".into();
        c.routes = vec![
            RouteConfig {
                sender: Some("news.example".into()),
                via: "by-sender".into(),
                source: None,
                ..RouteConfig::default()
            },
            RouteConfig {
                principal: Some("app".into()),
                via: "by-app".into(),
                source: None,
                ..RouteConfig::default()
            },
        ];
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
    client
        .mail("a@news.example", &["b@y.org"], "Subject: hi\r\n\r\nx")
        .await;
    // Deferred mail stays on its way.
    app.script(|line| line.starts_with("RCPT").then(|| "450 4.2.1 later".into()));
    let mut client = house.submission().await;
    client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
    usual.wait(1).await;
    sender.wait(1).await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    app.script(|_| None);
    house.clock.advance(Duration::from_secs(120));
    house.handle.retry_now();
    app.wait(1).await;
    house.nothing_is_lost(0).await;
    assert_eq!((usual.received().len(), sender.received().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_store_answers_for_each_recipient_and_delivery_is_told_as_such() {
    let store = Sink::start().await;
    store.script(|line| {
        line.contains("<full@y.org>")
            .then(|| "452 4.2.2 mailbox full".into())
    });
    let house = House::with_sink(&store, |c| c.smarthosts[0].protocol = SmarthostProtocol::Lmtp).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org> NOTIFY=SUCCESS", "250").await;
    client.expect("RCPT TO:<full@y.org>", "250").await;
    client.expect("DATA", "354").await;
    client.expect("Subject: hi\r\n\r\nx\r\n.", "250").await;
    let received = store.wait(2).await;
    assert!(store.commands()[0].starts_with("LHLO "), "{:?}", store.commands());
    let notice = received.iter().find(|r| r.from.is_empty()).unwrap();
    assert!(
        notice.text.contains("Action: delivered\r\nStatus: 2.0.0\r\n"),
        "{}",
        notice.text
    );
    house.nothing_is_lost(1).await;
    let (end, words, _) = house.fate("b@y.org").await;
    assert!(
        end == End::Delivered && words.starts_with("250"),
        "{end:?} {words}"
    );
    assert_eq!(house.fates("full@y.org").await, [], "it still waits");
}
