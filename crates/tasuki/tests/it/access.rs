//! Rules, bans and the audit by command.

use crate::gateway::Gateway;

#[test]
fn rules_are_explained_with_their_origin_and_reason() {
    let gateway =
        Gateway::start("[[acl]]\neffect = \"allow\"\nfrom = [\"192.0.2.0/24\"]\nreason = \"the office\"\n");
    gateway.ok(&[
        "acl",
        "add",
        "deny",
        "--engine",
        "mail",
        "--from",
        "203.0.113.7",
        "--reason",
        "spam",
    ]);
    let explain = |from: &str| {
        gateway
            .ok(&[
                "acl", "explain", "--engine", "mail", "--action", "relay", "--from", from,
            ])
            .out
    };
    assert!(explain("192.0.2.9").contains("allowed by rule 1 of the configuration file (the office)"));
    assert!(explain("203.0.113.7").contains("denied by added rule"));
    assert!(explain("198.51.100.1").contains("no rule matches"));
    // Without a question: everything that is asked about this address, in every engine.
    let all = gateway.ok(&["acl", "explain", "203.0.113.7"]).out;
    for (engine, action, answer) in [
        ("mail", "connect", "denied by added rule"),
        ("mail", "relay", "denied by added rule"),
        ("fediverse", "publish", "no rule matches"),
        ("tunnel", "visit", "no rule matches"),
        ("-", "admin", "no rule matches"),
    ] {
        let told = all.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.starts_with(&[engine, action]) && line.contains(answer)
        });
        assert!(told, "{engine} {action} in {all}");
    }
    let admin = gateway.ok(&["acl", "explain", "admin", "--json"]).json();
    assert_eq!(admin["principal"], "admin");
    let told = admin["answers"].to_string();
    assert!(told.contains("admin has the role admin"), "{told}");
    assert!(
        gateway
            .ok(&["acl", "explain", "bad.example"])
            .out
            .contains("subscribe")
    );
    for (arguments, code) in [
        (&["acl", "explain", "nobody-here"][..], 65),
        (&["acl", "explain", "--from", "300.1.1.1"], 64),
        (&["acl", "explain", "--engine", "mail", "--action", "visit"], 64),
    ] {
        assert_eq!(gateway.run(arguments).code, code, "{arguments:?}");
    }
    let listed = gateway.ok(&["acl", "list", "--json"]).json();
    let rules = listed["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 2);
    assert_eq!(
        rules[0]["id"],
        serde_json::Value::Null,
        "the file's rules come first"
    );
    gateway.ok(&["acl", "remove", &rules[1]["id"].to_string()]);
    assert!(explain("203.0.113.7").contains("no rule matches"));
    assert_eq!(gateway.run(&["acl", "remove", "999"]).code, 65);
    assert_eq!(gateway.run(&["acl", "add", "perhaps"]).code, 64);
    assert_eq!(
        gateway.run(&["acl", "add", "deny", "--from", "somewhere"]).code,
        64
    );
}

#[test]
fn bans_hold_until_they_are_ended_and_never_hit_loopback() {
    let gateway = Gateway::start("");
    gateway.ok(&[
        "ban",
        "add",
        "198.51.100.7",
        "--engine",
        "mail",
        "--for",
        "1h",
        "--reason",
        "spray",
    ]);
    let bans = gateway.ok(&["ban", "list", "--json"]).json();
    assert_eq!(bans["bans"][0]["net"], "198.51.100.7/32");
    assert_eq!(bans["bans"][0]["engine"], "mail");
    let explained = gateway.ok(&[
        "acl",
        "explain",
        "--engine",
        "mail",
        "--action",
        "connect",
        "--from",
        "198.51.100.7",
    ]);
    assert!(explained.out.contains("banned there: spray"), "{}", explained.out);
    assert_ne!(gateway.run(&["ban", "add", "127.0.0.1"]).code, 0);
    assert_eq!(gateway.run(&["ban", "add", "not-an-address"]).code, 64);
    gateway.ok(&["ban", "remove", "198.51.100.7"]);
    assert!(gateway.ok(&["ban", "list"]).out.contains("nobody is banned"));
    assert_eq!(gateway.run(&["ban", "remove", "198.51.100.7"]).code, 65);
}

#[test]
fn the_audit_names_who_did_what_and_a_key_export_is_in_it() {
    let gateway = Gateway::start("");
    gateway.ok(&["user", "add", "hanako"]);
    assert_eq!(
        gateway.run(&["key", "export"]).code,
        64,
        "without --yes and without a terminal"
    );
    let pem = gateway.ok(&["key", "export", "--yes"]).out;
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "no PEM");
    let audit = gateway.ok(&["audit", "--json"]).json();
    let entries = audit["entries"].as_array().unwrap();
    let me = format!("uid:{}", rustix::process::getuid().as_raw());
    for (action, object) in [("user.add", "hanako"), ("key.export", "relay")] {
        let found = entries
            .iter()
            .find(|e| e["action"] == action && e["object"] == object);
        let found = found.unwrap_or_else(|| panic!("{action} {object} in {audit}"));
        assert_eq!(found["who"], me.as_str());
        assert_eq!(found["from"], "control.sock");
    }
    assert!(
        entries
            .iter()
            .any(|e| e["who"] == "gateway" && e["object"] == "admin"),
        "{audit}"
    );
}
