//! The gateway as a process: started on port 0, its addresses read back, commanded by its own command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::process::{self, Adopted, Running, tool, tool_as_root};
use super::{eventually, http, open_directory};

/// The name that tests give the gateway unless they need another.
pub(crate) const NAME: &str = "relay.test";

/// Every listener on a port that the kernel chooses.
const LISTENERS: &str = r#"
[front]
listen = ["127.0.0.1:0"]
tls_listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[mail.relay]
listen = ["127.0.0.1:0"]
[mail.submission]
listen = ["127.0.0.1:0"]
[mail.submissions]
listen = ["127.0.0.1:0"]
[tunnel.quic]
listen = "127.0.0.1:0"
[tunnel.minecraft]
listen = "127.0.0.1:0"
"#;

pub(crate) struct Gateway {
    // Dropped first: the process ends before its directory does.
    running: Option<Running>,
    /// Another process has taken over.
    adopted: Option<Adopted>,
    listeners: Value,
    name: String,
    directory: TempDir,
}

impl Gateway {
    /// Peers on loopback, in plain HTTP.
    pub(crate) const FEDIVERSE: &str = "[server]\ndanger_public_url = \"http://127.0.0.1:0\"\n\
        [fediverse]\ndanger_allow_private_addresses = true\nretry = [\"1s\"]\n\
        author_per_hour = 0\nnew_author_per_hour = 0\nhost_per_minute = 0\nnew_host_per_minute = 0\n";

