//! Clients that are slow, hasty or gone, over a real socket; and every wait at its default.

use std::time::Duration;

use tasuki_smtp::{DeliveryConfig, LimitsConfig, MailConfig};

use crate::{sink::Sink, support::House};

/// What RFC 5321 4.5.3.2 wants of a client and a server, and what the configuration says unless somebody changes it.
#[test]
fn every_wait_and_limit_has_the_value_that_the_rfc_or_the_field_gives_it() {
    let (limits, delivery, mail) = (
        LimitsConfig::default(),
        DeliveryConfig::default(),
        MailConfig::default(),
    );
    let s = Duration::from_secs;
    for (what, is, shall) in [
        ("server: next command (4.5.3.2.7)", limits.command_timeout, s(300)),
        ("server: next octets of a message", limits.data_timeout, s(180)),
        ("server: the whole session", limits.session_timeout, s(1800)),
        (
            "server: strangers wait for the banner",
            mail.relay.greet_pause,
            Duration::from_millis(500),
        ),
        ("client: connect", delivery.connect_timeout, s(30)),
        ("client: unused connection", delivery.idle, s(30)),
        ("queue: delay notice", delivery.delay_notice, s(4 * 3600)),
        ("queue: expiry", delivery.expire, s(5 * 86_400)),
        (
            "queue: expiry of transactional mail",
            delivery.expire_transactional,
            s(86_400),
        ),
    ] {
        assert_eq!(is, shall, "{what}");
    }
    assert_eq!(
        (limits.min_rate_after, limits.min_rate),
        (s(30), 1000),
        "1 kB/s after 30 s"
    );
    let client = tasuki_proto::smtp::client::Timeouts::default();
    for (what, is, shall) in [
        ("banner (4.5.3.2.1)", client.greeting, s(300)),
        ("MAIL, RCPT (4.5.3.2.2, 4.5.3.2.3)", client.command, s(300)),
        ("DATA (4.5.3.2.4)", client.data, s(120)),
        ("a block of data (4.5.3.2.5)", client.block, s(180)),
        ("the final dot (4.5.3.2.6)", client.end_of_data, s(600)),
    ] {
        assert_eq!(is, shall, "{what}");
    }
    let minutes: Vec<u64> = delivery.retry.iter().map(|wait| wait.0.as_secs() / 60).collect();
    assert_eq!(minutes, [1, 5, 15, 30, 60, 120, 240]);
    assert_eq!(delivery.jitter_percent, 15);
    assert_eq!(
        (delivery.connections_per_site, delivery.mails_per_connection),
        (5, 100)
    );
    assert_eq!(
        (limits.connections_per_address, limits.connections_per_prefix),
        (50, 200)
    );
    assert_eq!(
        (limits.max_line, limits.max_header, limits.max_received),
        (1000, 256 << 10, 50)
    );
    assert_eq!((mail.max_size, mail.max_recipients), (25 << 20, 100));
    let people = (
        limits.recipients_per_hour,
        limits.recipients_per_day,
        limits.addresses_per_hour,
    );
    assert_eq!(people, (200, 500, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_trickles_is_cut_off_and_nothing_of_it_is_kept() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.limits.min_rate = 1 << 20;
        c.limits.min_rate_after = Duration::from_millis(300);
    })
    .await;
    house.allow_loopback();
    for chunked in [false, true] {
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        client.expect("MAIL FROM:<a@x.org>", "250").await;
        client.expect("RCPT TO:<b@y.org>", "250").await;
        if chunked {
            client.send("BDAT 1000000 LAST\r\n").await;
        } else {
            client.expect("DATA", "354").await;
        }
        client.send("Subject: slow\r\n\r\n").await;
        // It is never idle, and gets nowhere.
        let cut = async {
            loop {
                if client.try_send(b"x").await.is_err() {
                    return client.reply().await;
                }
                if let Some(said) = client.reply_within(Duration::from_millis(10)).await {
                    return said;
                }
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(20), cut).await.unwrap();
        assert_eq!(
            said, "421 4.4.2 the message comes too slowly, closing",
            "chunked: {chunked}"
        );
        house
            .until("the session is over", |look| look.figure("sessions_open") == 0)
            .await;
    }
    assert_eq!(house.figure("accepted_mails_total"), 0);
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
    // What comes fast enough is taken.
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let reply = client
        .mail("a@x.org", &["b@y.org"], "Subject: quick\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait(1).await;
}

/// RFC 2920 3.1: these end a group; who sends on without the reply is answered by an end (trap 17).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_wait_where_it_must_is_sent_away() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    for group in [
        "EHLO c\r\nMAIL FROM:<a@x.org>\r\n",
        "HELO c\r\nNOOP\r\n",
        "EHLO c\r\nEHLO d\r\n",
    ] {
        let mut client = house.relay().await;
        client.send(group).await;
        let said = client.reply().await;
        assert!(
            said.starts_with("554 5.5.1 wait for the reply"),
            "{group:?}: {said}"
        );
        assert_eq!(client.reply().await, "", "{group:?}");
    }
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .send("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\nSubject: too early\r\n\r\nx\r\n.\r\n")
        .await;
    for expect in ["250", "250", "554 5.5.1 wait for the reply", ""] {
        let said = client.reply().await;
        assert!(said.starts_with(expect), "{expect}: {said}");
    }
    // Under TLS, AUTH ends a group too.
    let mut client = house.secured().await;
    client.expect("EHLO c", "250").await;
    client
        .send("AUTH PLAIN AGFwcAB4\r\nMAIL FROM:<a@x.org>\r\n")
        .await;
    let said = client.reply().await;
    assert!(said.starts_with("554 5.5.1 wait for the reply"), "{said}");
    assert_eq!(house.figure("accepted_mails_total"), 0);
}

/// RFC 5321 7.6: the others' addresses are nobody's business (trap 31).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_names_a_recipient_only_if_it_is_the_only_one() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for (to, named) in [
        (&["b@y.org"][..], true),
        (&["b@y.org", "secret@y.org"], false),
        (&["b@y.org", "secret@z.org"], false),
    ] {
        let before = sink.received().len();
        let reply = client.mail("a@x.org", to, "Subject: hi\r\n\r\nx").await;
        assert!(reply.starts_with("250"), "{reply}");
        for mail in &sink.wait(before + 1).await[before..] {
            assert_eq!(mail.text.contains("for <"), named, "{}", mail.text);
            assert!(!mail.text.contains("secret"), "{}", mail.text);
        }
        house.nothing_is_lost(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_half_way_leaves_nothing_behind() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    for script in [
        &[][..],
        &["EHLO c\r\n"],
        &["EHLO c\r\n", "MAIL FROM:<a@x.org>\r\n"],
        &[
            "EHLO c\r\n",
            "MAIL FROM:<a@x.org>\r\n",
            "RCPT TO:<b@y.org>\r\n",
            "BDAT 100\r\nhalf of it",
        ],
    ] {
        let mut client = house.relay().await;
        for line in script {
            client.send(line).await;
            if !line.starts_with("BDAT") {
                assert!(client.reply().await.starts_with("250"), "{line}");
            }
        }
        client.close_half().await;
        assert_eq!(client.reply().await, "", "{script:?}");
        drop(client);
    }
    house
        .until("all are over", |look| look.figure("sessions_open") == 0)
        .await;
    assert_eq!(house.figure("accepted_mails_total"), 0);
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
}
