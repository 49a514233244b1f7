//! What single programs send and take, row by row of the table of what is sent to whom.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::FediConfig;
use tasuki_proto::activitypub::PUBLIC;

use crate::deliveries::until;
use crate::forms::wait_for_software;
use crate::world::{Ground, Instance, Mood, RelayUnderTest, Setup};

async fn relay_with(change: impl FnOnce(&mut FediConfig)) -> RelayUnderTest {
    let mut setup = Setup::default();
    change(&mut setup.config);
    RelayUnderTest::start(&Ground::sqlite().await, setup).await
}

async fn subscribed(relay: &RelayUnderTest, software: &str, version: &str) -> Instance {
    let instance = Instance::start().await;
    instance.put_software(software, version);
    instance.subscribe(relay).await;
    let wanted = format!("{} {version}", software.to_lowercase());
    wait_for_software(relay, &instance, &wanted).await;
    instance
}

/// A second activity about the post of `create`.
fn about(create: &Value, kind: &str) -> Value {
    let mut changed = create.clone();
    changed["type"] = json!(kind);
    changed["id"] = json!(format!("{}#{kind}", create["object"]["id"].as_str().unwrap()));
    changed
}

async fn post(relay: &RelayUnderTest, author: &Instance, document: &Value) {
    let status = author.post(relay, &author.user("alice"), document).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn iceshrimp_net_is_sent_announces_and_the_deletes_that_it_takes() {
    let relay = relay_with(|_| {}).await;
    let author = subscribed(&relay, "mastodon", "4.5.4").await;
    let iceshrimp = subscribed(&relay, "Iceshrimp.NET", "2026.1").await;
    let create = author.publish(&relay, 1, true).await;
    let note = create["object"]["id"].clone();
    iceshrimp
        .wait_for("the Announce", |got| got["object"] == note)
        .await;
    post(&relay, &author, &about(&create, "Update")).await;
    let mut delete = about(&create, "Delete");
    delete["object"] = note;
    post(&relay, &author, &delete).await;
    let got = iceshrimp
        .wait_for("the Delete", |got| got["type"] == "Delete")
        .await;
    assert_eq!(got.body, delete.to_string().as_bytes());
    assert!(
        iceshrimp
            .received()
            .iter()
            .all(|got| got.json["type"] != "Update")
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_an_inbox_is_announced() {
    let relay = relay_with(|_| {}).await;
    let author = subscribed(&relay, "mastodon", "4.5.4").await;
    let misskey = subscribed(&relay, "misskey", "2025.12.2").await;
    let small = subscribed(&relay, "hometown", "4.2").await;
    let mut create = author.create(1, true);
    create["object"]["content"] = json!("x".repeat(65 * 1024));
    small.set_mood(Mood::RefusesForwards(413));
    post(&relay, &author, &create).await;
    for reader in [&misskey, &small] {
        let got = reader
            .wait_for("the Announce", |got| got["object"] == create["object"]["id"])
            .await;
        assert_eq!(got.json["type"], "Announce");
    }
    small.set_mood(Mood::Takes);
    let next = author.publish(&relay, 2, true).await;
    for reader in [&misskey, &small] {
        reader
            .wait_for("the next, forwarded", |got| got["id"] == next["id"])
            .await;
    }
    assert_eq!((misskey.refusals(), small.refusals()), (0, 1));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unlisted_posts_and_boosts_are_relayed_if_the_operator_says_so() {
    for wanted in [false, true] {
        let relay = relay_with(|config| (config.unlisted, config.boosts) = (wanted, wanted)).await;
        let author = subscribed(&relay, "mastodon", "4.5.4").await;
        let reader = subscribed(&relay, "mastodon", "4.5.4").await;
        let mut unlisted = author.create(1, true);
        for part in ["/to", "/cc", "/object/to", "/object/cc"] {
            let (holder, name) = part.rsplit_once('/').unwrap();
            let value = if name == "cc" {
                json!([PUBLIC])
            } else {
                json!([author.user("alice/followers")])
            };
            unlisted.pointer_mut(holder).unwrap()[name] = value;
        }
        post(&relay, &author, &unlisted).await;
        let boost = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/boosts/1", author.base),
            "type": "Announce", "actor": author.user("alice"), "to": [PUBLIC], "object": "https://elsewhere.example/notes/1",
            "signature": author.ld_signature("alice")});
        post(&relay, &author, &boost).await;
        let last = author.publish(&relay, 2, true).await;
        reader
            .wait_for("the public post", |got| got["id"] == last["id"])
            .await;
        if wanted {
            reader.wait_for("the boost", |got| got["id"] == boost["id"]).await;
            reader
                .wait_for("the post", |got| got["id"] == unlisted["id"])
                .await;
        } else {
            until("both were dropped", || {
                relay.counter("activities_received_total{outcome=\"boost\"}") == 1
            })
            .await;
            assert_eq!(
                relay.counter("activities_received_total{outcome=\"not_public\"}"),
                1
            );
            let others = [&boost["id"], &unlisted["id"]];
            assert!(
                reader
                    .received()
                    .iter()
                    .all(|got| !others.contains(&&got.json["id"]))
            );
        }
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_category_that_announces_its_own_posts_embedded_publishes_them() {
    let relay = relay_with(|_| {}).await;
    let forum = subscribed(&relay, "nodebb", "4.6.0").await;
    let reader = subscribed(&relay, "mastodon", "4.5.4").await;
    let (category, note) = (forum.base.clone() + "/category/1", forum.base.clone() + "/post/1");
    let object = json!({"id": note, "type": "Article", "attributedTo": forum.user("bob"), "to": [PUBLIC], "content": "x"});
    let announce = |number: u32, object: &Value| {
        json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{category}/announce/{number}"),
            "type": "Announce", "actor": category, "to": [PUBLIC], "object": object})
    };
    // What is embedded is not believed: the post itself is asked for.
    let mut forged = object.clone();
    forged["id"] = json!(format!("{}/post/private", forum.base));
    forum.put(
        "post/private",
        json!({"id": forged["id"], "type": "Article", "attributedTo": forum.user("bob"), "to": ["x"]}),
    );
    forum.put("post/1", object.clone());
    for (number, object) in [(1, &forged), (2, &object)] {
        let status = forum.post(&relay, &category, &announce(number, object)).await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    let got = reader
        .wait_for("the Announce", |got| got["object"] == note.as_str())
        .await;
    assert_eq!(
        (&got.json["type"], &got.json["actor"]),
        (&json!("Announce"), &json!(relay.url("/actor")))
    );
    assert!(
        reader
            .received()
            .iter()
            .all(|got| got.json["object"] != forged["id"])
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_follow_is_told_to_nobody() {
    let relay = relay_with(|_| {}).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let undo = json!({"id": format!("{}/undo", instance.base), "type": "Undo", "actor": instance.actor(),
        "object": instance.follow("follow-1")});
    assert_eq!(
        instance.post(&relay, &instance.actor(), &undo).await,
        StatusCode::ACCEPTED
    );
    let host = instance.base.trim_start_matches("http://");
    let why = relay.handle.why(host).await.unwrap();
    assert_eq!(why.judged.len(), 2, "{why:?}");
    let told = serde_json::to_string(&why).unwrap();
    assert!(told.contains("Undo") && !told.contains("follow-1"), "{told}");
    relay.stop().await;
}
