//! Beside a relay of another make, ActivityRelay: both are subscribed to each other, and nothing circles.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::activityrelay::ActivityRelay;
use crate::support::certificate::Certificate;
use crate::support::fediverse::Instance;
use crate::support::nginx::{self, Site};
use crate::support::own_network::OwnNetwork;
use crate::support::process::{self, Running};
use crate::support::{eventually, loopback};

const OURS: &str = "relay.example.org";
const THEIRS: &str = "other.example";
const NAMES: [(&str, &str); 6] = [
    (OURS, "127.0.0.1"),
    (THEIRS, "127.0.0.2"),
    ("one.example", "127.0.0.3"),
    ("two.example", "127.0.0.4"),
    ("three.example", "127.0.0.5"),
    ("four.example", "127.0.0.6"),
];

/// The gateway in the network, in plain HTTP on port 8090 behind a web server.
fn gateway(network: &OwnNetwork, ca: &Path) -> Running {
    let config = format!(
        "engines = [\"fediverse\"]\n[server]\nhost = \"{OURS}\"\ntrusted_proxies = [\"127.0.0.1/32\"]\n\
         [front]\nlisten = [\"127.0.0.1:8090\"]\ntls_listen = []\n[tls]\nextra_ca = [{ca:?}]\n\
         [fediverse]\ndanger_allow_private_addresses = true\nretry = [\"1s\"]\n"
    );
    std::fs::write(network.directory().join("tasuki.toml"), config).unwrap();
    tasuki(network, &["init", "--host", OURS]);
    let mut command = network.command(&process::ours("tasuki"));
    command.arg("serve").env_remove("TASUKI_CONFIG");
    let running = Running::start(
        "tasuki serve",
        &mut command,
        &network.directory().join("serve.log"),
    );
    network.wait_for_listener("tasuki", 8090);
    running
}

/// A command for the gateway; named networks start programs in their own directory.
#[track_caller]
fn tasuki(network: &OwnNetwork, arguments: &[&str]) -> String {
    let mut command = network.command(&process::ours("tasuki"));
    process::succeed(command.args(arguments).env_remove("TASUKI_CONFIG"))
}

#[track_caller]
fn read(network: &OwnNetwork, arguments: &[&str]) -> Value {
    serde_json::from_str(&tasuki(network, &[arguments, &["--json"]].concat())).unwrap()
}

/// How often an instance was told of a post, in whatever form.
fn told(instance: &Instance, post: &Value) -> usize {
    let all = instance.received();
    all.iter()
        .filter(|got| {
            got["id"] == post["id"] || (got["type"] == "Announce" && got["object"] == post["object"])
        })
        .count()
}

#[test]
fn relays_that_are_subscribed_to_each_other_do_not_send_in_a_circle() {
    let network = OwnNetwork::start_with(&[], &NAMES);
    let certificate = Certificate::issue(network.directory(), &NAMES.map(|(name, _)| name));
    let ca = &certificate.ca;
    let mut theirs = ActivityRelay::prepare(&network, THEIRS, 8080);
    theirs.start(ca);
    let _ours = gateway(&network, ca);
    let site = |name, address: &str, port| Site {
        name,
        listen: format!("{address}:443").parse().unwrap(),
        upstream: loopback(port),
    };
    let sites = [site(OURS, "127.0.0.1", 8090), site(THEIRS, "127.0.0.2", 8080)];
    let _nginx = nginx::start(network.tool("nginx"), network.directory(), &certificate, &sites);
    network.wait_for_listener("nginx", 443);
    let [one, two, three, four] =
        [2, 3, 4, 5].map(|at| Instance::start_in(&network, "mastodon", NAMES[at], &certificate, ca));
    for instance in [&one, &two] {
        instance.subscribe(&format!("https://{OURS}/inbox"));
    }
    for instance in [&three, &four] {
        instance.subscribe(&format!("https://{THEIRS}/inbox"));
    }

    // It follows our relay as it follows others; ours follows it back.
    theirs.follow(ca, &format!("https://{OURS}/actor"));
    eventually("it is a subscriber, known for what it is", || {
        let listed = read(&network, &["fedi", "subscribers"]);
        let found = listed["subscribers"]
            .as_array()?
            .iter()
            .find(|one| one["host"] == THEIRS)?;
        let software = found["software"].as_str()?;
        (found["state"] == "active" && software.starts_with("activityrelay")).then_some(())
    });
    eventually("ours is its subscriber", || {
        theirs.inboxes(ca).contains(OURS).then_some(())
    });

    // What is written here goes to both sides, once.
    let here = one.publish(&json!({"text": "from our side"})).remove(0);
    for reader in [&two, &three, &four] {
        eventually("the post is told of", || (told(reader, &here) > 0).then_some(()));
    }
    // What is written there comes here too, and ends here: relays do not feed relays.
    let there = three.publish(&json!({"text": "from their side"})).remove(0);
    eventually("their side has it", || (told(&four, &there) > 0).then_some(()));
    eventually("it came here, and was not relayed", || {
        let why = read(&network, &["fedi", "why", there["object"].as_str().unwrap()]);
        why["judged"]
            .to_string()
            .contains("relay announced it")
            .then_some(())
    });
    // By now the first would have come round.
    let last = two.publish(&json!({"text": "the last word"})).remove(0);
    for reader in [&one, &three, &four] {
        eventually("the last post is told of", || {
            (told(reader, &last) > 0).then_some(())
        });
    }
    for (instance, expected) in [
        (&one, [0, 0, 1]),
        (&two, [1, 0, 0]),
        (&three, [1, 0, 1]),
        (&four, [1, 1, 1]),
    ] {
        let counts = [&here, &there, &last].map(|post| told(instance, post));
        assert_eq!(counts, expected, "{}", instance.base);
    }
    let log = theirs.log();
    assert!(!log.contains("Traceback"), "{log}");
    // A follow-back is not followed back.
    let follows = log.matches("POST /inbox").count();
    assert!(follows < 20, "{follows} requests:\n{log}");
}
