//! The agent as a process: enrolled with the command that the gateway prints, run with a file of its own.

use std::net::SocketAddr;
use std::process::Command;

use super::gateway::Gateway;
use super::process::{self, Running};

pub(crate) struct Agent {
    name: String,
    _running: Running,
}

impl Agent {
    /// Makes a code, enrols with it, and runs.
    #[track_caller]
    pub(crate) fn enrol(gateway: &Gateway, name: &str, grants: &[&str], endpoints: &str) -> Self {
        let mut arguments = vec!["tunnel", "enroll", name, "--json"];
        arguments.extend(grants);
        let made = gateway.json(&arguments);
        let printed = made["command"].as_str().unwrap();
        let directory = gateway.directory().join(format!("agent-{name}"));
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("agent.toml");
        std::fs::write(&file, endpoints).unwrap();
        let mut words = printed.split_whitespace();
        assert_eq!(words.next(), Some("tasuki-agent"), "{printed}");
        let mut command = Command::new(process::ours("tasuki-agent"));
        command
            .args(words)
            .current_dir(&directory)
            .arg("--config")
            .arg(&file);
        let running = Running::start(
            &format!("agent {name}"),
            &mut command,
            &directory.join("agent.log"),
        );
        Self {
            name: name.to_owned(),
            _running: running,
        }
    }

    /// Whether the gateway says that this agent is there.
    pub(crate) fn connected(&self, gateway: &Gateway) -> Option<()> {
        let listed = gateway.json(&["tunnel", "agents", "--json"]);
        let agents = listed["agents"].as_array()?;
        agents
            .iter()
            .any(|agent| agent["name"] == self.name.as_str() && agent["connected"] == true)
            .then_some(())
    }

    /// The default server of the Minecraft port.
    pub(crate) fn minecraft(server: SocketAddr) -> String {
        format!("[[minecraft]]\ndefault = true\nserver = \"{server}\"\n")
    }

    /// A server with a host name.
    pub(crate) fn minecraft_at(host: &str, server: SocketAddr) -> String {
        format!("[[minecraft]]\nname = \"{host}\"\nserver = \"{server}\"\n")
    }

    pub(crate) fn tcp(port: u16, server: SocketAddr) -> String {
        format!("[[tcp]]\nport = {port}\nserver = \"{server}\"\n")
    }
}
