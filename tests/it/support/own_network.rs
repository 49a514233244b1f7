//! A network of its own for a test that needs the usual ports and names.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::{self, Running, is_root, tool};
use super::{eventually, open_directory};

/// A network of its own, loopback only, in which a program finds every port free.
pub(crate) struct OwnNetwork {
    holder: Running,
    directory: TempDir,
    /// Whether it has names of its own, too.
    named: bool,
}

impl OwnNetwork {
    pub(crate) fn start() -> Self {
        Self::start_with(&[], &[])
    }

    /// With further addresses, and with names at such addresses or in 127.0.0.0/8.
    pub(crate) fn start_with(addresses: &[&str], names: &[(&str, &str)]) -> Self {
        let directory = open_directory();
        let mut command = tool("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        let ip = process::find("ip").display().to_string();
        let mut script = format!("{ip} link set lo up");
        for address in addresses {
            script += &format!(" && {ip} address add {address}/32 dev lo");
        }
        if !names.is_empty() {
            let line = |(name, address): &(&str, &str)| format!("{address} {name}\n");
            let ours: String = names.iter().map(line).collect();
            let hosts = directory.path().join("hosts");
            std::fs::write(&hosts, format!("127.0.0.1 localhost\n{ours}")).unwrap();
            let mount = process::find("mount");
            script += &format!(" && {} --bind {} /etc/hosts", mount.display(), hosts.display());
            command.arg("--mount");
        }
        script += " && echo '{}' && exec cat";
        command.args(["--net", "sh", "-c", &script]);
        let log = directory.path().join("network.log");
        let (holder, lines) = Running::start_and_read("a network of its own", &mut command, &log);
        lines.next_json();
        Self {
            holder,
            directory,
            named: !names.is_empty(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A program that runs in this network; one with names of its own starts it in [`Self::directory`].
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = tool("nsenter");
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--target", &self.holder.id().to_string(), "--net"]);
        if self.named {
            command
                .arg("--mount")
                .arg(format!("--wd={}", self.directory().display()));
        }
        command.arg(program);
        command
    }

    /// The same with one of the system's tools.
    pub(crate) fn tool(&self, name: &str) -> Command {
        self.command(&process::find(name))
    }

    /// Waits until something listens on this TCP port of 127.0.0.1, or of all addresses.
    #[track_caller]
    pub(crate) fn wait_for_listener(&self, name: &str, port: u16) {
        // The kernel shows the sockets of a process' network: local address and port in hexadecimal (the address as it lies in
        // memory), 0A for LISTEN.
        let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
        let ours = [format!("{loopback:08X}"), "0".repeat(8), "0".repeat(32)]
            .map(|address| format!("{address}:{port:04X}"));
        let listens = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            ours.iter().any(|one| one == local) && fields.nth(1) == Some("0A")
        };
        eventually(&format!("{name} listens on port {port}"), || {
            ["tcp", "tcp6"].iter().find_map(|kind| {
                let table = format!("/proc/{}/net/{kind}", self.holder.id());
                let table = std::fs::read_to_string(table).ok()?;
                table.lines().any(listens).then_some(())
            })
        });
    }
}
