//! Outages that only a real machine has: a disk that is full, a database that stops. Mail is put off with a clear reply,
//! nothing accepted is lost, and when the outage is over all goes on by itself.

use std::collections::BTreeSet;

use crate::bad_input::Session;
use crate::support::figures::all_mail_is_settled;
use crate::support::gateway::Gateway;
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;
use crate::support::{eventually, free_port, loopback};

/// Clients on loopback act as the service `shop`.
const OFFICE: &str = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";

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
fn all_arrives(gateway: &Gateway, next_hop: std::net::SocketAddr, accepted: &BTreeSet<String>) {
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

#[test]
fn a_full_disk_puts_mail_off_until_space_returns_and_loses_nothing() {
    // Nobody is there yet, so that mail stays on the disk.
    let next_hop = loopback(free_port());
    let (gateway, disk) = Gateway::start_on_small_disk(&(Gateway::smarthost(next_hop) + OFFICE), 24);
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let big = send(&gateway, "big-", "80", "500000");
    assert!(!big.accepted.is_empty() && !big.refused.is_empty(), "{big:?}");
    assert_put_off(&big, &[452], "4.3.1");
    // Small ones go into the database instead of a segment: they meet the same wall.
    let small = send(&gateway, "small-", "3000", "2000");
    assert!(!small.refused.is_empty(), "{} accepted", small.accepted.len());
    assert_put_off(&small, &[452], "4.3.1");
    status_says(&gateway, "make space");

    disk.grow(256);
    let mut accepted: BTreeSet<String> = big.accepted.union(&small.accepted).cloned().collect();
    eventually("mail is taken again", || {
        let later = send(&gateway, &format!("later{}-", accepted.len()), "3", "500000");
        assert_put_off(&later, &[452], "4.3.1");
        let whole = later.refused.is_empty();
        accepted.extend(later.accepted);
        whole.then_some(())
    });
    all_arrives(&gateway, next_hop, &accepted);
    eventually("it is well again", || {
        gateway.json(&["status", "--json"])["healthy"]
            .as_bool()?
            .then_some(())
    });
    gateway.assert_healthy();
    drop(gateway);
    drop(disk);
}

#[test]
fn a_stopped_database_puts_mail_off_until_it_is_back_and_loses_nothing() {
    let mut database = Postgres::start();
    let next_hop = loopback(free_port());
    let gateway = Gateway::start_on(&database.url(), &(Gateway::smarthost(next_hop) + OFFICE));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
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
    // Who comes now cannot even be looked up.
    let during = send(&gateway, "during-", "3", "2000");
    assert!(during.accepted.is_empty(), "{during:?}");
    assert_put_off(&during, &[421, 451], "4.3.");
    status_says(&gateway, "the store does not answer");

    database.start_again();
    let mut accepted = before.accepted;
    eventually("mail is taken again", || {
        let later = send(&gateway, &format!("later{}-", accepted.len()), "3", "2000");
        assert_put_off(&later, &[421, 451], "4.3.");
        let whole = later.refused.is_empty();
        accepted.extend(later.accepted);
        whole.then_some(())
    });
    all_arrives(&gateway, next_hop, &accepted);
    gateway.assert_healthy();
}
