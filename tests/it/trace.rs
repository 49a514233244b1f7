//! The story of finished mail, on both databases: relayed, returned, deferred and then relayed, deleted; and mail that an
//! alias would send round in a circle.

use std::net::SocketAddr;

use serde_json::Value;

use crate::bad_input::Session;
use crate::support::gateway::Gateway;
use crate::support::mail::Sink;
use crate::support::postgres::Postgres;
use crate::support::{eventually, free_port, loopback};

const OFFICE: &str = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";

/// Sends one mail; the last reply.
fn send(gateway: &Gateway, from: &str, to: &[&str], header: &str) -> String {
    let (mut session, _) = Session::open(gateway.address("mail.relay"));
    session.say(b"EHLO app.shop.test\r\n");
    session.say(format!("MAIL FROM:<{from}>\r\n").as_bytes());
    for to in to {
        let reply = session.say(format!("RCPT TO:<{to}>\r\n").as_bytes());
        assert!(reply.starts_with("250"), "{to}: {reply}");
    }
    session.say(b"DATA\r\n");
    let text = format!("From: <orders@shop.test>\r\n{header}Subject: x\r\n\r\nhello\r\n.\r\n");
    let reply = session.say(text.as_bytes());
    session.say(b"QUIT\r\n");
    reply
}

/// The id in `250 2.0.0 queued as ID`.
fn id(reply: &str) -> String {
    let (_, id) = reply
        .split_once("queued as ")
        .unwrap_or_else(|| panic!("{reply}"));
    id.trim().to_owned()
}

fn stories(gateway: &Gateway, what: &str) -> Vec<Value> {
    let traced = gateway.json(&["mail", "trace", what, "--json"]);
    traced["stories"].as_array().unwrap().clone()
}

