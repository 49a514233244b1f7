//! A running relay is taken over: nobody follows again, everybody publishes and receives.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::KeyOutcome;
use tasuki_core::store::fedi::{ForeignRelay, ForeignSubscriber, SubscriptionStyle};

use crate::deliveries::until;
use crate::world::{Ground, Instance, RelayUnderTest, Setup, client};

const ADMIN: (&str, &str) = ("admin", "socket");
/// Written by ActivityRelay 0.3.5 itself; its key has 4096 bits and is PKCS#1.
const DATABASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tasuki-store/tests/data/activityrelay-0.3.5.sqlite3"
);

async fn actor_of(relay: &RelayUnderTest) -> Value {
    client()
        .get(relay.url("/actor"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap()
}

fn subscriber(
    instance: &Instance,
    actor: &str,
    style: SubscriptionStyle,
    follow_id: Option<String>,
) -> ForeignSubscriber {
    ForeignSubscriber {
        actor: actor.to_owned(),
        inbox: format!("{}/inbox", instance.base),
        style: Some(style),
        follow_id,
        is_pending: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_takeover_everybody_publishes_and_receives_without_a_new_follow() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let addr = relay.addr;
    let own = actor_of(&relay).await;
    let [first, second, litepub] = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    let their_relay = format!("{}/relay", litepub.base);
    let old = tasuki_store::read_activityrelay(std::path::Path::new(DATABASE))
        .await
        .unwrap();
    let follow = format!("{}/old-follow", first.base);
    let foreign = ForeignRelay {
        key_pem: old.key_pem,
        subscribers: vec![
            subscriber(
                &first,
                &first.actor(),
                SubscriptionStyle::Mastodon,
                Some(follow.clone()),
            ),
            // This one's Follow was not noted.
            subscriber(&second, &second.actor(), SubscriptionStyle::Mastodon, None),
            subscriber(&litepub, &their_relay, SubscriptionStyle::LitePub, None),
            subscriber(
                &litepub,
                "https://elsewhere.example/actor",
                SubscriptionStyle::Mastodon,
                None,
            ),
        ],
        rules: old.rules,
    };
    let dry = relay.handle.take_over(&foreign, true, ADMIN).await.unwrap();
    assert_eq!(
        (dry.added.len(), dry.skipped.len(), dry.key),
        (3, 1, KeyOutcome::Taken)
    );
    assert_eq!(actor_of(&relay).await, own, "a dry run changes nothing");
    let done = relay.handle.take_over(&foreign, false, ADMIN).await.unwrap();
    assert_eq!((done.key_bits, done.rules), (Some(4096), 2));

    // Everything but the key is as it was, and the key is the old relay's.
    let taken = actor_of(&relay).await;
    assert_eq!(
        (&taken["id"], &taken["inbox"], &taken["publicKey"]["id"]),
        (&own["id"], &own["inbox"], &own["publicKey"]["id"])
    );
    assert_ne!(taken["publicKey"], own["publicKey"]);
    let create = first.publish(&relay, 1, true).await;
    let note = create["object"]["id"].clone();
    second
        .wait_for("the forward", |got| got["id"] == create["id"])
        .await;
    litepub
        .wait_for("the Announce", |got| got["object"] == note)
        .await;
    let back = second.publish(&relay, 2, true).await;
    first.wait_for("the forward", |got| got["id"] == back["id"]).await;

    // The key stays, and is not exchanged while instances know it.
    relay.stop().await;
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    assert_eq!(actor_of(&relay).await, taken);
    let other = ForeignRelay {
        key_pem: Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----".into()),
        ..ForeignRelay::default()
    };
    let error = relay.handle.take_over(&other, false, ADMIN).await.unwrap_err();
    assert!(error.to_string().contains("not an RSA key"), "{error}");
    // They leave by the Follow of old, and by any where it was not noted.
    for (instance, follow) in [(&first, follow), (&second, format!("{}/whatever", second.base))] {
        let undo = json!({"id": format!("{}/undo", instance.base), "type": "Undo", "actor": instance.actor(),
            "object": {"id": follow, "type": "Follow", "actor": instance.actor(), "object": "as:Public"}});
        assert_eq!(
            instance.post(&relay, &instance.actor(), &undo).await,
            StatusCode::ACCEPTED
        );
    }
    until("both have left", || relay.handle.status().active == 1).await;
    relay.stop().await;
}
