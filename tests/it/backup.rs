//! The restore drill: a gateway under load is copied, dies, and lives on elsewhere from the copy.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::gateway::{Gateway, SmallDisk};
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;
use crate::support::process;
use crate::support::{eventually, free_port, loopback};

fn config(next_hop: std::net::SocketAddr) -> String {
    format!(
        "{}\n{}\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        Gateway::FEDIVERSE,
        Gateway::smarthost(next_hop)
    )
}

fn arguments(gateway: &Gateway, more: &str) -> Vec<String> {
    let port = gateway.address("mail.relay").port();
    let all = format!("--port {port} --sender orders@shop.test --recipient someone@far.test {more}");
    all.split(' ').map(str::to_owned).collect()
}

fn send(gateway: &Gateway, more: &str) -> BTreeSet<String> {
    let arguments = arguments(gateway, more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = mail::send(&arguments, gateway.directory());
    assert!(
        report.refused.is_empty() && report.unanswered.is_empty(),
        "{report:?}"
    );
    report.accepted
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

/// What must be the same before and after: the relay's key, and those that sign mail.
fn identity(gateway: &Gateway) -> (String, Value) {
    (
        gateway.cli(&["key", "export", "--yes"]),
        gateway.json(&["mail", "dkim", "list", "--json"]),
    )
}

/// Ends the gateway for good, and makes its data directory again from a backup.
fn die_and_restore(gateway: &mut Gateway, backup: &Path) -> Value {
    gateway.kill();
    let data = gateway.directory().join("data");
    std::fs::rename(&data, gateway.directory().join("lost")).unwrap();
    gateway.json(&["restore", path(backup), "--data", path(&data), "--json"])
}

#[test]
fn a_gateway_restored_from_a_backup_under_load_has_every_mail_and_every_key_and_sends_when_told() {
    let next_hop = loopback(free_port());
    let mut gateway = Gateway::start(&config(next_hop));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    gateway.cli(&["mail", "dkim", "add", "shop.test", "--selector", "mail"]);
    let port = free_port();
    let grant = port.to_string();
    let mut agent = Agent::enrol(
        &gateway,
        "home",
        &["--port", &grant],
        &Agent::tcp(port, loopback(free_port())),
    );
    eventually("the agent is there", || agent.connected(&gateway));
    let mut before = send(&gateway, "--name small- --count 20 --size 2000");
    before.extend(send(&gateway, "--name large- --count 8 --size 300000"));
    let known = identity(&gateway);

    // Mail comes without a pause while the copy is made.
    let more = arguments(
        &gateway,
        "--name during- --count 300 --connections 4 --size 30000",
    );
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let (mut sender, lines) = mail::send_in_background(&more, gateway.directory());
    let mut report = Report::default();
    while report.accepted.len() < 20 {
        assert!(!report.take(lines.next_json()), "{report:?}");
    }
    before.extend(report.accepted.iter().cloned());
    let backup = gateway.directory().join("backup.tar");
    let taken = gateway.json(&["backup", path(&backup), "--json"]);
    while !report.take(lines.next_json()) {}
    sender.wait();
    assert!(
        report.refused.is_empty() && report.unanswered.is_empty(),
        "{report:?}"
    );
    assert_eq!(report.accepted.len(), 300);
    assert!(
        taken["mails"].as_u64().unwrap() >= before.len() as u64,
        "{taken} of {}",
        before.len()
    );

    let mode = std::fs::metadata(&backup).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, said) = gateway.fails(&["backup", path(&backup)]);
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("exists already"), "{said}");
    // Everybody's tar can read it.
    let listed = process::succeed(process::tool("tar").arg("-tf").arg(&backup));
    for name in [
        "keys/seal.key",
        "tasuki.db",
        "tasuki.toml",
        "segments/",
        "manifest.json",
    ] {
        assert!(listed.contains(name), "{name} in {listed}");
    }
    assert!(gateway.cli(&["audit"]).contains("backup"));
    assert!(gateway.cli(&["store", "verify"]).contains("is whole"));
    // Into a place where something is, nothing is restored.
    let (code, said) = gateway.fails(&["restore", path(&backup)]);
    assert_eq!(code, 64, "{said}");
    let data = gateway.directory().join("data");
    let (code, said) = gateway.fails(&["restore", path(&backup), "--data", path(&data)]);
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("not empty"), "{said}");

    let restored = die_and_restore(&mut gateway, &backup);
    assert_eq!(restored["mails"], taken["mails"]);
    assert_eq!(restored["held"], true);
    let sink = Sink::start_at(next_hop, &[]);
    gateway.restart();
    assert_eq!(identity(&gateway), known);
    let status = gateway.cli(&["status"]);
    assert!(status.contains("no mail is sent since"), "{status}");
    eventually("all of it was looked at, and rests", || {
        let fresh = gateway.json(&["mail", "queue", "--state", "fresh", "--json"]);
        fresh["queue"].as_array()?.is_empty().then_some(())
    });
    assert_eq!(sink.arrivals(), Vec::<String>::new());
    let waiting = gateway.json(&["mail", "queue", "--json"])["mails"]
        .as_u64()
        .unwrap();
    assert_eq!(Some(waiting), taken["mails"].as_u64());
    eventually("the agent is there again, with the key it had", || {
        agent.connected(&gateway)
    });
    gateway.cli(&["fedi", "resume"]);
    gateway.cli(&["mail", "resume", "*"]);
    eventually("every mail from before the backup arrives", || {
        before.is_subset(&sink.whole_ids()).then_some(())
    });
    eventually("all that was in the backup is gone", || {
        (gateway.json(&["mail", "queue", "--json"])["mails"] == 0).then_some(())
    });
    assert_eq!(sink.arrivals().len() as u64, waiting, "each of them once");
    gateway.assert_healthy();
}

