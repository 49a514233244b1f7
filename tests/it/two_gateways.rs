//! Two gateways of one PostgreSQL: what an operator orders at one holds for mail that the other has.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use crate::support::gateway::Gateway;
use crate::support::mail::{self, Sink};
use crate::support::postgres::Postgres;
use crate::support::{eventually, free_port, loopback};

/// The rows of the queue as a gateway lists them.
fn queue(gateway: &Gateway, filters: &[&str]) -> Vec<Value> {
    let listed = gateway.json(&[&["mail", "queue", "list", "--json"], filters].concat());
    listed["queue"].as_array().unwrap().clone()
}

/// Sends one mail to each of these domains; the ids by domain, in their order.
fn send(gateway: &Gateway, domains: &[&str]) -> Vec<String> {
    let port = gateway.address("mail.relay").port().to_string();
    let send_one = |domain: &&str| {
        let recipient = format!("someone@{domain}");
        let name = format!("{domain}-");
        let arguments = [
            "--port",
            &port,
            "--sender",
            "orders@shop.test",
            "--recipient",
            &recipient,
            "--name",
            &name,
            "--count",
            "1",
            "--size",
            "500",
        ];
        let report = mail::send(&arguments, gateway.directory());
        assert_eq!(report.accepted.len(), 1, "{report:?}");
        report.accepted.into_iter().next().unwrap()
    };
    domains.iter().map(send_one).collect()
}

#[test]
fn orders_given_at_one_gateway_hold_for_mail_of_the_other() {
    let database = Postgres::start();
    let hops = [
        loopback(free_port()),
        loopback(free_port()),
        loopback(free_port()),
    ];
    let config = format!(
        "engines = [\"mail\"]\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::smarthosts(&[("*", hops[0]), ("paused.test", hops[1]), ("way.test", hops[2])])
    );
    let desk = Gateway::start_on(&database.url(), &config);
    desk.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let other = Gateway::start_on(&database.url(), &config);
    // Servers that put everything off: after its first attempt each mail waits in a lane that the other gateway holds.
    let unwilling = [hops[0], hops[1]].map(|hop| Sink::start_at(hop, &["-r", "rcpt"]));
    let way = Sink::start_at(hops[2], &[]);
    let sent = send(
        &other,
        &[
            "held.test",
            "deleted.test",
            "free.test",
            "rerouted.test",
            "paused.test",
        ],
    );
    let [held, deleted, free, rerouted, paused] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    eventually("all wait", || {
        (queue(&desk, &["--state", "deferred"]).len() == 5).then_some(())
    });
    let holders = "select count(*) from lanes l join nodes n on n.id = l.owner where n.id = 2";
    eventually("the other gateway holds both lanes", || {
        (database.ask(holders) == "2").then_some(())
    });

    desk.cli(&["mail", "queue", "hold", "--to", "held.test", "--yes"]);
    desk.cli(&["mail", "queue", "delete", "--to", "deleted.test", "--yes"]);
    desk.cli(&[
        "mail",
        "queue",
        "reroute",
        "hop2",
        "--to",
        "rerouted.test",
        "--yes",
    ]);
    desk.cli(&["mail", "pause", "via:hop1", "--reason", "a test"]);
    let ids = |sink: &Sink| sink.whole_ids();
    let only = |id: &String| BTreeSet::from([id.clone()]);
    eventually("the mail takes the other way", || {
        (ids(&way) == only(rerouted)).then_some(())
    });
    eventually("the deleted mail is gone", || {
        queue(&desk, &["--to", "deleted.test"]).is_empty().then_some(())
    });
    // Its next attempt would have been a second later: it rests because the other gateway knows of the pause.
    eventually("the paused lane rests", || {
        let rows = queue(&desk, &["--to", "paused.test"]);
        rows[0]["last_error"]
            .as_str()?
            .contains("paused by an operator: a test")
            .then_some(())
    });

    drop(unwilling);
    let [first, second] = [hops[0], hops[1]].map(|hop| Sink::start_at(hop, &[]));
    eventually("what nobody stopped arrives", || {
        ids(&first).contains(free).then_some(())
    });
    assert_eq!((ids(&first), ids(&second)), (only(free), BTreeSet::new()));
    assert_eq!(queue(&other, &["--state", "held"]).len(), 1);

    desk.cli(&["mail", "queue", "release", "--to", "held.test", "--yes"]);
    desk.cli(&["mail", "resume", "via:hop1"]);
    eventually("the released mail arrives", || {
        ids(&first).contains(held).then_some(())
    });
    eventually("the paused mail arrives", || {
        (ids(&second) == only(paused)).then_some(())
    });
    eventually("nothing waits", || queue(&other, &[]).is_empty().then_some(()));
    let arrivals = [first.arrivals(), second.arrivals(), way.arrivals()].concat();
    assert_eq!(arrivals.len(), 4, "each came once: {arrivals:?}");
    assert!(!arrivals.contains(deleted));
    desk.assert_healthy();
    other.assert_healthy();
}

/// A server that takes connections and never says a word.
fn silent_server() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = accepting.accept() {
            kept.push(stream);
        }
    });
    listener
}

