//! HAProxy in front of the gateway, and in front of the server at home: who plays is known on both sides.

use std::net::SocketAddr;
use std::process::Command;

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, Player, play, wait_for_motd};
use crate::support::process::{self, clone_of, tool};
use crate::support::{eventually, free_port, haproxy, loopback};

/// Where the players of these tests come from, and where the load balancers do.
const PLAYER: &str = "127.0.0.9";
const LISTED: &str = "127.0.0.2";
const UNLISTED: &str = "127.0.0.3";

/// A section that hands visitors on to `to`, as coming from `from`, with this kind of header.
fn hands_on(port: u16, to: SocketAddr, from: &str, header: &str) -> (u16, String) {
    (
        port,
        format!("bind 127.0.0.1:{port}\nserver next {to} source {from} {header}"),
    )
}

fn from_its_address(command: &Command) -> Command {
    let mut command = clone_of(command);
    command.args(["--from", PLAYER]);
    command
}

#[test]
fn haproxy_in_front_of_the_gateway_says_who_plays() {
    let gateway = Gateway::start(&format!(
        "[tunnel.minecraft]\nproxy_protocol_from = [\"{LISTED}/32\"]\n"
    ));
    let directory = gateway.directory();
    let server = MinecraftServer::start(directory, "behind HAProxy");
    let agent = Agent::enrol(
        &gateway,
        "home",
        &["--default"],
        &Agent::minecraft(server.address),
    );
    let door = gateway.address("tunnel.minecraft");
    let [v1, v2, stranger, silent] = std::array::from_fn(|_| free_port());
    let _haproxy = haproxy::start(
        directory,
        "haproxy",
        &[
            hands_on(v1, door, LISTED, "send-proxy"),
            hands_on(v2, door, LISTED, "send-proxy-v2"),
            hands_on(stranger, door, UNLISTED, "send-proxy-v2"),
            hands_on(silent, door, LISTED, ""),
        ],
    );
    for (port, name) in [(v1, "Hanako"), (v2, "Taro")] {
        wait_for_motd(loopback(port), "behind HAProxy");
        let mut player = Player::join_where(directory, loopback(port), name, from_its_address);
        let players = agent.json(&["players", "--json"]);
        let seen = players["players"].as_array().unwrap();
        let shown = seen.iter().find(|seen| seen["player"] == name);
        let address = shown.and_then(|seen| seen["address"].as_str());
        assert!(
            address.is_some_and(|address| address.starts_with(&format!("{PLAYER}:"))),
            "{name}: {players}"
        );
        player.says("still here");
    }
    // One that nobody listed cannot claim an address, and a listed one cannot hide whom it brings.
    for port in [stranger, silent] {
        let refused = play(loopback(port), "Jiro", &[]);
        assert_eq!(
            (&refused["joined"], &refused["kicked"]),
            (&false.into(), &().into())
        );
    }
    // Without a load balancer it is as ever.
    assert_eq!(play(door, "Saburo", &[])["joined"], true);
    gateway.assert_healthy();
}

#[test]
fn haproxy_at_home_learns_who_plays() {
    let gateway = Gateway::start("");
    let directory = gateway.directory();
    let server = MinecraftServer::start(directory, "behind HAProxy at home");
    let home = free_port();
    let section = format!(
        "bind 127.0.0.1:{home} accept-proxy\nserver minecraft {}",
        server.address
    );
    let haproxy = haproxy::start(directory, "haproxy at home", &[(home, section)]);
    let mut endpoint = Agent::minecraft(loopback(home));
    endpoint.push("--proxy-v2".to_owned());
    let _agent = Agent::enrol(&gateway, "home", &["--default"], &endpoint);
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, "behind HAProxy at home");
    let happened = play(door, "Hanako", &["--from", PLAYER]);
    assert_eq!(happened["joined"], true, "{happened}");
    eventually("HAProxy at home says who it was", || {
        haproxy.log().contains(&format!("visitor {PLAYER}")).then_some(())
    });
    // It does ask for the header.
    assert_eq!(play(loopback(home), "Direct", &[])["joined"], false);
    gateway.assert_healthy();
}

#[test]
fn an_address_passes_haproxy_the_tunnel_and_haproxy_again() {
    let gateway = Gateway::start(&format!(
        "[tunnel.tcp]\nproxy_protocol_from = [\"{LISTED}/32\"]\n"
    ));
    let directory = gateway.directory();
    let [v1, v2, stranger, home, port] = std::array::from_fn(|_| free_port());
    let answers = format!(
        "bind 127.0.0.1:{home} accept-proxy\nmode http\n\
         http-request return status 200 content-type text/plain lf-string \"%[src]\""
    );
    let _at_home = haproxy::start(directory, "haproxy at home", &[(home, answers)]);
    let mut endpoint = Agent::tcp(port, loopback(home));
    endpoint.push("--proxy-v2".to_owned());
    let mut agent = Agent::enrol(&gateway, "home", &["--port", &port.to_string()], &endpoint);
    eventually("the agent is connected", || agent.connected(&gateway));
    let _haproxy = haproxy::start(
        directory,
        "haproxy",
        &[
            hands_on(v1, loopback(port), LISTED, "send-proxy"),
            hands_on(v2, loopback(port), LISTED, "send-proxy-v2"),
            hands_on(stranger, loopback(port), UNLISTED, "send-proxy"),
        ],
    );
    let ask = |door: u16| {
        let mut curl = tool("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--interface",
            PLAYER,
        ]);
        curl.args([
            "--write-out",
            " %{http_code}",
            &format!("http://127.0.0.1:{door}/"),
        ]);
        let output = process::output(&mut curl);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for door in [v1, v2] {
        let who = eventually("the port is open", || {
            Some(ask(door)).filter(|who| who.ends_with(" 200"))
        });
        assert_eq!(who, format!("{PLAYER} 200"));
    }
    // Without a load balancer the gateway says who it is, and an unlisted one's header is only a bad request.
    assert_eq!(ask(port), format!("{PLAYER} 200"));
    let claimed = ask(stranger);
    assert!(claimed.ends_with(" 400"), "{claimed}");
    gateway.assert_healthy();
}