#[test]
fn a_gateway_at_rest_is_copied_too_and_a_damaged_copy_is_refused_before_anything_is_written() {
    let next_hop = loopback(free_port());
    let mut gateway = Gateway::start(&config(next_hop));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let accepted = send(&gateway, "--name m- --count 5 --size 100000");
    assert!(gateway.stop().success());
    let folder = gateway.directory().join("backups");
    std::fs::create_dir(&folder).unwrap();
    let taken = gateway.json(&["backup", path(&folder), "--json"]);
    let backup = PathBuf::from(taken["file"].as_str().unwrap());
    assert_eq!(backup.parent(), Some(folder.as_path()));
    assert_eq!(taken["mails"], accepted.len());
    assert!(
        gateway
            .cli(&["backup", "verify", path(&backup)])
            .contains("is whole")
    );

    let whole = std::fs::read(&backup).unwrap();
    let bad = folder.join("bad.tar");
    let target = gateway.directory().join("elsewhere");
    let refused = |bytes: &[u8], name: &str| {
        std::fs::write(&bad, bytes).unwrap();
        for command in [
            &["backup", "verify", path(&bad)][..],
            &["restore", path(&bad), "--data", path(&target)],
        ] {
            let (code, said) = gateway.fails(command);
            assert_eq!(code, 65, "{said}");
            assert!(said.contains(name), "{name} in {said}");
        }
        assert!(!target.exists(), "something was written");
    };
    // The database is at the end but for the manifest; the bodies before it.
    let at = |wanted: &[u8]| whole.windows(wanted.len()).position(|w| w == wanted).unwrap();
    let mut damaged = whole.clone();
    damaged[at(b"SQLite format 3") + 5_000] ^= 1;
    refused(&damaged, "tasuki.db");
    let mut damaged = whole.clone();
    damaged[at(b"segments/") + 50_000] ^= 1;
    refused(&damaged, ".seg");
    refused(&whole[..whole.len() / 2], "ends within");
    for (make, name) in [
        ("t.add('tasuki.toml', arcname='../evil')", "../evil"),
        (
            "t.add('tasuki.toml', arcname='segments/../../evil')",
            "segments/../../evil",
        ),
        ("i = tarfile.TarInfo('/etc/evil'); t.addfile(i)", "/etc/evil"),
        (
            "i = tarfile.TarInfo('keys/link'); i.type = tarfile.SYMTYPE; i.linkname = '/etc/passwd'; t.addfile(i)",
            "keys/link",
        ),
    ] {
        let script = format!(
            "import tarfile\nwith tarfile.open('made.tar', 'w', format=tarfile.USTAR_FORMAT) as t:\n    {make}\n"
        );
        let mut python = Command::new(process::find("python3"));
        process::succeed(python.args(["-c", &script]).current_dir(gateway.directory()));
        let made = std::fs::read(gateway.directory().join("made.tar")).unwrap();
        refused(&made, name);
    }

    // Without the pause, what waits goes out at once.
    let data = gateway.directory().join("data");
    std::fs::rename(&data, gateway.directory().join("lost")).unwrap();
    gateway.cli(&["restore", path(&backup), "--data", path(&data), "--release"]);
    let sink = Sink::start_at(next_hop, &[]);
    gateway.restart();
    eventually("everything arrives", || {
        (sink.whole_ids() == accepted).then_some(())
    });
}

#[test]
fn with_postgresql_the_archive_has_keys_and_configuration_and_says_how_to_dump_the_rest() {
    let postgres = Postgres::start();
    let gateway = Gateway::start_on(&postgres.url(), &config(loopback(free_port())));
    let backup = gateway.directory().join("backup.tar");
    let said = gateway.cli(&["backup", path(&backup)]);
    for word in ["pg_dump", "not in it"] {
        assert!(said.contains(word), "{word} in {said}");
    }
    let data = gateway.directory().join("restored");
    let said = gateway.cli(&["restore", path(&backup), "--data", path(&data)]);
    assert!(said.contains("pg_restore"), "{said}");
    let key = |place: &Path| std::fs::read(place.join("keys/seal.key")).unwrap();
    assert_eq!(key(&data), key(&gateway.directory().join("data")));
    let (code, said) = gateway.fails(&["store", "verify"]);
    assert_eq!(code, 64, "{said}");
}

/// Lets the database of a stopped gateway grow.
fn fill_database(gateway: &Gateway, mib: usize) {
    let script = format!(
        "import sqlite3\nwith sqlite3.connect('data/tasuki.db') as c:\n    c.execute('CREATE TABLE filler AS SELECT randomblob({})')\n",
        mib << 20
    );
    let mut python = Command::new(process::find("python3"));
    process::succeed(python.args(["-c", &script]).current_dir(gateway.directory()));
}

#[test]
fn a_backup_for_which_there_is_no_room_is_refused_before_it_is_begun() {
    let mut gateway = Gateway::start("");
    assert!(gateway.stop().success());
    fill_database(&gateway, 16);
    // Room for the archive, but not for the copy of the database that is looked into as well.
    let folder = gateway.directory().join("small");
    let _disk = SmallDisk::mount_for(&folder, gateway.directory(), 24);
    let refused = |gateway: &Gateway| {
        let (code, said) = gateway.fails(&["backup", path(&folder)]);
        assert_eq!(code, 73, "{said}");
        assert!(said.contains("MiB are needed"), "{said}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
    };
    refused(&gateway);
    gateway.restart();
    refused(&gateway);
    let enough = gateway.directory().join("enough");
    let _disk = SmallDisk::mount_for(&enough, gateway.directory(), 48);
    gateway.cli(&["backup", path(&enough)]);
}
