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
fn people_services_and_tokens_come_and_go_and_their_secrets_are_shown_once() {
    let gateway = Gateway::start("");
    let said = gateway.ok(&[
        "user",
        "add",
        "hanako",
        "--role",
        "operator",
        "--grant",
        "mail:send:a.test",
    ]);
    assert!(said.out.contains("password: "), "{}", said.out);
    assert_eq!(gateway.run(&["user", "add", "hanako"]).code, 65);
    assert_eq!(gateway.run(&["user", "add", "Not A Name"]).code, 64);
    assert_eq!(
        gateway.run(&["user", "add", "taro", "--grant", "mail:fly"]).code,
        64
    );
    gateway.ok(&["user", "grant", "hanako", "fedi:publish", "--role", "viewer"]);
    gateway.ok(&["user", "revoke", "hanako", "mail:send:a.test"]);
    assert_eq!(
        gateway
            .run(&["user", "revoke", "hanako", "mail:send:a.test"])
            .code,
        65
    );
    gateway.ok(&["user", "disable", "hanako"]);
    let users = gateway.ok(&["user", "list", "--json"]).json();
    let hanako = users["users"]
        .as_array()
        .unwrap()
        .iter()
        .find(|u| u["name"] == "hanako")
        .unwrap()
        .clone();
    assert_eq!(hanako["role"], "viewer");
    assert_eq!(hanako["grants"], serde_json::json!(["fedi:publish"]));
    assert_eq!(hanako["disabled"], true);
    assert_eq!(
        gateway.run(&["user", "remove", "hanako"]).code,
        64,
        "without --yes and without a terminal"
    );
    gateway.ok(&["user", "remove", "hanako", "--yes"]);
    assert_eq!(gateway.run(&["user", "remove", "hanako", "--yes"]).code, 65);

    let made = gateway
        .ok(&[
            "service",
            "add",
            "shop",
            "--send-as",
            "shop.test",
            "--class",
            "bulk",
            "--daily",
            "500",
            "--json",
        ])
        .json();
    let password = made["password"].as_str().unwrap();
    assert!(password.len() >= 26, "{made}");
    assert!(made["example"].as_str().unwrap().contains(password), "{made}");
    assert_eq!(gateway.run(&["service", "add", "idle"]).code, 64);
    let listed = gateway.ok(&["service", "list"]);
    assert!(listed.out.contains("mail:send:shop.test") && !listed.out.contains(password));
    assert!(listed.out.contains("mail:class:bulk") && listed.out.contains("mail:daily:500"));
    let strange = [
        "service",
        "add",
        "odd",
        "--send-as",
        "odd.test",
        "--class",
        "spam",
    ];
    assert_ne!(gateway.run(&strange).code, 0);
    gateway.ok(&["service", "remove", "shop", "--yes"]);

    gateway.ok(&["mail", "recipients", "add", "Anna@shop.test", "bob@shop.test"]);
    gateway.ok(&["mail", "recipients", "remove", "BOB@shop.test"]);
    let known = gateway.ok(&["mail", "recipients", "list", "shop.test"]);
    assert!(
        known.out.contains("anna") && !known.out.contains("bob"),
        "{}",
        known.out
    );
    assert_ne!(
        gateway
            .run(&["mail", "recipients", "add", "anna@[192.0.2.1]"])
            .code,
        0
    );
    assert!(gateway.ok(&["audit"]).out.contains("mail.recipients"));

    let token = gateway
        .ok(&["token", "new", "probe", "--role", "viewer", "--json"])
        .json();
    assert_eq!(gateway.run(&["token", "new", "nobody"]).code, 65);
    let listed = gateway.ok(&["token", "list", "--json"]);
    assert!(!listed.out.contains(token["token"].as_str().unwrap()));
    let id = listed.json()["tokens"][0]["id"].to_string();
    gateway.ok(&["token", "revoke", &id]);
    assert!(gateway.ok(&["token", "list"]).out.contains("no tokens"));
    assert!(
        !gateway.ok(&["service", "list"]).out.contains("probe"),
        "it was made for the token alone"
    );
}

