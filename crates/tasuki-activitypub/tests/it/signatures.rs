//! How deliveries are signed: one signature for many where that is allowed, and what hosts' answers teach.

use serde_json::json;
use tasuki_activitypub::{FediConfig, Mode, SignatureUse};
use tasuki_core::store::fedi::{HostFilter, LearntSignature, ModerationEffect, ModerationKind};
use tasuki_proto::activitypub::PUBLIC;

use crate::deliveries::until;
use crate::forms::{status, wait_for_software};
use crate::world::{Ground, Instance, Mood, PATIENCE, Received, RelayUnderTest, Setup};

const BY: (&str, &str) = ("admin", "socket");

struct Scene {
    relay: RelayUnderTest,
    author: Instance,
    readers: Vec<Instance>,
}

impl Scene {
    async fn start(config: FediConfig) -> Self {
        let setup = Setup {
            config,
            ..Setup::default()
        };
        let relay = RelayUnderTest::start(&Ground::sqlite().await, setup).await;
        let author = Instance::start().await;
        let readers = vec![
            Instance::start().await,
            Instance::start().await,
            Instance::start().await,
        ];
        for instance in readers.iter().chain([&author]) {
            instance.subscribe(&relay).await;
            wait_for_software(&relay, instance, "mastodon 4.5.4").await;
        }
        Self {
            relay,
            author,
            readers,
        }
    }

    async fn got(&self, reader: usize, id: &serde_json::Value) -> Received {
        self.readers[reader]
            .wait_for("the post", |got| got["id"] == *id)
            .await
    }
}

