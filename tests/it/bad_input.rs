//! Bad input over the wire: a clear answer in the field's own form, the others unharmed, memory within its budget.
//! What the command line, the fediverse and players get is beside their other tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::mail::Sink;
use crate::support::{eventually, free_port, http, loopback, wait_for_listener};

/// An SMTP session by hand.
pub(crate) struct Session {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Session {
    pub(crate) fn open(address: SocketAddr) -> (Self, String) {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut session = Self {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
        };
        let greeting = session.reply();
        (session, greeting)
    }

    /// A whole reply; empty when the connection is closed.
    fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).unwrap_or(0) == 0 {
                return reply;
            }
            let last = line.as_bytes().get(3) == Some(&b' ');
            reply += &line;
            if last {
                return reply;
            }
        }
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) -> String {
        if self.stream.write_all(bytes).is_err() {
            return self.reply();
        }
        self.reply()
    }
}

/// Clients on loopback act as the service `shop`.
const OFFICE: &str = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";

#[test]
fn malformed_smtp_commands_get_enhanced_codes_and_the_session_goes_on() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&(Gateway::smarthost(sink.address) + OFFICE));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (mut session, greeting) = Session::open(gateway.address("mail.relay"));
    assert!(greeting.starts_with("220 relay.test "), "{greeting}");
    let long = format!("NOOP {}\r\n", "x".repeat(5000));
    for (bytes, reply) in [
        (&b"MAIL FROM:<a@shop.test>\r\n"[..], "503 5.5.1"),
        (b"EHLO \r\n", "501 5.5.4"),
        (b"EHLO client.test\r\n", "250"),
        (b"FLY\r\n", "500 5.5.1"),
        (long.as_bytes(), "500 5.5.2"),
        (b"MAIL FROM:<a@shop.test\r\n", "501 5."),
        (b"MAIL FROM:<a@shop.test> SIZE=999999999999\r\n", "552 5.3.4"),
        (b"MAIL FROM:<a@shop.test> NOSUCH=1\r\n", "555 5.5.4"),
        (b"RCPT TO:<b@far.test>\r\n", "503 5.5.1"),
        (b"MAIL FROM:<a@shop.test>\r\n", "250 2."),
        (b"DATA\r\n", "554 5.5.1"),
        (b"RCPT TO:<b@far.test>\r\n", "250 2."),
        (b"DATA\r\n", "354"),
        // CVE-2023-51764: only CRLF.CRLF ends a message, and a bare LF is refused after the true end.
        (
            b"Subject: x\r\n\r\nsmuggled\n.\nMAIL FROM:<forged@shop.test>\r\n.\r\n",
            "550 5.",
        ),
        (b"MAIL FROM:<a@shop.test>\r\n", "250 2."),
        (b"RCPT TO:<b@far.test>\r\n", "250 2."),
        (b"DATA\r\n", "354"),
        (b"Subject: the good one\r\n\r\nhello\r\n.\r\n", "250 2."),
        (b"QUIT\r\n", "221"),
    ] {
        let said = session.say(bytes);
        let asked = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(
            said.starts_with(reply),
            "{asked:?}: expected {reply}, got {said:?}"
        );
    }
    eventually("the good one arrives", || {
        sink.messages()
            .iter()
            .any(|m| m.text.contains("the good one"))
            .then_some(())
    });
    assert_eq!(sink.messages().len(), 1, "nothing smuggled");
    gateway.assert_healthy();
}

