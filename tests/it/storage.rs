//! Outages that only a real machine has: a disk that is full, a database that stops. Mail and activities are put off with
//! a clear reply, nothing accepted is lost, and when the outage is over all goes on by itself.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bad_input::Session;
use crate::support::fediverse::Instance;
use crate::support::figures::all_mail_is_settled;
use crate::support::gateway::{Gateway, SmallDisk};
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;
use crate::support::process::{self, Running};
use crate::support::{client, eventually, free_port, loopback};

/// Clients on loopback act as the service `shop`; nobody is at the next hop yet, so that mail stays in the store.
fn config(next_hop: SocketAddr) -> String {
    format!(
        "{}\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::FEDIVERSE,
        Gateway::smarthost(next_hop)
    )
}

#[track_caller]
fn send(gateway: &Gateway, name: &str, count: &str, size: &str) -> Report {
    let port = gateway.address("mail.relay").port().to_string();
    let arguments = format!(
        "--port {port} --sender orders@shop.test --recipient someone@far.test --name {name} --count {count} --size {size}"
    );
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let report = mail::send(&arguments, gateway.directory());
    assert!(
        report.unanswered.is_empty(),
        "every mail gets an answer: {report:?}"
    );
    report
}

/// All replies that are no acceptance.
#[track_caller]
fn assert_put_off(report: &Report, codes: &[u64], enhanced: &str) {
    for refusal in &report.refused {
        assert!(codes.contains(&refusal["code"].as_u64().unwrap()), "{refusal}");
        assert!(
            refusal["text"].as_str().unwrap().starts_with(enhanced),
            "{refusal}"
        );
    }
}

/// Sends until all of a try is taken; until then it is put off in this way.
#[track_caller]
fn mail_is_taken_again(
    gateway: &Gateway,
    accepted: &mut BTreeSet<String>,
    size: &str,
    codes: &[u64],
    enhanced: &str,
) {
    eventually("mail is taken again", || {
        let later = send(gateway, &format!("later{}-", accepted.len()), "3", size);
        assert_put_off(&later, codes, enhanced);
        let whole = later.refused.is_empty();
        accepted.extend(later.accepted);
        whole.then_some(())
    });
}

/// One that publishes, and one to tell.
fn instances(gateway: &Gateway) -> (Instance, Instance) {
    let start = |bind| {
        let instance = Instance::start("mastodon", bind, gateway.directory(), &[]);
        instance.subscribe(&gateway.relay_inbox());
        instance
    };
    (start("127.0.0.1"), start("127.0.0.2"))
}

/// The relay's answer to an activity.
fn publish(author: &Instance) -> u64 {
    let sent = author.control("publish", &json!({"text": "hello"}));
    sent[0]["status"].as_u64().unwrap()
}

/// How many mails the queue counts.
fn waiting(gateway: &Gateway) -> usize {
    let listed = gateway.json(&["mail", "queue", "--json"]);
    usize::try_from(listed["mails"].as_u64().unwrap()).unwrap()
}

/// `status --check` fails and names the cause, as soon as the gateway has looked.
#[track_caller]
fn status_says(gateway: &Gateway, why: &str) {
    eventually(&format!("status says {why:?}"), || {
        gateway
            .fails(&["status", "--check"])
            .1
            .contains(why)
            .then_some(())
    });
}

/// The next hop comes to life, and gets everything that was accepted, once.
#[track_caller]
fn all_arrives(gateway: &Gateway, next_hop: SocketAddr, accepted: &BTreeSet<String>) {
    assert_eq!(
        waiting(gateway),
        accepted.len(),
        "what was accepted, and nothing else"
    );
    let sink = Sink::start_at(next_hop, &[]);
    eventually("everything accepted arrives", || {
        (sink.whole_ids() == *accepted).then_some(())
    });
    let figures = all_mail_is_settled(gateway);
    assert_eq!(
        (figures.accepted, figures.delivered, figures.bounced),
        (accepted.len(), accepted.len(), 0)
    );
    assert_eq!(sink.arrivals().len(), accepted.len(), "nothing came twice");
}

/// Takes all that is left of the disk.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("ballast");
    let mut file = File::create(&path).unwrap();
    for piece in [1 << 20, 1 << 12] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_puts_mail_and_activities_off_until_space_returns_and_loses_nothing() {
    let next_hop = loopback(free_port());
    let (gateway, disk) = Gateway::start_on_small_disk(&config(next_hop), 24);
    let data = gateway.directory().join("data");
    full_disk(&gateway, next_hop, &disk, &data, &|| {
        status_says(&gateway, "make space");
    });
    drop(gateway);
    drop(disk);
}

/// The tables' disk is full, not the one of PostgreSQL's log: that is the server's own end, and the next test.
#[test]
fn a_full_disk_of_postgresql_puts_mail_and_activities_off_until_space_returns_and_loses_nothing() {
    let next_hop = loopback(free_port());
    let (postgres, disk) = Postgres::start_on_small_disk(64);
    let gateway = Gateway::start_on(&postgres.url(), &config(next_hop));
    full_disk(&gateway, next_hop, &disk, &postgres.tables(), &|| {});
    drop(gateway);
    drop(postgres);
    drop(disk);
}

