//! The tunnel: real Minecraft programs, `mcstatus`, iperf3 and socat through a real agent.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::agent::{Agent, game};
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, mcstatus, mcstatus_of, play, wait_for_motd};
use crate::support::process::{self, Running, tool};
use crate::support::{PATIENCE, eventually, free_port, loopback, sha256, wait_for_listener};

#[test]
fn players_join_a_real_server_through_the_tunnel() {
    let (gateway, server, _agent, door) = game("behind the tunnel");
    let happened = play(door, "Hanako", &[]);
    assert_eq!(happened["joined"], true, "{happened}");
    assert!(
        happened["heard"]
            .as_str()
            .unwrap_or_default()
            .contains("<Hanako> konnichiwa"),
        "{happened}"
    );
    assert_eq!(server.events.next_json()["name"], "Hanako");
    gateway.assert_healthy();
}

#[test]
fn mcstatus_reads_the_server_list_in_the_new_way_and_the_old() {
    let gateway = Gateway::start("");
    let door = gateway.address("tunnel.minecraft");
    // Nobody is at home: the gateway answers, in each way.
    for way in ["--java", "--legacy"] {
        let shown = mcstatus_of(door, way).unwrap_or_else(|| panic!("{way}: no answer"));
        let said = shown["motd"].as_str().unwrap();
        assert!(!said.is_empty() && said != "old and new", "{way}: {shown}");
    }
    let server = MinecraftServer::start(gateway.directory(), "old and new");
    let _agent = Agent::enrol(
        &gateway,
        "home",
        &["--default"],
        &Agent::minecraft(server.address),
    );
    wait_for_motd(door, "old and new");
    let legacy = mcstatus_of(door, "--legacy").expect("a legacy answer from the server at home");
    assert_eq!(legacy["motd"], "old and new", "{legacy}");
    assert_eq!(legacy["max"], mcstatus(door)["max"]);
    gateway.assert_healthy();
}

#[test]
fn host_names_lead_to_different_homes_on_one_port() {
    let gateway = Gateway::start("");
    let directory = gateway.directory();
    let (red, blue) = (
        MinecraftServer::start(directory, "red"),
        MinecraftServer::start(directory, "blue"),
    );
    let _red = Agent::enrol(
        &gateway,
        "red",
        &["--name", "red.mc.test"],
        &Agent::minecraft_at("red.mc.test", red.address),
    );
    let _blue = Agent::enrol(
        &gateway,
        "blue",
        &["--name", "blue.mc.test"],
        &Agent::minecraft_at("blue.mc.test", blue.address),
    );
    let door = gateway.address("tunnel.minecraft");
    for (host, server) in [("red.mc.test", &red), ("blue.mc.test", &blue)] {
        let happened = play(door, "Taro", &["--address", host]);
        assert_eq!(happened["joined"], true, "{host}: {happened}");
        assert_eq!(server.events.next_json()["event"], "joined");
    }
}

