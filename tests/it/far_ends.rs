//! The far ends among themselves, without a gateway: when another test fails, these say whether it was ours.

use serde_json::{Value, json};

use crate::support::fediverse::Instance;
use crate::support::mail::{self, Sink};
use crate::support::postgres::Postgres;
use crate::support::process::{self, Running, node, python};
use crate::support::servers::{MailServer, Make};
use crate::support::{client, eventually, open_directory};

#[test]
fn smtplib_speaks_to_smtp_sink_and_to_postfix() {
    let directory = open_directory();
    let sink = Sink::start(&[]);
    let port = sink.address.port().to_string();
    let arguments = [
        "--port",
        &port,
        "--sender",
        "a@b.test",
        "--recipient",
        "ID@c.test",
        "--count",
        "7",
    ];
    let report = mail::send(&arguments, directory.path());
    assert_eq!(report.accepted.len(), 7, "{report:?}");
    assert_eq!(sink.whole_ids(), report.accepted);

    let postfix = MailServer::next_hop(Make::Postfix);
    let port = postfix.address.port().to_string();
    let arguments = [
        "--port",
        &port,
        "--sender",
        "a@b.test",
        "--recipient",
        "box@next.test",
    ];
    let report = mail::send(&arguments, directory.path());
    assert_eq!(report.accepted.len(), 1, "{report:?}");
    let message = eventually("Postfix delivers", || postfix.messages().pop());
    assert_eq!(message.whole_id(), Some("m0"));
    let arguments = [
        "--port",
        &port,
        "--sender",
        "a@b.test",
        "--recipient",
        "box@other.test",
    ];
    let report = mail::send(&arguments, directory.path());
    assert_eq!(report.refused[0]["code"], 554, "{report:?}");
}

#[test]
fn instances_post_to_each_other() {
    let directory = open_directory();
    let author = Instance::start("misskey", "127.0.0.1", directory.path(), &[]);
    let reader = Instance::start("mastodon", "127.0.0.2", directory.path(), &[]);
    let answer = author.control("subscribe", &json!({"relay": format!("{}/inbox", reader.base)}));
    assert_eq!(answer["status"], 202);
    let sent = author.publish(&json!({"text": "hi", "count": 3}));
    for one in sent {
        let got = reader.wait_for("the post", |got| got["id"] == one["id"]);
        assert_eq!(got["sha256"], one["sha256"]);
    }
}

#[test]
fn a_minecraft_client_joins_a_minecraft_server_and_mcstatus_pings_it() {
    let directory = open_directory();
    let (_server, lines) = minecraft_server(directory.path(), "far end");
    let port = lines.1.to_string();
    let out = process::succeed(node(&client("node/client.js")).args(["--port", &port, "--say", "hallo"]));
    let happened: Value =
        serde_json::from_str(out.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!(happened["joined"], true, "{happened}");
    let out = process::succeed(python(&client("mc_status.py")).args(["127.0.0.1", &port]));
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["motd"], "far end");
}

fn minecraft_server(
    directory: &std::path::Path,
    motd: &str,
) -> (Running, (crate::support::process::Lines, u16)) {
    let mut command = node(&client("node/server.js"));
    command.args(["--motd", motd]);
    let (server, lines) =
        Running::start_and_read("minecraft server", &mut command, &directory.join("minecraft.log"));
    let port = u16::try_from(lines.next_json()["port"].as_u64().unwrap()).unwrap();
    (server, (lines, port))
}

#[test]
fn a_throw_away_postgresql_starts_and_answers() {
    assert!(Postgres::start().url().starts_with("postgres://"));
}