fn full_disk(gateway: &Gateway, next_hop: SocketAddr, disk: &SmallDisk, place: &Path, while_full: &dyn Fn()) {
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (author, _reader) = instances(gateway);
    assert_eq!(publish(&author), 202);
    let big = send(gateway, "big-", "80", "800000");
    assert!(!big.accepted.is_empty() && !big.refused.is_empty(), "{big:?}");
    assert_put_off(&big, &[452], "4.3.1");
    // Small ones go into the database instead of a segment: they meet the same wall.
    let small = send(gateway, "small-", "3000", "2000");
    assert!(!small.refused.is_empty(), "{} accepted", small.accepted.len());
    assert_put_off(&small, &[452], "4.3.1");
    let mut accepted: BTreeSet<String> = big.accepted.union(&small.accepted).cloned().collect();

    // Not a byte is left.
    let ballast = fill(place);
    let last = send(gateway, "last-", "1", "2000");
    assert!(last.accepted.is_empty(), "{last:?}");
    assert_put_off(&last, &[452], "4.3.1");
    // Small ones may find room in a page that is there already.
    eventually("an activity is put off", || {
        let status = publish(&author);
        assert!([202, 503, 507].contains(&status), "{status}");
        (status != 202).then_some(())
    });
    assert_eq!(waiting(gateway), accepted.len());
    while_full();
    gateway.assert_healthy();

    std::fs::remove_file(ballast).unwrap();
    disk.grow(256);
    mail_is_taken_again(gateway, &mut accepted, "500000", &[452], "4.3.1");
    eventually("activities are taken again", || {
        (publish(&author) == 202).then_some(())
    });
    all_arrives(gateway, next_hop, &accepted);
    eventually("it is well again", || {
        gateway.json(&["status", "--json"])["healthy"]
            .as_bool()?
            .then_some(())
    });
    gateway.assert_healthy();
}

/// Another process holds the database: a backup that was forgotten, for example.
#[test]
fn a_locked_database_puts_mail_and_activities_off_until_it_is_free_and_loses_nothing() {
    let next_hop = loopback(free_port());
    let gateway = Gateway::start(&config(next_hop));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (author, _reader) = instances(&gateway);
    assert_eq!(publish(&author), 202);
    let before = send(&gateway, "before-", "10", "2000");
    assert_eq!(before.accepted.len(), 10, "{before:?}");

    let mut command = process::python(&client("lock_database.py"));
    command.arg(gateway.directory().join("data/tasuki.db"));
    let log = gateway.directory().join("lock.log");
    let (mut lock, lines) = Running::start_and_read("a forgotten backup", &mut command, &log);
    lines.next_json();
    for size in ["2000", "500000"] {
        let during = send(&gateway, "during-", "2", size);
        assert!(during.accepted.is_empty(), "{during:?}");
        assert_put_off(&during, &[451], "4.3.");
    }
    assert_eq!(publish(&author), 503);
    assert_eq!(waiting(&gateway), 10);
    gateway.assert_healthy();

    lock.tell("enough");
    let mut accepted = before.accepted;
    mail_is_taken_again(&gateway, &mut accepted, "2000", &[451], "4.3.");
    eventually("activities are taken again", || {
        (publish(&author) == 202).then_some(())
    });
    all_arrives(&gateway, next_hop, &accepted);
    gateway.assert_healthy();
}

#[test]
fn a_stopped_database_puts_mail_and_activities_off_until_it_is_back_and_loses_nothing() {
    let mut database = Postgres::start();
    let next_hop = loopback(free_port());
    let gateway = Gateway::start_on(&database.url(), &config(next_hop));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (author, _reader) = instances(&gateway);
    assert_eq!(publish(&author), 202);
    let before = send(&gateway, "before-", "10", "2000");
    assert_eq!(before.accepted.len(), 10, "{before:?}");

    let (mut session, _) = Session::open(gateway.address("mail.relay"));
    session.say(b"EHLO client.test\r\n");
    database.stop();
    // Whoever was there before hears 451 for its mail, and may stay.
    for (said, heard) in [
        ("MAIL FROM:<orders@shop.test>", "250"),
        ("RCPT TO:<someone@far.test>", "250"),
        ("DATA", "354"),
        ("From: orders@shop.test\r\n\r\nhello\r\n.", "451 4.3."),
        ("NOOP", "250"),
    ] {
        let reply = session.say(format!("{said}\r\n").as_bytes());
        assert!(reply.starts_with(heard), "{said}: {reply}");
    }
    // Whose network it is that comes now cannot be looked up, or the mail cannot be stored: it depends on what is
    // remembered.
    let during = send(&gateway, "during-", "3", "2000");
    assert!(during.accepted.is_empty(), "{during:?}");
    assert_put_off(&during, &[421, 451], "4.3.0");
    assert_eq!(publish(&author), 503);
    status_says(&gateway, "the store does not answer");
    gateway.assert_healthy();

    database.start_again();
    let mut accepted = before.accepted;
    mail_is_taken_again(&gateway, &mut accepted, "2000", &[421, 451], "4.3.");
    eventually("activities are taken again", || {
        (publish(&author) == 202).then_some(())
    });
    all_arrives(&gateway, next_hop, &accepted);
    gateway.assert_healthy();
}