#[test]
fn a_player_reads_why_when_the_home_is_away_or_its_server_is_down() {
    let gateway = Gateway::start("");
    let door = gateway.address("tunnel.minecraft");
    let nobody = play(door, "Early", &[]);
    assert!(nobody["kicked"].is_string(), "no agent yet: {nobody}");

    let closed = loopback(free_port());
    let mut agent = Agent::enrol(&gateway, "home", &["--default"], &Agent::minecraft(closed));
    eventually("the agent is connected", || agent.connected(&gateway));
    let down = play(door, "Unlucky", &[]);
    assert!(down["kicked"].is_string(), "the server is down: {down}");
    assert!(
        mcstatus(door)["motd"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    assert_ne!(down["kicked"], nobody["kicked"], "two reasons, two texts");

    drop(agent);
    eventually("the gateway notices that the agent is gone", || {
        let away = play(door, "Late", &[]);
        (away["kicked"].is_string() && away["kicked"] != down["kicked"]).then_some(())
    });
    gateway.assert_healthy();
}

/// Waits until an endpoint is open whose home does not listen yet, and until the probe itself is over: one that is still
/// on its way would be the first client of the server that starts next.
#[track_caller]
fn wait_for_endpoint(door: SocketAddr) {
    let mut probe = eventually("the endpoint is open", || TcpStream::connect(door).ok());
    probe.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = probe.read(&mut [0]);
    let is_over = match &end {
        Ok(read) => *read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(is_over, "nobody is at home, yet: {end:?}");
}

/// An iperf3 server for one run. A probe of its port would be taken for a client, so its words tell that it is ready.
fn iperf3_server(directory: &Path, address: SocketAddr, run: usize) -> Running {
    let mut command = tool("iperf3");
    command.args(["-s", "-1", "--forceflush", "-B", "127.0.0.1"]);
    command.args(["-p", &address.port().to_string()]);
    let server = Running::start(
        "iperf3",
        &mut command,
        &directory.join(format!("iperf3-{run}.log")),
    );
    eventually("iperf3 listens", || {
        server.log().contains("Server listening").then_some(())
    });
    server
}

#[test]
fn iperf3_runs_both_ways_through_a_tcp_endpoint() {
    let gateway = Gateway::start("");
    let home = loopback(free_port());
    let port = free_port();
    let range = port.to_string();
    let mut agent = Agent::enrol(&gateway, "home", &["--port", &range], &Agent::tcp(port, home));
    eventually("the agent is connected", || agent.connected(&gateway));
    wait_for_endpoint(loopback(port));
    for (run, more) in [&[][..], &["-R"], &["-P", "8"], &["-P", "8", "-R"]]
        .iter()
        .enumerate()
    {
        let mut server = iperf3_server(gateway.directory(), home, run);
        let mut command = tool("iperf3");
        command
            .args(["-c", "127.0.0.1", "-p", &range, "-n", "128M", "-J"])
            .args(*more);
        let output = process::output(&mut command);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{more:?}: {}", report["error"]);
        let bytes = |side: &str| {
            report["end"][side]["bytes"]
                .as_u64()
                .unwrap_or_else(|| panic!("{more:?}: no {side} in {report}\n{}", server.log()))
        };
        let (sent, received) = (bytes("sum_sent"), bytes("sum_received"));
        assert!(sent >= 128 << 20 && received <= sent, "{more:?}: {report}");
        // With -R the receiver ends the test, when it has it all. Else the sender does, on a connection of its own, and the
        // receiver stops counting there, whatever the buffers on the way still hold: on loopback alone it misses a tenth.
        // That nothing of it is lost is what the next test proves.
        let least = if more.contains(&"-R") { 128 << 20 } else { 1 };
        assert!(
            received >= least,
            "{more:?}: {sent} bytes sent, {received} received"
        );
        assert!(server.wait().success(), "{}", server.log());
    }
    gateway.assert_healthy();
}

/// A server at home that gives each client a shell command to speak with.
fn socat_server(directory: &Path, command: &str) -> (Running, SocketAddr) {
    let address = loopback(free_port());
    let mut socat = tool("socat");
    socat
        .args(["-t", "60"])
        .arg(format!(
            "TCP-LISTEN:{},bind=127.0.0.1,reuseaddr,fork,backlog=64",
            address.port()
        ))
        .arg(format!("SYSTEM:{command}"))
        .current_dir(directory);
    let server = Running::start("socat", &mut socat, &directory.join("socat.log"));
    wait_for_listener("socat", address);
    (server, address)
}

/// Sends `bytes`, says that this is all, and gives what comes back.
fn socat(door: u16, bytes: &[u8]) -> Vec<u8> {
    let mut command = tool("socat");
    command
        .args(["-t", "60", "-"])
        .arg(format!("TCP:127.0.0.1:{door}"));
    process::exchange(&mut command, bytes)
}

#[test]
fn every_byte_of_many_connections_arrives_both_ways_at_once() {
    let gateway = Gateway::start("");
    let directory = gateway.directory();
    // One answers what it was sent with its checksum, the other a name with the file of that name.
    let (_sums, sums) = socat_server(directory, "sha256sum");
    let (_files, files) = socat_server(directory, "read -r name && cat \"$name\"");
    let (up, down) = (free_port(), free_port());
    let _agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &up.to_string(), "--port", &down.to_string()],
        &[Agent::tcp(up, sums), Agent::tcp(down, files)].concat(),
    );
    for door in [up, down] {
        wait_for_listener("the endpoint", loopback(door));
    }
    std::thread::scope(|scope| {
        for number in 0..8 {
            let mut bytes = vec![0; 8 << 20];
            File::open("/dev/urandom")
                .unwrap()
                .read_exact(&mut bytes)
                .unwrap();
            let name = format!("file{number}");
            std::fs::write(directory.join(&name), &bytes).unwrap();
            let sum = format!("{}  -\n", sha256(&bytes));
            scope.spawn({
                let bytes = bytes.clone();
                move || {
                    let heard = String::from_utf8(socat(up, &bytes)).unwrap();
                    assert_eq!(heard, sum, "what arrived at home");
                }
            });
            scope.spawn(move || {
                let came = socat(down, format!("{name}\n").as_bytes());
                assert!(came == bytes, "{name}: {} of {} bytes", came.len(), bytes.len());
            });
        }
    });
    gateway.assert_healthy();
}

#[test]
fn iperf3_sends_datagrams_both_ways_through_a_pair_of_ports() {
    let gateway = Gateway::start("");
    let home = loopback(free_port());
    let port = free_port();
    let range = port.to_string();
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &range, "--udp", &range],
        &Agent::pair(port, home),
    );
    eventually("the agent is connected", || agent.connected(&gateway));
    wait_for_endpoint(loopback(port));
    for (run, more) in [&[][..], &["-R"]].iter().enumerate() {
        let mut server = iperf3_server(gateway.directory(), home, run);
        let mut command = tool("iperf3");
        command
            .args(["-c", "127.0.0.1", "-p", &range, "-J", "-u"])
            .args(["-b", "4M", "-l", "1000", "-t", "2"])
            .args(*more);
        let output = process::output(&mut command);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{more:?}: {}", report["error"]);
        // What the receiver says: in the sum of both ends the number of datagrams is the sender's.
        let sum = &report["end"]["sum_received"];
        let count = |what: &str| {
            sum[what]
                .as_u64()
                .unwrap_or_else(|| panic!("{more:?}: no {what} in {report}\n{}", server.log()))
        };
        let (packets, lost) = (count("packets"), count("lost_packets"));
        assert!(
            packets >= 900 && lost * 10 < packets,
            "{more:?}: {lost} of {packets} datagrams were lost"
        );
        // What was not lost came whole, and once.
        assert_eq!(count("bytes"), (packets - lost) * 1000, "{more:?}: {report}");
        assert!(server.wait().success(), "{}", server.log());
    }
    gateway.assert_healthy();
}