    /// With the embedded store; `config` is laid over the tests' own.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_as(NAME, config)
    }

    /// With the store that `store` names.
    #[track_caller]
    pub(crate) fn start_on(store: &str, config: &str) -> Self {
        Self::build(NAME, &[config, &format!("[store]\nurl = \"{store}\"\n")])
    }

    /// Beside another on the same store, with the same keys.
    #[track_caller]
    pub(crate) fn start_beside(first: &Self, store: &str, config: &str) -> Self {
        let directory = open_directory();
        let copied = process::succeed(
            tool("cp")
                .arg("-a")
                .arg("--parents")
                .arg("data/keys")
                .arg(directory.path())
                .current_dir(first.directory()),
        );
        assert_eq!(copied, "");
        Self::build_in(
            directory,
            NAME,
            &[config, &format!("[store]\nurl = \"{store}\"\n")],
        )
    }

    /// In the network that `place` puts it into.
    #[track_caller]
    pub(crate) fn start_where(config: &str, place: impl Fn(&Command) -> Command) -> Self {
        let mut gateway = Self::furnish(open_directory(), NAME, &[config]);
        gateway.serve_where(place);
        gateway
    }

    #[track_caller]
    pub(crate) fn start_as(name: &str, config: &str) -> Self {
        Self::build(name, &[config])
    }

    /// With its data on a file system of this size.
    #[track_caller]
    pub(crate) fn start_on_small_disk(config: &str, mib: usize) -> (Self, SmallDisk) {
        let directory = open_directory();
        let disk = SmallDisk::mount(&directory.path().join("data"), mib);
        (Self::build_in(directory, NAME, &[config]), disk)
    }

    #[track_caller]
    fn build(name: &str, layers: &[&str]) -> Self {
        Self::build_in(open_directory(), name, layers)
    }

    #[track_caller]
    fn build_in(directory: TempDir, name: &str, layers: &[&str]) -> Self {
        let mut gateway = Self::furnish(directory, name, layers);
        gateway.serve();
        gateway
    }

    /// With configuration and data, not started yet.
    #[track_caller]
    fn furnish(directory: TempDir, name: &str, layers: &[&str]) -> Self {
        let base = format!(
            "[server]\nhost = \"{name}\"\ndata = \"{}\"\n",
            directory.path().join("data").display()
        );
        let mut whole = toml::Table::new();
        for layer in [&base, LISTENERS].into_iter().chain(layers.iter().copied()) {
            merge(
                &mut whole,
                layer.parse().unwrap_or_else(|error| panic!("{error}: {layer}")),
            );
        }
        let mut gateway = Self {
            running: None,
            adopted: None,
            listeners: Value::Null,
            name: name.to_owned(),
            directory,
        };
        gateway.write_config(&toml::to_string(&whole).unwrap());
        gateway.cli(&["init", "--host", name]);
        gateway
    }

    #[track_caller]
    fn serve(&mut self) {
        self.serve_where(process::clone_of);
    }

    #[track_caller]
    fn serve_where(&mut self, place: impl Fn(&Command) -> Command) {
        let mut command = self.command(&["serve"]);
        command.env("RUST_BACKTRACE", "1");
        let mut running = Running::start("tasuki serve", &mut place(&command), &self.log_file());
        let file = self.directory().join("data/addresses.json");
        self.listeners = eventually("the gateway is up", || {
            running.assert_runs();
            serde_json::from_slice(&std::fs::read(&file).ok()?).ok()
        });
        self.running = Some(running);
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("gateway.log")
    }

    fn config_file(&self) -> PathBuf {
        self.directory().join("tasuki.toml")
    }

    pub(crate) fn config_text(&self) -> String {
        std::fs::read_to_string(self.config_file()).unwrap()
    }

    pub(crate) fn write_config(&mut self, text: &str) {
        std::fs::write(self.config_file(), text).unwrap();
    }

    /// Lays more configuration over what is there.
    pub(crate) fn change_config(&mut self, layer: &str) {
        let mut whole: toml::Table = self.config_text().parse().unwrap();
        merge(&mut whole, layer.parse().unwrap());
        self.write_config(&toml::to_string(&whole).unwrap());
    }

    /// Where a listener is bound.
    #[track_caller]
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let found = self.listeners[listener].as_str();
        found
            .unwrap_or_else(|| panic!("no listener {listener} in {}", self.listeners))
            .parse()
            .unwrap()
    }

    /// Scratch space of the test, gone with the gateway.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The certificate of the gateway's private CA.
    pub(crate) fn ca_file(&self) -> String {
        self.directory()
            .join("data/keys/ca.pem")
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// Where the front door is, as instances see it.
    pub(crate) fn public_url(&self) -> String {
        format!("http://{}", self.front_host())
    }

    /// The `Host` of requests to the front door.
    pub(crate) fn front_host(&self) -> String {
        if self.config_text().contains("danger_public_url") {
            self.address("front.http").to_string()
        } else {
            self.name.clone()
        }
    }

    pub(crate) fn relay_inbox(&self) -> String {
        format!("{}/inbox", self.public_url())
    }

    pub(crate) fn relay_actor(&self) -> String {
        format!("{}/actor", self.public_url())
    }

    /// All mail goes to this next hop.
    pub(crate) fn smarthost(next_hop: SocketAddr) -> String {
        Self::smarthosts(&[("*", next_hop)])
    }

    /// Mail for each domain (`*` for all others) goes to its own next hop; retries after a second.
    pub(crate) fn smarthosts(next_hops: &[(&str, SocketAddr)]) -> String {
        let mut text = String::from("[mail]\n");
        let mut rest = String::from("[mail.delivery]\nretry = [\"1s\"]\n");
        for (number, (domain, next_hop)) in next_hops.iter().enumerate() {
            let (host, port) = (next_hop.ip(), next_hop.port());
            rest += &format!(
                "[[mail.smarthosts]]\nname = \"hop{number}\"\nhost = \"{host}\"\nport = {port}\ntls = \"none\"\n"
            );
            if *domain == "*" {
                text += &format!("default_route = \"hop{number}\"\n");
            } else {
                rest += &format!("[[mail.routes]]\ndomain = \"{domain}\"\nvia = \"hop{number}\"\n");
            }
        }
        text + &rest
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(process::ours("tasuki"));
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config_file())
            .current_dir(self.directory());
        command
    }

    /// Runs a command of the command line; it must succeed.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        process::succeed(&mut self.command(arguments))
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.cli(arguments)).unwrap()
    }

    /// Runs a command that must not succeed: its exit code and what it said.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = process::output(&mut self.command(arguments));
        let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        assert!(!status.success(), "{arguments:?} succeeded: {said}");
        (status.code().unwrap_or(-1), said)
    }

    /// Still running, never panicked, and well in its own eyes.
    #[track_caller]
    pub(crate) fn assert_healthy(&self) {
        let answer = http::get(self.address("admin"), "localhost", "/healthz", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.look_for_panics();
    }

    /// The same for a gateway in another network.
    #[track_caller]
    pub(crate) fn assert_never_panicked(&self) {
        self.cli(&["status"]);
        self.look_for_panics();
    }

    #[track_caller]
    fn look_for_panics(&self) {
        let log = std::fs::read_to_string(self.log_file()).unwrap();
        let panicked = log.lines().find(|line| line.contains("panicked at"));
        assert!(panicked.is_none(), "{panicked:?}");
    }

    pub(crate) fn id(&self) -> u32 {
        match &self.adopted {
            Some(adopted) => adopted.id(),
            None => self.running.as_ref().unwrap().id(),
        }
    }

    /// Goes on in another process, and waits for the end of this one. Gives what the command said.
    #[track_caller]
    pub(crate) fn upgrade(&mut self, arguments: &[&str]) -> Value {
        let upgraded = self.json(&[&["upgrade", "--json"], arguments].concat())["upgraded"].clone();
        let next = Adopted::new(upgraded["pid"].as_u64().unwrap());
        if let Some(mut running) = self.running.take() {
            let status = running.wait();
            assert!(status.success(), "{status}");
        }
        if let Some(before) = self.adopted.replace(next) {
            assert!(before.ends(), "the older process ends by itself");
        }
        upgraded
    }

    /// SIGTERM to the process that has taken over; whether it ends.
    pub(crate) fn stop_adopted(&mut self) -> bool {
        let adopted = self.adopted.take().unwrap();
        process::signal(rustix::process::Signal::TERM, adopted.id());
        adopted.ends()
    }

    /// SIGHUP.
    pub(crate) fn signal_hup(&self) {
        process::signal(rustix::process::Signal::HUP, self.id());
    }

    /// Everything it said.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.running.as_mut().unwrap().kill();
        self.running = None;
        std::fs::remove_file(self.directory().join("data/addresses.json")).unwrap();
        self.pin_ports();
    }

    /// Waits until it ends by itself; its exit status.
    pub(crate) fn ends(&mut self) -> ExitStatus {
        self.running.take().unwrap().wait()
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let status = self.running.as_mut().unwrap().terminate();
        self.running = None;
        self.pin_ports();
        status
    }

    /// Starts again on the same data and the same ports.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.serve();
    }

    /// The next start binds what this one had: peers know the addresses by now.
    fn pin_ports(&mut self) {
        let pinned = LISTENERS.parse::<toml::Table>().unwrap();
        let mut layer = toml::Table::new();
        for (listener, path, list) in [
            ("front.http", "front.listen", true),
            ("front.https", "front.tls_listen", true),
            ("admin", "admin.listen", false),
            ("mail.relay", "mail.relay.listen", true),
            ("mail.submission", "mail.submission.listen", true),
            ("mail.submissions", "mail.submissions.listen", true),
            ("tunnel.quic", "tunnel.quic.listen", false),
            ("tunnel.minecraft", "tunnel.minecraft.listen", false),
        ] {
            let address = toml::Value::String(self.address(listener).to_string());
            let value = if list {
                toml::Value::Array(vec![address])
            } else {
                address
            };
            put(&mut layer, path, value);
        }
        assert_eq!(layer.len(), pinned.len(), "every listener of LISTENERS is pinned");
        self.change_config(&toml::to_string(&layer).unwrap());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- configuration:\n{}", self.config_text());
        }
    }
}

