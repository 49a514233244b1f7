//! Daily caps of principals, over a real socket.

use std::time::Duration;

use tasuki_core::events::What;

use crate::{
    sink::Sink,
    support::{House, Names},
};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_daily_cap_a_client_hears_when_it_is_free_again() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.next_morning();
    let password = house
        .service("news", &["mail:send:x.org", "mail:class:bulk", "mail:daily:5"])
        .await;
    let mut events = house.events.subscribe();
    let mut client = house.login("news", &password).await;
    let reply = client
        .mail(
            "a@x.org",
            &["1@y.org", "2@y.org", "3@y.org"],
            "Subject: 1\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    // What is given up is not counted.
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<4@y.org>", "250").await;
    client.expect("RCPT TO:<5@y.org>", "250").await;
    client
        .expect(
            "RCPT TO:<6@y.org>",
            "451 4.7.1 the daily cap of 5 recipients is reached, it is free again at ",
        )
        .await;
    client.expect("RSET", "250").await;
    let reply = client.mail("a@x.org", &["4@y.org"], "Subject: 2\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    let near = async {
        loop {
            if let What::DailyCapNear { name, used, cap, .. } = events.recv().await.unwrap().what {
                return (name, used, cap);
            }
        }
    };
    let near = tokio::time::timeout(Duration::from_secs(10), near).await.unwrap();
    assert_eq!(near, ("news".to_owned(), 4, 5));
    // Another session, one recipient left.
    let mut other = house.login("news", &password).await;
    other.expect("MAIL FROM:<a@x.org>", "250").await;
    other.expect("RCPT TO:<5@y.org>", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<6@y.org>", "451 4.7.1").await;
    drop(other);
    // The next day.
    house.clock.advance(DAY);
    let mut client = house.login("news", &password).await;
    let reply = client.mail("a@x.org", &["6@y.org"], "Subject: 3\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_refill_a_cap() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let password = house.service("news", &["mail:send:x.org", "mail:daily:2"]).await;
    let mut client = house.login("news", &password).await;
    let reply = client
        .mail("a@x.org", &["1@y.org", "2@y.org"], "Subject: 1\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait(1).await;
    let config = house.config.clone();
    let (_, dir) = house.stop().await;
    let house = House::on(dir, Names::default(), |c| {
        c.smarthosts = config.smarthosts;
        c.default_route = config.default_route;
    })
    .await;
    let mut client = house.login("news", &password).await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<3@y.org>", "451 4.7.1").await;
    // Without its store a cap cannot be checked, and that is nobody's fault but ours.
    let password = house.service("fresh", &["mail:send:x.org", "mail:daily:2"]).await;
    let mut client = house.login("fresh", &password).await;
    house
        .store
        .unavailable
        .store(true, std::sync::atomic::Ordering::SeqCst);
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<3@y.org>", "451 4.3.0").await;
}
