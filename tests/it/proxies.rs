//! nginx and Caddy in front of the gateway, configured as the README says.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::certificate::Certificate;
use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::nginx::{self, Site};
use crate::support::process::{Running, tool};
use crate::support::{free_port, http, loopback, readme, wait_for_listener};

const NAME: &str = "relay.example.org";

/// A gateway with the README's name behind a proxy on this machine.
fn gateway_behind_a_proxy() -> Gateway {
    let gateway = Gateway::start_as(
        NAME,
        &(readme::trusted_proxies() + "[fediverse]\ndanger_allow_private_addresses = true\n"),
    );
    gateway.assert_healthy();
    gateway
}

/// Through the proxy: documents, a Follow and a post, over HTTPS with the public name.
fn check(gateway: &Gateway, door: SocketAddr, certificate: &Certificate) {
    let directory = gateway.directory();
    let resolve = format!("{NAME}={door}");
    let ca = certificate.ca.to_str().unwrap();
    let more = ["--resolve", &resolve, "--ca-file", ca];
    let author = Instance::start("mastodon", "127.0.0.1", directory, &more);
    let reader = Instance::start("misskey", "127.0.0.2", directory, &more);
    for instance in [&author, &reader] {
        instance.subscribe(&format!("https://{NAME}/inbox"));
    }
    let created = author.publish(&json!({"text": "through the proxy"})).remove(0);
    let got = reader.wait_for("the forward", |got| got["id"] == created["id"]);
    assert_eq!(got["sha256"], created["sha256"]);
    assert_eq!(got["signer"], format!("https://{NAME}/actor"));
}

#[test]
fn nginx_in_front_works_as_the_readme_says() {
    let gateway = gateway_behind_a_proxy();
    let directory = gateway.directory();
    let certificate = Certificate::issue(directory, &[NAME]);
    let door = loopback(free_port());
    let site = Site {
        name: NAME,
        listen: door,
        upstream: gateway.address("front.http"),
    };
    let _nginx = nginx::start(tool("nginx"), directory, &certificate, &[site]);
    wait_for_listener("nginx", door);
    check(&gateway, door, &certificate);
}

#[test]
fn caddy_in_front_works_as_the_readme_says() {
    let gateway = gateway_behind_a_proxy();
    let directory = gateway.directory();
    let certificate = Certificate::issue(directory, &[NAME]);
    let (door, plain) = (loopback(free_port()), free_port());
    let block = readme::block("caddy").replace("127.0.0.1:8080", &gateway.address("front.http").to_string());
    // A certificate of our own in place of ACME, other ports, and no administration port.
    let tls = format!(
        "{{\n    tls {} {}",
        certificate.certificate.display(),
        certificate.key.display()
    );
    let text = format!(
        "{{\n    admin off\n    http_port {plain}\n    https_port {}\n    default_bind 127.0.0.1\n    auto_https disable_redirects\n}}\n{}",
        door.port(),
        block.replacen('{', &tls, 1)
    );
    let file = directory.join("Caddyfile");
    std::fs::write(&file, text).unwrap();
    let mut command = tool("caddy");
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file);
    command
        .env("HOME", directory)
        .env("XDG_DATA_HOME", directory)
        .env("XDG_CONFIG_HOME", directory);
    let _caddy = Running::start("caddy", &mut command, &directory.join("caddy.log"));
    wait_for_listener("caddy", door);
    check(&gateway, door, &certificate);
}

#[test]
fn without_trusted_proxies_the_gateway_warns_about_forwarded_headers() {
    let gateway = Gateway::start("");
    let forwarded = "X-Forwarded-For: 203.0.113.9\r\n";
    http::get(
        gateway.address("front.http"),
        &gateway.front_host(),
        "/actor",
        forwarded,
    );
    let status = gateway.json(&["status", "--json"]);
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("trusted_proxies"), "{status}");
}