#[test]
fn the_agent_comes_back_by_itself_after_kill_9_of_the_gateway() {
    let (mut gateway, _server, _agent, door) = game("still here");
    gateway.kill();
    gateway.restart();
    eventually("the status comes from the server at home again", || {
        (mcstatus(door)["motd"] == "still here").then_some(())
    });
    assert_eq!(play(door, "Again", &[])["joined"], true);
}

#[test]
fn a_visitor_who_sends_nonsense_is_sent_away_and_others_play_on() {
    let (gateway, _server, _agent, door) = game("calm");
    let nonsense: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 64],
        // A frame of 2 MiB, a name of 2 GiB, a sixth byte of a VarInt, an unknown next state.
        &[0xff, 0xff, 0x7f, 0x00],
        &[
            0x0a, 0x00, 0x2f, 0xff, 0xff, 0xff, 0xff, 0x07, 0x41, 0x63, 0xdd, 0x01,
        ],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
        &[0x07, 0x00, 0x2f, 0x01, 0x41, 0x63, 0xdd, 0x63],
    ];
    for bytes in nonsense {
        let mut stream = TcpStream::connect(door).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Closed, with or without words; a reset is an answer too.
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{bytes:x?}: {error}"
            ),
        }
    }
    // Half a handshake, then silence: only its own connection waits.
    let mut silent = TcpStream::connect(door).unwrap();
    silent.write_all(&[0x10]).unwrap();
    assert_eq!(mcstatus(door)["motd"], "calm");
    assert_eq!(play(door, "Calm", &[])["joined"], true);
    gateway.assert_healthy();
}
