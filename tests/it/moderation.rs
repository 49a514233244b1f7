//! Moderation, the brake and a new key of the relay, at the wire. On PostgreSQL the orders are given at one gateway, and
//! instances talk to the other or to both, as behind a load balancer.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::fediverse::Instance;
use crate::support::figures::Figures;
use crate::support::gateway::Gateway;
use crate::support::postgres::Postgres;
use crate::support::{eventually, free_port, loopback};

/// The gateway that instances reach, and the one where the operator sits.
pub(crate) struct House {
    pub(crate) door: Gateway,
    desk: Option<Gateway>,
    _postgres: Option<Postgres>,
}

impl House {
    pub(crate) fn on_sqlite() -> Self {
        Self {
            door: Gateway::start(Gateway::FEDIVERSE),
            desk: None,
            _postgres: None,
        }
    }

    pub(crate) fn on_postgresql() -> Self {
        let postgres = Postgres::start();
        // Both have one public name: where the door listens.
        let front = loopback(free_port());
        let config = Gateway::FEDIVERSE.replace("http://127.0.0.1:0", &format!("http://{front}"));
        let listen = format!("{config}[front]\nlisten = [\"{front}\"]\n");
        let door = Gateway::start_on(&postgres.url(), &listen);
        let desk = Gateway::start_beside(&door, &postgres.url(), &config);
        Self {
            door,
            desk: Some(desk),
            _postgres: Some(postgres),
        }
    }

    pub(crate) fn desk(&self) -> &Gateway {
        self.desk.as_ref().unwrap_or(&self.door)
    }

    fn directory(&self) -> &Path {
        self.door.directory()
    }

    pub(crate) fn instance(&self, style: &str, bind: &str) -> Instance {
        Instance::start(style, bind, self.directory(), &[])
    }

    /// One whose requests to the relay go to the desk.
    fn instance_at_the_desk(&self, style: &str, bind: &str) -> Instance {
        let way = format!("{}={}", self.door.front_host(), self.desk().address("front.http"));
        Instance::start(style, bind, self.directory(), &["--resolve", &way])
    }

    #[track_caller]
    pub(crate) fn order(&self, arguments: &[&str]) -> String {
        self.desk().cli(arguments)
    }

    pub(crate) fn assert_healthy(&self) {
        self.door.assert_healthy();
        self.desk().assert_healthy();
    }
}