/// The story of a mail that has ended.
fn ended(gateway: &Gateway, id: &str) -> Value {
    eventually("the mail has ended", || {
        let story = stories(gateway, id).pop()?;
        let is_over = story["deliveries"].as_array()?.is_empty() && !story["ended"].as_array()?.is_empty();
        is_over.then_some(story)
    })
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

fn config(hops: [SocketAddr; 3]) -> String {
    let hops = [("*", hops[0]), ("refuses.test", hops[1]), ("late.test", hops[2])];
    Gateway::smarthosts(&hops)
        + OFFICE
        + "[[mail.rewrite.aliases]]\naddress = \"sales@shop.test\"\nto = [\"hanako@office.test\"]\n"
}

fn tell_the_whole_story(start: impl FnOnce(&str) -> Gateway) {
    let willing = Sink::start(&[]);
    let refusing = Sink::start(&["-f", "rcpt"]);
    let late = loopback(free_port());
    let mut gateway = start(&config([willing.address, refusing.address, late]));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let unwilling = Sink::start_at(late, &["-r", "rcpt"]);

    let header = "Message-ID: <one.7f3a@shop.test>\r\n";
    let relayed = id(&send(&gateway, "orders@shop.test", &["sales@shop.test"], header));
    let returned = id(&send(&gateway, "orders@shop.test", &["nobody@refuses.test"], ""));
    let deferred = id(&send(&gateway, "orders@shop.test", &["taro@late.test"], ""));
    let deleted = id(&send(&gateway, "orders@shop.test", &["jiro@late.test"], ""));

    ended(&gateway, &relayed);
    let address = willing.address.to_string();
    // By id, by the recipient on the wire and as the client wrote it, by Message-ID: one story.
    for what in [
        relayed.as_str(),
        "hanako@office.test",
        "Sales@shop.test",
        "<one.7f3a@shop.test>",
        "one.7f3a@shop.test",
    ] {
        let text = gateway.cli(&["mail", "trace", what]);
        assert_says(
            &text,
            &[
                &relayed,
                "a mail from orders@shop.test, handed in by shop without login from 127.0.0.1:",
                "(app.shop.test) without TLS",
                "Message-ID <one.7f3a@shop.test>, was taken as",
                "the alias sales@shop.test became hanako@office.test",
                "hanako@office.test: relayed to",
                &address,
                "through the smarthost hop0, which answered: 250 2.0.0",
            ],
        );
        assert_eq!(stories(&gateway, what).len(), 1, "{what}");
    }
    let story = ended(&gateway, &relayed);
    assert_eq!(story["principal"], "shop");
    assert_eq!(story["message_id"], "one.7f3a@shop.test");
    let fate = &story["ended"][0]["fates"][0];
    assert_eq!(
        (&fate["end"], &fate["server"]["addr"]),
        (&"relayed".into(), &address.as_str().into())
    );

    let story = ended(&gateway, &returned);
    let fate = &story["ended"][0]["fates"][0];
    assert_eq!(fate["end"], "bounced");
    assert!(fate["words"].as_str().unwrap().starts_with("500 5.3.0"), "{fate}");
    let notice = &story["ended"][0]["notices"][0];
    assert_eq!(
        (&notice["kind"], &notice["to"]),
        (&"failed".into(), &"orders@shop.test".into())
    );
    let text = gateway.cli(&["mail", "trace", "nobody@refuses.test"]);
    assert_says(
        &text,
        &[
            "nobody@refuses.test: given up for good through the smarthost hop1",
            "said: 500 5.3.0",
            "a notice of the failure goes to orders@shop.test as mail",
        ],
    );
    // The notice has a story of its own.
    let notice = notice["mail"].as_str().unwrap();
    ended(&gateway, notice);
    assert_says(
        &gateway.cli(&["mail", "trace", notice]),
        &[
            &format!("a notice of ours about {returned}"),
            "orders@shop.test: relayed to",
        ],
    );

    // While it waits, the same beginning is told.
    let waits = |id: &str| {
        let text = gateway.cli(&["mail", "trace", id]);
        (text.contains("failed for now: 450 4.3.0") && text.contains("it waits for via:hop2")).then_some(text)
    };
    let text = eventually("it was put off", || waits(&deferred));
    assert_says(&text, &["handed in by shop without login from 127.0.0.1:"]);
    gateway.cli(&[
        "mail",
        "queue",
        "delete",
        "--recipient",
        "jiro@late.test",
        "--yes",
    ]);
    drop(unwilling);
    let late = Sink::start_at(late, &[]);
    ended(&gateway, &deferred);
    let text = gateway.cli(&["mail", "trace", "taro@late.test"]);
    let tried = text.find("attempt 1 for taro@late.test through via:hop2 failed for now: 450 4.3.0");
    let taken = text.find("taro@late.test: relayed to");
    assert!(tried.is_some() && tried < taken, "{text}");
    assert_eq!(late.messages().len(), 1);
    ended(&gateway, &deleted);
    assert_says(
        &gateway.cli(&["mail", "trace", &deleted]),
        &["jiro@late.test: deleted by order of uid:"],
    );

    // What was told is there after a crash.
    let before = stories(&gateway, &relayed);
    gateway.kill();
    gateway.restart();
    assert_eq!(stories(&gateway, &relayed), before);
    gateway.assert_healthy();
}

#[test]
fn finished_mail_is_traced_on_sqlite() {
    tell_the_whole_story(Gateway::start);
}

#[test]
fn finished_mail_is_traced_on_postgresql() {
    let database = Postgres::start();
    tell_the_whole_story(|config| Gateway::start_on(&database.url(), config));
}

#[test]
fn mail_that_an_alias_sends_round_in_a_circle_is_refused_when_it_comes_back() {
    let sink = Sink::start(&[]);
    let text = Gateway::smarthost(sink.address)
        + OFFICE
        + "[[mail.rewrite.aliases]]\naddress = \"sales@shop.test\"\nto = [\"hanako@office.test\", \"sales@shop.test\"]\n";
    let gateway = Gateway::start(&text);
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    send(
        &gateway,
        "orders@shop.test",
        &["sales@shop.test", "taro@office.test"],
        "",
    );
    let messages = eventually("all copies arrive", || {
        let messages = sink.messages();
        (messages.len() == 2).then_some(messages)
    });
    // The copy of the alias bears its name, and no other one does: neither another recipient's nor its own mailbox's.
    let marked: Vec<_> = messages.iter().filter_map(|m| m.header("Delivered-To")).collect();
    assert_eq!(marked, ["sales@shop.test"]);

    // Where it went sends it back.
    let back = "Delivered-To: <Sales@SHOP.test>\r\n";
    let reply = send(&gateway, "orders@shop.test", &["sales@shop.test"], back);
    assert!(reply.starts_with("554 5.4.6"), "{reply}");
    // Beside other recipients it comes back to the sender for this one alone.
    let both = ["sales@shop.test", "jiro@office.test"];
    let mail = id(&send(&gateway, "orders@shop.test", &both, back));
    let story = ended(&gateway, &mail);
    let all = story["ended"].to_string();
    assert!(all.contains("554 5.4.6") && all.contains("bounced"), "{all}");
    let notice = eventually("its sender is told", || {
        let messages = sink.messages();
        messages
            .into_iter()
            .find(|m| m.text.contains("report-type=delivery-status"))
    });
    assert!(notice.text.contains("Status: 5.4.6"), "{}", notice.text);
    assert!(
        !notice.text.contains("jiro@office.test\nAction"),
        "{}",
        notice.text
    );
    // Another one's Delivered-To says nothing about us.
    let reply = send(
        &gateway,
        "orders@shop.test",
        &["sales@shop.test"],
        "Delivered-To: hanako@office.test\r\n",
    );
    assert!(reply.starts_with("250"), "{reply}");
    gateway.assert_healthy();
}
