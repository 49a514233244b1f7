//! `kill -9` and SIGTERM in the middle of traffic: what was accepted before arrives after, and the figures add up.
//!
//! A run counts only while the far ends show some but not all of what was accepted; a run with nothing in flight fails.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::fediverse::Instance;
use crate::support::figures::{all_activities_are_delivered, all_mail_is_settled};
use crate::support::gateway::Gateway;
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;
use crate::support::process::{Lines, Running};

/// Connections to one smarthost at once, as shipped: so many mails can be under way to it.
const CONNECTIONS_OUT: usize = 20;

/// Connections of the client.
const SENDERS: usize = 8;

/// The client sends so many, and the rest when the next hop has some of them.
const HELD: usize = 200;

#[test]
fn mail_accepted_before_kill_9_arrives_after_the_restart() {
    let sink = Sink::start(&["-w", "1"]);
    kill_in_the_middle_of_mail(Gateway::start(&Gateway::smarthost(sink.address)), &sink);
}

#[test]
fn mail_accepted_before_kill_9_arrives_after_the_restart_on_postgresql() {
    let database = Postgres::start();
    let sink = Sink::start(&["-w", "1"]);
    let gateway = Gateway::start_on(&database.url(), &Gateway::smarthost(sink.address));
    kill_in_the_middle_of_mail(gateway, &sink);
}

/// Mail on its way in and out at once.
struct MailTraffic {
    events: Lines,
    report: Report,
    client: Running,
}

impl MailTraffic {
    /// Senders to a next hop that takes a second for each mail.
    fn start(gateway: &Gateway) -> Self {
        let made = gateway.json(&["service", "add", "shop", "--send-as", "shop.test", "--json"]);
        let password = made["password"].as_str().unwrap();
        let port = gateway.address("mail.submission").port().to_string();
        let arguments = format!(
            "--port {port} --tls starttls --user shop --password {password} --sender orders@shop.test \
             --recipient ID@far.test --count 2000 --hold-after {HELD} --connections {SENDERS} --size 20000"
        );
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (client, events) = mail::send_in_background(&arguments, gateway.directory());
        Self {
            events,
            report: Report::default(),
            client,
        }
    }

    /// Goes on until the next hop has some, and many more are accepted. Gives what the next hop has.
    fn until_much_is_in_flight(&mut self, sink: &Sink) -> Vec<String> {
        self.take_until(HELD);
        eventually("the next hop has some", || {
            (sink.arrivals().len() >= 5).then_some(())
        });
        self.client.tell("the rest");
        self.take_until(HELD + SENDERS);
        sink.arrivals()
    }

    fn take_until(&mut self, accepted: usize) {
        while self.report.accepted.len() < accepted {
            assert!(
                !self.report.take(self.events.next_json()),
                "the client ended before the gateway: {:?}",
                self.report
            );
        }
    }

    /// What the client says of the end. Its connections must have broken: else nothing was on its way in.
    fn end(mut self) -> Report {
        while !self.report.take(self.events.next_json()) {}
        assert!(
            !self.report.unanswered.is_empty(),
            "the client saw no connection break: {:?}",
            self.report
        );
        self.report
    }
}

fn kill_in_the_middle_of_mail(mut gateway: Gateway, sink: &Sink) {
    let mut traffic = MailTraffic::start(&gateway);
    let before = traffic.until_much_is_in_flight(sink);
    gateway.kill();
    let report = traffic.end();
    let waiting = assert_in_flight(&report, &before);

    gateway.restart();
    let figures = all_mail_is_settled(&gateway);
    let arrived = sink.arrivals();
    let distinct = assert_all_arrived(&report, &arrived);

    // What the gateway found at its start is what it delivered, and it was at least what the next hop lacked.
    assert_eq!(figures.accepted, 0, "nobody sent anything to this life");
    assert_eq!((figures.bounced, figures.dropped), (0, 0));
    assert!(figures.inherited >= waiting.saturating_sub(CONNECTIONS_OUT));
    // The sink agrees with the figures, but for what was under way at the kill.
    let since = arrived.len() - before.len();
    assert!(
        since >= figures.delivered && since - figures.delivered <= CONNECTIONS_OUT,
        "{figures:?}, and {since} arrived since the kill"
    );
    // Repeated is what was under way, and what was delivered in the last 100 ms, whose settlement was not yet written:
    // at one mail a second and connection that is no more than one for each connection.
    let repeated = arrived.len() - distinct;
    assert!(repeated <= 2 * CONNECTIONS_OUT, "{repeated} came twice");
    gateway.assert_healthy();
}

