//! Topic relays over HTTPS: a Mastodon and an Akkoma join the relay of a hashtag beside the whole one.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::support::fediverse::Instance;
use crate::support::gateway::{Gateway, NAME};
use crate::support::postgres::Postgres;
use crate::support::process::{self, tool};
use crate::support::{eventually, open_directory};

const CONFIG: &str = "[fediverse]\ndanger_allow_private_addresses = true\nretry = [\"1s\"]\nauthor_per_hour = 0\n\
    new_author_per_hour = 0\nhost_per_minute = 0\nnew_host_per_minute = 0\n[fediverse.topics]\nmode = \"any\"\n";

#[test]
fn a_mastodon_and_an_akkoma_join_the_relay_of_a_hashtag() {
    let world = World::new();
    let gateway = Gateway::start(&world.config());
    topics(&gateway, &world);
}

#[test]
fn topics_hold_on_postgresql_too() {
    let world = World::new();
    let postgres = Postgres::start();
    let gateway = Gateway::start_on(&postgres.url(), &world.config());
    topics(&gateway, &world);
}

/// A CA that made certificates for the instances' addresses.
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            directory: open_directory(),
        };
        world.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test-ca -days 2 -keyout DIR/ca.key -out DIR/ca.pem",
        );
        world
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn openssl(&self, arguments: &str) {
        let arguments = arguments.replace("DIR", self.path().to_str().unwrap());
        process::succeed(tool("openssl").args(arguments.split(' ')));
    }

    fn config(&self) -> String {
        format!(
            "{CONFIG}[tls]\nextra_ca = [\"{}/ca.pem\"]\n",
            self.path().display()
        )
    }

    /// An instance on HTTPS that finds the gateway under its name.
    fn instance(&self, gateway: &Gateway, style: &str, bind: &str) -> Instance {
        let file = |name: &str| self.path().join(name);
        std::fs::write(
            file("san"),
            format!("subjectAltName=IP:{bind}\nbasicConstraints=CA:FALSE\n"),
        )
        .unwrap();
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={bind} -keyout DIR/{bind}.key -out DIR/{bind}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in DIR/{bind}.csr -CA DIR/ca.pem -CAkey DIR/ca.key -CAcreateserial -days 2 -extfile DIR/san -out DIR/{bind}.crt"
        ));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let certificate = file(&format!("{bind}.pem"));
        let (crt, key) = (file(&format!("{bind}.crt")), file(&format!("{bind}.key")));
        std::fs::write(&certificate, read(&crt) + &read(&key)).unwrap();
        let believed = file("believed.pem");
        let own = read(Path::new(&gateway.ca_file()));
        std::fs::write(&believed, read(&file("ca.pem")) + &own).unwrap();
        let resolve = format!("{NAME}={}", gateway.address("front.https"));
        let more = [
            "--certificate",
            certificate.to_str().unwrap(),
            "--ca-file",
            believed.to_str().unwrap(),
            "--resolve",
            &resolve,
        ];
        let instance = Instance::start(style, bind, gateway.directory(), &more);
        assert!(instance.base.starts_with("https://"), "{}", instance.base);
        instance
    }
}

fn topics(gateway: &Gateway, world: &World) {
    let author = world.instance(gateway, "mastodon", "127.0.0.1");
    let reader = world.instance(gateway, "mastodon", "127.0.0.2");
    let akkoma = world.instance(gateway, "litepub", "127.0.0.3");
    let topic = format!("https://{NAME}/tag/cats");
    author.subscribe(&format!("https://{NAME}/inbox"));
    reader.subscribe(&format!("{topic}/inbox"));
    akkoma.subscribe(&topic);
    eventually("the topic follows the LitePub relay back", || {
        (akkoma.read("state")["follow_back"] == "accepted").then_some(())
    });
    let listed = gateway.json(&["fedi", "subscribers", "--json"]);
    let joined = |host: &Instance| {
        let all = listed["subscribers"].as_array().unwrap();
        let own = all
            .iter()
            .find(|one| host.base.ends_with(one["host"].as_str().unwrap()));
        own.unwrap_or_else(|| panic!("{listed}"))["joined"].clone()
    };
    assert_eq!(
        [joined(&author), joined(&reader), joined(&akkoma)],
        [json!("relay"), json!("tag/cats"), json!("tag/cats")]
    );

    let other = author
        .publish(&json!({"text": "about dogs", "tags": ["Dogs"]}))
        .remove(0);
    let created = author
        .publish(&json!({"text": "about cats", "tags": ["Cats"]}))
        .remove(0);
    let got = reader.wait_for("the forward", |got| got["id"] == created["id"]);
    assert_eq!(
        (&got["sha256"], &got["signer"]),
        (&created["sha256"], &json!(topic))
    );
    let got = akkoma.wait_for("the Announce", |got| got["object"] == created["object"]);
    assert_eq!((&got["actor"], &got["signer"]), (&json!(topic), &json!(topic)));

    // What the Akkoma announces to the topic reaches the other subscriber of the topic, and the whole relay.
    let announced = akkoma
        .publish(&json!({"text": "more cats", "tags": ["cats"]}))
        .remove(0);
    let got = reader.wait_for("the Announce", |got| got["object"] == announced["object"]);
    assert_eq!(got["actor"], topic);
    let got = author.wait_for("the Announce", |got| got["object"] == announced["object"]);
    assert_eq!(got["actor"], format!("https://{NAME}/actor"));
    eventually("the reader has fetched the post", || {
        let all = reader.read("fetched");
        let mut all = all.as_array().unwrap().iter();
        all.any(|one| one["object"] == announced["object"] && one["outcome"] == "fetched")
            .then_some(())
    });

    let deleted = author
        .publish(&json!({"kind": "delete", "target": created["object"]}))
        .remove(0);
    let got = reader.wait_for("the Delete", |got| got["id"] == deleted["id"]);
    assert_eq!(got["signer"], topic);
    for instance in [&reader, &akkoma] {
        for got in instance.received() {
            assert_eq!(got["outcome"], "accepted", "{}: {got}", instance.base);
            let is_other = got["id"] == other["id"] || got["object"] == other["object"];
            assert!(!is_other, "{} got what is of another topic: {got}", instance.base);
        }
    }
    reader.control("unsubscribe", &json!({}));
    eventually("the topic has forgotten the host", || {
        let listed = gateway.json(&["fedi", "subscribers", "--json"]);
        (listed["subscribers"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
    gateway.assert_healthy();
}
