//! Whether an address exists is known before its mail is taken.

use std::sync::atomic::Ordering;

use tasuki_core::{
    clock::Timestamp,
    store::{MailStore as _, audit::Actor},
};
use tasuki_smtp::{MailConfig, MxAnswer, RecipientsConfig};

use crate::{
    sink::Sink,
    support::{House, Names},
};

fn known(config: &mut MailConfig, list: &[&str], table: bool, call_out: bool) {
    config.relay_domains = vec!["ours.example".parse().unwrap()];
    config.recipients = vec![RecipientsConfig {
        domain: "ours.example".parse().unwrap(),
        list: list.iter().map(|i| (*i).to_owned()).collect(),
        table,
        call_out,
    }];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_in_no_list_and_no_table_is_refused() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| known(c, &["anna", "sales-*"], true, false)).await;
    let entry = Actor::gateway("test").entry(Timestamp(0), "mail.recipients", "x", "");
    let bob = vec!["Bob@ours.example".parse().unwrap()];
    house.store.change_recipients(bob, vec![], entry).await.unwrap();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@bank.org>", "250").await;
    // In one group, so that the answers must keep their order.
    let group = ["anna", "nobody", "sales-jp", "bob", "BOB", "bobby", "postmaster"]
        .map(|local| format!("RCPT TO:<{local}@ours.example>\r\n"));
    client.send(&group.concat()).await;
    for expect in ["250", "550 5.1.1", "250", "250", "250", "550 5.1.1", "250"] {
        let reply = client.reply().await;
        assert!(reply.starts_with(expect), "{expect}: {reply}");
    }
    house.store.unavailable.store(true, Ordering::SeqCst);
    client.expect("RCPT TO:<bob@ours.example>", "450 4.1.1").await;
    client.expect("RCPT TO:<anna@ours.example>", "250").await;
    house.store.unavailable.store(false, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_hop_is_asked_once_and_only_a_no_to_the_address_is_a_no() {
    let sink = Sink::scripted(|line| {
        let reply = match line.strip_prefix("RCPT TO:<")?.split('@').next()? {
            "gone" => "550 5.1.1 no such user",
            "bare" => "550 no such user",
            "blocked" => "550 5.7.1 you are on a list",
            "busy" => "451 4.3.0 later",
            _ => return None,
        };
        Some(reply.to_owned())
    })
    .await;
    let house = House::with_sink(&sink, |c| known(c, &["anna"], false, true)).await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@bank.org>", "250").await;
    for (local, expect) in [
        ("anna", "250"),
        ("there", "250"),
        ("gone", "550 5.1.1 there is no such address here"),
        ("bare", "550 5.1.1"),
        ("blocked", "450 4.1.1"),
        ("busy", "450 4.1.1"),
    ] {
        client
            .expect(&format!("RCPT TO:<{local}@ours.example>"), expect)
            .await;
    }
    // Answers are remembered, open questions are asked again.
    let asked = |local: &str| {
        let command = format!("RCPT TO:<{local}@ours.example>");
        sink.commands().iter().filter(|c| **c == command).count()
    };
    for local in ["there", "gone", "busy"] {
        client.ask(&format!("RCPT TO:<{local}@ours.example>")).await;
    }
    assert_eq!(
        (asked("anna"), asked("there"), asked("gone"), asked("busy")),
        (0, 1, 1, 2)
    );
    let senders: Vec<String> = sink
        .commands()
        .into_iter()
        .filter(|c| c.starts_with("MAIL"))
        .collect();
    assert!(senders.iter().all(|c| c == "MAIL FROM:<>"), "{senders:?}");
    client.expect("DATA", "354").await;
    client.send("Subject: hi\r\n\r\nx\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("250"));
    assert!(sink.wait(1).await[0].to.contains(&"anna@ours.example".to_owned()));
    // An answer does not live for ever.
    house.clock.advance(std::time::Duration::from_secs(3601));
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@bank.org>", "250").await;
    client.expect("RCPT TO:<there@ours.example>", "250").await;
    assert_eq!(asked("there"), 3, "asked, delivered, asked again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_call_outs_do_not_wait_for_each_other() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| known(c, &[], false, true)).await;
    // All ten are asked before the first one is answered.
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(10));
    sink.script(move |line| {
        if line.starts_with("RCPT TO:<r") {
            tokio::task::block_in_place(|| barrier.wait());
        }
        None
    });
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@bank.org>", "250").await;
    let group: String = (0..10)
        .map(|n| format!("RCPT TO:<r{n}@ours.example>\r\n"))
        .collect();
    client.send(&group).await;
    for _ in 0..10 {
        let reply = client.reply().await;
        assert!(reply.starts_with("250"), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_that_is_away_leaves_the_question_open() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = crate::support::plain_smarthost(free.local_addr().unwrap());
    drop(free);
    let house = House::start(crate::support::Names::default(), |c| {
        c.smarthosts = vec![nobody];
        c.default_route = "hop".into();
        known(c, &["anna"], false, true);
    })
    .await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@bank.org>", "250").await;
    client.expect("RCPT TO:<bob@ours.example>", "450 4.1.1").await;
    client.expect("RCPT TO:<anna@ours.example>", "250").await;
}

/// RFC 7505: nobody is there, and nobody there could be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_with_a_null_mx_neither_get_mail_nor_send_as_strangers() {
    let sink = Sink::start().await;
    let names = Names(
        vec![
            ("null.example", MxAnswer::Null),
            ("bank.org", MxAnswer::Implicit),
            ("ours.example", MxAnswer::Implicit),
        ],
        vec![("ours.example", "127.0.0.1".parse().unwrap())],
        Default::default(),
    );
    let house = House::start(names, |c| {
        known(c, &["anna"], false, false);
        c.delivery.mx_port = sink.addr.port();
        c.delivery.danger_private_addresses = true;
    })
    .await;
    let mut stranger = house.relay().await;
    stranger.expect("EHLO c", "250").await;
    stranger.expect("MAIL FROM:<a@null.example>", "250").await;
    stranger.expect("RCPT TO:<anna@ours.example>", "550 5.7.27").await;
    stranger.expect("RSET", "250").await;
    // What DNS does not tell now refuses nobody.
    for sender in ["", "a@bank.org", "a@servfail.example"] {
        stranger.expect(&format!("MAIL FROM:<{sender}>"), "250").await;
        stranger.expect("RCPT TO:<anna@ours.example>", "250").await;
        stranger.expect("RSET", "250").await;
    }
    house.allow_loopback();
    let mut ours = house.relay().await;
    ours.expect("EHLO c", "250").await;
    ours.expect("MAIL FROM:<a@bank.org>", "250").await;
    ours.expect("RCPT TO:<b@null.example>", "556 5.1.10").await;
    ours.expect("RCPT TO:<b@servfail.example>", "250").await;
}
