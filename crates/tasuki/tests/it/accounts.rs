//! People, services, tokens, app passwords and agents by command: they come and go, and secrets are shown once.

use crate::gateway::Gateway;

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
    for part in [
        "tasuki-agent run --gateway 127.0.0.1:",
        " --pin ",
        " --code ",
        " --minecraft mc.test=127.0.0.1:25565",
        " --tcp 30000=127.0.0.1:30000",
    ] {
        assert!(command.contains(part), "{part} in {command}");
    }
    // It says all that an agent needs: one that says nothing to serve would be refused by the agent itself.
    let plain = gateway.ok(&["tunnel", "enroll", "plain"]).out;
    assert!(plain.contains(" --minecraft 127.0.0.1:25565\n"), "{plain}");
    let voice = gateway.ok(&["tunnel", "enroll", "voice", "--udp", "24454"]).out;
    assert!(voice.contains(" --udp 24454=127.0.0.1:24454\n"), "{voice}");
    for more in ["plain", "voice"] {
        gateway.ok(&["tunnel", "revoke", more, "--yes"]);
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
fn status_says_that_a_network_sends_as_less_than_its_service() {
    let gateway =
        Gateway::start("[mail]\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"office\"\n");
    let said = |gateway: &Gateway| -> Vec<String> {
        let status = gateway.run(&["status", "--json"]).json();
        let warnings = status["warnings"].as_array().unwrap().iter();
        warnings
            .map(|warning| warning.as_str().unwrap().to_owned())
            .filter(|warning| warning.contains("mail:send:*"))
            .collect()
    };
    assert!(said(&gateway).is_empty());
    gateway.ok(&["service", "add", "other", "--grant", "mail:send:*"]);
    assert!(said(&gateway).is_empty());
    gateway.ok(&[
        "service",
        "add",
        "office",
        "--send-as",
        "x.test",
        "--grant",
        "mail:send:*",
    ]);
    let warnings = said(&gateway);
    assert!(
        warnings.len() == 1 && warnings[0].contains("act as office send as the domains"),
        "{warnings:?}"
    );
}