#[test]
fn orders_given_at_one_gateway_reach_fresh_mail_in_the_memory_of_the_other() {
    let database = Postgres::start();
    let silent = silent_server();
    let way = Sink::start(&[]);
    let hops = [("*", silent.local_addr().unwrap()), ("way.test", way.address)];
    let config = format!(
        "engines = [\"mail\"]\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::smarthosts(&hops).replace("name = \"hop0\"\n", "name = \"hop0\"\nconnections = 1\n")
    );
    let desk = Gateway::start_on(&database.url(), &config);
    desk.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let other = Gateway::start_on(&database.url(), &config);
    let domains = [
        "busy.test",
        "held.test",
        "deleted.test",
        "rerouted.test",
        "bounced.test",
        "untouched.test",
        "retried.test",
    ];
    let sent = send(&other, &domains);
    // The first one keeps the only connection; the others wait behind it, in memory.
    assert_eq!(queue(&desk, &["--state", "fresh"]).len(), domains.len());

    for (order, domain) in [("hold", "held.test"), ("delete", "deleted.test")] {
        let said = desk.cli(&["mail", "queue", order, "--to", domain, "--yes"]);
        assert!(said.contains(&format!("{order}: 1 deliveries")), "{said}");
    }
    let said = desk.cli(&[
        "mail",
        "queue",
        "reroute",
        "hop1",
        "--to",
        "rerouted.test",
        "--yes",
    ]);
    assert!(said.contains("1 deliveries"), "{said}");
    let bounced = desk.cli(&["mail", "queue", "bounce", "--to", "bounced.test", "--yes"]);
    assert!(bounced.contains("bounce: 1 deliveries"), "{bounced}");
    let said = desk.cli(&["mail", "queue", "retry", "--to", "retried.test", "--yes"]);
    assert!(said.contains("retry: 1 deliveries"), "{said}");

    let states = |state: &str| -> Vec<String> {
        let rows = queue(&desk, &["--state", state]);
        rows.iter()
            .map(|row| row["recipients"][0].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states("held"), ["someone@held.test"]);
    eventually("the rerouted mail takes the other way", || {
        (way.whole_ids() == BTreeSet::from([sent[3].clone()])).then_some(())
    });
    eventually("the deleted mail is gone", || {
        queue(&desk, &["--to", "deleted.test"]).is_empty().then_some(())
    });
    eventually("the returned mail is gone", || {
        queue(&desk, &["--to", "bounced.test"]).is_empty().then_some(())
    });
    // What was not meant is where it was.
    assert!(states("fresh").contains(&"someone@untouched.test".to_owned()));

    // Released, it may go another way than behind the silent server.
    let said = desk.cli(&["mail", "queue", "release", "--to", "held.test", "--yes"]);
    assert!(said.contains("release: 1 deliveries"), "{said}");
    desk.cli(&["mail", "queue", "reroute", "hop1", "--to", "held.test", "--yes"]);
    eventually("the held mail arrives", || {
        way.whole_ids().contains(&sent[1]).then_some(())
    });
    let audit = desk.cli(&["audit"]);
    assert!(
        audit.contains("mail.delete") && audit.contains("1 delivery"),
        "{audit}"
    );
    desk.assert_healthy();
    other.assert_healthy();
}

/// What a gateway answers to this recipient.
fn rcpt(gateway: &Gateway, to: &str) -> String {
    let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let mut said = || lines.find(|line| line.as_bytes()[3] == b' ').unwrap();
    assert!(said().starts_with("220"));
    let mut ask = |command: &str| {
        (&stream).write_all(format!("{command}\r\n").as_bytes()).unwrap();
        said()
    };
    assert!(ask("EHLO c.test").starts_with("250"));
    assert!(ask("MAIL FROM:<news@shop.test>").starts_with("250"));
    let answer = ask(&format!("RCPT TO:<{to}>"));
    ask("QUIT");
    answer
}

#[test]
fn an_address_suppressed_at_one_gateway_is_refused_at_the_other() {
    let database = Postgres::start();
    let hop = Sink::start(&["-f", "rcpt", "-B", "550 5.1.1 no such user"]);
    let config = format!(
        "engines = [\"mail\"]\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::smarthosts(&[("*", hop.address)])
    );
    let desk = Gateway::start_on(&database.url(), &config);
    desk.cli(&[
        "service",
        "add",
        "shop",
        "--send-as",
        "shop.test",
        "--class",
        "bulk",
    ]);
    let other = Gateway::start_on(&database.url(), &config);
    assert!(rcpt(&desk, "someone@gone.test").starts_with("250"));
    send(&other, &["gone.test"]);
    let suppressed =
        |gateway: &Gateway| rcpt(gateway, "someone@gone.test").starts_with("550 5.1.1 suppressed");
    eventually("the one that tried it refuses it", || {
        suppressed(&other).then_some(())
    });
    eventually("so does the other", || suppressed(&desk).then_some(()));
    // What is taken off counts at once, everywhere.
    desk.cli(&["mail", "suppress", "remove", "someone@gone.test"]);
    assert!(rcpt(&other, "someone@gone.test").starts_with("250"));
    assert!(rcpt(&desk, "someone@gone.test").starts_with("250"));
    desk.cli(&["mail", "suppress", "add", "*@gone.test"]);
    assert!(suppressed(&desk), "at once where it was said");
    eventually("soon elsewhere", || suppressed(&other).then_some(()));
    desk.assert_healthy();
    other.assert_healthy();
}