pub(crate) fn host(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

/// Publishes until the answer has this status: an order reaches another gateway within seconds.
#[track_caller]
fn is_answered(instance: &Instance, status: u64) {
    eventually(&format!("{} is answered {status}", instance.base), || {
        let sent = instance.control("publish", &json!({"text": "may I?"}));
        (sent[0]["status"] == status).then_some(())
    });
}

#[track_caller]
pub(crate) fn arrives(reader: &Instance, sent: &Value) {
    reader.wait_for("the post", |got| {
        got["id"] == sent["id"] || (got["type"] == "Announce" && got["object"] == sent["object"])
    });
}

pub(crate) fn has(reader: &Instance, sent: &Value) -> bool {
    let all = reader.received();
    all.iter()
        .any(|got| got["id"] == sent["id"] || got["object"] == sent["object"])
}

#[test]
fn every_order_of_moderation_holds_at_the_wire() {
    moderate(&House::on_sqlite());
}

#[test]
fn every_order_of_moderation_holds_at_the_wire_on_postgresql_and_at_the_other_gateway() {
    moderate(&House::on_postgresql());
}

fn moderate(house: &House) {
    let inbox = house.door.relay_inbox();
    let [author, reader, spam, loud, odd] =
        [1, 2, 3, 4, 5].map(|number| house.instance("mastodon", &format!("127.0.0.{number}")));
    let akkoma = house.instance("litepub", "127.0.0.6");
    for instance in [&author, &reader, &spam, &loud, &odd] {
        instance.subscribe(&inbox);
    }
    akkoma.subscribe(&house.door.relay_actor());
    let say = |text: &str| author.publish(&json!({"text": text})).remove(0);

    // A block counts at once for what waits: the reader is away, and gets none of it when it is back.
    reader.control("behave", &json!({"inbox": 503}));
    let late = spam.publish(&json!({"text": "buy now"})).remove(0);
    arrives(&loud, &late);
    house.order(&["fedi", "block", host(&spam), "--reason", "spam"]);
    eventually("the blocked one is told", || {
        (spam.read("state")["subscription"] == "rejected").then_some(())
    });
    is_answered(&spam, 403);
    // Limits: a host, an account, a software.
    house.order(&["fedi", "limit", host(&loud)]);
    house.order(&["fedi", "block", "--actor", &format!("{}/users/alice", odd.base)]);
    house.order(&["fedi", "limit", "--software", "akkoma"]);
    for instance in [&loud, &odd, &akkoma] {
        is_answered(instance, 403);
    }
    reader.control("behave", &json!({"inbox": "normal"}));
    let fine = say("a fine day");
    for instance in [&reader, &loud, &odd, &akkoma] {
        arrives(instance, &fine);
    }
    assert!(!has(&reader, &late), "what waited was taken out");
    assert!(!has(&spam, &fine), "nothing goes to who is blocked");

    // Topics and words. The last order shows that the earlier ones are known.
    house.order(&["fedi", "silence", "--tag", "nsfw"]);
    house.order(&["fedi", "silence", "--keyword", "cheap pills"]);
    house.order(&["fedi", "silence", "--regex", "b[i1]tcoin +now"]);
    house.order(&["fedi", "lift", host(&loud)]);
    is_answered(&loud, 202);
    let silenced = [
        author
            .publish(&json!({"text": "a picture", "tags": ["NSFW"]}))
            .remove(0),
        say("CHEAP Pills for you"),
        say("B1tcoin  now"),
    ];
    let fine = say("bitcoin later");
    arrives(&reader, &fine);
    for one in &silenced {
        assert!(!has(&reader, one), "{one}");
    }
    let why = house
        .door
        .cli(&["fedi", "why", silenced[1]["id"].as_str().unwrap()]);
    assert!(why.contains("cheap pills"), "{why}");
    the_brake(house, &author, &reader);
    let audit = house.order(&["audit"]);
    for action in [
        "fedi.block",
        "fedi.limit",
        "fedi.silence",
        "fedi.lift",
        "fedi.pause",
        "fedi.purge",
        "fedi.resume",
    ] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    house.assert_healthy();
}

fn the_brake(house: &House, author: &Instance, reader: &Instance) {
    let say = |text: &str| author.publish(&json!({"text": text})).remove(0);
    let door_knows = |what: &str, wanted: bool| {
        eventually(what, || {
            (house.door.cli(&["status"]).contains("spam wave") == wanted).then_some(())
        });
    };
    house.order(&["fedi", "pause", "--hold", "--reason", "spam wave"]);
    door_knows("the door knows that it is to hold", true);
    let bad = say("cheap   watches");
    let good = say("what was held");
    let purge = ["fedi", "purge", "--matching", "cheap +watches"];
    let dry = house.order(&[&purge[..], &["--dry-run"]].concat());
    assert!(dry.contains("1 activities would be taken out"), "{dry}");
    house.order(&purge);
    assert!(!has(reader, &good), "it is held");
    house.order(&["fedi", "resume"]);
    arrives(reader, &good);
    assert!(!has(reader, &bad), "it was taken out");

    house.order(&["fedi", "pause", "--refuse", "--reason", "spam wave"]);
    is_answered(author, 503);
    house.order(&["fedi", "resume"]);
    is_answered(author, 202);
    door_knows("the door knows that it is over", false);
    let last = say("the last word");
    arrives(reader, &last);
    assert!(!has(reader, &bad));
}

#[test]
fn a_new_key_of_the_relay_is_taken_up_by_the_other_gateway_without_a_gap() {
    let house = House::on_postgresql();
    let inbox = house.door.relay_inbox();
    let author = house.instance("mastodon", "127.0.0.1");
    let at_the_desk = house.instance_at_the_desk("mastodon", "127.0.0.2");
    let misskey = house.instance("misskey", "127.0.0.3");
    let akkoma = house.instance("litepub", "127.0.0.4");
    let all = [&author, &at_the_desk, &misskey, &akkoma];
    for instance in [&author, &at_the_desk, &misskey] {
        instance.subscribe(&inbox);
    }
    akkoma.subscribe(&house.door.relay_actor());
    // Each gateway learns within seconds who joined through the other.
    for gateway in [&house.door, house.desk()] {
        eventually("it knows all four", || {
            (Figures::of(gateway).value("tasuki_fediverse_subscribers") == 4).then_some(())
        });
    }
    let key = |gateway: &Gateway| gateway.cli(&["key", "export", "--yes"]);
    let old = key(&house.door);
    for number in 0..8 {
        if number == 2 {
            let done = house.desk().json(&["fedi", "rotate-key", "--json"]);
            assert_eq!(done["told"], 4, "{done}");
        }
        // In turns through both gateways.
        let from = all[number % 2];
        let sent = from.publish(&json!({"text": format!("post {number}")})).remove(0);
        for reader in all.iter().filter(|one| one.base != from.base) {
            arrives(reader, &sent);
        }
    }
    let shown = |gateway: &Gateway| {
        let host = house.door.front_host();
        let accept = "Accept: application/activity+json\r\n";
        let actor = crate::support::http::get(gateway.address("front.http"), &host, "/actor", accept);
        actor.json()["publicKey"]["publicKeyPem"].clone()
    };
    let new = key(house.desk());
    assert_ne!(new, old);
    eventually("the other gateway shows the new key", || {
        (shown(&house.door) == shown(house.desk())).then_some(())
    });
    assert_eq!(key(&house.door), new);
    for instance in [&author, &at_the_desk, &misskey, &akkoma] {
        instance.wait_for("the Update", |got| got["type"] == "Update");
    }
    house.assert_healthy();
}
