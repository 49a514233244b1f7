//! The form in which each host is sent other people's activities, and where.

use serde_json::json;
use tasuki_activitypub::{FediConfig, SubscriberStatus};
use tasuki_core::store::fedi::DeliveryForm;

use crate::deliveries::until;
use crate::world::{Ground, Instance, Mood, RelayUnderTest, Setup};

pub(crate) async fn status(relay: &RelayUnderTest, instance: &Instance) -> SubscriberStatus {
    let all = relay.handle.subscribers().await.unwrap();
    let host = instance.base.trim_start_matches("http://");
    all.into_iter().find(|one| one.host == host).unwrap()
}

pub(crate) async fn wait_for_software(relay: &RelayUnderTest, instance: &Instance, wanted: &str) {
    for _ in 0..400 {
        if status(relay, instance).await.software.as_deref() == Some(wanted) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("{wanted} is not known: {:?}", status(relay, instance).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_a_forward_is_sent_announces_also_after_a_restart() {
    let ground = Ground::sqlite().await;
    // What a host answers about a shared signature is counted elsewhere.
    let setup = || Setup {
        config: FediConfig {
            shared_signatures: false,
            ..Setup::default().config
        },
        ..Setup::default()
    };
    let relay = RelayUnderTest::start(&ground, setup()).await;
    let addr = relay.addr;
    let (author, strict, reader) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    for instance in [&author, &strict, &reader] {
        instance.subscribe(&relay).await;
    }
    assert_eq!(status(&relay, &strict).await.form, DeliveryForm::Forward);
    strict.set_mood(Mood::RefusesForwards(400));
    for number in 1..=3 {
        let create = author.publish(&relay, number, true).await;
        let note = create["object"]["id"].as_str().unwrap();
        let announce = strict.wait_for("the Announce", |got| got["object"] == note).await;
        assert_eq!(announce.json["type"], "Announce");
        // Nobody else needed an Announce.
        let got = reader
            .wait_for("the forward", |got| got["id"] == create["id"])
            .await;
        assert_eq!(got.body, create.to_string().as_bytes());
    }
    assert_eq!(strict.refusals(), 1, "it was asked once");
    let learnt = status(&relay, &strict).await;
    assert_eq!(learnt.form, DeliveryForm::Announce);
    assert!(
        learnt.form_reason.contains("refused a forward: answered 400"),
        "{}",
        learnt.form_reason
    );
    assert_eq!(relay.counter("deliveries_refused_total"), 0);
    relay.stop().await;

    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, setup(), listener).await;
    let create = author.publish(&relay, 4, true).await;
    strict
        .wait_for("the Announce", |got| got["object"] == create["object"]["id"])
        .await;
    assert_eq!(strict.refusals(), 1, "what was learnt is kept");

    // The operator knows better, whatever the host answers.
    let host = strict.base.trim_start_matches("http://").to_owned();
    relay
        .handle
        .choose_form(&host, Some(DeliveryForm::Forward), "admin", "socket")
        .await
        .unwrap();
    strict.set_mood(Mood::RefusesForwards(403));
    author.publish(&relay, 5, true).await;
    until("the forward is refused for good", || {
        relay.counter("deliveries_refused_total") == 1
    })
    .await;
    assert_eq!(
        status(&relay, &strict).await.form_reason,
        "chosen by the operator"
    );
    relay
        .handle
        .choose_form(&host, None, "admin", "socket")
        .await
        .unwrap();
    assert_eq!(status(&relay, &strict).await.form, DeliveryForm::Forward);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_software_says_the_form() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let (author, strict, liar) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    strict.put_software("Iceshrimp.NET", "2026.1");
    // NodeInfo of another host is not believed.
    let elsewhere = format!("{}/nodeinfo/2.1", strict.base);
    let rel = "http://nodeinfo.diaspora.software/ns/schema/2.1";
    liar.put(
        ".well-known/nodeinfo",
        json!({"links": [{"rel": rel, "href": elsewhere}]}),
    );
    for instance in [&author, &liar, &strict] {
        instance.subscribe(&relay).await;
    }
    wait_for_software(&relay, &strict, "iceshrimp.net 2026.1").await;
    let looked = async {
        while !status(&relay, &liar).await.form_reason.contains("no NodeInfo") {
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, looked)
        .await
        .unwrap();
    let create = author.publish(&relay, 1, true).await;
    let note = create["object"]["id"].clone();
    strict.wait_for("the Announce", |got| got["object"] == note).await;
    // Many programs answer 202 to a forward that they drop: what is not known to take forwards is sent none.
    liar.wait_for("the Announce", |got| got["object"] == create["object"]["id"])
        .await;
    assert!(strict.received().iter().all(|got| got.json["id"] != create["id"]));
    let told = status(&relay, &strict).await;
    assert_eq!(
        told.form_reason,
        "iceshrimp.net 2026.1 is not known to take forwards"
    );
    assert_eq!(status(&relay, &liar).await.software, None);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_that_moved_is_found_and_nothing_is_lost() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let (author, mover) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    mover.subscribe(&relay).await;
    mover.set_mood(Mood::Moved);
    let actor = mover.actor();
    mover.put(
        "actor",
        json!({"id": actor, "type": "Application", "inbox": format!("{}/moved/inbox", mover.base), "preferredUsername": "actor",
            "publicKey": {"id": format!("{actor}#main-key"), "owner": actor, "publicKeyPem": "x"}}),
    );
    for number in 1..=3 {
        let create = author.publish(&relay, number, true).await;
        mover.wait_for("the post", |got| got["id"] == create["id"]).await;
    }
    assert!(status(&relay, &mover).await.inbox.ends_with("/moved/inbox"));
    assert_eq!(relay.counter("deliveries_refused_total"), 0);
    relay.stop().await;
}
