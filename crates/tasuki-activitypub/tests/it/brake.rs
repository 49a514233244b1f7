//! The emergency brake, taking out what waits, and watching one host.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::{Line, Purge};
use tasuki_core::store::fedi::{BrakeMode, ModerationEffect as Effect, ModerationKind as Kind};

use crate::forms::wait_for_software;
use crate::world::{Ground, Instance, Letter, RelayUnderTest, Setup};

const ADMIN: (&str, &str) = ("admin", "socket");
const ACCEPTED: StatusCode = StatusCode::ACCEPTED;

fn host(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

/// A post of `user` that says `text`.
fn post(instance: &Instance, number: usize, user: &str, text: &str) -> Value {
    let mut create = instance.create(number, false);
    let id = instance.user(user);
    create["actor"] = json!(id);
    create["object"]["attributedTo"] = json!(id);
    create["object"]["content"] = json!(text);
    create["signature"] = instance.ld_signature(user);
    create
}

async fn publish(relay: &RelayUnderTest, instance: &Instance, document: &Value) {
    let actor = document["actor"].as_str().unwrap();
    assert_eq!(instance.post(relay, actor, document).await, ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_waits_over_a_restart_and_goes_out_when_the_brake_is_released() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let addr = relay.addr;
    let [author, reader, late] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    author.subscribe(&relay).await;
    reader.subscribe(&relay).await;
    relay
        .handle
        .pause(BrakeMode::Hold, "spam wave", ADMIN)
        .await
        .unwrap();
    let before = author.publish(&relay, 1, true).await;
    // The relay's own letters go out, behind what is held.
    late.subscribe(&relay).await;
    reader.subscribe(&relay).await;
    assert!(reader.received().iter().all(|got| got.json["id"] != before["id"]));
    relay.stop().await;

    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    assert_eq!(relay.handle.brake().unwrap().reason, "spam wave");
    let after = author.publish(&relay, 2, true).await;
    reader.subscribe(&relay).await;
    assert!(reader.received().iter().all(|got| got.json["type"] == "Accept"));
    assert!(relay.handle.resume(ADMIN).await.unwrap());
    assert!(!relay.handle.resume(ADMIN).await.unwrap());
    reader
        .wait_for_all(&[before["id"].clone(), after["id"].clone()])
        .await;
    // Who joined while it was held gets what came after that.
    late.wait_for("the second post", |got| got["id"] == after["id"])
        .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_comes_again_and_subscriptions_go_on() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let [author, reader] = [Instance::start().await, Instance::start().await];
    author.subscribe(&relay).await;
    relay.handle.pause(BrakeMode::Refuse, "", ADMIN).await.unwrap();
    let create = author.create(1, true);
    let key = format!("{}#main-key", author.user("alice"));
    let letter = Letter::new(&relay, &key, create.to_string().as_bytes());
    let (status, problem) = author.send(&relay, letter).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        problem["detail"].as_str().unwrap().contains("come again"),
        "{problem}"
    );
    reader.subscribe(&relay).await;
    relay.handle.resume(ADMIN).await.unwrap();
    publish(&relay, &author, &create).await;
    reader.wait_for("the post", |got| got["id"] == create["id"]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_taken_out_by_account_host_and_pattern_but_not_what_takes_back() {
    let mut setup = Setup::default();
    setup.config.boosts = true;
    let relay = RelayUnderTest::start(&Ground::sqlite().await, setup).await;
    let [author, spammer, reader] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    for instance in [&author, &spammer, &reader] {
        instance.subscribe(&relay).await;
    }
    relay.handle.pause(BrakeMode::Hold, "", ADMIN).await.unwrap();
    let fine = post(&author, 1, "alice", "a good day");
    let troll = post(&author, 2, "troll", "hello");
    let pills = post(&author, 3, "alice", "<p>Cheap <b>Pills</b></p>");
    let foreign = post(&spammer, 4, "bob", "hello");
    let delete = json!({"id": format!("{}/d", author.base), "type": "Delete", "actor": author.user("alice"),
        "to": ["as:Public"], "object": format!("{}/notes/77", author.base), "signature": author.ld_signature("alice")});
    let undo = |instance: &Instance, user: &str| {
        json!({"id": format!("{}/{user}/undo", instance.base), "type": "Undo", "actor": instance.user(user),
            "to": ["as:Public"], "object": format!("{}/boosts/1", instance.base),
            "signature": instance.ld_signature(user)})
    };
    let (by_troll, by_spammer) = (undo(&author, "troll"), undo(&spammer, "bob"));
    for document in [&fine, &troll, &pills, &delete, &by_troll] {
        publish(&relay, &author, document).await;
    }
    for document in [&foreign, &by_spammer] {
        publish(&relay, &spammer, document).await;
    }
    let orders = [
        (Purge::actor(&author.user("troll")).unwrap(), 1),
        (Purge::host(host(&spammer)).unwrap(), 1),
        (Purge::matching("cheap +pills|notes/77|boosts/1").unwrap(), 1),
    ];
    for (what, activities) in &orders {
        let dry = relay.handle.purge(what, true, ADMIN).await.unwrap();
        // Each waits for the two other hosts.
        assert_eq!((dry.activities, dry.deliveries), (*activities, 2), "{what:?}");
        let done = relay.handle.purge(what, false, ADMIN).await.unwrap();
        assert_eq!(done, dry);
        let again = relay.handle.purge(what, false, ADMIN).await.unwrap();
        assert_eq!(again.activities, 0, "{what:?}");
    }
    assert!(Purge::actor("@troll@a.example").is_err() && Purge::host("no host/").is_err());
    assert!(Purge::matching("(").is_err());
    relay.handle.resume(ADMIN).await.unwrap();
    reader
        .wait_for_all(&[&fine, &delete, &by_troll, &by_spammer].map(|one| one["id"].clone()))
        .await;
    let last = author.publish(&relay, 9, true).await;
    reader
        .wait_for("the last post", |got| got["id"] == last["id"])
        .await;
    let gone = [&troll["id"], &pills["id"], &foreign["id"]];
    assert!(
        reader
            .received()
            .iter()
            .all(|got| !gone.contains(&&got.json["id"]))
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_takes_out_what_waits_for_good() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let [author, evil, reader] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    for instance in [&author, &evil, &reader] {
        instance.subscribe(&relay).await;
    }
    relay.handle.pause(BrakeMode::Hold, "", ADMIN).await.unwrap();
    let bad = evil.publish(&relay, 1, true).await;
    let troll = post(&author, 2, "troll", "hello");
    publish(&relay, &author, &troll).await;
    for (kind, subject) in [(Kind::Host, host(&evil)), (Kind::Actor, &author.user("troll"))] {
        relay
            .handle
            .moderate(Effect::Block, kind, subject, "", ADMIN)
            .await
            .unwrap();
        relay.handle.lift(kind, subject, ADMIN).await.unwrap();
    }
    relay.handle.resume(ADMIN).await.unwrap();
    let good = author.publish(&relay, 3, true).await;
    reader
        .wait_for("the good post", |got| got["id"] == good["id"])
        .await;
    let gone = [&bad["id"], &troll["id"]];
    assert!(
        reader
            .received()
            .iter()
            .all(|got| !gone.contains(&&got.json["id"]))
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_about_words_and_software_take_out_what_waits_for_good() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let [author, spammer, reader] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    spammer.put_software("spamware", "1.0");
    for instance in [&author, &spammer, &reader] {
        instance.subscribe(&relay).await;
    }
    wait_for_software(&relay, &spammer, "spamware 1.0").await;
    relay.handle.pause(BrakeMode::Hold, "", ADMIN).await.unwrap();
    let fine = post(&author, 1, "alice", "a good day");
    let pills = post(&author, 2, "alice", "<p>Cheap <b>Pills</b></p>");
    let coins = post(&author, 3, "alice", "B1tcoin   now");
    let mut tagged = post(&author, 4, "alice", "look");
    tagged["object"]["tag"] = json!([{"type": "Hashtag", "name": "#ads"}]);
    for document in [&fine, &pills, &coins, &tagged] {
        publish(&relay, &author, document).await;
    }
    let foreign = post(&spammer, 5, "bob", "hello");
    publish(&relay, &spammer, &foreign).await;
    for (effect, kind, subject) in [
        (Effect::Silence, Kind::Keyword, "cheap pills"),
        (Effect::Silence, Kind::Regex, "b[i1]tcoin +now"),
        (Effect::Silence, Kind::Tag, "#Ads"),
        (Effect::Block, Kind::Software, "spamware"),
    ] {
        relay
            .handle
            .moderate(effect, kind, subject, "", ADMIN)
            .await
            .unwrap();
        relay.handle.lift(kind, subject, ADMIN).await.unwrap();
    }
    relay.handle.resume(ADMIN).await.unwrap();
    let last = author.publish(&relay, 9, true).await;
    reader
        .wait_for_all(&[fine["id"].clone(), last["id"].clone()])
        .await;
    let gone = [&pills["id"], &coins["id"], &tagged["id"], &foreign["id"]];
    assert!(
        reader
            .received()
            .iter()
            .all(|got| !gone.contains(&&got.json["id"]))
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boost_of_a_post_of_a_blocked_host_goes_nowhere() {
    let mut setup = Setup::default();
    setup.config.boosts = true;
    let relay = RelayUnderTest::start(&Ground::sqlite().await, setup).await;
    let [author, reader] = [Instance::start().await, Instance::start().await];
    for instance in [&author, &reader] {
        instance.subscribe(&relay).await;
    }
    let block = relay
        .handle
        .moderate(Effect::Block, Kind::Host, "evil.example", "", ADMIN);
    block.await.unwrap();
    let boost = |number: usize, object: &str| {
        json!({"id": format!("{}/boosts/{number}", author.base), "type": "Announce", "actor": author.user("alice"),
            "to": ["as:Public"], "object": object, "signature": author.ld_signature("alice")})
    };
    let (bad, good) = (
        boost(1, "https://a.evil.example/1"),
        boost(2, "https://fine.example/1"),
    );
    for document in [&bad, &good] {
        publish(&relay, &author, document).await;
    }
    reader.wait_for("the boost", |got| got["id"] == good["id"]).await;
    assert!(reader.received().iter().all(|got| got.json["id"] != bad["id"]));
    let why = relay.handle.why(bad["id"].as_str().unwrap()).await.unwrap();
    assert_eq!(why.judged[0].outcome, "boosts_blocked", "{why:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_is_watched_both_ways() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let [author, reader, other] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    for instance in [&author, &reader, &other] {
        instance.subscribe(&relay).await;
    }
    let (lines, mut next) = relay.handle.follow(host(&reader), None).unwrap();
    assert!(lines.is_empty());
    let to_reader = author.publish(&relay, 1, true).await;
    reader
        .wait_for("the post", |got| got["id"] == to_reader["id"])
        .await;
    let from_reader = reader.publish(&relay, 2, true).await;
    let mut all = Vec::new();
    let look = async {
        while all.len() < 2 {
            let (lines, following) = relay.handle.follow(host(&reader), Some(next)).unwrap();
            all.extend(lines);
            next = following;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, look).await.unwrap();
    let (mut sent, mut received) = (0, 0);
    for line in &all {
        match line {
            Line::Sent(one) => {
                assert_eq!(
                    (one.outcome, one.object.as_str()),
                    ("taken", to_reader["object"]["id"].as_str().unwrap())
                );
                sent += 1;
            }
            Line::Received(one) => {
                assert_eq!(one.id.as_deref(), from_reader["id"].as_str());
                received += 1;
            }
        }
    }
    assert_eq!((sent, received), (1, 1), "{all:?}");
    assert!(relay.handle.follow("no host/", None).is_err());
    relay.stop().await;
}
