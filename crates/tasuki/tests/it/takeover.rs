//! Taking over other relays by command.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::gateway::Gateway;

/// Written by ActivityRelay 0.3.5 itself.
const DATABASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tasuki-store/tests/data/activityrelay-0.3.5.sqlite3"
);

/// Written by aode-relay 0.3.131 itself.
const AODE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tasuki-store/tests/data/aode-0.3.131"
);

/// Debian's Redis on a socket in a directory of its own.
struct Redis {
    directory: TempDir,
    server: Child,
}

impl Redis {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket", "redis.sock"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed: run `scripts/test --install`");
        let redis = Self { directory, server };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !redis.socket().exists() {
            assert!(Instant::now() < deadline, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("redis.sock")
    }

    fn source(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn set(&self, key: &str, fields: &[&str]) {
        let socket = self.socket();
        let done = Command::new("redis-cli")
            .args(["-s", socket.to_str().unwrap(), "HSET", key])
            .args(fields)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn hosts(gateway: &Gateway) -> Vec<(String, String, String)> {
    let listed = gateway.ok(&["fedi", "subscribers", "--json"]).json();
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap().to_owned();
    let all = listed["subscribers"].as_array().unwrap();
    all.iter()
        .map(|one| (text(one, "host"), text(one, "style"), text(one, "state")))
        .collect()
}

fn host(name: &str, style: &str, state: &str) -> (String, String, String) {
    (name.to_owned(), style.to_owned(), state.to_owned())
}

#[test]
fn an_activityrelay_is_taken_over_with_its_key_after_a_dry_run() {
    let gateway = Gateway::start("");
    let key = || gateway.ok(&["key", "export", "--yes"]).out;
    let before = key();
    let import = ["fedi", "import", "--from", "activityrelay", DATABASE];
    let dry = gateway.ok(&[&import[..], &["--dry-run"]].concat()).out;
    assert!(
        dry.contains("4096 bits, would be taken over") && dry.contains("3 subscribers would be new"),
        "{dry}"
    );
    assert!(dry.contains("https://relay.test/actor"), "{dry}");
    assert!(hosts(&gateway).is_empty() && key() == before);

    let done = gateway.ok(&[&import[..], &["--json"]].concat()).json();
    assert_eq!(
        (&done["key"], &done["key_bits"], &done["rules"]),
        (&"taken".into(), &4096.into(), &2.into())
    );
    assert_eq!(
        hosts(&gateway),
        [
            host("akkoma.test", "lite_pub", "active"),
            host("mastodon.test", "mastodon", "active"),
            host("pending.test", "mastodon", "active")
        ]
    );
    assert_ne!(key(), before);
    let again = gateway.ok(&import).out;
    assert!(
        again.contains("the same as here") && again.contains("0 subscribers are new, 3 known"),
        "{again}"
    );
    // Another key would turn all of them away.
    let directory = TempDir::new().unwrap();
    let other = directory.path().join("old.pem");
    std::fs::write(&other, before).unwrap();
    let list = directory.path().join("list.csv");
    std::fs::write(&list, "actor,inbox\nhttps://c.test/actor,https://c.test/inbox\n").unwrap();
    let (list, other) = (list.to_str().unwrap(), other.to_str().unwrap());
    let refused = gateway.run(&["fedi", "import", "--from", "csv", list, "--key", other]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("under another key"), "{}", refused.err);
    let audit = gateway.ok(&["audit"]).out;
    assert!(
        audit.contains("fedi.key") && audit.contains("fedi.import"),
        "{audit}"
    );
}

#[test]
fn an_aode_relay_is_taken_over_with_its_key() {
    let gateway = Gateway::start("");
    let import = ["fedi", "import", "--from", "aode", AODE];
    let dry = gateway.ok(&[&import[..], &["--dry-run"]].concat()).out;
    assert!(
        dry.contains("4096 bits, would be taken over") && dry.contains("2 subscribers would be new"),
        "{dry}"
    );
    let done = gateway.ok(&[&import[..], &["--json"]].concat()).json();
    assert_eq!((&done["key"], &done["rules"]), (&"taken".into(), &1.into()));
    assert_eq!(
        hosts(&gateway),
        [
            host("akkoma.test", "lite_pub", "active"),
            host("mastodon.test", "mastodon", "active")
        ]
    );
}

#[test]
fn relays_on_redis_and_lists_are_taken_over() {
    let redis = Redis::start();
    // As Activity-Relay writes them (models/state.go).
    redis.set(
        "relay:subscription:a.test",
        &[
            "inbox_url",
            "https://a.test/inbox",
            "activity_id",
            "https://a.test/1",
            "actor_id",
            "https://a.test/actor",
        ],
    );
    redis.set(
        "relay:follower:b.test",
        &[
            "inbox_url",
            "https://b.test/inbox",
            "activity_id",
            "https://b.test/2",
            "actor_id",
            "https://b.test/relay",
            "mutually_follow",
            "1",
        ],
    );
    redis.set(
        "relay:subscription:broken.test",
        &["inbox_url", "https://broken.test/inbox"],
    );
    redis.set("relay:config:blockedDomain", &["evil.test", "1"]);
    redis.set("relay:config:limitedDomain", &["loud.test", "1"]);
    let gateway = Gateway::start("");
    let source = redis.source();
    let done = gateway
        .ok(&["fedi", "import", "--from", "activity-relay", &source])
        .out;
    assert!(
        done.contains("https://broken.test/inbox skipped") && done.contains("no key was given"),
        "{done}"
    );
    assert_eq!(
        hosts(&gateway),
        [
            host("a.test", "mastodon", "active"),
            host("b.test", "lite_pub", "active")
        ]
    );
    let rules = gateway.ok(&["fedi", "rules", "--json"]).json();
    let rules: Vec<_> = rules["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (&one["effect"], &one["subject"]))
        .collect();
    assert_eq!(
        rules,
        [
            (&"block".into(), &"evil.test".into()),
            (&"limit".into(), &"loud.test".into())
        ]
    );

    // As pub-relay writes them.
    let pub_relay = Redis::start();
    for (name, state) in [("c", "Subscribed"), ("d", "Pending"), ("e", "Failed")] {
        let url = |path: &str| format!("https://{name}.test/{path}");
        let (inbox, follow, actor) = (url("inbox"), url("follow"), url("actor"));
        let fields = [
            "inbox_url",
            &inbox,
            "follow_id",
            &follow,
            "follow_actor_id",
            &actor,
            "state",
            state,
        ];
        pub_relay.set(&format!("relay:subscription:{name}.test"), &fields);
    }
    gateway.ok(&["fedi", "import", "--from", "pub-relay", &pub_relay.source()]);
    let directory = TempDir::new().unwrap();
    let list = directory.path().join("list.csv");
    std::fs::write(
        &list,
        "#inbox,actor,style,follow_id\nhttps://f.test/inbox,https://f.test/relay,litepub,https://f.test/1\n",
    )
    .unwrap();
    gateway.ok(&["fedi", "import", "--from", "csv", list.to_str().unwrap()]);
    assert_eq!(
        hosts(&gateway)[2..],
        [
            host("c.test", "mastodon", "active"),
            host("d.test", "mastodon", "pending"),
            host("e.test", "mastodon", "active"),
            host("f.test", "lite_pub", "active")
        ]
    );
    std::fs::write(&list, "inbox\nhttps://f.test/inbox\n").unwrap();
    for (words, code) in [
        (["csv", list.to_str().unwrap()], 65),
        (["activityrelay", list.to_str().unwrap()], 65),
        (["aode", list.to_str().unwrap()], 65),
        (["activity-relay", "http://a.test"], 64),
        (["activity-relay", "unix:/nowhere"], 69),
    ] {
        let said = gateway.run(&["fedi", "import", "--from", words[0], words[1]]);
        assert_eq!(said.code, code, "{words:?}: {}", said.err);
    }
    assert!(Path::new(DATABASE).exists());
}
