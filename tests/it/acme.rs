//! A certificate by ACME from pebble, a CA that nobody here wrote, through the real gateway: proved both ways, presented
//! on every TLS port, kept over a restart.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::gateway::{Gateway, NAME};
use crate::support::process::{self, Running, python, tool};
use crate::support::{client, eventually, free_port, loopback, wait_for_listener};

/// Pebble, and a DNS server for it that answers every name with 127.0.0.1.
struct Pebble {
    directory: tempfile::TempDir,
    address: SocketAddr,
    management: SocketAddr,
    _dns: Running,
    pebble: Running,
}

impl Pebble {
    /// It looks for proofs of `http-01` and `tls-alpn-01` on these ports.
    fn start(http: SocketAddr, tls: SocketAddr) -> Self {
        let directory = crate::support::open_directory();
        let base = directory.path();
        let [address, management, dns, orders] =
            [free_port(), free_port(), free_port(), free_port()].map(loopback);
        certificate_of_its_own(base);
        let config = json!({"pebble": {
            "listenAddress": address.to_string(), "managementListenAddress": management.to_string(),
            "certificate": base.join("pebble.pem"), "privateKey": base.join("pebble.key"),
            "httpPort": http.port(), "tlsPort": tls.port(),
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        std::fs::write(base.join("pebble.json"), config.to_string()).unwrap();
        let mut command = tool("pebble-challtestsrv");
        command.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        command.args(["-dns01", &dns.to_string(), "-management", &orders.to_string()]);
        let names = Running::start("pebble-challtestsrv", &mut command, &base.join("dns.log"));
        wait_for_listener("pebble-challtestsrv", dns);
        let mut command = tool("pebble");
        command
            .args(["-dnsserver", &dns.to_string(), "-config"])
            .arg(base.join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0");
        let pebble = Running::start("pebble", &mut command, &base.join("pebble.log"));
        wait_for_listener("pebble", address);
        wait_for_listener("pebble's management", management);
        Self {
            directory,
            address,
            management,
            _dns: names,
            pebble,
        }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("pebble.pem")
    }

    /// Writes the root of the certificates that it signs into a file.
    fn root(&self, file: &Path) {
        let url = format!("https://localhost:{}/roots/0", self.management.port());
        let mut get = python(&client("https_get.py"));
        let root = process::succeed(get.arg(url).arg("--ca").arg(self.certificate()));
        std::fs::write(file, root).unwrap();
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

/// The fingerprint of the certificate that OpenSSL sees, having checked chain and name.
fn presented(address: SocketAddr, root: &Path, more: &[&str]) -> Option<String> {
    let mut command: Command = tool("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-servername", NAME]);
    command.args(["-verify_hostname", NAME, "-verify_return_error", "-CAfile"]);
    let output = process::output(command.arg(root).args(more));
    if !output.status.success() {
        return None;
    }
    let mut command = tool("openssl");
    command.args(["x509", "-noout", "-fingerprint", "-sha256"]);
    Some(process::feed(&mut command, &output.stdout))
}

fn is_ordered_presented_everywhere_and_kept(challenge: &str) {
    let [http, https] = [free_port(), free_port()].map(loopback);
    let mut pebble = Pebble::start(http, https);
    let config = json!({
        "front": {"listen": [http], "tls_listen": [https]},
        "tls": {"extra_ca": [pebble.certificate()], "acme": {
            "enabled": true, "directory": format!("https://localhost:{}/dir", pebble.address.port()),
            "email": "operator@relay.test", "challenges": [challenge]}},
    });
    let mut gateway = Gateway::start(&toml::to_string(&config).unwrap());
    let root = gateway.directory().join("root.pem");
    pebble.root(&root);
    let seen = eventually("the front door presents pebble's certificate", || {
        presented(https, &root, &[])
    });
    let submission = gateway.address("mail.submission");
    let submissions = gateway.address("mail.submissions");
    let starttls = ["-starttls", "smtp", "-name", "client.test"];
    assert_eq!(presented(submissions, &root, &[]), Some(seen.clone()));
    assert_eq!(presented(submission, &root, &starttls), Some(seen.clone()));
    let status = gateway.json(&["status", "--json"]);
    assert_eq!(status["tls"]["source"], "acme", "{status}");
    assert_eq!(status["tls"]["names"], json!([NAME]), "{status}");

    // The CA is away: the next life presents what the last one got.
    pebble.pebble.kill();
    gateway.kill();
    gateway.restart();
    assert_eq!(presented(https, &root, &[]), Some(seen));
    gateway.assert_healthy();
}

#[test]
fn a_certificate_proved_by_http_01_is_presented_on_every_tls_port() {
    is_ordered_presented_everywhere_and_kept("http-01");
}

#[test]
fn a_certificate_proved_by_tls_alpn_01_is_presented_on_every_tls_port() {
    is_ordered_presented_everywhere_and_kept("tls-alpn-01");
}
