//! Pebble, a CA that speaks ACME, and a DNS server for it that answers every name with 127.0.0.1.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::own_network::OwnNetwork;
use super::process::{self, Running, tool};
use super::{client, free_port, loopback, wait_for_listener};

pub(crate) struct Pebble {
    directory: tempfile::TempDir,
    ports: Ports,
    _dns: Running,
    pebble: Running,
}

struct Ports {
    acme: u16,
    management: u16,
    dns: u16,
    orders: u16,
}

impl Pebble {
    /// It looks for proofs of `http-01` and `tls-alpn-01` on these ports.
    pub(crate) fn start(http: u16, tls: u16) -> Self {
        let [acme, management, dns, orders] = [free_port(), free_port(), free_port(), free_port()];
        let ports = Ports {
            acme,
            management,
            dns,
            orders,
        };
        Self::run(None, ports, http, tls)
    }

    /// In a network where every port is free, for a front door on 80 and 443.
    pub(crate) fn start_in(network: &OwnNetwork) -> Self {
        let ports = Ports {
            acme: 14000,
            management: 15000,
            dns: 8053,
            orders: 8055,
        };
        Self::run(Some(network), ports, 80, 443)
    }

    fn run(network: Option<&OwnNetwork>, ports: Ports, http: u16, tls: u16) -> Self {
        let directory = super::open_directory();
        let base = directory.path();
        let program = |name: &str| network.map_or_else(|| tool(name), |network| network.tool(name));
        let wait = |name: &str, port: u16| match network {
            Some(network) => network.wait_for_listener(name, port),
            None => wait_for_listener(name, loopback(port)),
        };
        let address = |port: u16| loopback(port).to_string();
        certificate_of_its_own(base);
        let config = json!({"pebble": {
            "listenAddress": address(ports.acme), "managementListenAddress": address(ports.management),
            "certificate": base.join("pebble.pem"), "privateKey": base.join("pebble.key"),
            "httpPort": http, "tlsPort": tls,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        std::fs::write(base.join("pebble.json"), config.to_string()).unwrap();
        let mut command = program("pebble-challtestsrv");
        command.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        command.args([
            "-dns01",
            &address(ports.dns),
            "-management",
            &address(ports.orders),
        ]);
        let names = Running::start("pebble-challtestsrv", &mut command, &base.join("dns.log"));
        wait("pebble-challtestsrv", ports.dns);
        let mut command = program("pebble");
        command
            .args(["-dnsserver", &address(ports.dns), "-config"])
            .arg(base.join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0");
        let pebble = Running::start("pebble", &mut command, &base.join("pebble.log"));
        wait("pebble", ports.acme);
        wait("pebble's management", ports.management);
        Self {
            directory,
            ports,
            _dns: names,
            pebble,
        }
    }

    /// Its directory, as ACME calls the document that a client begins with.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/dir", self.ports.acme)
    }

    /// Whom a client of [`Self::url`] must trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("pebble.pem")
    }

    /// Writes the root of the certificates that it signs into a file.
    pub(crate) fn root(&self, file: &Path) {
        self.write_root(process::python(&client("https_get.py")), file);
    }

    /// The same, where it runs in a network of its own.
    pub(crate) fn root_in(&self, network: &OwnNetwork, file: &Path) {
        self.write_root(process::python_in(network, &client("https_get.py")), file);
    }

    fn write_root(&self, mut get: Command, file: &Path) {
        let url = format!("https://localhost:{}/roots/0", self.ports.management);
        let root = process::succeed(get.arg(url).arg("--ca").arg(self.certificate()));
        std::fs::write(file, root).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.pebble.kill();
    }
}

/// What pebble itself presents, for `localhost`.
fn certificate_of_its_own(directory: &Path) {
    let config = directory.join("openssl.cnf");
    let text = "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=leaf\n[name]\nCN=localhost\n\
                [leaf]\nsubjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(&config, text).unwrap();
    let mut command = tool("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    command.args(["-nodes", "-days", "2", "-config"]).arg(config);
    command.arg("-keyout").arg(directory.join("pebble.key"));
    process::succeed(command.arg("-out").arg(directory.join("pebble.pem")));
}
