//! What operators order, obeyed by the running engine.

use std::time::Duration;

use tasuki_core::store::{
    AuditEntry, MailStore as _, StoreError,
    audit::Actor,
    mail::{LaneKey, Order, Paused, QueueFilter, QueueState},
};

use crate::{sink::Sink, support::House};

fn audit(house: &House, action: &str) -> AuditEntry {
    Actor::gateway("test").entry(house.clock.wall(), action, "mail", "a test")
}

/// A house whose next hop puts everything off, with these mails deferred.
async fn with_deferred(recipients: &[&str]) -> (House, Sink) {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "450 4.2.1 later".into())).await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for to in recipients {
        client.mail("a@x.org", &[to], "Subject: hi\r\n\r\nbody").await;
    }
    house
        .until("the deferrals", |h| {
            h.rows.len() == recipients.len() && h.rows.iter().all(|r| r.state == QueueState::Deferred)
        })
        .await;
    (house, sink)
}

fn to(domain: &str) -> QueueFilter {
    QueueFilter {
        recipient_domain: Some(domain.to_owned()),
        ..QueueFilter::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_mail_rests_while_the_rest_goes_and_is_sent_when_it_is_released() {
    let (house, sink) = with_deferred(&["b@held.org", "b@free.org"]).await;
    let order = audit(&house, "mail.hold");
    assert_eq!(
        house
            .handle
            .order(&to("held.org"), &Order::Hold, &order)
            .await
            .unwrap(),
        1
    );
    sink.script(|_| None);
    let all = QueueFilter::default();
    assert_eq!(house.handle.order(&all, &Order::Retry, &order).await.unwrap(), 1);
    let received = sink.wait(1).await;
    assert_eq!(received[0].to, ["b@free.org"]);
    house.nothing_is_lost(1).await;
    assert_eq!(house.look().await.rows[0].state, QueueState::Held);
    assert_eq!(
        house.handle.order(&all, &Order::Release, &order).await.unwrap(),
        1
    );
    let received = sink.wait(2).await;
    assert_eq!(received[1].to, ["b@held.org"]);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_mail_is_reported_to_its_sender_and_deleted_mail_to_nobody() {
    let (house, sink) = with_deferred(&["b@returned.org", "b@deleted.org"]).await;
    sink.script(|_| None);
    let order = audit(&house, "mail.end");
    assert_eq!(
        house
            .handle
            .order(&to("deleted.org"), &Order::Delete, &order)
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        house
            .handle
            .order(&to("returned.org"), &Order::Bounce, &order)
            .await
            .unwrap(),
        1
    );
    let received = sink.wait(1).await;
    assert_eq!(
        (received[0].from.as_str(), &*received[0].to),
        ("", &["a@x.org".to_owned()][..])
    );
    assert!(received[0].text.contains("b@returned.org") && !received[0].text.contains("b@deleted.org"));
    assert!(
        received[0]
            .text
            .contains("an operator of this server returned it"),
        "{}",
        received[0].text
    );
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("dropped_recipients_total"), 1);
    assert_eq!(house.figure("bounced_recipients_total"), 1);
    assert_eq!(sink.received().len(), 1, "neither was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_mail_expires_all_the_same() {
    let (house, sink) = with_deferred(&["b@held.org"]).await;
    sink.script(|_| None);
    let order = audit(&house, "mail.hold");
    house
        .handle
        .order(&to("held.org"), &Order::Hold, &order)
        .await
        .unwrap();
    house.clock.advance(Duration::from_secs(30 * 86_400));
    house.handle.retry_now();
    let received = sink.wait(1).await;
    assert!(
        received[0]
            .text
            .contains("it expired while it was held by an operator"),
        "{}",
        received[0].text
    );
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rerouted_mail_goes_through_the_other_smarthost_and_stays_there() {
    let (house, _first) = with_deferred(&["b@y.org"]).await;
    let second = Sink::scripted(|line| line.starts_with("RCPT").then(|| "451 4.3.0 not yet".into())).await;
    let other = crate::support::plain_smarthost(second.addr);
    let mut config = house.config.clone();
    config.smarthosts.push(tasuki_smtp::SmarthostConfig {
        name: "second".to_owned(),
        ..other
    });
    house.handle.apply(&tasuki_core::Snapshot {
        shared: std::sync::Arc::default(),
        engine: config,
    });
    let order = audit(&house, "mail.reroute");
    let way = Order::Reroute(LaneKey("via:second".to_owned()));
    assert_eq!(house.handle.order(&to("y.org"), &way, &order).await.unwrap(), 1);
    house
        .until("the second refusal", |h| h.errors() == ["451 4.3.0 not yet"])
        .await;
    let row = house.look().await.rows.remove(0);
    assert_eq!((row.lane.0.as_str(), row.rerouted), ("via:second", true));
    second.script(|_| None);
    house
        .handle
        .order(&to("y.org"), &Order::Retry, &order)
        .await
        .unwrap();
    second.wait(1).await;
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_paused_destination_until_it_is_resumed() {
    let (house, sink) = with_deferred(&["b@y.org"]).await;
    sink.script(|_| None);
    let lane = house.look().await.rows[0].lane.clone();
    let paused = Paused {
        lane: lane.clone(),
        since: house.clock.wall(),
        by: "test".to_owned(),
        reason: "they move house".to_owned(),
    };
    house
        .handle
        .pause(paused, audit(&house, "mail.pause"))
        .await
        .unwrap();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["new@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house
        .handle
        .order(&to("y.org"), &Order::Retry, &audit(&house, "mail.retry"))
        .await
        .unwrap();
    house
        .until("both to rest", |h| {
            let why = "paused by an operator: they move house";
            h.errors() == [why, why]
        })
        .await;
    assert!(sink.received().is_empty());
    house.nothing_is_lost(2).await;
    let resumed = house.handle.resume(&lane, &audit(&house, "mail.resume")).await;
    assert_eq!(resumed.unwrap(), 2);
    sink.wait(2).await;
    house.nothing_is_lost(0).await;
    let again = house.handle.resume(&lane, &audit(&house, "mail.resume")).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    assert!(house.store.paused_lanes().await.unwrap().is_empty());
}
