//! Who may hold a session: codes, pins, revocations and bans, with the real programs and the words that people read.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, SystemTime};

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::{PATIENCE, eventually, free_port, loopback};

/// Refused for good (EX_NOPERM).
const REFUSED: i32 = 77;

fn code_of(gateway: &Gateway, name: &str, more: &[&str]) -> (String, String) {
    let mut arguments = vec!["tunnel", "enroll", name, "--json"];
    arguments.extend(more);
    let made = gateway.json(&arguments);
    (
        made["pin"].as_str().unwrap().to_owned(),
        made["code"].as_str().unwrap().to_owned(),
    )
}

fn somewhere() -> Vec<String> {
    Agent::minecraft(loopback(free_port()))
}

#[test]
fn a_code_that_is_unknown_used_or_expired_is_refused_with_a_cure() {
    let gateway = Gateway::start("");
    let (pin, code) = code_of(&gateway, "home", &[]);
    let mut first = Agent::run(&gateway, "home", &["--pin", &pin, "--code", &code], &somewhere());
    eventually("the code enrols its agent", || first.connected(&gateway));

    let (_, short) = code_of(&gateway, "late", &["--valid-for", "1s"]);
    let made = SystemTime::now();
    eventually("the code is too old", || {
        (made.elapsed().unwrap() > Duration::from_secs(2)).then_some(())
    });
    let cases = [
        ("used", code.as_str()),
        ("expired", &short),
        ("unknown", "no-such-code"),
    ];
    for (name, code) in cases {
        let refused = Agent::run(&gateway, name, &["--pin", &pin, "--code", code], &somewhere());
        let (exit, said) = refused.gives_up();
        assert_eq!(exit, REFUSED, "{name}: {said}");
        assert!(
            said.contains("was used already, or has expired")
                && said.contains("ask the gateway's operator for a new one"),
            "{name}: {said}"
        );
        assert!(!said.contains(code), "a code is a secret: {said}");
    }
    eventually("the agent that was let in stays", || first.connected(&gateway));
    gateway.assert_healthy();
}

#[test]
fn a_gateway_with_another_key_than_the_pinned_one_is_refused_with_a_cure() {
    let gateway = Gateway::start("");
    let (pin, code) = code_of(&gateway, "home", &[]);
    let first = pin.chars().next().unwrap();
    let wrong = format!("{}{}", if first == '0' { '1' } else { '0' }, &pin[1..]);
    let agent = Agent::run(
        &gateway,
        "home",
        &["--pin", &wrong, "--code", &code],
        &somewhere(),
    );
    let (exit, said) = agent.gives_up();
    assert_eq!(exit, REFUSED, "{said}");
    assert!(
        said.contains("another key than the pinned one")
            && said.contains("ask its operator for a new command"),
        "{said}"
    );
    // The code was not shown to the stranger: with the right pin it still works.
    let mut agent = Agent::run(&gateway, "home", &["--pin", &pin, "--code", &code], &somewhere());
    eventually("the code enrols its agent", || agent.connected(&gateway));
}

/// A visitor of a TCP port whose home sends everything back.
struct Visitor(TcpStream);

impl Visitor {
    #[track_caller]
    fn of(port: u16) -> Self {
        eventually("a visitor is served", || {
            let stream = TcpStream::connect(loopback(port)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut visitor = Self(stream);
            visitor.is_served().then_some(visitor)
        })
    }

    fn is_served(&mut self) -> bool {
        let mut back = [0; 4];
        self.0.write_all(b"ping").is_ok() && self.0.read_exact(&mut back).is_ok()
    }

    /// Waits until the connection is cut.
    #[track_caller]
    fn cut(mut self) {
        match self.0.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not cut: {other:?}"),
        }
    }
}

/// A server at home that sends everything back.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut back)
            });
        }
    });
    address
}

/// An address of this machine that can be banned; loopback never is.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .connect("198.51.100.1:9")
        .expect("this machine has an address besides loopback");
    socket.local_addr().unwrap().ip()
}

#[test]
fn a_revoked_agent_and_its_visitors_are_cut_at_once_and_it_does_not_come_back() {
    let gateway = Gateway::start("");
    let port = free_port();
    let agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &port.to_string()],
        &Agent::tcp(port, echo()),
    );
    let visitor = Visitor::of(port);
    gateway.cli(&["tunnel", "revoke", "home", "--yes"]);
    visitor.cut();
    let (exit, said) = agent.gives_up();
    assert_eq!(exit, REFUSED, "{said}");
    assert!(said.contains("this agent was revoked at the gateway"), "{said}");
    assert!(TcpStream::connect(loopback(port)).is_err(), "its port is closed");
}

#[test]
fn a_banned_agent_and_its_visitors_are_cut_at_once_until_the_ban_is_lifted() {
    let address = own_address();
    let gateway = Gateway::start(&format!("[tunnel.quic]\nlisten = \"{address}:0\"\n"));
    let port = free_port();
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &port.to_string()],
        &Agent::tcp(port, echo()),
    );
    let visitor = Visitor::of(port);
    let banned = address.to_string();
    gateway.cli(&["ban", "add", &banned, "--reason", "test"]);
    visitor.cut();
    eventually("the agent reads why, and what lifts it", || {
        agent
            .said()
            .contains(&format!("tasuki ban remove {banned}"))
            .then_some(())
    });
    assert!(agent.connected(&gateway).is_none());
    gateway.cli(&["ban", "remove", &banned]);
    eventually("the agent is back by itself", || agent.connected(&gateway));
    assert!(Visitor::of(port).is_served());
}

#[test]
fn a_visitor_whom_a_new_rule_keeps_out_is_cut_at_once() {
    let gateway = Gateway::start("");
    let port = free_port();
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &port.to_string()],
        &Agent::tcp(port, echo()),
    );
    let visitor = Visitor::of(port);
    gateway.cli(&[
        "acl",
        "add",
        "deny",
        "--engine",
        "tunnel",
        "--action",
        "visit",
        "--from",
        "127.0.0.1",
    ]);
    visitor.cut();
    agent.connected(&gateway).expect("the agent itself stays");
}
