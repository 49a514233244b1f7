//! Minecraft programs that nobody here wrote: a server, a client, and a look at the server list.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::process::{self, Lines, Running, clone_of, node, python};
use super::{client, eventually, loopback};

pub(crate) struct MinecraftServer {
    pub(crate) address: SocketAddr,
    pub(crate) events: Lines,
    _running: Running,
}

impl MinecraftServer {
    pub(crate) fn start(directory: &Path, motd: &str) -> Self {
        Self::start_where(directory, motd, clone_of)
    }

    /// In the network that `place` puts it into.
    pub(crate) fn start_where(directory: &Path, motd: &str, place: impl Fn(&Command) -> Command) -> Self {
        let mut command = node(&client("node/server.js"));
        command.args(["--motd", motd]);
        let mut command = place(&command);
        let log = directory.join("minecraft.log");
        let (running, events) = Running::start_and_read("minecraft server", &mut command, &log);
        let port = u16::try_from(events.next_json()["port"].as_u64().unwrap()).unwrap();
        Self {
            address: loopback(port),
            events,
            _running: running,
        }
    }
}

fn player(door: SocketAddr, name: &str) -> Command {
    let port = door.port().to_string();
    let mut command = node(&client("node/client.js"));
    command.args(["--port", &port, "--name", name, "--say", "konnichiwa"]);
    command
}

/// Joins, says a word, leaves: what the client says happened.
pub(crate) fn play(door: SocketAddr, name: &str, more: &[&str]) -> Value {
    let output = process::output(player(door, name).args(more));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(
        line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr))),
    )
    .unwrap()
}

/// A player who stays in the game.
pub(crate) struct Player {
    name: String,
    running: Running,
    heard: Lines,
}

impl Player {
    /// Joins, and waits until the server has repeated the first word.
    #[track_caller]
    pub(crate) fn join(directory: &Path, door: SocketAddr, name: &str) -> Self {
        Self::join_where(directory, door, name, clone_of)
    }

    /// In the network that `place` puts it into.
    #[track_caller]
    pub(crate) fn join_where(
        directory: &Path,
        door: SocketAddr,
        name: &str,
        place: impl Fn(&Command) -> Command,
    ) -> Self {
        let log = directory.join(format!("player-{name}.log"));
        let mut command = place(player(door, name).arg("--stay"));
        let (running, heard) = Running::start_and_read(name, &mut command, &log);
        let player = Self {
            name: name.to_owned(),
            running,
            heard,
        };
        player.hears("konnichiwa");
        player
    }

    /// Says a line and hears it from the server, on the same connection as ever.
    #[track_caller]
    pub(crate) fn says(&mut self, line: &str) {
        self.running.tell(line);
        self.hears(line);
    }

    #[track_caller]
    fn hears(&self, line: &str) {
        let expected = format!("<{}> {line}", self.name);
        loop {
            let said = self.heard.next_json();
            let heard = said["heard"].as_str();
            let heard = heard.unwrap_or_else(|| panic!("{} is not in the game any more: {said}", self.name));
            if heard.contains(&expected) {
                return;
            }
        }
    }

    /// Waits until the player's connection has ended.
    #[track_caller]
    pub(crate) fn is_gone(&mut self) {
        loop {
            let said = self.heard.next_json();
            if said.get("joined").is_some() {
                return;
            }
        }
    }
}

pub(crate) fn mcstatus(door: SocketAddr) -> Value {
    let port = door.port().to_string();
    serde_json::from_str(&process::succeed(
        python(&client("mc_status.py")).args(["127.0.0.1", &port]),
    ))
    .unwrap()
}

/// What a server says that is asked in another way (`--legacy`, `--bedrock`); `None` if it does not answer.
pub(crate) fn mcstatus_of(door: SocketAddr, way: &str) -> Option<Value> {
    let port = door.port().to_string();
    let output = process::output(python(&client("mc_status.py")).args(["127.0.0.1", &port, way]));
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// Waits until the server list shows this text.
#[track_caller]
pub(crate) fn wait_for_motd(door: SocketAddr, motd: &str) {
    eventually("the status comes from the server at home", || {
        (mcstatus(door)["motd"] == motd).then_some(())
    });
}
