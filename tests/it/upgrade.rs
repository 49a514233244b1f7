//! `tasuki upgrade`: the gateway goes on in another process, and nobody who is there notices.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::agent::{Agent, game};
use crate::support::figures::Figures;
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, Player, wait_for_motd};
use crate::support::postgres::Postgres;
use crate::support::process;
use crate::support::{PATIENCE, eventually, free_port, http, loopback, readme, root};

/// A server at home that sends back what comes, until the visitor has ended.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for visitor in listener.incoming() {
            let mut read = visitor.unwrap();
            std::thread::spawn(move || {
                let mut write = read.try_clone().unwrap();
                let _ = std::io::copy(&mut read, &mut write);
                let _ = write.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

/// Bytes that are different at each place and in each block.
fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).take(4096).flatten().collect()
}

/// Sends blocks through an echo as fast as they go until it is told to stop, and compares every byte that comes back. Gives
/// how many bytes that were.
fn stream_through(door: SocketAddr, stop: &AtomicBool) -> u64 {
    let stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                sending.write_all(&block(number)).unwrap();
                number += 1;
            }
            sending.shutdown(std::net::Shutdown::Write).unwrap();
            number
        });
        let (mut number, mut bytes) = (0, 0);
        loop {
            let expected = block(number);
            let mut came = Vec::new();
            (&stream)
                .take(expected.len() as u64)
                .read_to_end(&mut came)
                .unwrap();
            bytes += came.len() as u64;
            if came.is_empty() {
                break;
            }
            assert!(came == expected, "block {number} is another one than was sent");
            number += 1;
        }
        assert_eq!(
            sent.join().unwrap(),
            number,
            "every block came back, and then the end"
        );
        bytes
    })
}

fn players_stay(mut gateway: Gateway) {
    let server = MinecraftServer::start(gateway.directory(), "home");
    let port = free_port();
    let mut endpoints = Agent::minecraft(server.address);
    endpoints.extend(Agent::tcp(port, echo()));
    let grant = port.to_string();
    let agent = Agent::enrol(&gateway, "home", &["--default", "--port", &grant], &endpoints);
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, "home");
    let mut player = Player::join(gateway.directory(), door, "Hanako");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream_through(loopback(port), &stop));
        for round in 1..=2 {
            player.says(&format!("before upgrade {round}"));
            let before = gateway.id();
            let upgraded = gateway.upgrade(&[]);
            assert_eq!(upgraded["from_pid"], before);
            assert_eq!(upgraded["connections"], 2, "{upgraded}");
            assert_ne!(gateway.id(), before);
            for word in 0..20 {
                player.says(&format!("after upgrade {round}, word {word}"));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let bytes = streaming.join().unwrap();
        assert!(bytes > 1 << 20, "{bytes} bytes went through");
    });
    // Who joins now comes to the process that is there now.
    let mut other = Player::join(gateway.directory(), door, "Taro");
    other.says("the newer process has me");
    let players = agent.json(&["players", "--json"]);
    assert_eq!(players["players"][0]["player"], "Hanako", "{players}");
    let resumed = Figures::of(&gateway).value("tasuki_tunnel_connections_resumed_total");
    // Each once in this process, and once more when an agent that came by TLS first goes over to UDP.
    assert!(resumed >= 2, "{resumed} in this process");
    let audit = gateway.json(&["audit", "--json"]).to_string();
    assert_eq!(audit.matches("\"upgrade\"").count(), 2, "{audit}");
    gateway.assert_healthy();
    assert!(gateway.stop_adopted(), "SIGTERM ends the newer process");
}

#[test]
fn a_player_stays_in_the_game_through_upgrades() {
    players_stay(Gateway::start(""));
}

#[test]
fn a_player_stays_in_the_game_through_upgrades_on_postgresql() {
    let database = Postgres::start();
    players_stay(Gateway::start_on(&database.url(), ""));
}

/// Connects again and again until told to stop; each connection must be taken. Gives how many were served, and how many not.
fn connect_in_a_loop(
    address: SocketAddr,
    stop: &AtomicBool,
    then: impl Fn(TcpStream) -> bool,
) -> (usize, usize) {
    let (mut served, mut unserved) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match then(stream) {
            true => served += 1,
            false => unserved += 1,
        }
    }
    (served, unserved)
}

/// Whether the gateway greeted: with 220, or with 421 while it drains.
fn is_greeted(stream: TcpStream) -> bool {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("220 ") || line.starts_with("421 "), "{line:?}");
    let _ = (&stream).write_all(b"QUIT\r\n");
    line.starts_with("220 ")
}

/// Whether a request was answered; one that came just as the older process closed is not, and is repeated by clients.
fn is_answered(mut stream: TcpStream) -> bool {
    let request = b"GET /actor HTTP/1.1\r\nhost: relay.test\r\nconnection: close\r\n\r\n";
    if stream.write_all(request).is_err() {
        return false;
    }
    match http::read_answer(&mut stream) {
        Ok(answer) => {
            assert_eq!(answer.status, 200, "{}", answer.text());
            true
        }
        Err(_) => false,
    }
}

