//! The mail queue from the command line, in front of a next hop that puts everything off until it is told otherwise.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::gateway::Gateway;

/// A mail server that greylists everybody.
struct Hop {
    address: SocketAddr,
    willing: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

impl Hop {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hop = Self {
            address: listener.local_addr().unwrap(),
            willing: Arc::default(),
            taken: Arc::default(),
        };
        let (willing, taken) = (Arc::clone(&hop.willing), Arc::clone(&hop.taken));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (willing, taken) = (Arc::clone(&willing), Arc::clone(&taken));
                std::thread::spawn(move || serve(&stream, &willing, &taken));
            }
        });
        hop
    }
}

fn serve(stream: &TcpStream, willing: &AtomicBool, taken: &AtomicUsize) {
    let mut out = stream;
    let mut in_data = false;
    let _ = out.write_all(b"220 hop.test ESMTP\r\n");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let reply = if in_data {
            if line != "." {
                continue;
            }
            in_data = false;
            taken.fetch_add(1, Ordering::SeqCst);
            "250 2.0.0 taken"
        } else if line.starts_with("RCPT") && !willing.load(Ordering::SeqCst) {
            "450 4.2.1 come back later"
        } else if line == "DATA" {
            in_data = true;
            "354 go on"
        } else if line == "QUIT" {
            "221 2.0.0 bye"
        } else {
            "250 2.0.0 ok"
        };
        if out.write_all(format!("{reply}\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// A gateway in front of the hop, with these mails deferred.
fn with_deferred(hop: &Hop, recipients: &[&str]) -> Gateway {
    let mut gateway = Gateway::start(&format!(
        "[mail]\ndefault_route = \"hop\"\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n\
         [[mail.smarthosts]]\nname = \"hop\"\nhost = \"{}\"\nport = {}\ntls = \"none\"\n",
        hop.address.ip(),
        hop.address.port()
    ));
    gateway.ok(&["service", "add", "shop", "--send-as", "shop.test"]);
    for to in recipients {
        send(&gateway, to);
    }
    gateway.wait(|g| {
        let rows = listed(g, &["--state", "deferred"]);
        (rows.len() == recipients.len()).then_some(())
    });
    gateway
}

fn send(gateway: &Gateway, to: &str) {
    let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let mut until = |code: &str| {
        lines
            .find(|line| line.starts_with(code) && line.as_bytes()[3] == b' ')
            .unwrap()
    };
    until("220");
    for (command, code) in [
        ("EHLO client.test".to_owned(), "250"),
        ("MAIL FROM:<orders@shop.test>".to_owned(), "250"),
        (format!("RCPT TO:<{to}>"), "250"),
        ("DATA".to_owned(), "354"),
        ("Subject: an order\r\n\r\nhello\r\n.".to_owned(), "250"),
    ] {
        (&stream).write_all(format!("{command}\r\n").as_bytes()).unwrap();
        until(code);
    }
}

fn listed(gateway: &Gateway, filters: &[&str]) -> Vec<Value> {
    let arguments = [&["mail", "queue", "list", "--json"], filters].concat();
    gateway.ok(&arguments).json()["queue"].as_array().unwrap().clone()
}

#[test]
fn the_queue_is_listed_held_released_and_deleted_by_filters_with_a_count_first() {
    let hop = Hop::start();
    let mut gateway = with_deferred(&hop, &["a@one.test", "b@two.test", "c@two.test"]);
    for (filters, found) in [
        (&["--to", "two.test"][..], 2),
        (&["--sender", "ORDERS@"], 3),
        (&["--recipient", "b@"], 1),
        (&["--principal", "shop"], 3),
        (&["--state", "held"], 0),
        (&["--older-than", "1d"], 0),
        (&["--destination", "via:hop"], 3),
        (&["--destination", "one.test"], 0),
    ] {
        assert_eq!(listed(&gateway, filters).len(), found, "{filters:?}");
    }
    let said = gateway.run(&["mail", "queue", "hold", "--to", "two.test"]);
    assert_eq!(said.code, 64, "without --yes and without a terminal");
    assert!(said.err.contains("2 deliveries of 2 mails match"), "{}", said.err);
    let said = gateway.ok(&["mail", "queue", "hold", "--to", "two.test", "--yes"]);
    assert!(said.out.contains("hold: 2 deliveries"), "{}", said.out);
    assert_eq!(listed(&gateway, &["--state", "held"]).len(), 2);

    hop.willing.store(true, Ordering::SeqCst);
    let done = gateway
        .ok(&["mail", "queue", "retry", "--all", "--yes", "--json"])
        .json();
    assert_eq!(
        (&done["matched"]["deliveries"], &done["deliveries"]),
        (&3.into(), &1.into())
    );
    gateway.wait(|g| (listed(g, &[]).len() == 2).then_some(()));
    assert_eq!(hop.taken.load(Ordering::SeqCst), 1);

    gateway.ok(&["mail", "queue", "delete", "--recipient", "b@two", "--yes"]);
    gateway.ok(&["mail", "queue", "release", "--all", "--yes"]);
    gateway.wait(|g| listed(g, &[]).is_empty().then_some(()));
    assert_eq!(
        hop.taken.load(Ordering::SeqCst),
        2,
        "the deleted one was not sent"
    );

    for (arguments, code) in [
        (&["mail", "queue", "hold"][..], 64),
        (&["mail", "queue", "hold", "--all", "--to", "x.test"], 64),
        (&["mail", "queue", "list", "--state", "sleepy"], 64),
        (&["mail", "queue", "list", "--mail", "zz!"], 64),
        (&["mail", "queue", "list", "--principal", "nobody"], 65),
        (&["mail", "queue", "list", "--older-than", "long"], 64),
        (&["mail", "queue", "reroute", "no-such-hop", "--all", "--yes"], 64),
    ] {
        assert_eq!(gateway.run(arguments).code, code, "{arguments:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for part in [
        "mail.hold",
        "to \"two.test\"",
        "2 deliveries:",
        "mail.retry",
        "mail.delete",
        "mail.release",
    ] {
        assert!(audit.contains(part), "{part} in {audit}");
    }
}

#[test]
fn a_mail_is_traced_with_the_words_of_those_who_put_it_off() {
    let hop = Hop::start();
    let gateway = with_deferred(&hop, &["hanako@one.test"]);
    let id = listed(&gateway, &[])[0]["mail"].as_str().unwrap().to_owned();
    for arguments in [
        &["mail", "trace", &id][..],
        &["mail", "trace", "Hanako@one.test"],
        &["mail", "queue", "show", &id],
    ] {
        let story = gateway.ok(arguments).out;
        for part in [
            id.as_str(),
            "a mail from orders@shop.test, handed in by shop",
            "attempt 1 for hanako@one.test through via:hop failed for now: 450 4.2.1 come back later",
            "it waits for via:hop",
        ] {
            assert!(story.contains(part), "{part} in {story}");
        }
    }
    let traced = gateway.ok(&["mail", "trace", &id, "--json"]).json();
    assert_eq!(traced["stories"][0]["deliveries"][0]["history"][0]["attempt"], 1);
    assert_eq!(gateway.run(&["mail", "trace", "nobody@one.test"]).code, 65);
}

#[test]
fn a_destination_is_paused_explained_and_resumed() {
    let hop = Hop::start();
    let mut gateway = with_deferred(&hop, &["a@one.test"]);
    let why = gateway.ok(&["mail", "why", "one.test"]).out;
    for part in [
        "goes through via:hop",
        "1 deliveries wait",
        "1 of them failed last with: 450 4.2.1 come back later",
    ] {
        assert!(why.contains(part), "{part} in {why}");
    }
    // Everybody's mail goes through the smarthost: pausing one domain would pause all.
    let said = gateway.run(&["mail", "pause", "one.test"]);
    assert_eq!(said.code, 65, "{}", said.err);
    assert!(said.err.contains("name via:hop"), "{}", said.err);
    hop.willing.store(true, Ordering::SeqCst);
    gateway.ok(&["mail", "pause", "via:hop", "--reason", "they move house"]);
    send(&gateway, "b@two.test");
    gateway.ok(&["mail", "queue", "retry", "--all", "--yes"]);
    gateway.wait(|g| {
        let rows = listed(g, &[]);
        let rests = |row: &Value| row["last_error"] == "paused by an operator: they move house";
        (rows.len() == 2 && rows.iter().all(rests)).then_some(())
    });
    let why = gateway.ok(&["mail", "why", "via:hop"]).out;
    assert!(
        why.contains("it is paused since") && why.contains("(they move house)"),
        "{why}"
    );
    let lanes = gateway.ok(&["mail", "lanes", "--json"]).json();
    let hop_lane = lanes["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["lane"] == "via:hop")
        .unwrap();
    assert_eq!(hop_lane["paused"], true);
    assert_eq!(hop.taken.load(Ordering::SeqCst), 0);
    let said = gateway.ok(&["mail", "resume", "via:hop"]);
    assert!(said.out.contains("2 deliveries are tried now"), "{}", said.out);
    gateway.wait(|g| listed(g, &[]).is_empty().then_some(()));
    assert_eq!(hop.taken.load(Ordering::SeqCst), 2);
    assert_eq!(gateway.run(&["mail", "resume", "via:hop"]).code, 65);
}
