//! How fast mail goes to a receiver: rules, rates, and what it says when that is too fast.

use std::time::Duration;

use tasuki_smtp::{LaneStatus, MxAnswer, ProviderConfig};

use crate::{
    release::send,
    sink::Sink,
    support::{House, Names},
};

/// A gateway with a rule for the receiver at the sink.
async fn house(sink: &Sink, change: impl FnOnce(&mut ProviderConfig)) -> House {
    let answer = MxAnswer::Hosts(vec![(10, "mx.shared.example".into())]);
    let names = Names(
        vec![("one.example", answer)],
        vec![("mx.shared.example", [127, 0, 0, 1].into())],
        Default::default(),
    );
    let mut rule = ProviderConfig {
        name: "shared".into(),
        mx: vec!["shared.example".parse().unwrap()],
        connections: None,
        mails_per_connection: None,
        per_minute: None,
        require_tls: false,
        slow_down: vec![],
        unknown_may_be_filter: false,
        unknown_user: vec![],
    };
    change(&mut rule);
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
        c.providers = vec![rule];
    })
    .await;
    house.allow_loopback();
    house
}

fn site(house: &House) -> LaneStatus {
    let lanes = house.handle.status().lanes;
    let site = lanes.iter().find(|l| l.lane == "site:mx.shared.example");
    site.unwrap_or_else(|| panic!("{lanes:?}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receivers_rule_limits_connections_and_the_mails_of_each() {
    let sink = Sink::start().await;
    let house = house(&sink, |rule| {
        rule.connections = Some(1);
        rule.mails_per_connection = Some(3);
    })
    .await;
    send(&house, &["b@one.example"; 9]).await;
    let received = sink.wait(9).await;
    house.nothing_is_lost(0).await;
    for connection in 1..=3 {
        let mails = received.iter().filter(|r| r.connection == connection).count();
        assert_eq!(mails, 3, "{received:?}");
    }
    let site = site(&house);
    assert_eq!((site.provider.as_deref(), site.allowed), (Some("shared"), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mail_that_a_receiver_takes_allows_one_more_connection() {
    let sink = Sink::start().await;
    let house = house(&sink, |rule| rule.connections = Some(4)).await;
    send(&house, &["b@one.example"]).await;
    sink.wait(1).await;
    house.nothing_is_lost(0).await;
    assert_eq!(site(&house).allowed, 3);
    send(&house, &["b@one.example"; 3]).await;
    sink.wait(4).await;
    house.nothing_is_lost(0).await;
    assert_eq!(site(&house).allowed, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_says_too_fast_gets_less_and_never_bounces_the_mail() {
    for said in [
        // By its rule, whatever the code.
        "MAIL 550 5.7.1 [TSS99] too much from you",
        "RCPT 451 4.7.0 [tss99] later",
        "end 554 5.7.0 [TSS99] later",
        // What everybody says.
        "banner 421 4.3.2 busy",
        "MAIL 450 4.7.1 too many connections",
    ] {
        let (key, reply) = said.split_once(' ').unwrap();
        let (key, reply) = (key.to_owned(), reply.to_owned());
        let sink = Sink::scripted(move |line| line.starts_with(&key).then(|| reply.clone())).await;
        let house = house(&sink, |rule| {
            rule.connections = Some(2);
            rule.slow_down = vec!["[TSS99]".into()];
        })
        .await;
        send(&house, &["b@one.example"]).await;
        house.until("the deferral", |h| h.errors().len() == 1).await;
        house.until("the rest", |_| site(&house).rests_s.is_some()).await;
        let slow = site(&house);
        assert!(slow.slowed, "{said}: {slow:?}");
        assert_eq!(slow.allowed, 1, "{said}");
        assert_eq!(house.figure("bounced_recipients_total"), 0, "{said}");
        // While it rests, other mail is put off without asking again.
        let asked = sink.connections();
        send(&house, &["c@one.example"]).await;
        house.until("the deferral", |h| h.errors().len() == 2).await;
        assert_eq!(sink.connections(), asked, "{said}");
        sink.script(|_| None);
        house.clock.advance(Duration::from_secs(120));
        house.handle.retry_now();
        sink.wait(2).await;
        house.nothing_is_lost(0).await;
        assert_eq!(site(&house).allowed, 1, "{said}: it is won back slowly");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_recipient_slows_nothing() {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "450 4.2.1 greylisted".into())).await;
    let house = house(&sink, |rule| rule.connections = Some(2)).await;
    send(&house, &["b@one.example"]).await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    let site = site(&house);
    assert!(!site.slowed && site.rests_s.is_none(), "{site:?}");
    assert_eq!(site.allowed, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_spaces_mails_evenly() {
    let sink = Sink::start().await;
    let house = house(&sink, |rule| rule.per_minute = Some(600)).await;
    let began = house.clock.now();
    send(&house, &["b@one.example"; 5]).await;
    sink.wait(5).await;
    // Four pauses of 100 ms.
    assert!(house.clock.now() - began >= Duration::from_millis(400));
    house.nothing_is_lost(0).await;
    assert_eq!(site(&house).pause_ms, Some(100));
}