/// How many upgrades clients are to survive.
const UPGRADES: usize = 3;

#[test]
fn nobody_is_refused_while_the_gateway_goes_on_in_another_process() {
    let mut gateway = Gateway::start(Gateway::FEDIVERSE);
    let mail = gateway.address("mail.relay");
    let submission = gateway.address("mail.submission");
    let web = gateway.address("front.http");
    let tls = gateway.address("front.https");
    let admin = gateway.address("admin");
    let players = gateway.address("tunnel.minecraft");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let greeted = [mail, submission].map(|address| {
            let stop = &stop;
            scope.spawn(move || connect_in_a_loop(address, stop, is_greeted))
        });
        let answered = scope.spawn(|| connect_in_a_loop(web, &stop, is_answered));
        let taken = [tls, admin, players].map(|address| {
            let stop = &stop;
            scope.spawn(move || {
                connect_in_a_loop(address, stop, |stream| {
                    drop(stream);
                    // The kernel keeps a thousand that were not taken yet.
                    std::thread::park_timeout(Duration::from_millis(5));
                    true
                })
            })
        });
        for _ in 0..UPGRADES {
            gateway.upgrade(&["--drain", "3"]);
        }
        stop.store(true, Ordering::Relaxed);
        for counted in greeted.into_iter().chain([answered]).chain(taken) {
            let (served, unserved) = counted.join().unwrap();
            assert!(served > 10, "{served}");
            // The one that was taken and not read yet when the older process closed; all others wait for the newer one.
            assert!(unserved <= UPGRADES, "{unserved} were not served");
        }
    });
    gateway.assert_healthy();
}