fn put(table: &mut toml::Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            put(inner.as_table_mut().unwrap(), rest, value);
        }
    }
}

/// Tables are merged, lists of tables appended, all else replaced.
fn merge(whole: &mut toml::Table, layer: toml::Table) {
    for (key, value) in layer {
        match (whole.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// A file system in memory, of any size, unmounted when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    #[track_caller]
    fn mount(at: &Path, mib: usize) -> Self {
        Self::mount_for(at, at.parent().unwrap(), mib)
    }

    /// It belongs to the owner of `like`.
    #[track_caller]
    pub(crate) fn mount_for(at: &Path, like: &Path, mib: usize) -> Self {
        use std::os::unix::fs::MetadataExt;
        std::fs::create_dir(at).unwrap();
        let owner = std::fs::metadata(like).unwrap();
        let options = format!("size={mib}m,mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mut command = tool_as_root("mount");
        command
            .args(["-t", "tmpfs", "-o", &options, "tasuki-test"])
            .arg(at);
        process::succeed(&mut command);
        Self(at.to_owned())
    }

    /// Space returns.
    #[track_caller]
    pub(crate) fn grow(&self, mib: usize) {
        let mut command = tool_as_root("mount");
        command.args(["-o", &format!("remount,size={mib}m")]).arg(&self.0);
        process::succeed(&mut command);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the gateway may still run when the test fails.
        let _ = tool_as_root("umount").arg("-l").arg(&self.0).status();
    }
}
