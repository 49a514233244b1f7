//! flying-squid, a whole Minecraft server with a world: somebody plays on it through the tunnel.

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::minecraft::wait_for_motd;
use crate::support::process::{self, Running, node};
use crate::support::{client, loopback};

#[test]
fn a_player_walks_in_the_world_of_a_whole_server_at_home() {
    let gateway = Gateway::start("");
    let mut command = node(&client("node/squid.js"));
    command.args(["--motd", "a world at home"]);
    let log = gateway.directory().join("squid.log");
    let (_server, events) = Running::start_and_read("flying-squid", &mut command, &log);
    let home = u16::try_from(events.next_json()["port"].as_u64().unwrap()).unwrap();
    let _agent = Agent::enrol(
        &gateway,
        "home",
        &["--default"],
        &Agent::minecraft(loopback(home)),
    );
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, "a world at home");
    let mut command = node(&client("node/wanderer.js"));
    let port = door.port().to_string();
    // Keep-alives come every four seconds: with two of them it has played for some time.
    command.args(["--port", &port, "--name", "Hanako", "--say", "konnichiwa"]);
    command.args(["--chunks", "25", "--keep-alives", "2"]);
    let out = process::succeed(&mut command);
    let line = out.lines().find(|line| line.starts_with('{')).unwrap();
    let played: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&played["joined"], &played["error"]),
        (&true.into(), &().into()),
        "{played}"
    );
    let count = |packet: &str| played["counts"][packet].as_u64().unwrap_or(0);
    assert!(count("map_chunk") >= 25 && count("keep_alive") >= 2, "{played}");
    assert!(
        played["heard"]
            .as_str()
            .unwrap_or_default()
            .contains("konnichiwa"),
        "{played}"
    );
    assert!(played["steps"].as_u64().unwrap() >= 20, "{played}");
    let told: Vec<Value> = (0..3).map(|_| events.next_json()).collect();
    let what: Vec<&str> = told
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(what, ["joined", "said", "left"], "{told:?}");
    assert!(told.iter().all(|event| event["name"] == "Hanako"), "{told:?}");
    gateway.assert_healthy();
}
