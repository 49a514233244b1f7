//! What peers of both engines that have no login hear while the store cannot take anything, and that all is well again by itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use serde_json::json;

use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::postgres::Postgres;
use crate::support::process::{is_root, tool};
use crate::support::{PATIENCE, eventually, http, open_directory};

/// Mail from this machine is taken, and waits: nobody listens at the next hop.
fn config() -> String {
    format!(
        "{}\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::FEDIVERSE,
        Gateway::smarthost(SocketAddr::from(([127, 0, 0, 1], 9)))
    )
}

/// Hands a mail in; the last reply, or the first that refuses.
fn hand_in(gateway: &Gateway) -> String {
    let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    let mut reply = || loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.len() > 3, "the connection ended");
        if line.as_bytes()[3] != b'-' {
            return line;
        }
    };
    let mut last = reply();
    for command in [
        "EHLO client.test\r\n",
        "MAIL FROM:<orders@shop.test>\r\n",
        "RCPT TO:<box@far.test>\r\n",
        "DATA\r\n",
        "Subject: hello\r\n\r\nhello\r\n.\r\n",
    ] {
        if !last.starts_with(['2', '3']) {
            break;
        }
        writer.write_all(command.as_bytes()).unwrap();
        last = reply();
    }
    last
}

/// One that publishes, and one to tell.
fn instances(gateway: &Gateway) -> (Instance, Instance) {
    let start = |bind| {
        let instance = Instance::start("mastodon", bind, gateway.directory(), &[]);
        instance.subscribe(&gateway.relay_inbox());
        instance
    };
    (start("127.0.0.1"), start("127.0.0.2"))
}

/// The relay's answer to an activity.
fn publish(author: &Instance) -> u64 {
    let sent = author.control("publish", &json!({"text": "hello"}));
    sent[0]["status"].as_u64().unwrap()
}

fn mails(gateway: &Gateway) -> u64 {
    let listed = gateway.json(&["mail", "queue", "--json"]);
    listed["mails"].as_u64().unwrap()
}

#[test]
fn a_database_that_is_away_refuses_for_a_while_and_comes_back_by_itself() {
    let mut postgres = Postgres::start();
    let gateway = Gateway::start_on(&postgres.url(), &config());
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (author, _reader) = instances(&gateway);
    assert!(hand_in(&gateway).starts_with("250"));
    assert_eq!(publish(&author), 202);

    postgres.stop();
    let refused = hand_in(&gateway);
    // Whose network this is cannot be looked up, or the mail cannot be stored: it depends on what is remembered.
    assert!(
        refused.starts_with("451 4.3.0") || refused.starts_with("421 4.3.0"),
        "{refused}"
    );
    assert_eq!(publish(&author), 503);
    gateway.assert_healthy();

    postgres.start_again();
    eventually("mail is taken again", || {
        hand_in(&gateway).starts_with("250").then_some(())
    });
    eventually("activities are taken again", || {
        (publish(&author) == 202).then_some(())
    });
    assert_eq!(mails(&gateway), 2, "what was accepted, and nothing else");
    gateway.assert_healthy();
}

/// Set in the second run of the test below.
const SMALL_DISK: &str = "TASUKI_TEST_SMALL_DISK";

/// Runs a test again in a mount namespace of its own, with its temporary files on a small file system.
fn on_a_small_disk(name: &str, mebibytes: u32) {
    let directory = open_directory();
    let mut command = tool("unshare");
    command.arg("--mount");
    if !is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size={mebibytes}m,mode=1777 tmpfs \"$0\" && exec \"$@\""
        ))
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(SMALL_DISK, "1")
        .env("TMPDIR", directory.path());
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Takes all that is left of the disk.
fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("ballast");
    let mut file = File::create(&path).unwrap();
    for piece in [1 << 20, 1 << 12] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_is_452_and_503_and_nothing_is_lost() {
    if std::env::var_os(SMALL_DISK).is_none() {
        on_a_small_disk("storage::a_full_disk_is_452_and_503_and_nothing_is_lost", 96);
        return;
    }
    let gateway = Gateway::start(&config());
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let (author, _reader) = instances(&gateway);
    assert!(hand_in(&gateway).starts_with("250"));

    let ballast = fill(gateway.directory());
    let refused = hand_in(&gateway);
    assert!(refused.starts_with("452 4.3.1"), "{refused}");
    let status = publish(&author);
    assert!([503, 507].contains(&status), "{status}");
    assert_eq!(mails(&gateway), 1);
    assert_eq!(
        http::get(gateway.address("admin"), "localhost", "/healthz", "").status,
        200
    );

    std::fs::remove_file(ballast).unwrap();
    eventually("mail is taken again", || {
        hand_in(&gateway).starts_with("250").then_some(())
    });
    eventually("activities are taken again", || {
        (publish(&author) == 202).then_some(())
    });
    assert_eq!(mails(&gateway), 2);
    gateway.assert_healthy();
}
