//! The command line: what a person types, and what it answers to mistakes.

use crate::support::gateway::Gateway;
use crate::support::own_network::OwnNetwork;
use crate::support::{eventually, open_directory, process, root};

fn tasuki(arguments: &[&str]) -> (i32, String) {
    let output = process::run(&process::ours("tasuki"), arguments);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn mistakes_on_the_command_line_end_with_64_and_say_what_is_wrong() {
    for (arguments, word) in [
        (&["fly"][..], "fly"),
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["audit", "--limit", "many"], "many"),
        (&["tunnel", "enroll"], "<NAME>"),
        (&[], "Usage"),
    ] {
        let (code, said) = tasuki(arguments);
        assert_eq!(code, 64, "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    let (code, said) = tasuki(&["--help"]);
    assert_eq!(code, 0);
    for word in ["serve", "demo", "status", "Examples"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn mistakes_in_the_configuration_end_with_64_and_name_file_line_and_key() {
    let directory = open_directory();
    let file = directory.path().join("tasuki.toml");
    let path = file.to_str().unwrap();
    for (text, line, words) in [
        ("[server]\nhosst = \"a.test\"\n", ":2", &["hosst"][..]),
        ("[fediverse]\n\nretention = \"soon\"\n", ":3", &["retention"]),
        ("[server\n", ":1", &[]),
        ("[nonsense]\nx = 1\n", ":1", &["nonsense"]),
        ("[tunnel.tcp]\nports = \"9-8\"\n", ":2", &["ports"]),
        ("[[acl]]\neffect = \"maybe\"\n", ":2", &["effect", "maybe"]),
        // A list, a type, a name, a number, a size, an address, a network.
        ("engines = [\"mail\", \"radio\"]\n", ":1", &["engines", "radio"]),
        ("engines = \"mail\"\n", ":1", &["engines"]),
        ("[server]\nhost = \"not a host\"\n", ":2", &["server.host"]),
        ("[server]\ncpu_threads = -1\n", ":2", &["server.cpu_threads"]),
        (
            "[memory]\n\nbudget = \"1MB\"\n",
            ":3",
            &["memory.budget", "25MiB"],
        ),
        (
            "[admin]\nlisten = \"127.0.0.1\"\n",
            ":2",
            &["admin.listen", "127.0.0.1:25"],
        ),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/99\"]\n",
            ":2",
            &["server.trusted_proxies"],
        ),
        // Twice, unfinished, missing, and what only two keys together can be wrong about.
        (
            "[server]\nhost = \"a.test\"\nhost = \"b.test\"\n",
            ":3",
            &["duplicate"],
        ),
        ("[server]\nhost = \"a.test\n", ":2", &["server.host"]),
        ("[[acl]]\nreason = \"x\"\n", ":1", &["acl", "effect"]),
        (
            "[mail]\ndefault_route = \"nowhere\"\n",
            ":2",
            &["mail.default_route", "nowhere"],
        ),
        ("[tls]\ncert = \"/etc/a.pem\"\n", ":1", &["tls.key"]),
        (
            "[tls.acme]\n\nenabled = true\n",
            ":1",
            &["tls.acme.names", "server.host"],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, said) = tasuki(&["check", "--config", path]);
        assert_eq!(code, 64, "{text}: {said}");
        assert!(said.contains(&format!("{path}{line}")), "{text}: {said}");
        for word in words {
            assert!(said.contains(word), "{text}: {said}");
        }
        let (code, _) = tasuki(&["serve", "--config", path]);
        assert_eq!(code, 64, "serve with {text}");
    }
}

#[test]
fn the_configuration_files_that_are_shipped_have_no_mistakes() {
    for file in ["config/tasuki.toml", "docker/tasuki.toml"] {
        let (code, said) = tasuki(&["check", "--config", root().join(file).to_str().unwrap()]);
        assert_eq!(code, 0, "{file}: {said}");
    }
}

#[test]
fn serve_refuses_a_configured_data_directory_that_is_not_there() {
    let directory = open_directory();
    let file = directory.path().join("tasuki.toml");
    std::fs::write(&file, "[server]\nhost = \"relay.test\"\n").unwrap();
    let data = directory.path().join("gone");
    let arguments = [
        "serve",
        "--config",
        file.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
    ];
    let (code, said) = tasuki(&arguments);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("tasuki init"), "{said}");
    std::fs::create_dir(&data).unwrap();
    assert_eq!(tasuki(&arguments).0, 78, "an empty one is refused too");
}

#[test]
fn commands_without_a_gateway_say_so_with_69() {
    let directory = open_directory();
    let data = directory.path().to_str().unwrap();
    for arguments in [
        &["status", "--data", data][..],
        &["mail", "queue", "--data", data],
    ] {
        let (code, said) = tasuki(arguments);
        assert_eq!(code, 69, "{arguments:?}: {said}");
        assert!(said.contains("tasuki serve"), "{arguments:?}: {said}");
    }
}

#[test]
fn what_changes_by_command_is_listed_audited_and_survives_a_reload() {
    let gateway = Gateway::start("");
    gateway.cli(&["user", "add", "hanako", "--role", "operator"]);
    gateway.cli(&[
        "acl",
        "add",
        "deny",
        "--engine",
        "mail",
        "--from",
        "203.0.113.0/24",
        "--reason",
        "a spammer",
    ]);
    gateway.cli(&[
        "ban",
        "add",
        "198.51.100.7",
        "--reason",
        "password spray",
        "--for",
        "1h",
    ]);
    let explained = gateway.cli(&[
        "acl",
        "explain",
        "--engine",
        "mail",
        "--action",
        "relay",
        "--from",
        "203.0.113.9",
    ]);
    assert!(explained.contains("a spammer"), "{explained}");
    gateway.cli(&["reload"]);
    assert!(gateway.cli(&["user", "list"]).contains("hanako"));
    assert!(gateway.cli(&["acl", "list"]).contains("a spammer"));
    assert!(gateway.cli(&["ban", "list"]).contains("198.51.100.7"));
    let audit = gateway.cli(&["audit"]);
    for word in ["hanako", "203.0.113.0/24", "198.51.100.7"] {
        assert!(audit.contains(word), "{word} in the audit:\n{audit}");
    }
    // A name that is taken, a person who is not there.
    assert_eq!(gateway.fails(&["user", "add", "hanako"]).0, 65);
    assert_eq!(gateway.fails(&["user", "remove", "nobody", "--yes"]).0, 65);
}

#[test]
fn a_mistake_at_reload_changes_nothing() {
    let mut gateway = Gateway::start("");
    let good = gateway.config_text();
    gateway.write_config(&format!("{good}\n[nonsense]\n"));
    let (code, said) = gateway.fails(&["reload"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("nonsense"), "{said}");
    gateway.assert_healthy();
    gateway.write_config(&good);
    gateway.cli(&["reload"]);
    assert!(gateway.stop().success(), "SIGTERM ends it in order");
}

#[test]
fn a_second_gateway_on_the_same_data_is_refused_with_75() {
    let gateway = Gateway::start("");
    let (code, said) = gateway.fails(&["serve"]);
    assert_eq!(code, 75, "{said}");
    gateway.assert_healthy();
}

#[test]
fn a_first_start_without_configuration_binds_loopback_only_and_keeps_the_password_in_a_file() {
    let own_network = OwnNetwork::start();
    let directory = own_network.directory();
    let mut serve = own_network.command(&process::ours("tasuki"));
    serve
        .arg("serve")
        .current_dir(directory)
        .env_remove("TASUKI_CONFIG");
    let mut running = process::Running::start("tasuki serve", &mut serve, &directory.join("serve.log"));
    let listed = eventually("the gateway is up", || {
        running.assert_runs();
        std::fs::read_to_string(directory.join("data/addresses.json"))
            .ok()
            .filter(|text| text.ends_with('}') || text.ends_with("}\n"))
    });
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert!(!listed.as_object().unwrap().is_empty());
    for (name, address) in listed.as_object().unwrap() {
        let address: std::net::SocketAddr = address.as_str().unwrap().parse().unwrap();
        assert!(address.ip().is_loopback(), "{name} listens at {address}");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| {
        std::fs::metadata(directory.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("data"), 0o700);
    assert_eq!(mode("data/initial-admin-password"), 0o600);
    let password = std::fs::read_to_string(directory.join("data/initial-admin-password")).unwrap();
    assert!(
        !running.log().contains(password.trim()),
        "the password is in the log"
    );
    assert!(
        running.log().contains("server.host") || running.log().contains("host ="),
        "{}",
        running.log()
    );
    assert!(running.terminate().success());
}

#[test]
fn the_file_with_the_first_password_is_gone_after_its_first_use() {
    let gateway = Gateway::start("");
    let file = gateway.directory().join("data/initial-admin-password");
    let password = std::fs::read_to_string(&file).unwrap();
    let address = gateway.address("mail.submission");
    let log_in = |password: &str| {
        let mut swaks = process::tool("swaks");
        swaks.args([
            "--server",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ]);
        swaks.args([
            "--tls",
            "--quit-after",
            "AUTH",
            "--auth-user",
            "admin",
            "--auth-password",
            password,
        ]);
        process::output(&mut swaks).status.success()
    };
    assert!(!log_in("a wrong password"));
    assert!(file.exists(), "nobody has used it yet");
    assert!(log_in(password.trim()));
    eventually("the file is deleted", || (!file.exists()).then_some(()));
    assert!(log_in(password.trim()), "the password itself stays good");
}
