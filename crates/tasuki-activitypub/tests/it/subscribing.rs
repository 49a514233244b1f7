use http::StatusCode;
use serde_json::json;
use tasuki_activitypub::{FediConfig, Mode};
use tasuki_core::acl::{Action, Effect, Origin, RuleSpec};
use tasuki_core::clock::Timestamp;

use crate::world::{Ground, Instance, RelayUnderTest, Setup};

const ACCEPTED: StatusCode = StatusCode::ACCEPTED;

async fn relay_in(mode: Mode) -> RelayUnderTest {
    let setup = Setup::default();
    let config = FediConfig { mode, ..setup.config };
    RelayUnderTest::start(
        &Ground::memory().0,
        Setup {
            config,
            ..Setup::default()
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_subscribes_again_and_leaves_by_its_last_follow() {
    let relay = relay_in(Mode::Open).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let again = instance.follow("follow-2");
    assert_eq!(instance.post(&relay, &instance.actor(), &again).await, ACCEPTED);
    let accept = instance
        .wait_for("the second Accept", |got| {
            got["type"] == "Accept" && got["object"]["id"] == again["id"]
        })
        .await;
    assert_eq!(accept.json["object"]["actor"], instance.actor());
    assert_eq!(relay.handle.status().active, 1);

    let undo = |follow: &str| {
        json!({"id": format!("{}/undo-{follow}", instance.base), "type": "Undo", "actor": instance.actor(),
            "object": format!("{}/{follow}", instance.base)})
    };
    assert_eq!(
        instance.post(&relay, &instance.actor(), &undo("follow-1")).await,
        ACCEPTED
    );
    assert_eq!(relay.handle.status().active, 1, "a stale Undo ends nothing");
    let other = json!({"id": format!("{}/undo-x", instance.base), "type": "Undo", "actor": instance.user("mallory"),
        "object": {"id": again["id"], "type": "Follow", "actor": instance.actor(), "object": "as:Public"}});
    assert_eq!(
        instance.post(&relay, &instance.user("mallory"), &other).await,
        ACCEPTED
    );
    assert_eq!(relay.handle.status().active, 1, "another actor ends nothing");
    assert_eq!(
        instance.post(&relay, &instance.actor(), &undo("follow-2")).await,
        ACCEPTED
    );
    assert_eq!(relay.handle.status().active, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_litepub_server_is_accepted_and_followed_back() {
    let relay = relay_in(Mode::Open).await;
    let instance = Instance::start().await;
    let actor = format!("{}/relay", instance.base);
    let follow = json!({"id": format!("{}/f1", instance.base), "type": "Follow", "actor": actor,
        "object": relay.url("/actor"), "to": [relay.url("/actor")], "state": "pending"});
    assert_eq!(instance.post(&relay, &actor, &follow).await, ACCEPTED);
    instance
        .wait_for("the Accept", |got| {
            got["type"] == "Accept" && got["object"]["id"] == follow["id"]
        })
        .await;
    let back = instance
        .wait_for("the Follow back", |got| {
            got["type"] == "Follow" && got["object"] == actor.as_str()
        })
        .await;
    let accept = json!({"id": format!("{}/a1", instance.base), "type": "Accept", "actor": actor, "object": back.json["id"]});
    assert_eq!(instance.post(&relay, &actor, &accept).await, ACCEPTED);
    let undo = json!({"id": format!("{}/u1", instance.base), "type": "Undo", "actor": actor,
        "object": {"id": follow["id"], "type": "Follow", "actor": actor, "object": relay.url("/actor"), "state": "cancelled"}});
    assert_eq!(instance.post(&relay, &actor, &undo).await, ACCEPTED);
    let end = instance
        .wait_for("the Undo of the Follow back", |got| got["type"] == "Undo")
        .await;
    assert_eq!(end.json["object"]["id"], back.json["id"]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_follows_the_relay_subscribes_nobody() {
    let relay = relay_in(Mode::Open).await;
    let instance = Instance::start().await;
    let follow = json!({"id": format!("{}/f1", instance.base), "type": "Follow", "actor": instance.user("bob"),
        "object": relay.url("/actor")});
    assert_eq!(
        instance.post(&relay, &instance.user("bob"), &follow).await,
        ACCEPTED
    );
    instance
        .wait_for("the Reject", |got| {
            got["type"] == "Reject" && got["object"]["id"] == follow["id"]
        })
        .await;
    assert_eq!(relay.handle.status().active, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_approves_and_removes() {
    let relay = relay_in(Mode::Approval).await;
    let instance = Instance::start().await;
    let follow = instance.follow("follow-1");
    assert_eq!(instance.post(&relay, &instance.actor(), &follow).await, ACCEPTED);
    assert_eq!(
        (relay.handle.status().active, relay.handle.status().pending),
        (0, 1)
    );
    let refused = instance
        .post(&relay, &instance.user("alice"), &instance.create(1, true))
        .await;
    assert_eq!(refused, StatusCode::FORBIDDEN);

    // What it says of itself is asked for when the operator looks.
    instance.put_software("Mastodon", "4.5.4");
    let actor = instance.actor();
    instance.put(
        "actor",
        json!({"id": actor, "type": "Application", "preferredUsername": "actor", "published": "2024-05-01T00:00:00Z",
            "inbox": format!("{}/inbox", instance.base)}),
    );
    let waiting = relay.handle.applicants().await.unwrap();
    assert_eq!(waiting.len(), 1);
    let facts = waiting[0].facts.as_ref().unwrap();
    assert_eq!(
        (facts.software.as_str(), facts.users, facts.open_registrations),
        ("mastodon 4.5.4", Some(12), Some(false))
    );
    assert_eq!(waiting[0].made, Some(Timestamp(1_714_521_600_000)));
    // One that is away is told of as far as it is known.
    instance.put(".well-known/nodeinfo", json!({}));
    instance.put("actor", json!({"type": "Tombstone"}));
    let waiting = relay.handle.applicants().await.unwrap();
    assert_eq!((&waiting[0].facts, waiting[0].made), (&None, None));
    instance.put(
        "actor",
        json!({"id": actor, "type": "Application", "preferredUsername": "actor", "inbox": format!("{}/inbox", instance.base)}),
    );

    let host = instance.base.trim_start_matches("http://");
    relay.handle.approve(host, "admin", "control.sock").await.unwrap();
    instance
        .wait_for("the Accept", |got| got["type"] == "Accept")
        .await;
    assert!(relay.handle.approve(host, "admin", "control.sock").await.is_err());
    let listed = relay.handle.subscribers().await.unwrap();
    assert_eq!(listed[0].host, host);
    assert!(!serde_json::to_string(&listed).unwrap().contains("follow-1"));

    relay
        .handle
        .remove(host, None, "admin", "control.sock")
        .await
        .unwrap();
    let reject = instance
        .wait_for("the Reject", |got| got["type"] == "Reject")
        .await;
    assert_eq!(reject.json["object"]["id"], follow["id"]);
    assert!(
        relay
            .handle
            .remove(host, None, "admin", "control.sock")
            .await
            .is_err()
    );
    assert!(
        relay
            .handle
            .remove("no host", None, "admin", "control.sock")
            .await
            .is_err()
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_a_rule_refuses_is_told_so() {
    let relay = relay_in(Mode::Open).await;
    let rule = RuleSpec {
        effect: Effect::Deny,
        engine: None,
        action: Some(Action::Subscribe),
        from: vec!["127.0.0.0/8".parse().unwrap()],
        principal: None,
        domain: None,
        reason: "not here".to_owned(),
    };
    relay.acl.replace(vec![(Origin::File(1), rule)]);
    let instance = Instance::start().await;
    let follow = instance.follow("follow-1");
    assert_eq!(instance.post(&relay, &instance.actor(), &follow).await, ACCEPTED);
    instance
        .wait_for("the Reject", |got| got["type"] == "Reject")
        .await;
    assert_eq!(relay.handle.status().active, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_accept_is_repeated_until_it_arrives() {
    let relay = relay_in(Mode::Open).await;
    let instance = Instance::start().await;
    instance.set_mood(crate::world::Mood::Answers(500));
    assert_eq!(
        instance
            .post(&relay, &instance.actor(), &instance.follow("f1"))
            .await,
        ACCEPTED
    );
    crate::deliveries::until("the Accept failed", || {
        relay.counter("deliveries_retried_total") >= 2
    })
    .await;
    instance.set_mood(crate::world::Mood::Takes);
    instance
        .wait_for("the Accept", |got| got["type"] == "Accept")
        .await;
    relay.stop().await;
}
