//! A Minecraft server that sleeps, woken by a real client that joins.

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::minecraft::{mcstatus, play};
use crate::support::process;
use crate::support::{client, eventually, free_port, root};

#[test]
fn a_real_player_wakes_a_real_server_and_plays() {
    let gateway = Gateway::start("");
    let directory = gateway.directory();
    let port = free_port();
    // The server ends with its standard input; that ends with the agent, which is the parent of the shell.
    let script = format!(
        "sleep 2; tail -f /dev/null --pid=$PPID | NODE_PATH={}/.tools/node/node_modules {} {} --port {port} --motd awake",
        root().display(),
        process::find("node").display(),
        client("node/server.js").display(),
    );
    let path = directory.join("home.toml");
    let endpoint = format!(
        "[[endpoint]]\nkind = \"minecraft\"\nlocal = \"127.0.0.1:{port}\"\nstart = [\"sh\", \"-c\", '{script}']\n\
         wake_for = [\"Hanako\"]\n"
    );
    std::fs::write(&path, endpoint).unwrap();
    let arguments = ["--config".to_owned(), path.to_str().unwrap().to_owned()];
    let mut agent = Agent::enrol(&gateway, "home", &["--default"], &arguments);
    eventually("the agent is connected", || agent.connected(&gateway));
    let door = gateway.address("tunnel.minecraft");
    let sleeping = eventually("the endpoint is open", || {
        let shown = mcstatus(door);
        shown["motd"].as_str()?.contains("sleeping").then_some(shown)
    });
    assert!(
        sleeping["motd"].as_str().unwrap().contains("休止中"),
        "{sleeping}"
    );
    let stranger = play(door, "Stranger", &[]);
    assert!(
        stranger["kicked"]
            .as_str()
            .unwrap_or_default()
            .contains("sleeping"),
        "only Hanako wakes it: {stranger}"
    );
    let happened: Value = play(door, "Hanako", &[]);
    assert_eq!(happened["joined"], true, "{happened}\n{}", agent.said());
    assert!(
        happened["heard"]
            .as_str()
            .unwrap_or_default()
            .contains("<Hanako> konnichiwa"),
        "{happened}"
    );
    assert_eq!(mcstatus(door)["motd"], "awake");
    gateway.assert_healthy();
}
