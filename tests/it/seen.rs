//! Who plays now, as the gateway's operator and the home host see it while a real client plays.

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, Player, wait_for_motd};

/// The line of a player, if there is one.
fn of(listing: &Value, name: &str) -> Option<Value> {
    let players = listing["players"].as_array().unwrap();
    players.iter().find(|player| player["player"] == name).cloned()
}

fn number(player: &Value, key: &str) -> u64 {
    player[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key}: {player}"))
}

#[test]
fn a_player_is_listed_at_both_ends_with_edition_delays_and_bytes_that_move() {
    let gateway = Gateway::start("[log]\nlevel = \"debug\"\n");
    let server = MinecraftServer::start(gateway.directory(), "home");
    let agent = Agent::enrol(
        &gateway,
        "home",
        &["--default"],
        &Agent::minecraft(server.address),
    );
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, "home");
    let everybody = || gateway.json(&["tunnel", "players", "--json"]);
    let mut hanako = Player::join(gateway.directory(), door, "Hanako");

    let seen = of(&everybody(), "Hanako").unwrap();
    assert!(
        seen["address"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{seen}"
    );
    for (key, value) in [("agent", "home"), ("endpoint", "minecraft"), ("edition", "java")] {
        assert_eq!(seen[key], value, "{seen}");
    }
    assert!(
        seen["since"]
            .as_str()
            .is_some_and(|since| since.starts_with("20")),
        "{seen}"
    );
    assert!(
        number(&seen, "visitor_rtt_us") > 0 && number(&seen, "agent_rtt_us") > 0,
        "{seen}"
    );
    let bytes = |seen: &Value| (number(seen, "bytes_in"), number(seen, "bytes_out"));
    let before = bytes(&seen);
    hanako.says("one more line");
    eventually("bytes are counted while they move", || {
        let now = bytes(&of(&everybody(), "Hanako")?);
        (now.0 > before.0 && now.1 > before.1).then_some(())
    });

    // The gateway tells the agent how far its players are.
    let at_home = eventually("all legs are known at home", || {
        let seen = of(&agent.json(&["players", "--json"]), "Hanako")?;
        seen["visitor_rtt_us"].is_number().then_some(seen)
    });
    assert_eq!(at_home["edition"], "java", "{at_home}");
    assert_eq!(at_home["address"], seen["address"], "{at_home}");
    assert!(
        number(&at_home, "gateway_rtt_us") > 0 && number(&at_home, "local_rtt_us") > 0,
        "{at_home}"
    );
    for table in [
        gateway.cli(&["tunnel", "players"]),
        gateway.cli(&["tunnel", "players", "home"]),
        agent.cli(&["players"]),
    ] {
        let line = table.lines().find(|line| line.starts_with("Hanako")).unwrap();
        assert!(
            line.to_lowercase().contains("java") && line.matches(" ms").count() >= 2,
            "{table}"
        );
    }
    let (code, said) = gateway.fails(&["tunnel", "players", "nobody"]);
    assert_eq!(code, 65, "{said}");

    drop(hanako);
    eventually("nobody is here", || {
        (everybody()["players"] == Value::Array(Vec::new())).then_some(())
    });
    drop(agent);
    for said in ["agent connected", "visitor joined", "visitor left", "agent gone"] {
        eventually(said, || gateway.log_text().contains(said).then_some(()));
    }
    gateway.assert_healthy();
}
