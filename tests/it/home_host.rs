//! The home host's own commands, without any right at the gateway.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use serde_json::Value;

use crate::support::agent::{Agent, game};
use crate::support::gateway::Gateway;
use crate::support::minecraft::{Player, play, wait_for_motd};
use crate::support::process::{self, tool};
use crate::support::{eventually, free_port, loopback};

fn names(players: &Value) -> Vec<&str> {
    let players = players["players"].as_array().unwrap();
    players
        .iter()
        .filter_map(|player| player["player"].as_str())
        .collect()
}

#[test]
fn the_home_host_sees_kicks_and_bans_players() {
    let (gateway, _server, agent, door) = game("home");
    let status = agent.json(&["status", "--json"]);
    assert_eq!(
        (&status["connected"], &status["agent"]),
        (&true.into(), &"home".into()),
        "{status}"
    );
    assert_eq!(status["endpoints"][0]["problem"], Value::Null, "{status}");

    let mut hanako = Player::join(gateway.directory(), door, "Hanako");
    let mut taro = Player::join(gateway.directory(), door, "Taro");
    let players = agent.json(&["players", "--json"]);
    assert_eq!(names(&players), ["Hanako", "Taro"], "{players}");
    assert!(
        players["players"][0]["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:"),
        "{players}"
    );
    let moved = |players: &Value| players["players"][0]["bytes_in"].as_u64().unwrap();
    let before = moved(&players);
    hanako.says("one more line");
    eventually("bytes are counted while they move", || {
        (moved(&agent.json(&["players", "--json"])) > before).then_some(())
    });

    agent.cli(&["kick", "hanako"]);
    hanako.is_gone();
    taro.says("still here");
    let mut again = Player::join(gateway.directory(), door, "Hanako");
    agent.cli(&["ban", "Hanako"]);
    again.is_gone();
    let kicked = play(door, "Hanako", &[]);
    assert!(
        kicked["kicked"]
            .as_str()
            .is_some_and(|text| text.contains("You may not join this server")),
        "{kicked}"
    );
    assert_eq!(agent.json(&["ban", "--json"])["banned"][0], "Hanako");
    agent.cli(&["unban", "Hanako"]);
    assert_eq!(play(door, "Hanako", &[])["joined"], true);
    taro.says("never noticed anything");
    let (code, said) = agent.fails(&["kick", "Nobody"]);
    assert_eq!(code, 65, "{said}");
    gateway.assert_healthy();
}

#[test]
fn only_those_on_the_list_may_join_also_after_a_restart_of_the_agent() {
    let (gateway, server, mut agent, door) = game("home");
    let mut taro = Player::join(gateway.directory(), door, "Taro");
    agent.cli(&["allow", "Hanako"]);
    taro.is_gone();
    agent.stop();
    let again = Agent::run(&gateway, "home", &[], &Agent::minecraft(server.address));
    // A look at the server list has no name, so it goes on.
    wait_for_motd(door, "home");
    assert!(play(door, "Taro", &[])["kicked"].is_string());
    assert_eq!(play(door, "Hanako", &[])["joined"], true);
    again.cli(&["allow", "Hanako", "--remove"]);
    again.cli(&["ban", "127.0.0.0/8"]);
    assert!(play(door, "Hanako", &[])["kicked"].is_string());
    again.cli(&["unban", "127.0.0.0/8"]);
    assert_eq!(play(door, "Taro", &[])["joined"], true);
}

#[test]
fn without_an_agent_the_commands_say_where_they_looked() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = process::command("tasuki-agent");
    command.args(["players", "--dir"]).arg(directory.path());
    let output = process::output(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains("agent.sock") && said.contains("tasuki-agent run"),
        "{said}"
    );
}

/// A server that takes only connections with a PROXY version 2 header, as Paper does when it is told to.
fn insists_on_proxy(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 16];
            let is_header = stream.read_exact(&mut head).is_ok() && head.starts_with(b"\r\n\r\n\0\r\nQUIT\n");
            if is_header {
                let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
                stream.read_exact(&mut rest).unwrap();
                let mut home = TcpStream::connect(server).unwrap();
                let (mut from_home, mut to_visitor) =
                    (home.try_clone().unwrap(), stream.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from_home, &mut to_visitor));
                std::thread::spawn(move || std::io::copy(&mut stream, &mut home));
            }
        }
    });
    address
}

