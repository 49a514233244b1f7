//! ActivityRelay by barkshark, a relay that nobody here wrote.

use std::path::{Path, PathBuf};

use super::own_network::OwnNetwork;
use super::process::{self, Running};

pub(crate) struct ActivityRelay<'a> {
    network: &'a OwnNetwork,
    directory: PathBuf,
    port: u16,
    running: Option<Running>,
}

impl<'a> ActivityRelay<'a> {
    /// Makes its database. It will take plain HTTP on this port, behind a web server for `domain`, and trust the CA.
    pub(crate) fn prepare(network: &'a OwnNetwork, domain: &str, port: u16) -> Self {
        let directory = network.directory().join("activityrelay");
        std::fs::create_dir(&directory).unwrap();
        let config = format!(
            "listen: 127.0.0.1\nport: {port}\ndomain: {domain}\nworkers: 1\ndatabase_type: sqlite\n\
             cache_type: database\nsqlite_path: {}\n",
            directory.join("relay.sqlite3").display()
        );
        std::fs::write(directory.join("relay.yaml"), config).unwrap();
        let relay = Self {
            network,
            directory,
            port,
            running: None,
        };
        // Even with --skip-questions it asks whether to start at once; no answer means no.
        process::output(
            relay
                .command(Path::new("/dev/null"))
                .args(["setup", "--skip-questions"]),
        );
        assert!(relay.database().exists(), "activityrelay made no database");
        relay
    }

    fn command(&self, ca: &Path) -> std::process::Command {
        let mut command = self.network.command(&process::find("unshare"));
        // Its workers are processes of their own: they end with the first one.
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(process::python_program("activityrelay"))
            .arg("-c")
            .arg(self.directory.join("relay.yaml"))
            .env("SSL_CERT_FILE", ca)
            .env("HOME", &self.directory);
        command
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.directory.join("relay.sqlite3")
    }

    pub(crate) fn start(&mut self, ca: &Path) {
        let mut command = self.command(ca);
        let log = self.directory.join("said.log");
        self.running = Some(Running::start("activityrelay", command.arg("run"), &log));
        self.network.wait_for_listener("activityrelay", self.port);
    }

    /// It follows another relay's actor.
    pub(crate) fn follow(&self, ca: &Path, actor: &str) {
        process::succeed(self.command(ca).args(["inbox", "follow", actor]));
    }

    /// Who is subscribed to it.
    pub(crate) fn inboxes(&self, ca: &Path) -> String {
        process::succeed(self.command(ca).args(["inbox", "list"]))
    }

    /// What it said since it was started.
    pub(crate) fn log(&self) -> String {
        self.running.as_ref().map(Running::log).unwrap_or_default()
    }

    pub(crate) fn stop(&mut self) {
        self.running.take().expect("it runs").kill();
    }
}
