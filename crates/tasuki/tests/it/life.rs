//! The life of the process: first start, second start, stop, reload.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::gateway::{Gateway, HOST, LISTENERS, Place, ended_in_order, run};

#[test]
fn a_configured_data_directory_that_is_missing_or_empty_is_refused_with_78() {
    let place = Place::new("");
    let said = place.run(&["serve"]);
    assert_eq!(said.code, 78, "{}", said.err);
    for word in ["/data ", "does not exist", "tasuki init"] {
        assert!(said.err.contains(word), "{word} in {}", said.err);
    }
    std::fs::create_dir(place.path().join("data")).unwrap();
    let said = place.run(&["serve"]);
    assert_eq!(said.code, 78, "{}", said.err);
    assert!(said.err.contains("is empty"), "{}", said.err);
}

#[test]
fn init_makes_the_house_once_and_keeps_what_is_there() {
    let directory = TempDir::new().unwrap();
    let said = run(
        directory.path(),
        &["init", "--host", HOST, "--engines", "mail,tunnel"],
    );
    assert_eq!(said.code, 0, "{}", said.err);
    let config = std::fs::read_to_string(directory.path().join("tasuki.toml")).unwrap();
    assert!(config.contains("engines = [\"mail\", \"tunnel\"]"), "{config}");
    assert!(
        config.contains("[::]:25\"") && !config.contains("[front]"),
        "{config}"
    );
    assert_eq!(run(directory.path(), &["check"]).code, 0);
    let mode = |path: &str| {
        let metadata = std::fs::metadata(directory.path().join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("data"), 0o700);
    assert_eq!(mode("data/keys/seal.key"), 0o600);
    assert_eq!(mode("data/initial-admin-password"), 0o600);
    let key = std::fs::read(directory.path().join("data/keys/seal.key")).unwrap();
    let password = std::fs::read(directory.path().join("data/initial-admin-password")).unwrap();
    assert!(
        !said
            .out
            .contains(String::from_utf8(password.clone()).unwrap().trim())
    );

    let said = run(directory.path(), &["init", "--host", HOST]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(
        std::fs::read(directory.path().join("data/keys/seal.key")).unwrap(),
        key
    );
    assert_eq!(
        std::fs::read(directory.path().join("data/initial-admin-password")).unwrap(),
        password
    );
    let said = run(directory.path(), &["init", "--host", "other.test"]);
    assert_eq!(said.code, 78, "{}", said.err);
}

#[test]
fn a_second_gateway_on_the_same_data_is_refused_and_names_the_first() {
    let gateway = Gateway::start("");
    let said = gateway.run(&["serve"]);
    assert_eq!(said.code, 75, "{}", said.err);
    assert!(said.err.contains(&gateway.pid().to_string()), "{}", said.err);
}

#[test]
fn sigterm_ends_it_in_order_and_takes_its_files_along() {
    let gateway = Gateway::start("");
    let (status, place) = gateway.stop();
    assert!(ended_in_order(status), "{status}");
    for file in ["addresses.json", "control.sock"] {
        assert!(!place.path().join("data").join(file).exists(), "{file} is left");
    }
    // And it starts again on the same data.
    let gateway = Gateway::serve(place);
    gateway.ok(&["status"]);
}

#[test]
fn a_first_sigterm_waits_for_what_is_under_way_and_a_second_ends_it_at_once() {
    let mut gateway = Gateway::start("[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n");
    gateway.ok(&["service", "add", "shop", "--send-as", "shop.test"]);
    // A mail whose end never comes: the grace of 30 s is for its sender.
    let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let mut until = |code: &str| {
        let last = format!("{code} ");
        assert!(lines.by_ref().any(|line| line.starts_with(&last)), "{code}");
    };
    until("220");
    for (command, code) in [
        ("EHLO client.test", "250"),
        ("MAIL FROM:<a@shop.test>", "250"),
        ("RCPT TO:<b@far.test>", "250"),
        ("DATA", "354"),
    ] {
        (&stream).write_all(format!("{command}\r\n").as_bytes()).unwrap();
        until(code);
    }
    gateway.signal(Signal::TERM);
    // The others have drained, mail has not.
    gateway.wait(|g| g.log().contains("engine=tunnel").then_some(()));
    assert!(gateway.log().contains("stopping: finishing what is under way"));
    assert!(
        !gateway.log().contains("engine=mail finished"),
        "{}",
        gateway.log()
    );
    let asked = Instant::now();
    let (status, place) = gateway.stop();
    assert!(ended_in_order(status), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    let log = std::fs::read_to_string(place.path().join("serve.log")).unwrap();
    assert!(log.contains("stopped at once by a second signal"), "{log}");
    Gateway::serve(place).ok(&["status"]);
}

#[test]
fn what_a_dead_gateway_left_does_not_hinder_the_next() {
    let mut gateway = Gateway::start("");
    gateway.signal(Signal::KILL);
    let until = Instant::now() + Duration::from_secs(10);
    while gateway.run(&["status"]).code == 0 {
        assert!(Instant::now() < until);
    }
    let left = gateway.place.path().join("data/addresses.json");
    std::fs::remove_file(left).unwrap();
    let empty = Place::new("");
    let place = std::mem::replace(&mut gateway.place, empty);
    let again = Gateway::serve(place);
    again.ok(&["status"]);
}

#[test]
fn sighup_puts_a_changed_file_in_force_and_a_mistake_changes_nothing() {
    let mut gateway = Gateway::start("");
    let rule = "[[acl]]\neffect = \"deny\"\nengine = \"mail\"\nfrom = [\"203.0.113.0/24\"]\nreason = \"from the file\"\n";
    let good = format!("[server]\nhost = \"{HOST}\"\n{LISTENERS}\n{rule}");
    gateway.place.write(&good);
    gateway.signal(Signal::HUP);
    gateway.wait(|g| {
        g.run(&["acl", "list"])
            .out
            .contains("from the file")
            .then_some(())
    });

    gateway.place.write(&format!("{good}\n[nonsense]\n"));
    gateway.signal(Signal::HUP);
    gateway.wait(|g| g.log().contains("nonsense").then_some(()));
    // The command line cannot read the file either, but it can be told where the gateway is.
    assert!(
        gateway
            .ok(&["acl", "list", "--data", "data"])
            .out
            .contains("from the file")
    );

    gateway.place.write(&good.replace("127.0.0.1:0", "127.0.0.2:0"));
    let said = gateway.ok(&["reload", "--json"]).json();
    let restart = said["needs_restart"].to_string();
    for key in ["front.listen", "admin", "tunnel.quic"] {
        assert!(restart.contains(key), "{key} in {restart}");
    }
    gateway.place.write(&good.replace(HOST, "other.test"));
    let said = gateway.run(&["reload"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("server.host"), "{}", said.err);
}

#[test]
fn an_engine_that_was_not_chosen_opens_no_port() {
    let gateway = Gateway::start("engines = [\"tunnel\"]\n");
    let all = gateway.addresses();
    let names: Vec<&String> = all.as_object().unwrap().keys().collect();
    // Agents' web names are reached at the front door.
    assert_eq!(
        names,
        [
            "admin",
            "front.http",
            "front.https",
            "tunnel.minecraft",
            "tunnel.quic"
        ]
    );
    let said = gateway.run(&["fedi", "subscribers"]);
    assert_eq!(said.code, 65, "{}", said.err);
    assert!(said.err.contains("switched off"), "{}", said.err);
    let gateway = Gateway::start("engines = [\"mail\"]\n");
    let all = gateway.addresses();
    for name in all.as_object().unwrap().keys() {
        assert!(name == "admin" || name.starts_with("mail."), "{name} is open");
    }
}

#[test]
fn serve_says_what_to_do_first_and_the_log_can_be_json() {
    let gateway = Gateway::start("[log]\nformat = \"json\"\nlevel = \"debug\"\n");
    let log = gateway.log();
    for text in [
        "tasuki service add",
        "https://relay.test/inbox",
        "tasuki tunnel enroll home",
    ] {
        assert!(log.contains(text), "{text} in {log}");
    }
    let line = log.lines().find(|line| line.starts_with('{')).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
}

#[test]
fn another_host_is_refused_once_an_instance_has_subscribed() {
    let (_, place) = Gateway::start("").stop();
    let other = format!("[server]\nhost = \"other.test\"\n{LISTENERS}");
    subscribe_an_instance(place.path());
    place.write(&other);
    let said = place.run(&["serve"]);
    assert_eq!(said.code, 78, "{}", said.err);
    for word in ["relay.test", "other.test", "danger_change_host"] {
        assert!(said.err.contains(word), "{word} in {}", said.err);
    }
    place.write(&other.replace("[server]", "[server]\ndanger_change_host = true"));
    Gateway::serve(place).ok(&["status"]);
}

/// As if an instance had followed the relay while the gateway ran.
fn subscribe_an_instance(place: &std::path::Path) {
    use tasuki_core::clock::Clock;
    use tasuki_core::store::fedi::{NewSubscription, SubscriptionState, SubscriptionStyle};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, &place.join("data"))
            .await
            .unwrap();
        let subscription = NewSubscription {
            topic: String::new(),
            host: "instance.test".to_owned(),
            actor: "https://instance.test/actor".to_owned(),
            inbox: "https://instance.test/inbox".to_owned(),
            style: SubscriptionStyle::Mastodon,
            state: SubscriptionState::Active,
            follow_id: "https://instance.test/follow".to_owned(),
            software: None,
            at: Clock::system().wall(),
        };
        store.subscribe(subscription, Vec::new(), None).await.unwrap();
        store.close().await;
    });
}