/// A program that does this when it is started as a gateway.
fn program(gateway: &Gateway, script: &str) -> String {
    let path = gateway.directory().join("other-tasuki");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn when_the_new_process_does_not_start_the_old_one_goes_on_and_says_why() {
    let (mut gateway, _server, _agent, door) = game("home");
    let mut player = Player::join(gateway.directory(), door, "Hanako");
    let pid = gateway.id();
    let sound = gateway.config_text();

    let (code, said) = gateway.fails(&["upgrade", "--binary", "/nowhere/tasuki"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("/nowhere/tasuki cannot be started"), "{said}");

    let crashing = program(&gateway, "kill -SEGV $$");
    let (code, said) = gateway.fails(&["upgrade", "--binary", &crashing]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains("signal: 11") && said.contains("The old one goes on"),
        "{said}"
    );

    gateway.write_config(&format!("{sound}\n[mail.nonsense]\nkey = 1\n"));
    // The command itself needs no configuration to find the gateway.
    let data = gateway.directory().join("data").display().to_string();
    let (code, said) = gateway.fails(&["upgrade", "--data", &data]);
    assert_eq!(code, 64, "{said}");
    assert!(
        said.contains("mail.nonsense") && said.contains("The old one goes on"),
        "{said}"
    );
    player.says("nothing has happened so far");

    // This one takes everything and fails then: the address is somebody else's.
    let taken = TcpListener::bind(loopback(0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    gateway.write_config(&sound);
    gateway.change_config(&format!(
        "[mail.relay]\nlisten = [\"127.0.0.1:0\", \"{address}\"]\n"
    ));
    let (code, said) = gateway.fails(&["upgrade", "--drain", "1"]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains(&address) && said.contains("The old one goes on"),
        "{said}"
    );
    player.says("the old process has taken everything back");

    // And so does this one, as the old one listens at an address that overlaps.
    let mail = gateway.address("mail.relay").port();
    gateway.write_config(&sound);
    gateway.change_config(&format!("[mail.relay]\nlisten = [\"0.0.0.0:{mail}\"]\n"));
    let (code, said) = gateway.fails(&["upgrade", "--drain", "1"]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains("overlaps") && said.contains("The old one goes on"),
        "{said}"
    );
    player.says("and again");

    gateway.write_config(&sound);
    assert_eq!(gateway.json(&["status", "--json"])["pid"], pid);
    let audit = gateway.json(&["audit", "--json"]).to_string();
    assert!(audit.contains("upgrade.undone"), "{audit}");
    // And it can still be done.
    gateway.upgrade(&[]);
    player.says("another process has taken over");
    gateway.assert_healthy();
}

/// A program that takes part in an upgrade up to some word, and ends.
fn successor_until(gateway: &Gateway, word: &str) -> String {
    let (python, script) = (
        process::find("python3"),
        root().join("tests/clients/successor.py"),
    );
    program(
        gateway,
        &format!("exec {} {} {word}", python.display(), script.display()),
    )
}

#[test]
fn when_the_new_process_dies_after_it_was_given_everything_the_old_one_serves_again() {
    let mut gateway = Gateway::start("");
    let port = free_port();
    let grant = port.to_string();
    let _agent = Agent::enrol(&gateway, "home", &["--port", &grant], &Agent::tcp(port, echo()));
    let visit = || {
        let mut visitor = TcpStream::connect(loopback(port)).ok()?;
        visitor.set_read_timeout(Some(PATIENCE)).unwrap();
        visitor.write_all(b"x").ok()?;
        visitor.read_exact(&mut [0]).ok()?;
        Some(visitor)
    };
    let mut visitor = eventually("the port is open", visit);
    let pid = gateway.id();
    let mail = gateway.address("mail.relay");
    let dying = successor_until(&gateway, "commit");
    let (code, said) = gateway.fails(&["upgrade", "--binary", &dying, "--drain", "1"]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains("exit status: 3") && said.contains("The old one goes on"),
        "{said}"
    );
    assert_eq!(gateway.json(&["status", "--json"])["pid"], pid);
    let client = TcpStream::connect(mail).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_greeted(client));
    // Its bytes may have moved in the other process, so it cannot go on; others can.
    let end = visitor.read(&mut [0]);
    let is_cut = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(matches!(end, Ok(0)) || end.as_ref().is_err_and(is_cut), "{end:?}");
    eventually("the port is served again", visit);
    gateway.upgrade(&[]);
    gateway.assert_healthy();
}

#[test]
fn where_nothing_can_be_written_the_new_process_fails_before_the_old_one_has_given_up() {
    let mut gateway = Gateway::start("");
    let pid = gateway.id();
    let file = gateway.directory().join("data/addresses.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let (code, said) = gateway.fails(&["upgrade", "--drain", "1"]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains("addresses.json") && said.contains("does not start"),
        "{said}"
    );
    assert_eq!(gateway.json(&["status", "--json"])["pid"], pid);
    std::fs::remove_dir(&file).unwrap();
    gateway.upgrade(&[]);
    gateway.assert_healthy();
}

#[test]
fn a_signal_that_comes_while_the_old_process_hands_over_ends_the_gateway() {
    let mut gateway = Gateway::start("");
    let failing = successor_until(&gateway, "take");
    gateway.fails(&["upgrade", "--binary", &failing, "--drain", "1"]);
    // It has taken everything back, and was told to stop.
    assert!(gateway.ends().success());
    assert!(
        gateway.log_text().contains("the gateway goes on in this process"),
        "the signal came too early"
    );

    let mut gateway = Gateway::start("");
    let serving = successor_until(&gateway, "serving");
    gateway.upgrade(&["--binary", &serving, "--drain", "1"]);
    let stopped = gateway.directory().join("stopped");
    eventually("the newer process is told to stop", || {
        stopped.exists().then_some(())
    });
}

#[test]
fn a_reload_works_before_and_after_an_upgrade() {
    let mut gateway = Gateway::start("");
    assert_eq!(readme::block("run: upgrade").trim(), "tasuki upgrade");
    gateway.upgrade(&[]);
    gateway.change_config("[log]\nlevel = \"debug\"\n");
    gateway.signal_hup();
    eventually("the new level is in force", || {
        gateway.log_text().contains("log.level").then_some(())
    });
    gateway.upgrade(&[]);
    assert_eq!(gateway.json(&["status", "--json"])["pid"], gateway.id());
}

#[test]
fn an_engine_that_is_switched_off_leaves_nobody_waiting() {
    let mut gateway = Gateway::start("");
    let port = free_port();
    let grant = port.to_string();
    let _agent = Agent::enrol(&gateway, "home", &["--port", &grant], &Agent::tcp(port, echo()));
    let mut visitor = eventually("the port is open", || TcpStream::connect(loopback(port)).ok());
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    visitor.write_all(b"x").unwrap();
    visitor.read_exact(&mut [0]).unwrap();
    gateway.change_config("engines = [\"mail\", \"fediverse\"]\n");
    gateway.upgrade(&[]);
    match visitor.read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0, "the end"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    TcpStream::connect(loopback(port)).unwrap_err();
    gateway.assert_healthy();
}

#[test]
fn an_upgrade_that_fails_leaves_the_name_as_it_was() {
    let mut gateway = Gateway::start(Gateway::FEDIVERSE);
    let list = gateway.directory().join("list.csv");
    std::fs::write(&list, "actor,inbox\nhttps://a.test/actor,https://a.test/inbox\n").unwrap();
    gateway.cli(&["fedi", "import", "--from", "csv", list.to_str().unwrap()]);
    let sound = gateway.config_text();
    let taken = TcpListener::bind(loopback(0)).unwrap();
    gateway.change_config(&format!(
        "[server]\nhost = \"other.test\"\ndanger_change_host = true\n[mail.relay]\nlisten = [\"{}\"]\n",
        taken.local_addr().unwrap()
    ));
    let (code, said) = gateway.fails(&["upgrade", "--drain", "1"]);
    assert_eq!(code, 69, "{said}");
    gateway.write_config(&sound);
    // With the other name in the store it would not start again: an instance has subscribed.
    assert!(gateway.stop().success());
    gateway.restart();
    gateway.assert_healthy();
}
