//! nginx and Caddy in front of the gateway, configured as the README says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::process::{self, Running, tool};
use crate::support::{free_port, http, loopback, readme, wait_for_listener};

const NAME: &str = "relay.example.org";

/// A certificate for the README's name from a CA of its own: CA file, certificate with key, key.
struct Certificate {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn certificate(directory: &Path) -> Certificate {
    let file = |name: &str| directory.join(name);
    let openssl = |arguments: &str| {
        let arguments = arguments.replace("DIR", directory.to_str().unwrap());
        process::succeed(tool("openssl").args(arguments.split(' ')));
    };
    std::fs::write(
        file("san"),
        format!("subjectAltName=DNS:{NAME}\nbasicConstraints=CA:FALSE\n"),
    )
    .unwrap();
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test-ca -days 2 -keyout DIR/ca.key -out DIR/ca.pem",
    );
    openssl(&format!(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={NAME} -keyout DIR/web.key -out DIR/web.csr"
    ));
    openssl(
        "x509 -req -in DIR/web.csr -CA DIR/ca.pem -CAkey DIR/ca.key -CAcreateserial -days 2 -extfile DIR/san -out DIR/web.pem",
    );
    Certificate {
        ca: file("ca.pem"),
        certificate: file("web.pem"),
        key: file("web.key"),
    }
}

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
    let certificate = certificate(directory);
    let door = loopback(free_port());
    let block = readme::block("nginx")
        .replace("listen 443", &format!("listen {door}"))
        .replace("127.0.0.1:8080", &gateway.address("front.http").to_string());
    let block: String = block
        .lines()
        .filter(|line| !line.contains("[::]"))
        .map(|line| match line.trim().split(' ').next() {
            Some("ssl_certificate") => format!("ssl_certificate {};\n", certificate.certificate.display()),
            Some("ssl_certificate_key") => format!("ssl_certificate_key {};\n", certificate.key.display()),
            _ => format!("{line}\n"),
        })
        .collect();
    let base = directory.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {base}/nginx-{name};\n"))
        .collect();
    let user = if process::is_root() { "user root;\n" } else { "" };
    let text = format!(
        "{user}daemon off;\nmaster_process off;\npid {base}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{scratch}{block}}}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = tool("nginx");
    command.arg("-e").arg("stderr").arg("-c").arg(&file);
    let _nginx = Running::start("nginx", &mut command, &directory.join("nginx.log"));
    wait_for_listener("nginx", door);
    check(&gateway, door, &certificate);
}

#[test]
fn caddy_in_front_works_as_the_readme_says() {
    let gateway = gateway_behind_a_proxy();
    let directory = gateway.directory();
    let certificate = certificate(directory);
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
