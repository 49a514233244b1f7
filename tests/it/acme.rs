//! A certificate by ACME from pebble, a CA that nobody here wrote, through the real gateway: proved both ways, presented
//! on every TLS port, kept over a restart.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::gateway::{Gateway, NAME};
use crate::support::pebble::Pebble;
use crate::support::process::{self, tool};
use crate::support::{eventually, free_port, loopback};

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
    let mut pebble = Pebble::start(http.port(), https.port());
    let config = json!({
        "front": {"listen": [http], "tls_listen": [https]},
        "tls": {"extra_ca": [pebble.certificate()], "acme": {
            "enabled": true, "directory": pebble.url(),
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
    pebble.kill();
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
