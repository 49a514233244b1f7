//! What a smarthost refuses us, not the mail: another of its group carries on, or the mail waits and the operator is told once.

use std::{sync::Arc, time::Duration};

use tasuki_core::events::{Event, What};
use tasuki_smtp::{MailConfig, SmarthostConfig, SmarthostGroupConfig, SmarthostTls};
use tokio::sync::broadcast::Receiver;

use crate::{
    sink::{Script, Sink},
    support::{House, Names},
    world::{Ca, Flaw},
};

/// A smarthost with TLS and a login.
async fn server(ca: &Ca) -> Sink {
    let (tls, _) = ca.server(&["localhost"], Flaw::None);
    Sink::with(&["PIPELINING", "AUTH PLAIN"], Some(tls), Arc::new(|_| None)).await
}

fn smarthost(name: &str, sink: &Sink) -> SmarthostConfig {
    SmarthostConfig {
        name: name.into(),
        host: Some("localhost".into()),
        port: Some(sink.addr.port()),
        tls: Some(SmarthostTls::Starttls),
        username: Some("us".into()),
        password: Some(tasuki_core::seal::Secret::new("secret".into())),
        ..SmarthostConfig::default()
    }
}

async fn house(ca: &Ca, change: impl FnOnce(&mut MailConfig)) -> House {
    let house = House::with(Names::default(), ca.trust(), |c| {
        c.delivery.idle = Duration::from_millis(1);
        change(c);
    })
    .await;
    house.allow_loopback();
    house
}

async fn send(house: &House) {
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
}

/// What the events say of routes since the last look: down or up, and why.
fn news(events: &mut Receiver<Event>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event.what {
            What::RouteDown { route, reason } => told.push(format!("{route} down: {reason}")),
            What::RouteUp { route } => told.push(format!("{route} up")),
            _ => {}
        }
    }
    told
}

fn answering(key: &'static str, reply: &'static str) -> Script {
    Arc::new(move |line| line.starts_with(key).then(|| reply.to_owned()))
}

/// All that is said of us, and not of a mail: at which command, and how.
const REFUSALS: [(&str, &str); 7] = [
    ("AUTH", "535 5.7.8 wrong password"),
    ("AUTH", "454 4.7.0 cannot ask now"),
    ("AUTH", "550 5.7.30 basic authentication is over"),
    ("MAIL", "530 5.7.0 log in first"),
    ("MAIL", "550 5.7.30 basic authentication is over"),
    ("STARTTLS", "454 4.7.0 TLS is not to be had"),
    ("handshake", "close"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_smarthost_carries_on_whatever_the_first_refuses_us_and_it_comes_back_by_itself() {
    let ca = Ca::make();
    for (key, reply) in REFUSALS {
        let (first, second) = (server(&ca).await, server(&ca).await);
        first.script(move |line| answering(key, reply)(line));
        let house = house(&ca, |c| {
            c.smarthosts = vec![smarthost("one", &first), smarthost("two", &second)];
            c.smarthost_groups = vec![SmarthostGroupConfig {
                name: "out".into(),
                members: vec!["one".into(), "two".into()],
            }];
            c.default_route = "out".into();
        })
        .await;
        let mut events = house.events.subscribe();
        for count in 1..=3 {
            send(&house).await;
            let received = second.wait(count).await;
            assert!(
                received[count - 1].login && received[count - 1].tls,
                "{key} {reply}"
            );
            house
                .until("the idle end", |h| h.figure("connections_out_open") == 0)
                .await;
        }
        assert!(first.received().is_empty());
        let told = news(&mut events);
        assert_eq!(told.len(), 1, "{key} {reply}: {told:?}");
        assert!(told[0].starts_with("smarthost one down: "), "{told:?}");
        assert!(reply == "close" || told[0].contains(reply), "{told:?}");
        let conditions = house.health.conditions();
        assert_eq!(conditions[0].0, "mail.smarthost.one");
        assert!(conditions[0].1.sentence.ends_with("others of its group carry on"));
        house.nothing_is_lost(0).await;
        assert_eq!(house.figure("bounced_recipients_total"), 0);
        // It is mended, and after its rest it is there again without anybody's doing: the other one may fail now.
        first.script(|_| None);
        second.script(|line| answering("banner", "421 4.3.2 busy")(line));
        house.clock.advance(Duration::from_secs(600));
        send(&house).await;
        first.wait(1).await;
        assert!(
            news(&mut events).contains(&"smarthost one up".to_owned()),
            "{key} {reply}"
        );
        let conditions = house.health.conditions();
        assert!(
            conditions.iter().all(|(key, _)| key != "mail.smarthost.one"),
            "{conditions:?}"
        );
        house.nothing_is_lost(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smarthost_that_refuses_us_is_one_event_and_one_plain_reason_in_status() {
    let ca = Ca::make();
    let only = server(&ca).await;
    only.script(|line| answering("AUTH", "535 5.7.8 wrong password")(line));
    let house = house(&ca, |c| {
        c.smarthosts = vec![smarthost("one", &only)];
        c.default_route = "one".into();
    })
    .await;
    let mut events = house.events.subscribe();
    for count in 1..=3 {
        send(&house).await;
        house.until("the deferral", |h| h.errors().len() == count).await;
    }
    // It is tried again a few times, and that is no news.
    for _ in 0..3 {
        let before = only.connections();
        house.clock.advance(Duration::from_secs(600));
        house.handle.retry_now();
        house.until("another try", |_| only.connections() > before).await;
        house
            .until("its end", |h| h.figure("connections_out_open") == 0)
            .await;
    }
    assert_eq!(news(&mut events), ["via:one down: 535 5.7.8 wrong password"]);
    let conditions = house.health.conditions();
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert_eq!(
        conditions[0].1.sentence,
        "smarthost one does not work (535 5.7.8 wrong password); mail for it waits and is tried again"
    );
    assert_eq!(house.figure("bounced_recipients_total"), 0);
    only.script(|_| None);
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    only.wait(3).await;
    house
        .until("the news", |_| house.health.conditions().is_empty())
        .await;
    assert_eq!(news(&mut events), ["via:one up"]);
    house.nothing_is_lost(0).await;
}