#[test]
fn malformed_http_gets_problem_json_or_an_end_and_the_front_door_goes_on() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let (address, host) = (gateway.address("front.http"), gateway.front_host());
    let huge = format!(
        "GET /actor HTTP/1.1\r\nHost: {host}\r\nX-Pad: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    for (what, request) in [
        ("no HTTP", b"\x16\x03\x01 hello\r\n\r\n".to_vec()),
        (
            "a header without a colon",
            format!("GET / HTTP/1.1\r\nHost: {host}\r\nnonsense\r\n\r\n").into_bytes(),
        ),
        (
            "two lengths",
            format!(
                "POST /inbox HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
            )
            .into_bytes(),
        ),
        ("headers over the limit", huge.into_bytes()),
    ] {
        if let Ok(answer) = http::exchange(address, &request) {
            assert!((400..500).contains(&answer.status), "{what}: {}", answer.status);
        }
    }
    let wrong_method = http::exchange(
        address,
        format!("DELETE /actor HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    assert_eq!(wrong_method.unwrap().status, 405);
    let missing = http::get(address, &host, "/no-such-page", "");
    assert_eq!(missing.status, 404);
    assert_eq!(
        missing.header("content-type"),
        Some("application/problem+json"),
        "{}",
        missing.text()
    );
    assert_eq!(
        http::get(address, &host, "/actor", "Accept: application/activity+json\r\n").status,
        200
    );
    gateway.assert_healthy();
}

/// Resident memory of a process, in MiB.
fn resident_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// How often the byte budget was too small for somebody.
fn budget_refusals(gateway: &Gateway) -> u64 {
    gateway.json(&["status", "--json"])["memory"]["refused"]
        .as_u64()
        .unwrap()
}

/// The smallest budget, few enough bytes that a test fills it quickly.
const SMALL_BUDGET: &str = "[memory]\nbudget = \"16MiB\"\n";
const BUDGET_MIB: u64 = 16;
/// What a gateway needs beside the budget; generous, as a debug build is large.
const SLACK_MIB: u64 = 80;

#[test]
fn unfinished_mail_fills_the_byte_budget_and_no_more() {
    let sink = Sink::start(&[]);
    let config = Gateway::smarthost(sink.address) + OFFICE + SMALL_BUDGET;
    let gateway = Gateway::start(&config);
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let before = resident_mib(gateway.id());
    let mut open = Vec::new();
    let mut refused = None;
    // 600 messages of 1 MiB without an end: far more than the budget, if bodies were held.
    for _ in 0..600 {
        let (mut session, greeting) = Session::open(gateway.address("mail.relay"));
        if greeting.starts_with("421") {
            refused = Some(greeting);
            break;
        }
        session.say(b"EHLO client.test\r\n");
        session.say(b"MAIL FROM:<a@shop.test>\r\n");
        session.say(b"RCPT TO:<b@far.test>\r\n");
        let answer = session.say(b"DATA\r\n");
        if !answer.starts_with("354") {
            refused = Some(answer);
            break;
        }
        session
            .stream
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let line = [b'x'; 998].into_iter().chain(*b"\r\n").collect::<Vec<u8>>();
        // A gateway that stops reading is as good as one that refuses.
        for _ in 0..1024 {
            if session.stream.write_all(&line).is_err() {
                refused.get_or_insert_with(|| "it stopped reading".to_owned());
                break;
            }
        }
        open.push(session);
        if refused.is_some() {
            break;
        }
    }
    let after = resident_mib(gateway.id());
    assert!(
        after < before + BUDGET_MIB + SLACK_MIB,
        "{before} MiB before, {after} MiB with {} open",
        open.len()
    );
    let said = refused.unwrap_or_else(|| panic!("{} messages without an end, none was refused", open.len()));
    assert!(
        said.starts_with("421 4.") || said.starts_with("452 4.") || said.starts_with("it stopped"),
        "{said}"
    );
    assert!(budget_refusals(&gateway) > 0, "it was the budget that refused");
    drop(open);
    eventually("mail passes again", || {
        let (mut session, _) = Session::open(gateway.address("mail.relay"));
        for command in [
            &b"EHLO client.test\r\n"[..],
            b"MAIL FROM:<a@shop.test>\r\n",
            b"RCPT TO:<b@far.test>\r\n",
            b"DATA\r\n",
        ] {
            session.say(command);
        }
        session
            .say(b"Subject: after the flood\r\n\r\nhello\r\n.\r\n")
            .starts_with("250")
            .then_some(())
    });
    gateway.assert_healthy();
}

#[test]
fn unfinished_activities_fill_the_byte_budget_and_get_429() {
    let gateway = Gateway::start(&(Gateway::FEDIVERSE.to_owned() + SMALL_BUDGET));
    let (address, host) = (gateway.address("front.http"), gateway.front_host());
    let before = resident_mib(gateway.id());
    let body = vec![b' '; (1 << 20) - 16];
    let head = format!(
        "POST /inbox HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/activity+json\r\nContent-Length: {}\r\n\r\n",
        1 << 20
    );
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(&body);
        if let Ok(answer) = http::read_answer(&mut stream) {
            assert_eq!(answer.status, 429, "{}", answer.text());
            assert!(answer.header("retry-after").is_some());
            refused += 1;
        } else {
            open.push(stream);
        }
    }
    assert!(
        refused > 0,
        "{} bodies of 1 MiB are held, none was refused",
        open.len()
    );
    assert!(budget_refusals(&gateway) > 0, "it was the budget that refused");
    let after = resident_mib(gateway.id());
    assert!(
        after < before + BUDGET_MIB + SLACK_MIB,
        "{before} MiB before, {after} MiB after"
    );
    drop(open);
    let author = Instance::start("mastodon", "127.0.0.1", gateway.directory(), &[]);
    eventually("activities pass again", || {
        let answer = author.control("subscribe", &json!({"relay": gateway.relay_inbox()}));
        (answer["status"] == 202 || answer["status"] == 200).then_some(())
    });
    gateway.assert_healthy();
}

#[test]
fn a_server_that_never_reads_fills_the_flows_and_the_others_play_on() {
    let gateway = Gateway::start(SMALL_BUDGET);
    // One server that takes connections and never reads, one that answers.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let lively = TcpListener::bind("127.0.0.1:0").unwrap();
    let lively_address = lively.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in lively.incoming().flatten() {
            std::thread::spawn(move || {
                let mut word = [0; 5];
                if stream.read_exact(&mut word).is_ok() {
                    let _ = stream.write_all(&word);
                }
            });
        }
    });
    let (deaf_port, lively_port) = (free_port(), free_port());
    let endpoints = [
        Agent::tcp(deaf_port, deaf.local_addr().unwrap()),
        Agent::tcp(lively_port, lively_address),
    ]
    .concat();
    let (a, b) = (deaf_port.to_string(), lively_port.to_string());
    let _agent = Agent::enrol(&gateway, "home", &["--port", &a, "--port", &b], &endpoints);
    wait_for_listener("the deaf endpoint", loopback(deaf_port));
    wait_for_listener("the lively endpoint", loopback(lively_port));

    let before = resident_mib(gateway.id());
    let mut flood = Vec::new();
    let mut written = 0;
    let chunk = vec![0; 64 << 10];
    for _ in 0..64 {
        let mut stream = TcpStream::connect(loopback(deaf_port)).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        while written < 2 << 30 {
            match stream.write(&chunk) {
                Ok(n) => written += n,
                Err(_) => break,
            }
        }
        flood.push(stream);
    }
    assert!(
        written < 1 << 30,
        "{written} bytes went somewhere though nobody reads"
    );
    let after = resident_mib(gateway.id());
    assert!(
        after < before + BUDGET_MIB + SLACK_MIB,
        "{before} MiB before, {after} MiB after"
    );

    let mut stream = TcpStream::connect(loopback(lively_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    gateway.assert_healthy();
}
