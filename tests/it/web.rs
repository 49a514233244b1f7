//! Web servers at home under names of the gateway: nginx with TLS of its own and behind the gateway's, a server with
//! websockets; curl as the visitor.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::gateway::Gateway;
use crate::support::process::{self, Running, python, tool};
use crate::support::{client, eventually, free_port, http, loopback, sha256, wait_for_listener};

/// A certificate for `name` that signs itself; curl believes it alone.
fn certificate(directory: &Path, name: &str) {
    let mut command = tool("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    command.args(["-days", "2", "-subj", &format!("/CN={name}")]);
    command.args(["-addext", &format!("subjectAltName=DNS:{name}")]);
    command.arg("-keyout").arg(directory.join("home.key"));
    process::succeed(command.arg("-out").arg(directory.join("home.pem")));
}

/// nginx with one server block.
fn nginx(directory: &Path, block: &str, address: SocketAddr) -> Running {
    let base = directory.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {base}/nginx-{name};\n"))
        .collect();
    let user = if process::is_root() { "user root;\n" } else { "" };
    let text = format!(
        "{user}daemon off;\nmaster_process off;\npid {base}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_max_body_size 0;\n{scratch}server {{\n{block}\n}}\n}}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = tool("nginx");
    command.arg("-e").arg("stderr").arg("-c").arg(&file);
    let running = Running::start("nginx", &mut command, &directory.join("nginx.log"));
    wait_for_listener("nginx", address);
    running
}

/// curl on `https://NAME:PORT/PATH`, as if DNS led to the gateway.
fn curl(door: SocketAddr, name: &str, path: &str, ca: &Path, more: &[&str]) -> Command {
    let mut command = tool("curl");
    command.args(["--silent", "--show-error", "--max-time", "50"]);
    command.args(["--resolve", &format!("{name}:{}:127.0.0.1", door.port())]);
    command.arg("--cacert").arg(ca).args(more);
    command.arg(format!("https://{name}:{}{path}", door.port()));
    command
}

/// What curl says when it fails.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = process::output(command);
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn web(kind: &str, name: &str, server: SocketAddr) -> Vec<String> {
    vec![format!("--{kind}"), format!("{name}={server}")]
}

#[test]
fn a_server_at_home_keeps_its_tls_and_sees_who_visits() {
    let gateway = Gateway::start("");
    let directory = gateway.directory();
    certificate(directory, "social.test");
    let home = loopback(free_port());
    std::fs::write(directory.join("large.bin"), vec![7; 20 << 20]).unwrap();
    let block = format!(
        "listen {home} ssl proxy_protocol http2;\nserver_name social.test;\nssl_certificate {base}/home.pem;\n\
         ssl_certificate_key {base}/home.key;\nroot {base};\n\
         location = /who {{ return 200 \"$proxy_protocol_addr $server_protocol $ssl_server_name\"; }}",
        base = directory.display()
    );
    let _nginx = nginx(directory, &block, home);
    let mut endpoints = web("https", "social.test", home);
    endpoints.push("--proxy-v2".to_owned());
    let mut agent = Agent::enrol(&gateway, "home", &["--name", "social.test"], &endpoints);
    eventually("the agent is connected", || agent.connected(&gateway));
    let door = gateway.address("front.https");
    let ca = directory.join("home.pem");
    let ask = |path: &str, more: &[&str]| curl(door, "social.test", path, &ca, more);
    eventually("the name is open", || {
        process::output(&mut ask("/who", &[]))
            .status
            .success()
            .then_some(())
    });
    let who = process::succeed(&mut ask("/who", &["--interface", "127.0.0.9"]));
    assert_eq!(who, "127.0.0.9 HTTP/2.0 social.test");
    let file = directory.join("came.bin");
    process::succeed(&mut ask("/large.bin", &["--output", file.to_str().unwrap()]));
    assert_eq!(sha256(&std::fs::read(&file).unwrap()), sha256(&vec![7; 20 << 20]));

    // The gateway's own name is still its own, without TLS the name leads to TLS, and nobody has a third name.
    let own = curl(door, "relay.test", "/actor", Path::new(&gateway.ca_file()), &[]);
    process::succeed(&mut { own });
    let plain = http::get(gateway.address("front.http"), "social.test", "/who?x", "");
    assert_eq!(
        (plain.status, plain.header("location")),
        (308, Some("https://social.test/who?x"))
    );
    let stranger = fails(&mut curl(door, "nobody.test", "/", &ca, &["--insecure"]));
    assert!(stranger.contains("unrecognized name"), "{stranger}");
    // What is shown to friends.
    let shown = gateway.json(&["tunnel", "show", "home", "--json"]);
    assert_eq!(
        shown["endpoints"][0]["address"],
        format!("https://social.test:{}", door.port())
    );

    agent.stop();
    let away = eventually("the agent is away", || {
        let output = process::output(&mut ask("/who", &["--insecure"]));
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert!(away.contains("alert internal error"), "{away}");
    gateway.assert_healthy();
}

/// A web server at home that speaks no TLS.
fn plain_home(directory: &Path) -> (Running, SocketAddr) {
    let mut command = python(&client("web_home.py"));
    command.arg("serve");
    let (running, lines) = Running::start_and_read("web server", &mut command, &directory.join("web.log"));
    let port = u16::try_from(lines.next_json()["port"].as_u64().unwrap()).unwrap();
    (running, loopback(port))
}

/// A gateway, an agent with `map.test` behind the gateway's TLS, and the server.
fn with_plain_home() -> (Gateway, Agent, Running) {
    let gateway = Gateway::start("");
    let (home, address) = plain_home(gateway.directory());
    let endpoints = web("http", "map.test", address);
    let agent = Agent::enrol(&gateway, "home", &["--name", "map.test"], &endpoints);
    eventually("the name is open", || {
        process::output(&mut at_map(&gateway, "/", &["--fail"]))
            .status
            .success()
            .then_some(())
    });
    (gateway, agent, home)
}

fn at_map(gateway: &Gateway, path: &str, more: &[&str]) -> Command {
    let ca = gateway.ca_file();
    curl(
        gateway.address("front.https"),
        "map.test",
        path,
        Path::new(&ca),
        more,
    )
}

#[test]
fn requests_go_home_with_the_gateways_certificate_and_the_visitors_address() {
    let (gateway, _agent, _home) = with_plain_home();
    for version in ["--http1.1", "--http2"] {
        let told = process::succeed(&mut at_map(
            &gateway,
            "/a%20b?c=d",
            &[
                version,
                "--interface",
                "127.0.0.9",
                "-H",
                "X-Forwarded-For: 192.0.2.1",
                "-H",
                "Connection: x-gone",
                "-H",
                "X-Gone: 1",
            ],
        ));
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["path"], "/a%20b?c=d");
        let headers = told["headers"].as_array().unwrap();
        let value = |name: &str| {
            let mut all = headers
                .iter()
                .filter(|line| line[0].as_str().unwrap().eq_ignore_ascii_case(name));
            let found = all.next().map(|line| line[1].as_str().unwrap().to_owned());
            assert!(all.next().is_none(), "{name} comes twice: {told}");
            found
        };
        assert_eq!(value("x-forwarded-for").as_deref(), Some("127.0.0.9"), "{told}");
        assert_eq!(value("x-forwarded-proto").as_deref(), Some("https"));
        let host = format!("map.test:{}", gateway.address("front.https").port());
        assert_eq!(value("host"), Some(host));
        assert!(
            value("forwarded").unwrap().starts_with("for=127.0.0.9;"),
            "{told}"
        );
        if version == "--http1.1" {
            assert_eq!(value("x-gone"), None, "{told}");
        }
    }
    // Through the plain port too, unless the gateway sends such requests to TLS.
    let plain = http::get(gateway.address("front.http"), "map.test", "/plain", "");
    assert_eq!(plain.status, 200, "{}", plain.text());
    assert!(
        plain.text().contains("X-Forwarded-Proto\", \"http\""),
        "{}",
        plain.text()
    );
    gateway.assert_healthy();
}

#[test]
fn bodies_stream_both_ways_and_a_cut_answer_is_no_whole_one() {
    let (gateway, _agent, _home) = with_plain_home();
    let file = gateway.directory().join("upload.bin");
    let bytes: Vec<u8> = (0..30_000_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let data = format!("@{}", file.display());
    for (more, framed) in [
        (&[][..], "length"),
        (&["-H", "Transfer-Encoding: chunked"], "coding"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let mut arguments = vec![version, "--data-binary", &data];
            arguments.extend(more.iter().filter(|_| version == "--http1.1"));
            let sum = process::succeed(&mut at_map(&gateway, "/sum", &arguments));
            let sum: Value = serde_json::from_str(&sum).unwrap();
            assert_eq!(sum["sha256"], sha256(&bytes), "{sum}");
            if version == "--http1.1" {
                assert!(sum[framed].is_string(), "{sum}");
            }
        }
    }
    let drops = process::succeed(&mut at_map(&gateway, "/drip", &["--no-buffer"]));
    assert_eq!(drops.lines().count(), 10, "{drops}");
    fails(&mut at_map(&gateway, "/cut", &[]));
    gateway.assert_healthy();
}

#[test]
fn websockets_go_home() {
    let (gateway, _agent, _home) = with_plain_home();
    let door = gateway.address("front.https");
    let mut command = python(&client("web_home.py"));
    command.args(["say", &format!("wss://map.test:{}/ws", door.port())]);
    command.args(["--address", &door.to_string(), "--ca", &gateway.ca_file()]);
    command.args(["--words", "konnichiwa", "世界"]);
    let said: Value = serde_json::from_str(&process::succeed(&mut command)).unwrap();
    assert_eq!(said["heard"], serde_json::json!(["konnichiwa", "世界"]), "{said}");
    assert_eq!(said["large"], true, "{said}");
    gateway.assert_healthy();
}

#[test]
fn smuggled_requests_reach_nobody() {
    let (gateway, _agent, _home) = with_plain_home();
    let door = gateway.address("front.http");
    let said = |request: &str| {
        let mut stream = std::net::TcpStream::connect(door).unwrap();
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    };
    // Both lengths: the chunked one counts (RFC 9112 6.3), and what follows it is the same visitor's next request.
    let both = said(
        "POST /sum HTTP/1.1\r\nHost: map.test\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nHost: stranger.test\r\nConnection: close\r\n\r\n",
    );
    assert!(!both.contains("/smuggled"), "{both}");
    assert!(
        both.starts_with("HTTP/1.1 400") || both.contains("\"size\": 0"),
        "{both}"
    );
    for bad in [
        "POST /sum HTTP/1.1\r\nHost: map.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST /sum HTTP/1.1\r\nHost: map.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /sum HTTP/1.1\r\nHost: map.test\r\nContent-Length : 5\r\n\r\nhello",
        "POST /sum HTTP/1.1\r\nHost: map.test\r\nHost: other.test\r\nContent-Length: 0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: map.test\r\nX: a\r\n b\r\n\r\n",
    ] {
        let answer = said(bad);
        assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?}: {answer}");
    }
    gateway.assert_healthy();
}

#[test]
fn a_visitor_reads_why_the_page_does_not_come() {
    let (gateway, mut agent, home) = with_plain_home();
    let html = ["-H", "Accept: text/html", "--include"];
    drop(home);
    let down = process::succeed(&mut at_map(&gateway, "/", &html));
    assert!(down.starts_with("HTTP/2 502"), "{down}");
    assert!(
        down.contains("サーバーが起動していません") && down.contains("The server is not running"),
        "{down}"
    );
    agent.stop();
    let away = eventually("the agent is away", || {
        let answer = process::succeed(&mut at_map(&gateway, "/", &html));
        answer.starts_with("HTTP/2 503").then_some(answer)
    });
    assert!(
        away.contains("オフライン") && away.contains("retry-after: 30"),
        "{away}"
    );
    let program = process::succeed(&mut at_map(&gateway, "/", &["--include"]));
    assert!(program.contains("application/problem+json"), "{program}");
    gateway.assert_healthy();
}