#[test]
fn mail_in_flight_at_an_orderly_stop_arrives_once_after_the_restart() {
    let sink = Sink::start(&["-w", "1"]);
    let mut gateway = Gateway::start(&Gateway::smarthost(sink.address));
    let mut traffic = MailTraffic::start(&gateway);
    let before = traffic.until_much_is_in_flight(&sink);
    let status = gateway.stop();
    assert!(status.success(), "SIGTERM ends it in order: {status}");
    let report = traffic.end();
    assert_in_flight(&report, &before);

    let at_the_stop = sink.arrivals();
    gateway.restart();
    let figures = all_mail_is_settled(&gateway);
    let arrived = sink.arrivals();
    let distinct = assert_all_arrived(&report, &arrived);
    assert_eq!(arrived.len(), distinct, "an orderly stop repeats nothing");
    assert_eq!(
        figures.delivered,
        arrived.len() - at_the_stop.len(),
        "{figures:?}"
    );
    assert_eq!((figures.bounced, figures.dropped), (0, 0));
    gateway.assert_healthy();
}

#[test]
fn mail_in_flight_at_an_upgrade_arrives_once() {
    let sink = Sink::start(&["-w", "1"]);
    upgrade_in_the_middle_of_mail(Gateway::start(&Gateway::smarthost(sink.address)), &sink);
}

#[test]
fn mail_in_flight_at_an_upgrade_arrives_once_on_postgresql() {
    let database = Postgres::start();
    let sink = Sink::start(&["-w", "1"]);
    let gateway = Gateway::start_on(&database.url(), &Gateway::smarthost(sink.address));
    upgrade_in_the_middle_of_mail(gateway, &sink);
}

fn upgrade_in_the_middle_of_mail(mut gateway: Gateway, sink: &Sink) {
    let mut traffic = MailTraffic::start(&gateway);
    let before = traffic.until_much_is_in_flight(sink);
    gateway.upgrade(&[]);
    let report = traffic.end();
    assert_in_flight(&report, &before);
    let figures = all_mail_is_settled(&gateway);
    let arrived = sink.arrivals();
    let distinct = assert_all_arrived(&report, &arrived);
    assert_eq!(arrived.len(), distinct, "two processes repeat nothing");
    assert_eq!((figures.bounced, figures.dropped), (0, 0));
    gateway.assert_healthy();
}

/// Some but not all of what was accepted had arrived. Gives how many were waiting.
#[track_caller]
fn assert_in_flight(report: &Report, arrived: &[String]) -> usize {
    let arrived: BTreeSet<String> = arrived.iter().cloned().collect();
    let waiting = report.accepted.difference(&arrived).count();
    assert!(
        !arrived.is_empty() && waiting > 10,
        "nothing was in flight: {} arrived, {waiting} waiting",
        arrived.len()
    );
    waiting
}

/// Everything accepted arrived, and nothing else than what had no answer. Gives how many different ones arrived.
#[track_caller]
fn assert_all_arrived(report: &Report, arrived: &[String]) -> usize {
    let distinct: BTreeSet<String> = arrived.iter().cloned().collect();
    let lost: Vec<_> = report.accepted.difference(&distinct).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let unanswered: BTreeSet<&str> = report
        .unanswered
        .iter()
        .filter_map(|event| event["unanswered"].as_str())
        .collect();
    for id in distinct.difference(&report.accepted) {
        assert!(unanswered.contains(id.as_str()), "{id} arrived, but was refused");
    }
    distinct.len()
}

