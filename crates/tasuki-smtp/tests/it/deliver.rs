//! From a client to the next hop, and what happens when that does not go well.

use std::time::Duration;

use tasuki_smtp::RouteConfig;

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_goes_through_to_the_next_hop() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO client.example", "250").await;
    let reply = client
        .mail(
            "a@x.org",
            &["b@y.org", "c@z.org"],
            "Subject: hi\r\n\r\n..dot\r\nend",
        )
        .await;
    assert!(reply.starts_with("250 2.0.0 queued as "), "{reply}");
    let received = sink.wait(1).await;
    assert_eq!(received[0].from, "a@x.org");
    assert_eq!(received[0].to, ["b@y.org", "c@z.org"]);
    let (received_field, rest) = received[0].text.split_once("Subject: hi").unwrap();
    assert!(received_field.starts_with(
        "Received: from client.example ([127.0.0.1])\r\n\tby relay.example (Tasuki) with ESMTP id "
    ));
    assert!(
        !received_field.contains("b@y.org"),
        "recipients of a mail to several are not told"
    );
    assert_eq!(rest, "\r\n\r\n.dot\r\nend\r\n");
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reused_and_bounded() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(2)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 0..40 {
        client
            .mail("a@x.org", &["b@y.org"], &format!("Subject: {n}\r\n\r\nx"))
            .await;
    }
    let received = sink.wait(40).await;
    assert!(sink.connections() <= 2, "{}", sink.connections());
    assert!(received.iter().all(|r| r.connection <= 2));
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unused_connection_gives_way_to_another_destination() {
    let (first, second) = (Sink::start().await, Sink::start().await);
    let mut other = plain_smarthost(second.addr);
    other.name = "other".into();
    let house = House::with_sink(&first, move |c| {
        c.smarthosts.push(other);
        c.routes = vec![RouteConfig {
            domain: Some("z.org".parse().unwrap()),
            principal: None,
            sender: None,
            via: "other".into(),
            source: None,
        }];
        c.delivery.max_connections = 1;
        c.delivery.idle = Duration::from_secs(3600);
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 1..=3 {
        client.mail("a@x.org", &["b@y.org"], "Subject: 1\r\n\r\nx").await;
        first.wait(n).await;
        client.mail("a@x.org", &["b@z.org"], "Subject: 2\r\n\r\nx").await;
        second.wait(n).await;
    }
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_refusal_is_tried_again_when_it_is_due() {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "450 4.2.1 greylisted".into())).await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house
        .until("the deferral", |h| h.errors() == ["450 4.2.1 greylisted"])
        .await;
    house.nothing_is_lost(1).await;
    sink.script(|_| None);
    house.clock.advance(Duration::from_secs(120));
    house.handle.retry_now();
    let received = sink.wait(1).await;
    assert_eq!(received[0].to, ["b@y.org"]);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_route_never_bounce_and_rest_the_lane() {
    for script in [
        "banner 554 5.7.1 go away",
        "EHLO relay.example 421 4.3.2 busy",
        "MAIL FROM:<a@x.org> 530 5.7.0 login first",
    ] {
        let (key, reply) = script.split_at(if script.starts_with("banner") {
            6
        } else if script.starts_with("EHLO") {
            18
        } else {
            19
        });
        let (key, reply) = (key.to_owned(), reply.trim().to_owned());
        let sink = Sink::scripted(move |line| line.starts_with(&key).then(|| reply.clone())).await;
        let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
        house.allow_loopback();
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        for _ in 0..5 {
            client
                .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
                .await;
        }
        house.until("the deferral", |h| h.errors().len() == 5).await;
        assert_eq!(house.figure("bounced_recipients_total"), 0, "{script}");
        house.nothing_is_lost(5).await;
        sink.script(|_| None);
        house.clock.advance(Duration::from_secs(200));
        house.handle.retry_now();
        sink.wait(5).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_recipients_for_the_next_hop_are_split() {
    let count = std::sync::Mutex::new(0);
    let sink = Sink::scripted(move |line| {
        let mut count = count.lock().unwrap();
        if line.starts_with("MAIL") {
            *count = 0;
        }
        *count += u32::from(line.starts_with("RCPT"));
        (line.starts_with("RCPT") && *count > 2).then(|| "452 4.5.3 too many".into())
    })
    .await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail(
            "a@x.org",
            &["b1@y.org", "b2@y.org", "b3@y.org", "b4@y.org", "b5@y.org"],
            "Subject: hi\r\n\r\nbody",
        )
        .await;
    let received = sink.wait(3).await;
    assert_eq!(received.iter().map(|r| r.to.len()).sum::<usize>(), 5);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_under_way_and_the_next_life_does_the_rest() {
    let sink = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 later".into())).await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<c@y.org>", "250").await;
    client.expect("DATA", "354").await;
    let addr = sink.addr;
    let stop = tokio::spawn(house.stop());
    client.send("Subject: last\r\n\r\nx\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("250"));
    assert!(client.reply().await.starts_with("421 4.3.2"));
    let (drained, dir) = stop.await.unwrap();
    assert_eq!(drained.late, 0);
    sink.script(|_| None);
    let house = House::on(dir, Names::default(), |c| {
        c.smarthosts = vec![crate::support::plain_smarthost(addr)];
        c.default_route = "hop".into();
    })
    .await;
    house.clock.advance(Duration::from_secs(200));
    house.handle.retry_now();
    let received = sink.wait(2).await;
    assert_eq!(received.len(), 2);
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("inherited_recipients_total"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_does_not_end_within_the_drain_is_refused_with_a_word() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<c@y.org>", "250").await;
    client.expect("DATA", "354").await;
    client.send("Subject: half of it\r\n").await;
    let stop = tokio::spawn(house.stop_within(Duration::from_millis(100)));
    assert!(client.reply().await.starts_with("421 4.3.2"));
    let (_, dir) = stop.await.unwrap();
    let house = House::on(dir, Names::default(), |_| {}).await;
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("inherited_recipients_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_one_mail_does_not_wait_behind_a_sender_of_many() {
    let sink = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 not yet".into())).await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for _ in 0..60 {
        client
            .mail("many@many.example", &["b@y.org"], "Subject: m\r\n\r\nx")
            .await;
    }
    client
        .mail("one@one.example", &["b@y.org"], "Subject: 1\r\n\r\nx")
        .await;
    house.until("the deferral", |h| h.errors().len() == 61).await;
    sink.script(|_| None);
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    let received = sink.wait(61).await;
    let at = received.iter().position(|r| r.from == "one@one.example").unwrap();
    assert!(at < 40, "it was the {at}th");
}