#[test]
fn app_passwords_have_an_end_are_listed_without_the_secret_and_revoked_one_by_one() {
    let gateway = Gateway::start("");
    let add = [
        "service",
        "add",
        "shop",
        "--send-as",
        "shop.test",
        "--valid-for",
        "90d",
    ];
    let said = gateway.ok(&add);
    assert!(said.out.contains("and holds until 2"), "{}", said.out);
    let made = gateway
        .ok(&[
            "service",
            "password",
            "shop",
            "--label",
            "new server",
            "--valid-for",
            "1h",
            "--json",
        ])
        .json();
    gateway.ok(&[
        "service", "password", "admin", "--label", "phone", "--engine", "mail",
    ]);
    let listed = gateway.ok(&["service", "passwords", "--json"]);
    assert!(!listed.out.contains(made["password"].as_str().unwrap()));
    let listed = listed.json();
    let of = |label: &str| {
        let all = listed["app_passwords"].as_array().unwrap();
        all.iter().find(|p| p["label"] == label).unwrap().clone()
    };
    assert!(of("first")["expires_at"].is_string() && of("new server")["expires_at"].is_string());
    assert_eq!(of("phone")["principal"], "admin");
    assert_eq!(of("phone")["scope"], "mail");
    let id = made["id"].to_string();
    gateway.ok(&["service", "revoke", &id]);
    for (arguments, code) in [
        (&["service", "revoke", &id][..], 65),
        (&["service", "password", "nobody"], 65),
        (&["service", "password", "shop", "--valid-for", "soon"], 64),
        (&["service", "password", "shop", "--engine", "radio"], 64),
    ] {
        assert_eq!(gateway.run(arguments).code, code, "{arguments:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for part in [
        "secret until 2",
        "app-password.add   shop",
        "new server, until 2",
        "phone, scope mail",
        "app password \"new server\" of shop",
    ] {
        assert!(audit.contains(part), "{part} in {audit}");
    }
}

#[test]
fn the_last_admin_cannot_be_removed_and_the_first_password_is_forgotten_when_it_is_changed() {
    let gateway = Gateway::start("");
    for arguments in [
        &["user", "remove", "admin", "--yes"][..],
        &["user", "disable", "admin"],
        &["user", "grant", "admin", "--role", "viewer"],
    ] {
        let said = gateway.run(arguments);
        assert_eq!(said.code, 65, "{arguments:?}: {}", said.err);
    }
    let file = gateway.place.path().join("data/initial-admin-password");
    assert!(file.exists());
    gateway.ok(&["user", "passwd", "admin"]);
    assert!(!file.exists());
}

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

#[test]
fn an_agent_is_enrolled_with_a_command_that_can_be_pasted() {
    let gateway = Gateway::start("");
    let made = gateway
        .ok(&[
            "tunnel",
            "enroll",
            "home",
            "--name",
            "mc.test",
            "--port",
            "30000-30010",
            "--json",
        ])
        .json();
    let command = made["command"].as_str().unwrap();
    for part in ["tasuki-agent run --gateway 127.0.0.1:", "--pin ", "--code "] {
        assert!(command.contains(part), "{part} in {command}");
    }
    let agents = gateway.ok(&["tunnel", "agents", "--json"]).json();
    assert_eq!(agents["agents"][0]["name"], "home");
    assert_eq!(agents["agents"][0]["connected"], false);
    assert_eq!(
        agents["agents"][0]["grants"],
        serde_json::json!(["tunnel:name:mc.test", "tunnel:port:30000-30010"])
    );
    assert_eq!(gateway.run(&["tunnel", "enroll", "home", "--port", "0"]).code, 64);
    assert_eq!(gateway.run(&["tunnel", "enroll", "admin"]).code, 65);
    gateway.ok(&["tunnel", "revoke", "home", "--yes"]);
    assert!(gateway.ok(&["tunnel", "agents"]).out.contains("no agents"));
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

#[test]
fn moderation_is_ordered_listed_exported_and_taken_back() {
    let gateway = Gateway::start("");
    gateway.ok(&["fedi", "block", "*.Evil.test", "--reason", "spam, lots"]);
    gateway.ok(&["fedi", "limit", "--software", "Spamware"]);
    gateway.ok(&["fedi", "silence", "--tag", "#Ads"]);
    let rules = gateway.ok(&["fedi", "rules", "--json"]).json();
    assert_eq!(rules["rules"].as_array().map(Vec::len), Some(3), "{rules}");
    assert_eq!(rules["rules"][0]["subject"], "evil.test");
    let why = gateway.ok(&["fedi", "why", "a.evil.test"]).out;
    assert!(
        why.contains("may not publish") && why.contains("spam, lots"),
        "{why}"
    );
    let exported = gateway.ok(&["fedi", "blocklist", "export"]).out;
    assert!(
        exported.contains("evil.test,suspend,false,false,\"spam, lots\",false"),
        "{exported}"
    );
    let directory = TempDir::new().unwrap();
    let list = directory.path().join("list.csv");
    std::fs::write(
        &list,
        "#domain,#severity\nbad.test,suspend\nevil.test,silence\nx*.test,suspend\n",
    )
    .unwrap();
    let list = list.to_str().unwrap();
    let dry = gateway
        .ok(&["fedi", "blocklist", "import", list, "--dry-run"])
        .out;
    assert!(
        dry.contains("1 would be added, 0 known already, 1 kept") && dry.contains("line 4 skipped"),
        "{dry}"
    );
    gateway.ok(&["fedi", "blocklist", "import", list]);
    assert_eq!(
        gateway.ok(&["fedi", "rules", "--json"]).json()["rules"]
            .as_array()
            .map(Vec::len),
        Some(4)
    );
    gateway.ok(&["fedi", "lift", "--tag", "ads"]);
    for (words, code) in [
        (&["fedi", "block"][..], 64),
        (&["fedi", "block", "x", "--software", "y"], 64),
        (&["fedi", "silence", "--regex", "("], 64),
        (&["fedi", "lift", "--tag", "ads"], 65),
        (&["fedi", "form", "a.test", "forward"], 65),
        (&["fedi", "blocklist", "import", "/nowhere"], 74),
    ] {
        assert_eq!(gateway.run(words).code, code, "{words:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for action in [
        "fedi.block ",
        "fedi.limit ",
        "fedi.silence ",
        "fedi.blocklist ",
        "fedi.lift ",
    ] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    assert!(gateway.ok(&["fedi", "pending"]).out.contains("no instance waits"));
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
            // Of a mail that waits: among the tests of the queue.
            "mail trace" | "mail queue show" => continue,
            "mail why" | "mail recipients list" => &["example.org"],
            "mail queue reroute" => &["example.org", "--all", "--yes"],
            "mail queue hold" | "mail queue release" | "mail queue retry" | "mail queue bounce"
            | "mail queue delete" => &["--all", "--yes"],
            "service add" => &["office", "--send-as", "office.test"],
            "service password" => &["shop"],
            "token new" => &["admin"],
            "tunnel enroll" => &["home"],
            "acl explain" => &["192.0.2.7"],
            "mail dkim add" | "mail dkim rotate" => &["shop.test"],
            "fedi why" => &["example.org"],
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

#[test]
fn dkim_keys_are_made_rotated_listed_and_removed_by_command() {
    let gateway = Gateway::start("");
    let said = gateway.ok(&["mail", "dkim", "add", "shop.test", "--selector", "mail"]);
    // One record fits in a string; the other one is cut as zone files need it.
    assert!(
        said.out
            .contains("mailr._domainkey.shop.test. IN TXT ( \"v=DKIM1; k=rsa; p=MIIBIjAN"),
        "{}",
        said.out
    );
    assert!(
        said.out
            .contains("maile._domainkey.shop.test. IN TXT ( \"v=DKIM1; k=ed25519; p=")
    );
    for string in said.out.split('"').skip(1).step_by(2) {
        assert!(string.len() <= 255, "{string}");
    }
    assert_eq!(gateway.run(&["mail", "dkim", "add", "shop.test"]).code, 65);
    assert_eq!(
        gateway
            .run(&["mail", "dkim", "add", "x.test", "--algorithm", "md5"])
            .code,
        64
    );
    assert_eq!(gateway.run(&["mail", "dkim", "rotate", "other.test"]).code, 65);
    let next = gateway.ok(&["mail", "dkim", "rotate", "shop.test"]);
    assert!(next.out.contains("next keys made"), "{}", next.out);
    // The DNS cannot show them, so only --force changes over.
    assert_eq!(gateway.run(&["mail", "dkim", "rotate", "shop.test"]).code, 65);
    let over = gateway.ok(&["mail", "dkim", "rotate", "shop.test", "--force"]);
    assert!(
        over.out.contains("remove mailr._domainkey.shop.test in a week"),
        "{}",
        over.out
    );
    let keys = gateway.ok(&["mail", "dkim", "list", "--json"]).json();
    let states: Vec<&str> = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["retired", "retired", "active", "active"]);
    assert!(!keys.to_string().contains("pkcs8"));
    gateway.ok(&["mail", "dkim", "remove", "shop.test", "--yes"]);
    assert!(gateway.ok(&["mail", "dkim", "list"]).out.contains("no keys yet"));
}