#[test]
fn activities_accepted_before_kill_9_reach_every_subscriber_after_the_restart() {
    kill_in_the_middle_of_a_fan_out(Gateway::start(Gateway::FEDIVERSE));
}

#[test]
fn activities_accepted_before_kill_9_reach_every_subscriber_after_the_restart_on_postgresql() {
    let database = Postgres::start();
    kill_in_the_middle_of_a_fan_out(Gateway::start_on(&database.url(), Gateway::FEDIVERSE));
}

/// Deliveries to one host at once, as shipped.
const DELIVERIES_PER_HOST: usize = 4;

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
    let sent = std::thread::scope(|scope| {
        let publishing =
            scope.spawn(|| author.control("publish", &json!({"text": "before the crash", "count": 400})));
        eventually("some of them have arrived", || {
            (posts(&readers[0]).len() >= 20).then_some(())
        });
        gateway.kill();
        publishing.join().unwrap()
    });
    let sent = sent.as_array().unwrap();
    let ids: BTreeSet<String> = of_status(sent, &json!(202));
    let unanswered = of_status(sent, &Value::Null);
    assert_eq!(
        ids.len() + unanswered.len(),
        sent.len(),
        "one was refused: {sent:?}"
    );
    assert!(!unanswered.is_empty(), "the author was ready before the kill");

    let before: usize = readers.iter().map(|reader| reader.received().len()).sum();
    let arrived: usize = readers
        .iter()
        .map(|reader| distinct(&posts(reader), &ids).len())
        .sum();
    let missing = ids.len() * readers.len() - arrived;
    assert!(
        arrived > 0 && missing >= ids.len(),
        "nothing was in flight: {arrived} delivered"
    );
    readers[2].control("behave", &json!({"inbox": "normal"}));

    gateway.restart();
    for reader in &readers {
        eventually(
            &format!("{} has all {} activities", reader.base, ids.len()),
            || (distinct(&posts(reader), &ids) == ids).then_some(()),
        );
    }
    let done = all_activities_are_delivered(&gateway);
    for id in readers.iter().flat_map(posts) {
        assert!(
            ids.contains(&id) || unanswered.contains(&id),
            "{id} arrived, but was refused"
        );
    }
    // Not only posts: what the relay answered to the Follows just before the kill may be repeated too.
    let since = readers
        .iter()
        .map(|reader| reader.received().len())
        .sum::<usize>()
        - before;
    // The readers agree with the figures, but for what was under way at the kill.
    assert!(done >= missing.saturating_sub(DELIVERIES_PER_HOST * readers.len()));
    assert!(
        since >= done && since - done <= DELIVERIES_PER_HOST * readers.len(),
        "{done} delivered by the figures, {since} arrived since the kill"
    );
    gateway.assert_healthy();
}

/// The ids of what was published and got this status.
fn of_status(sent: &[Value], status: &Value) -> BTreeSet<String> {
    sent.iter()
        .filter(|one| one["status"] == *status)
        .filter_map(|one| one["id"].as_str().map(str::to_owned))
        .collect()
}

/// The ids of all posts that an instance took, repeated ones too.
fn posts(reader: &Instance) -> Vec<String> {
    reader
        .received()
        .iter()
        .filter(|got| got["outcome"] == "accepted" && got["type"] == "Create")
        .filter_map(|got| got["id"].as_str().map(str::to_owned))
        .collect()
}

/// Which of `ids` are among `all`.
fn distinct(all: &[String], ids: &BTreeSet<String>) -> BTreeSet<String> {
    all.iter().filter(|id| ids.contains(*id)).cloned().collect()
}
