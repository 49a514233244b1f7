//! `kill -9` in the middle of traffic: what was accepted before arrives after.
//!
//! A run counts only while the far ends show some but not all of what was accepted; a run with nothing in flight fails.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::eventually;
use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;

#[test]
fn mail_accepted_before_kill_9_arrives_after_the_restart() {
    let sink = Sink::start(&["-w", "1"]);
    let gateway = Gateway::start(&Gateway::smarthost(sink.address));
    kill_in_the_middle_of_mail(gateway, &sink);
}

#[test]
fn mail_accepted_before_kill_9_arrives_after_the_restart_on_postgresql() {
    let postgres = Postgres::start();
    let sink = Sink::start(&["-w", "1"]);
    let gateway = Gateway::start_on(&postgres.url(), &Gateway::smarthost(sink.address));
    kill_in_the_middle_of_mail(gateway, &sink);
}

fn kill_in_the_middle_of_mail(mut gateway: Gateway, sink: &Sink) {
    let made = gateway.json(&["service", "add", "shop", "--send-as", "shop.test", "--json"]);
    let password = made["password"].as_str().unwrap();
    let port = gateway.address("mail.submission").port().to_string();
    let (_client, events) = mail::send_in_background(
        &[
            "--port",
            &port,
            "--tls",
            "starttls",
            "--user",
            "shop",
            "--password",
            password,
            "--sender",
            "orders@shop.test",
            "--recipient",
            "ID@far.test",
            "--count",
            "2000",
            "--connections",
            "8",
            "--size",
            "20000",
        ],
        gateway.directory(),
    );
    let mut report = Report::default();
    let arrived_before = loop {
        assert!(
            !report.take(events.next_json()),
            "the client ended before the gateway was killed: {report:?}"
        );
        if report.accepted.len() % 8 == 0 {
            let arrived = sink.whole_ids();
            if report.accepted.len() >= 60 && arrived.len() >= 5 {
                break arrived;
            }
        }
    };
    gateway.kill();
    while !report.take(events.next_json()) {}
    assert!(
        !report.unanswered.is_empty(),
        "the client saw no connection break"
    );
    let waiting: BTreeSet<_> = report.accepted.difference(&arrived_before).collect();
    assert!(
        !arrived_before.is_empty() && waiting.len() > 10,
        "nothing was in flight: {} waiting",
        waiting.len()
    );

    gateway.restart();
    eventually("everything accepted has arrived", || {
        report.accepted.is_subset(&sink.whole_ids()).then_some(())
    });
    gateway.assert_healthy();
}

#[test]
fn activities_accepted_before_kill_9_reach_every_subscriber_after_the_restart() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    kill_in_the_middle_of_a_fan_out(gateway);
}

#[test]
fn activities_accepted_before_kill_9_reach_every_subscriber_after_the_restart_on_postgresql() {
    let postgres = Postgres::start();
    let gateway = Gateway::start_on(&postgres.url(), Gateway::FEDIVERSE);
    kill_in_the_middle_of_a_fan_out(gateway);
}

fn kill_in_the_middle_of_a_fan_out(mut gateway: Gateway) {
    let directory = gateway.directory().to_owned();
    let author = Instance::start("mastodon", "127.0.0.1", &directory, &[]);
    let readers: Vec<Instance> = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        .iter()
        .zip(["mastodon", "misskey", "mastodon"])
        .map(|(bind, style)| Instance::start(style, bind, &directory, &[]))
        .collect();
    for instance in readers.iter().chain([&author]) {
        instance.subscribe(&gateway.relay_inbox());
    }
    // One reader hangs, so that something is surely under way when the gateway dies.
    readers[2].control("behave", &json!({"inbox": "hang"}));
    let sent = author.publish(&json!({"text": "before the crash", "count": 30}));
    let ids: BTreeSet<String> = sent
        .iter()
        .map(|one| one["id"].as_str().unwrap().to_owned())
        .collect();
    readers[0].wait_for("the first of them", |got| {
        ids.contains(got["id"].as_str().unwrap_or_default())
    });
    gateway.kill();
    readers[2].control("behave", &json!({"inbox": "normal"}));

    let delivered: usize = readers.iter().map(|reader| accepted(reader, &ids).len()).sum();
    assert!(
        delivered > 0 && delivered < ids.len() * readers.len(),
        "nothing was in flight: {delivered} delivered"
    );

    gateway.restart();
    for reader in &readers {
        eventually(
            &format!("{} has all {} activities", reader.base, ids.len()),
            || (accepted(reader, &ids) == ids).then_some(()),
        );
    }
    gateway.assert_healthy();
}

/// Which of `ids` an instance took.
fn accepted(reader: &Instance, ids: &BTreeSet<String>) -> BTreeSet<String> {
    reader
        .received()
        .iter()
        .filter(|got| got["outcome"] == "accepted")
        .filter_map(|got| got["id"].as_str().map(str::to_owned))
        .filter(|id| ids.contains(id))
        .collect()
}
