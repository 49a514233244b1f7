//! A new key for the relay: nobody misses anything, whether they ask for keys again, believe the Update, or neither.

use std::time::Duration;

use serde_json::Value;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::AuditEntry;

use crate::deliveries::until;
use crate::world::{Ground, Instance, Mood, PATIENCE, RelayUnderTest, Setup, client};

const BY: (&str, &str) = ("admin", "socket");

async fn published_key(relay: &RelayUnderTest) -> (String, String) {
    let actor: Value = client()
        .get(relay.url("/actor"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let key = &actor["publicKey"];
    let text = |name: &str| key[name].as_str().unwrap().to_owned();
    (text("id"), text("publicKeyPem"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_learnt_by_everybody_without_a_gap() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let (author, asks, believes, away) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    for instance in [&author, &asks, &believes, &away] {
        instance.subscribe(&relay).await;
    }
    let before = author.publish(&relay, 1, true).await;
    for reader in [&asks, &believes, &away] {
        reader.wait_for("the post", |got| got["id"] == before["id"]).await;
    }
    // One takes a key from nowhere but an Update, one is away while it happens.
    believes.keep_key();
    away.keep_key();
    away.set_mood(Mood::Answers(503));

    let (id, old) = published_key(&relay).await;
    let done = relay.handle.rotate_key(false, BY).await.unwrap();
    assert_eq!((done.key_bits, done.told), (2048, 4));
    let (new_id, new) = published_key(&relay).await;
    assert_eq!((&id, &done.key_id), (&new_id, &id), "the id stays");
    assert_ne!(old, new);
    let again = relay.handle.rotate_key(false, BY).await.unwrap_err().to_string();
    assert!(again.contains("still signs until"), "{again}");

    for number in 2..=4 {
        let create = author.publish(&relay, number, true).await;
        for reader in [&asks, &believes] {
            reader.wait_for("the post", |got| got["id"] == create["id"]).await;
        }
    }
    let update = believes
        .wait_for("the Update", |got| got["type"] == "Update")
        .await;
    assert_eq!(update.json["object"]["publicKey"]["publicKeyPem"], new.as_str());
    assert_eq!(update.json["object"]["id"], relay.url("/actor"));
    // A request that the old key signed may meet a host that has just learnt the new one; it is sent again at once.
    assert_eq!(relay.counter("deliveries_refused_total"), 0);

    // The one that was away gets all of it, and what it never heard is told again under the key that it knows.
    away.set_mood(Mood::Takes);
    author
        .post(&relay, &author.user("alice"), &author.create(5, true))
        .await;
    for number in 2..=5 {
        let note = author.create(number, true)["id"].clone();
        away.wait_for("the post", |got| got["id"] == note).await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_host_that_knows_only_the_old_key_still_gets_everything() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let addr = relay.addr;
    let (author, late) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    late.subscribe(&relay).await;
    late.keep_key();
    late.set_mood(Mood::Answers(503));
    relay.handle.rotate_key(false, BY).await.unwrap();
    author.publish(&relay, 1, true).await;
    until("it was tried", || relay.counter("deliveries_retried_total") > 0).await;
    relay.stop().await;

    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    late.set_mood(Mood::Takes);
    let create = author.publish(&relay, 2, true).await;
    late.wait_for("the post", |got| got["id"] == create["id"]).await;
    late.wait_for("the Update", |got| got["type"] == "Update").await;
    assert_eq!(relay.counter("deliveries_refused_total"), 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_key_is_removed_when_its_time_is_over() {
    // As the engine names them.
    let (kept, current) = ("fediverse.relay-key-before", "fediverse.relay-key");
    let ground = Ground::sqlite().await;
    let secrets = ground.secrets();
    let line = || AuditEntry {
        who: "test".into(),
        action: "test".into(),
        object: kept.into(),
        detail: String::new(),
        from: String::new(),
        at: Timestamp(0),
    };
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    relay.handle.rotate_key(false, BY).await.unwrap();
    relay.stop().await;
    // It ends in a moment, and not after a week.
    let mut old = secrets.load(kept).await.unwrap().unwrap().to_vec();
    let soon = Clock::system().wall().plus(Duration::from_secs(2));
    old[..8].copy_from_slice(&soon.0.to_be_bytes());
    secrets.replace(kept, &old, line()).await.unwrap();

    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let again = relay.handle.rotate_key(false, BY).await.unwrap_err();
    assert!(again.to_string().contains("still signs until"), "{again}");
    until_async("it is gone", async || {
        ground.secrets.secret(kept).await.unwrap().is_none()
    })
    .await;
    assert!(ground.secrets.secret(current).await.unwrap().is_some());
    relay.handle.rotate_key(false, BY).await.unwrap();
    relay.stop().await;

    // One that ended while nothing ran goes at the start.
    secrets.replace(kept, &old, line()).await.unwrap();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    until_async("it is gone", async || {
        ground.secrets.secret(kept).await.unwrap().is_none()
    })
    .await;
    relay.stop().await;
}

/// Asks the store until it says yes.
async fn until_async(what: &str, condition: impl AsyncFn() -> bool) {
    let look = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_key_signs_nothing_any_more() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let (author, reader) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    reader.subscribe(&relay).await;
    relay.handle.rotate_key(false, BY).await.unwrap();
    let done = relay.handle.rotate_key(true, BY).await.unwrap();
    assert_eq!(done.old_key_until, None);
    let create = author.publish(&relay, 1, true).await;
    reader.wait_for("the post", |got| got["id"] == create["id"]).await;
    // One that keeps the old key gets nothing, and no signature by that key either.
    reader.keep_key();
    relay.handle.rotate_key(true, BY).await.unwrap();
    let refusals = reader.refusals();
    author.publish(&relay, 2, true).await;
    until("it was refused", || reader.refusals() > refusals).await;
    relay.stop().await;
}
