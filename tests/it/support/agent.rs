//! The agent as a process, enrolled with a code that the gateway made.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use serde_json::Value;

use super::gateway::Gateway;
use super::minecraft::{MinecraftServer, wait_for_motd};
use super::process::{self, Running};

/// A gateway with one server at home, open to players at this address, which shows `motd`.
#[track_caller]
pub(crate) fn game(motd: &str) -> (Gateway, MinecraftServer, Agent, SocketAddr) {
    let gateway = Gateway::start("");
    let server = MinecraftServer::start(gateway.directory(), motd);
    let agent = Agent::enrol(
        &gateway,
        "home",
        &["--default"],
        &Agent::minecraft(server.address),
    );
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, motd);
    (gateway, server, agent, door)
}

pub(crate) struct Agent {
    name: String,
    directory: PathBuf,
    running: Running,
}

impl Agent {
    /// Makes a code with these grants, and runs an agent that enrols with it and opens these endpoints.
    #[track_caller]
    pub(crate) fn enrol(gateway: &Gateway, name: &str, grants: &[&str], endpoints: &[String]) -> Self {
        let mut arguments = vec!["tunnel", "enroll", name, "--json"];
        arguments.extend(grants);
        let made = gateway.json(&arguments);
        let (pin, code) = (made["pin"].as_str().unwrap(), made["code"].as_str().unwrap());
        let printed = made["command"].as_str().unwrap();
        assert!(
            printed.starts_with("tasuki-agent run ") && printed.contains(pin) && printed.contains(code),
            "{printed}"
        );

        Self::run(gateway, name, &["--pin", pin, "--code", code], endpoints)
    }

    /// Runs an agent with these arguments and endpoints, in a directory of its name.
    #[track_caller]
    pub(crate) fn run(gateway: &Gateway, name: &str, arguments: &[&str], endpoints: &[String]) -> Self {
        Self::run_by(
            gateway,
            gateway.address("tunnel.quic"),
            name,
            arguments,
            endpoints,
        )
    }

    /// The same, on a way that leads through `quic`.
    #[track_caller]
    pub(crate) fn run_by(
        gateway: &Gateway,
        quic: SocketAddr,
        name: &str,
        arguments: &[&str],
        endpoints: &[String],
    ) -> Self {
        Self::run_where(gateway, quic, name, arguments, endpoints, process::clone_of)
    }

    /// The same, in the network that `place` puts it into.
    #[track_caller]
    pub(crate) fn run_where(
        gateway: &Gateway,
        quic: SocketAddr,
        name: &str,
        arguments: &[&str],
        endpoints: &[String],
        place: impl Fn(&Command) -> Command,
    ) -> Self {
        let directory = gateway.directory().join(format!("agent-{name}"));
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new(process::ours("tasuki-agent"));
        // The name in the printed command leads nowhere here.
        command.args(["run", "--gateway", &quic.to_string()]);
        command.args(["--tls", &gateway.address("front.https").to_string()]);
        command
            .args(arguments)
            .args(endpoints)
            .arg("--dir")
            .arg(&directory)
            .current_dir(&directory);
        let running = Running::start(
            &format!("agent {name}"),
            &mut place(&command),
            &directory.join("agent.log"),
        );
        Self {
            name: name.to_owned(),
            directory,
            running,
        }
    }

    /// Waits for the end of an agent that gives up by itself: its exit code and its words.
    #[track_caller]
    pub(crate) fn gives_up(mut self) -> (i32, String) {
        let code = self.running.wait().code().unwrap_or(-1);
        (code, self.running.log())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::command("tasuki-agent");
        command.args(arguments).arg("--dir").arg(&self.directory);
        command
    }

    /// Runs a command of the home host against it; it must succeed.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        process::succeed(&mut self.command(arguments))
    }

    /// The same, in the network that `place` puts it into.
    #[track_caller]
    pub(crate) fn cli_where(&self, arguments: &[&str], place: impl Fn(&Command) -> Command) -> String {
        process::succeed(&mut place(&self.command(arguments)))
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.cli(arguments)).unwrap()
    }

    /// Runs a command that must not succeed: its exit code and what it said.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = process::output(&mut self.command(arguments));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!output.status.success(), "{arguments:?} succeeded: {said}");
        (output.status.code().unwrap_or(-1), said)
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        assert!(self.running.terminate().success(), "{}", self.running.log());
    }

    /// What somebody types at it, if it runs in a terminal.
    #[track_caller]
    pub(crate) fn types(&mut self, text: &str) {
        self.running.tell(text);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        self.running.wait()
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        self.running.log()
    }

    /// Whether the gateway says that this agent is there.
    pub(crate) fn connected(&mut self, gateway: &Gateway) -> Option<()> {
        self.running.assert_runs();
        let listed = gateway.json(&["tunnel", "agents", "--json"]);
        let agents = listed["agents"].as_array()?;
        agents
            .iter()
            .any(|agent| agent["name"] == self.name.as_str() && agent["connected"] == true)
            .then_some(())
    }

    /// The Minecraft server at home.
    pub(crate) fn minecraft(server: SocketAddr) -> Vec<String> {
        vec!["--minecraft".to_owned(), server.to_string()]
    }

    /// A Minecraft server with a host name.
    pub(crate) fn minecraft_at(host: &str, server: SocketAddr) -> Vec<String> {
        let mut endpoint = Self::minecraft(server);
        endpoint.extend(["--name".to_owned(), host.to_owned()]);
        endpoint
    }

    /// TCP and UDP of one number.
    pub(crate) fn pair(port: u16, server: SocketAddr) -> Vec<String> {
        let mut endpoints = Self::tcp(port, server);
        endpoints.extend(["--udp".to_owned(), format!("{port}={server}")]);
        endpoints
    }

    pub(crate) fn tcp(port: u16, server: SocketAddr) -> Vec<String> {
        vec!["--tcp".to_owned(), format!("{port}={server}")]
    }
}