impl Scene {
    /// Until what a host's answer taught is known to the operator, too.
    async fn learns(&self, instance: &Instance, wanted: SignatureUse) {
        let look = async {
            while status(&self.relay, instance).await.signature != wanted {
                tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap();
    }
}

fn host(instance: &Instance) -> String {
    instance.base.trim_start_matches("http://").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signature_serves_all_who_ask_for_no_more() {
    let scene = Scene::start(Setup::default().config).await;
    scene.readers[2].put_software("misskey", "2026.5.0");
    let again = Instance::start().await;
    again.put_software("misskey", "2026.5.0");
    again.subscribe(&scene.relay).await;
    wait_for_software(&scene.relay, &again, "misskey 2026.5.0").await;

    let create = scene.author.publish(&scene.relay, 1, true).await;
    let (one, other) = (
        scene.got(0, &create["id"]).await,
        scene.got(1, &create["id"]).await,
    );
    assert_eq!(
        (one.signed, other.signed),
        (SignatureUse::Shared, SignatureUse::Shared)
    );
    assert_eq!(one.signature, other.signature, "made once");
    let misskey = again.wait_for("the post", |got| got["id"] == create["id"]).await;
    assert_eq!(misskey.signed, SignatureUse::Full);
    // The relay's Announce, too.
    let bare = scene.author.publish(&scene.relay, 2, false).await;
    let announce = scene.readers[0]
        .wait_for("the Announce", |got| got["object"] == bare["object"]["id"])
        .await;
    assert_eq!(announce.signed, SignatureUse::Shared);
    assert_ne!(
        announce.signature, one.signature,
        "another body, another signature"
    );
    // What concerns a subscription never, and no Undo.
    for reader in &scene.readers {
        let accept = reader.wait_for("the Accept", |got| got["type"] == "Accept").await;
        assert_eq!(accept.signed, SignatureUse::Full);
    }
    let undo = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/undo/1", scene.author.base),
        "type": "Undo", "actor": scene.author.user("alice"), "to": [PUBLIC],
        "object": {"id": format!("{}/boosts/1", scene.author.base), "type": "Announce", "actor": scene.author.user("alice"),
            "object": "https://elsewhere.example/1"},
        "signature": scene.author.ld_signature("alice")});
    let sent = scene
        .author
        .post(&scene.relay, &scene.author.user("alice"), &undo)
        .await;
    assert_eq!(sent, http::StatusCode::ACCEPTED);
    assert_eq!(scene.got(0, &undo["id"]).await.signed, SignatureUse::Full);
    let told = status(&scene.relay, &scene.readers[0]).await;
    assert_eq!(told.signature, SignatureUse::Shared);
    assert_eq!(
        told.signature_reason,
        "mastodon 4.5.4 asks for date and digest under a signature"
    );
    assert_eq!(
        status(&scene.relay, &again).await.signature_reason,
        "misskey 2026.5.0 is not known to take a shared signature"
    );
    scene.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_a_shared_signature_gets_its_own_at_once_and_from_then_on() {
    let scene = Scene::start(Setup::default().config).await;
    for (reader, refusal) in [(0, 401), (1, 400)] {
        scene.readers[reader].set_mood(Mood::RefusesShared(refusal));
    }
    for number in 1..=3 {
        let create = scene.author.publish(&scene.relay, number, true).await;
        for reader in [0, 1] {
            assert_eq!(scene.got(reader, &create["id"]).await.signed, SignatureUse::Full);
            scene.learns(&scene.readers[reader], SignatureUse::Full).await;
            assert_eq!(scene.readers[reader].refusals(), 1);
        }
        assert_eq!(scene.got(2, &create["id"]).await.signed, SignatureUse::Shared);
    }
    let told = status(&scene.relay, &scene.readers[0]).await;
    assert_eq!(told.signature, SignatureUse::Full);
    assert!(
        told.signature_reason
            .contains("refused a shared signature: answered 401"),
        "{}",
        told.signature_reason
    );
    // Neither a failure of the host nor a refusal of a forward.
    assert_eq!(scene.relay.counter("deliveries_retried_total"), 0);
    assert_eq!(told.form_reason, "mastodon 4.5.4 takes forwards");
    scene.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_answers_401_to_everything_teaches_nothing() {
    let scene = Scene::start(Setup::default().config).await;
    scene.readers[0].set_mood(Mood::Answers(401));
    let create = scene.author.publish(&scene.relay, 1, true).await;
    scene.got(1, &create["id"]).await;
    until("it was tried", || {
        scene.relay.counter("deliveries_retried_total") > 0
    })
    .await;
    scene.readers[0].set_mood(Mood::Takes);
    assert_eq!(scene.got(0, &create["id"]).await.signed, SignatureUse::Shared);
    assert_eq!(
        status(&scene.relay, &scene.readers[0]).await.signature,
        SignatureUse::Shared
    );
    scene.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_with_a_rule_and_relays_that_are_not_open_get_no_shared_signature() {
    let scene = Scene::start(Setup::default().config).await;
    let limited = host(&scene.readers[0]);
    scene
        .relay
        .handle
        .moderate(ModerationEffect::Limit, ModerationKind::Host, &limited, "", BY)
        .await
        .unwrap();
    let create = scene.author.publish(&scene.relay, 1, true).await;
    assert_eq!(scene.got(0, &create["id"]).await.signed, SignatureUse::Full);
    assert_eq!(scene.got(1, &create["id"]).await.signed, SignatureUse::Shared);
    assert_eq!(
        status(&scene.relay, &scene.readers[0]).await.signature_reason,
        "it does not receive, or a rule is about it, or it has a filter"
    );
    // Nor does one with a filter, whoever set it.
    let filter = HostFilter {
        no_bots: true,
        ..HostFilter::default()
    };
    let filtered = host(&scene.readers[2]);
    let handle = &scene.relay.handle;
    handle.set_filter(&filtered, Some(filter), BY).await.unwrap();
    let create = scene.author.publish(&scene.relay, 2, true).await;
    assert_eq!(scene.got(2, &create["id"]).await.signed, SignatureUse::Full);
    assert_eq!(scene.got(1, &create["id"]).await.signed, SignatureUse::Shared);
    handle.set_filter(&filtered, None, BY).await.unwrap();
    let create = scene.author.publish(&scene.relay, 3, true).await;
    assert_eq!(scene.got(2, &create["id"]).await.signed, SignatureUse::Shared);
    let software = scene
        .relay
        .handle
        .moderate(
            ModerationEffect::Limit,
            ModerationKind::Software,
            "mastodon",
            "",
            BY,
        )
        .await;
    software.unwrap();
    let status_now = status(&scene.relay, &scene.readers[1]).await;
    assert_eq!(status_now.signature, SignatureUse::Full);
    scene.relay.stop().await;

    let defaults = Setup::default().config;
    for config in [
        FediConfig {
            shared_signatures: false,
            ..defaults.clone()
        },
        FediConfig {
            mode: Mode::Approval,
            ..defaults
        },
    ] {
        let is_open = config.mode == Mode::Open;
        let setup = Setup {
            config,
            ..Setup::default()
        };
        let relay = RelayUnderTest::start(&Ground::sqlite().await, setup).await;
        let (author, reader) = (Instance::start().await, Instance::start().await);
        for instance in [&author, &reader] {
            match is_open {
                true => instance.subscribe(&relay).await,
                false => {
                    let follow = instance.follow("f1");
                    instance.post(&relay, &instance.actor(), &follow).await;
                    relay.handle.approve(&host(instance), BY.0, BY.1).await.unwrap();
                }
            }
            wait_for_software(&relay, instance, "mastodon 4.5.4").await;
        }
        let create = author.publish(&relay, 1, true).await;
        let got = reader.wait_for("the post", |got| got["id"] == create["id"]).await;
        assert_eq!(got.signed, SignatureUse::Full);
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_asks_for_rfc_9421_gets_it_and_one_that_stops_taking_it_gets_the_draft() {
    let scene = Scene::start(Setup::default().config).await;
    // One says so; the other is of a software that may know it.
    scene.readers[0].set_mood(Mood::WantsMessage(true));
    let silent = Instance::start().await;
    silent.put_software("newcomer", "1");
    silent.subscribe(&scene.relay).await;
    wait_for_software(&scene.relay, &silent, "newcomer 1").await;
    silent.set_mood(Mood::WantsMessage(false));
    for number in 1..=2 {
        let create = scene.author.publish(&scene.relay, number, true).await;
        let got = scene.got(0, &create["id"]).await;
        assert_eq!(got.signed, SignatureUse::Rfc9421);
        let note = create["object"]["id"].clone();
        let got = silent.wait_for("the Announce", |got| got["object"] == note).await;
        assert_eq!(got.signed, SignatureUse::Rfc9421);
        for instance in [&scene.readers[0], &silent] {
            scene.learns(instance, SignatureUse::Rfc9421).await;
        }
        assert_eq!(silent.refusals(), 1);
    }
    let told = status(&scene.relay, &scene.readers[0]).await;
    assert_eq!(told.signature, SignatureUse::Rfc9421);
    assert!(told.signature_reason.contains("answered 401"), "{told:?}");
    // A shared one, then one of the draft, then what it asks for; no more for what follows.
    assert_eq!(scene.readers[0].refusals(), 2);

    // It was set back: the draft is tried again, and what was learnt is forgotten.
    silent.set_mood(Mood::RefusesMessage);
    let create = scene.author.publish(&scene.relay, 3, true).await;
    let note = create["object"]["id"].clone();
    let got = silent.wait_for("the Announce", |got| got["object"] == note).await;
    assert_eq!(got.signed, SignatureUse::Full);
    scene.learns(&silent, SignatureUse::Full).await;
    assert_eq!(
        status(&scene.relay, &silent).await.signature_reason,
        "newcomer 1 is not known to take a shared signature"
    );
    scene.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_of_signatures_is_forgotten_with_the_form() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    wait_for_software(&relay, &instance, "mastodon 4.5.4").await;
    let row = ground.fedi.subscriptions().await.unwrap().remove(0);
    let learnt = Some(LearntSignature::Full);
    ground
        .fedi
        .note_signature(row.host_no, learnt, "answered 401")
        .await
        .unwrap();
    assert_eq!(
        status(&relay, &instance).await.signature_reason,
        "it refused a shared signature: answered 401"
    );
    relay
        .handle
        .choose_form(&host(&instance), None, BY.0, BY.1)
        .await
        .unwrap();
    assert_eq!(
        status(&relay, &instance).await.signature,
        SignatureUse::Shared,
        "auto forgets"
    );
    relay.stop().await;
}
