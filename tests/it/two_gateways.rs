//! Two gateways of one PostgreSQL: what an operator orders at one holds for mail that the other has.

use std::collections::BTreeSet;

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
