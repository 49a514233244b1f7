//! Bedrock Edition through the tunnel: `mcstatus` pings a stand-in for a server, and a stand-in for a client joins it in the
//! newer way. Both stand-ins are small programs of ours, which have no game in them.

use std::path::Path;

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::minecraft::mcstatus_of;
use crate::support::process::{self, Lines, Running, python};
use crate::support::{client, eventually, free_port, loopback};

/// The stand-in for a server; TCP and UDP of one number.
fn bedrock_server(directory: &Path, motd: &str) -> (Running, Lines, u16) {
    let mut command = python(&client("bedrock_server.py"));
    command.arg(motd);
    let log = directory.join("bedrock.log");
    let (running, lines) = Running::start_and_read("stand-in for a Bedrock server", &mut command, &log);
    let port = u16::try_from(lines.next_json()["port"].as_u64().unwrap()).unwrap();
    (running, lines, port)
}

#[test]
fn mcstatus_pings_a_bedrock_server_through_a_udp_port() {
    let gateway = Gateway::start("");
    let (_server, _lines, home) = bedrock_server(gateway.directory(), "こんにちは Bedrock");
    let port = free_port();
    let endpoint = ["--udp".to_owned(), format!("{port}={}", loopback(home))];
    let mut agent = Agent::enrol(&gateway, "home", &["--udp", &port.to_string()], &endpoint);
    eventually("the agent is connected", || agent.connected(&gateway));
    let shown = eventually("the server answers", || mcstatus_of(loopback(port), "--bedrock"));
    assert_eq!(shown["motd"], "こんにちは Bedrock");
    assert_eq!((&shown["online"], &shown["max"]), (&3.into(), &20.into()));
    assert_eq!(shown["version"], "1.21.130");
    let told = gateway.json(&["tunnel", "show", "home", "--json"]);
    assert_eq!(told["endpoints"][0]["bedrock"]["port"], port, "{told}");
    gateway.assert_healthy();
}

#[test]
fn a_bedrock_client_joins_by_http_and_udp_of_one_number() {
    let gateway = Gateway::start("");
    let (_server, lines, home) = bedrock_server(gateway.directory(), "both");
    let port = free_port();
    let range = port.to_string();
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &range, "--udp", &range],
        &Agent::pair(port, loopback(home)),
    );
    eventually("the agent is connected", || agent.connected(&gateway));
    let mut command = python(&client("bedrock_join.py"));
    command.args(["127.0.0.1", &range, "200"]);
    let joined: Value = eventually("the ports are open", || {
        let output = process::output(&mut command);
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    });
    assert_eq!(
        (&joined["spoken"], &joined["status"]),
        (&200.into(), &200.into()),
        "{joined}"
    );
    assert_eq!(joined["back"], 200, "each datagram came back whole: {joined}");
    let again = joined["again"].as_u64().unwrap();
    assert!(again <= 10, "loopback loses hardly any: {joined}");
    // One player by TCP and the same by UDP.
    let mut events = Vec::new();
    while events.last() != Some(&"proven".into()) {
        let event = lines.next_json();
        if event["id"] == joined["id"] || event["event"] == "proven" {
            events.push(event["event"].clone());
        }
    }
    assert_eq!(events[0], "joining");
    gateway.assert_healthy();
}
