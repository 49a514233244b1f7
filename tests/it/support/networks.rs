//! A home and the world outside as two networks with one wire between them, so that real addresses change and real packets
//! are lost.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use tempfile::TempDir;

use super::open_directory;
use super::process::{self, Running, copy_surroundings, find, is_root, tool};

/// Where the gateway is, as the home sees it.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where the home is at first.
const HOME: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

pub(crate) struct Networks {
    outside: Running,
    home: Running,
    _directory: TempDir,
}

impl Networks {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let directory = open_directory();
        let log = |name: &str| directory.path().join(name);
        // Says that it stands, and stands until its input ends.
        let script = format!(
            "{} link set lo up && echo '{{}}' && exec cat",
            find("ip").display()
        );
        let mut command = tool("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--net", "sh", "-c", &script]);
        let (outside, said) = Running::start_and_read("the world outside", &mut command, &log("outside.log"));
        said.next_json();
        let mut command = tool("unshare");
        command.args(["--net", "sh", "-c", &script]);
        let mut command = within(&outside, &command);
        let (home, said) = Running::start_and_read("a home", &mut command, &log("home.log"));
        said.next_json();
        let networks = Self {
            outside,
            home,
            _directory: directory,
        };
        let home = networks.home.id().to_string();
        let ip = |arguments: &[&str]| networks.outside_runs("ip", arguments);
        ip(&[
            "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &home,
        ]);
        ip(&["address", "add", &format!("{OUTSIDE}/24"), "dev", "wire"]);
        ip(&["link", "set", "wire", "up"]);
        networks.home_runs("ip", &["address", "add", &format!("{HOME}/24"), "dev", "wire"]);
        networks.home_runs("ip", &["link", "set", "wire", "up"]);
        networks
    }

    /// The same program in the world outside.
    pub(crate) fn outside(&self, command: &Command) -> Command {
        within(&self.outside, command)
    }

    /// The same program at home.
    pub(crate) fn home(&self, command: &Command) -> Command {
        within(&self.home, command)
    }

    #[track_caller]
    pub(crate) fn outside_runs(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = tool(name);
        process::succeed(&mut self.outside(command.args(arguments)))
    }

    #[track_caller]
    pub(crate) fn home_runs(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = tool(name);
        process::succeed(&mut self.home(command.args(arguments)))
    }

    /// No packet of UDP passes any more for this port, without a word to anybody.
    #[track_caller]
    pub(crate) fn block_udp(&self, to: SocketAddr) {
        let rules = format!(
            "table inet blocked {{ chain in {{ type filter hook input priority 0; udp dport {} drop; }}; }}",
            to.port()
        );
        self.outside_runs("nft", &[&rules]);
    }

    /// They pass again.
    #[track_caller]
    pub(crate) fn let_udp_pass(&self) {
        self.outside_runs("nft", &["delete", "table", "inet", "blocked"]);
    }

    /// Nothing passes in either direction, or everything does again.
    #[track_caller]
    pub(crate) fn cut(&self, cut: bool) {
        let rules = "table inet cut { chain in { type filter hook input priority 0; iifname \"wire\" drop; }; \
                     chain out { type filter hook output priority 0; oifname \"wire\" drop; }; }";
        match cut {
            true => self.outside_runs("nft", &[rules]),
            false => self.outside_runs("nft", &["delete", "table", "inet", "cut"]),
        };
    }

    /// The home's provider gives it another address; the old one is gone at once.
    #[track_caller]
    pub(crate) fn renumber_home(&self, to: Ipv4Addr) {
        self.home_runs("ip", &["address", "flush", "dev", "wire"]);
        self.home_runs("ip", &["address", "add", &format!("{to}/24"), "dev", "wire"]);
    }
}

/// The command, in the network of a running program.
fn within(network: &Running, command: &Command) -> Command {
    let mut inside = tool("nsenter");
    if !is_root() {
        inside.args(["--user", "--preserve-credentials"]);
    }
    inside.args(["--target", &network.id().to_string(), "--net"]);
    inside.arg(command.get_program()).args(command.get_args());
    copy_surroundings(command, &mut inside);
    inside
}
