//! Commands against a running gateway: round trips, listings, exit codes.

use tempfile::TempDir;

use crate::gateway::{Gateway, Place, run};

#[test]
fn mistakes_in_arguments_and_configuration_end_with_64() {
    let directory = TempDir::new().unwrap();
    for arguments in [
        &["fly"][..],
        &["ban", "add"],
        &["audit", "--limit", "0"],
        &["serve", "--fast"],
    ] {
        assert_eq!(run(directory.path(), arguments).code, 64, "{arguments:?}");
    }
    let place = Place::new("");
    place.write("[server]\nhost = \"relay.test\"\ndatta = \"x\"\n");
    for command in ["check", "serve", "status"] {
        let said = place.run(&[command, "--config", place.config().to_str().unwrap()]);
        assert_eq!(said.code, 64, "{command}: {}", said.err);
        let named = format!("{}:3: server.datta", place.config().display());
        assert!(said.err.contains(&named), "{}", said.err);
    }
}

#[test]
fn without_a_gateway_commands_end_with_69_and_name_the_socket() {
    let directory = TempDir::new().unwrap();
    for arguments in [
        &["status"][..],
        &["user", "list"],
        &["mail", "queue"],
        &["reload"],
    ] {
        let said = run(directory.path(), arguments);
        assert_eq!(said.code, 69, "{arguments:?}: {}", said.err);
        for word in ["/data/control.sock", "tasuki serve"] {
            assert!(said.err.contains(word), "{word} in {}", said.err);
        }
    }
}

#[test]
fn status_is_for_people_for_programs_and_for_monitoring() {
    let gateway = Gateway::start("");
    let status = gateway.ok(&["status", "--json"]).json();
    assert_eq!(status["pid"], gateway.pid());
    assert_eq!(status["host"], "relay.test");
    assert!(status["listeners"]["tunnel.quic"].is_string(), "{status}");
    assert!(gateway.ok(&["status"]).out.contains("healthy     yes"));
    let check = gateway.ok(&["status", "--check"]);
    assert_eq!(check.out, "");
    assert!(gateway.ok(&["mail", "queue"]).out.contains("the queue is empty"));
    assert!(gateway.ok(&["fedi", "subscribers"]).out.contains("no instance"));
}

/// Commands below `path` that take `--json`, found in the help texts, so that a new one cannot be forgotten here.
fn commands_with_json(gateway: &Gateway, path: &[String], found: &mut Vec<String>) {
    let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = gateway.ok(&arguments).out;
    if help
        .lines()
        .any(|line| line.split_whitespace().next() == Some("--json"))
    {
        found.push(path.join(" "));
    }
    let below = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "));
    for line in below {
        let name = line.split_whitespace().next().unwrap();
        // `help` lists the same again; `agent` is another program.
        if !["help", "agent"].contains(&name) {
            commands_with_json(gateway, &[path, &[name.to_owned()]].concat(), found);
        }
    }
}

#[test]
fn whatever_takes_json_prints_json_that_parses() {
    let gateway = Gateway::start("");
    gateway.ok(&["service", "add", "shop", "--send-as", "shop.test"]);
    let data = gateway.ok(&["status", "--json"]).json()["data"].clone();
    let certificate = format!("{}/keys/ca.pem", data.as_str().unwrap());
    let mut found = Vec::new();
    commands_with_json(&gateway, &[], &mut found);
    for listing in [
        "user list",
        "mail queue",
        "acl list",
        "ban list",
        "audit",
        "status",
    ] {
        assert!(found.iter().any(|f| f == listing), "{listing} in {found:?}");
    }
    for command in found {
        let more: &[&str] = match command.as_str() {
            "demo" => continue,
            // Another process would go on: among the tests end to end.
            "upgrade" => continue,
            // Of an endpoint that an agent served: among the tests with agents.
            "tunnel release" => continue,
            // Of a mail that waits: among the tests of the queue.
            "mail trace" | "mail queue show" => continue,
            "mail why" | "mail recipients list" => &["example.org"],
            "mail suppress add" | "mail suppress remove" => &["someone@example.org"],
            "mail suppress import" => &["/dev/null"],
            // One object for each line: among its own tests.
            "mail suppress export" => continue,
            "mail queue reroute" => &["example.org", "--all", "--yes"],
            "mail queue hold" | "mail queue release" | "mail queue retry" | "mail queue bounce"
            | "mail queue delete" => &["--all", "--yes"],
            "service add" => &["office", "--send-as", "office.test"],
            "service password" => &["shop"],
            "service certificate add" => &["shop", &certificate],
            "token new" => &["admin"],
            "tunnel enroll" | "tunnel show" => &["home"],
            "acl explain" => &["192.0.2.7"],
            "mail explain" => &[
                "--from",
                "a@shop.test",
                "--to",
                "b@example.org",
                "--client",
                "shop",
            ],
            "mail dkim add" | "mail dkim rotate" => &["shop.test"],
            "fedi why" => &["example.org"],
            "fedi block" | "fedi limit" | "fedi lift" => &["spam.example"],
            "fedi silence" => &["--tag", "nsfw"],
            "fedi pause" => &["--hold"],
            "fedi purge" => &["--host", "example.org"],
            // Files of their own: among the tests of the restore drill.
            "backup" | "backup verify" | "restore" => continue,
            // It needs another relay's data: among its own tests.
            "fedi import" => continue,
            // Of an instance that subscribed: among the tests with instances.
            "fedi form" | "fedi approve" | "fedi remove" => continue,
            // One object for each line: among the tests of moderation.
            "fedi follow" => continue,
            "fedi list add" => &["cats", "--tag", "cats"],
            "fedi list remove" => &["cats"],
            "fedi blocklist import" => &["/dev/null"],
            _ => &[],
        };
        let words: Vec<&str> = command
            .split(' ')
            .chain(more.iter().copied())
            .chain(["--json"])
            .collect();
        let printed = gateway.ok(&words).json();
        assert!(printed.is_object(), "{command}: {printed}");
    }
}