#[test]
fn the_doctor_finds_what_keeps_visitors_away() {
    let (gateway, server, agent, _door) = game("home");
    let quic = gateway.address("tunnel.quic").to_string();
    let local = server.address.to_string();
    let well = agent.cli(&["doctor", "--minecraft", &local]);
    assert!(well.contains("answers over UDP with the pinned key"), "{well}");
    let closed = loopback(free_port()).to_string();
    let (code, said) = agent.fails(&["doctor", "--minecraft", &closed]);
    assert_eq!(code, 65, "{said}");
    assert!(said.contains(&format!("{closed} takes no connections")), "{said}");
    let strict = insists_on_proxy(server.address);
    let strict = strict.to_string();
    let (_, said) = agent.fails(&["doctor", "--minecraft", &strict]);
    assert!(said.contains("answers only with a PROXY header"), "{said}");
    let well = agent.cli(&["doctor", "--proxy-v2", "--minecraft", &strict]);
    assert!(well.contains(&format!("{strict} answers")), "{well}");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = silent.local_addr().unwrap().to_string();
    let (_, said) = agent.fails(&["doctor", "--gateway", &nobody, "--minecraft", &local]);
    assert!(
        said.contains(&format!("no packet comes back from {nobody}")),
        "{said}"
    );
    for line in [
        "packets were lost",
        "bytes pass",
        "the clock agrees with the gateway's",
    ] {
        assert!(well.contains(line), "{line} in\n{well}");
    }
    let wrong = "0".repeat(64);
    let (_, said) = agent.fails(&[
        "doctor",
        "--gateway",
        &quic,
        "--pin",
        &wrong,
        "--minecraft",
        &local,
    ]);
    assert!(said.contains("another key than the pinned one"), "{said}");
}

fn verified(unit: &Path) {
    process::succeed(tool("systemd-analyze").args(["verify", "--man=no"]).arg(unit));
}

#[test]
fn install_writes_units_that_systemd_takes() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = process::command("tasuki-agent");
    command
        .arg("install")
        .arg("--dir")
        .arg(directory.path().join("my agent"))
        .env("XDG_CONFIG_HOME", directory.path());
    let said = process::succeed(&mut command);
    assert!(
        said.contains("systemctl --user enable --now tasuki-agent"),
        "{said}"
    );
    verified(&directory.path().join("systemd/user/tasuki-agent.service"));
    let program = directory.path().join("tasuki-agent");
    std::fs::copy(process::ours("tasuki-agent"), &program).unwrap();
    let unit =
        process::succeed(std::process::Command::new(&program).args(["install", "--system", "--print"]));
    assert!(
        unit.contains(&format!("ExecStart={} run", program.display())),
        "{unit}"
    );
    let path = directory.path().join("tasuki-agent.service");
    std::fs::write(&path, unit).unwrap();
    verified(&path);
}

#[test]
fn the_gateway_shows_what_to_tell_friends() {
    let gateway = Gateway::start("");
    let home = loopback(free_port());
    let port = free_port();
    let range = port.to_string();
    let mut endpoints = Agent::minecraft_at("mc.test", home);
    endpoints.extend(Agent::pair(port, home));
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--name", "mc.test", "--port", &range, "--udp", &range],
        &endpoints,
    );
    let shown = eventually("all endpoints are claimed", || {
        let shown = gateway.json(&["tunnel", "show", "home", "--json"]);
        (shown["endpoints"].as_array().unwrap().len() == 3).then_some(shown)
    });
    let door = gateway.address("tunnel.minecraft").port();
    let java = &shown["endpoints"][0];
    assert_eq!(java["java"], format!("mc.test:{door}"), "{shown}");
    assert_eq!(
        java["srv"],
        format!("_minecraft._tcp.mc.test. 3600 IN SRV 0 5 {door} relay.test.")
    );
    let text = gateway.cli(&["tunnel", "show", "home"]);
    for line in [
        format!("Bedrock port: {port}"),
        format!("voice_host: relay.test:{port}"),
        format!("broadcast-port: {port}"),
    ] {
        assert!(text.contains(&line), "{line} in\n{text}");
    }
    assert_eq!(gateway.fails(&["tunnel", "show", "nobody"]).0, 65);
    // What is served is not given up; what is no longer served is, and its name is kept for its agent.
    let label = java["label"].as_str().unwrap();
    let (code, said) = gateway.fails(&["tunnel", "release", "home", label]);
    assert!(code == 65 && said.contains("is served now"), "{code}: {said}");
    agent.stop();
    eventually("the agent is gone", || {
        let agents = gateway.json(&["tunnel", "agents", "--json"]);
        (agents["agents"][0]["connected"] == false).then_some(())
    });
    let released = gateway.json(&["tunnel", "release", "home", label, "--json"]);
    assert_eq!(released["released"], label);
    assert_eq!(gateway.fails(&["tunnel", "release", "home", label]).0, 65);
    let left = gateway.json(&["tunnel", "show", "home", "--json"]);
    assert_eq!(left["endpoints"].as_array().unwrap().len(), 2, "{left}");
    assert!(gateway.cli(&["audit"]).contains("tunnel.release"));
    let other = Agent::enrol(
        &gateway,
        "other",
        &["--name", "mc.test"],
        &Agent::minecraft_at("mc.test", home),
    );
    eventually("the name is refused to another", || {
        other.said().contains("refused by the gateway").then_some(())
    });
}
