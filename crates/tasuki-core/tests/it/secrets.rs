use std::sync::Arc;

use tasuki_core::clock::Timestamp;
use tasuki_core::seal::{SealError, Secrets};
use tasuki_core::store::Actor;

use crate::fakes::FakeStore;

#[tokio::test]
async fn the_first_gateway_makes_a_secret_and_the_others_use_it() {
    let store = Arc::new(FakeStore::default());
    let (one, two) = (
        Secrets::new(store.clone(), [7; 32]),
        Secrets::new(store.clone(), [7; 32]),
    );
    assert!(one.load("relay.key").await.unwrap().is_none());
    let made = one.load_or_make("relay.key", || b"first".to_vec()).await.unwrap();
    let there = two
        .load_or_make("relay.key", || b"second".to_vec())
        .await
        .unwrap();
    assert_eq!(
        (made.as_slice(), there.as_slice()),
        (&b"first"[..], &b"first"[..])
    );
    let audit = Actor::control_socket(0).entry(Timestamp(0), "key.replace", "relay.key", "");
    one.replace("relay.key", b"third", audit).await.unwrap();
    assert_eq!(two.load("relay.key").await.unwrap().unwrap().as_slice(), b"third");
}

#[tokio::test]
async fn another_key_is_refused_by_the_secrets_name_and_replaces_nothing() {
    let store = Arc::new(FakeStore::default());
    let right = Secrets::new(store.clone(), [7; 32]);
    right
        .load_or_make("relay.key", || b"first".to_vec())
        .await
        .unwrap();
    let wrong = Secrets::new(store.clone(), [8; 32]);
    let error = wrong
        .load_or_make("relay.key", || b"second".to_vec())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SealError::WrongKey(name) if name == "relay.key"),
        "{error}"
    );
    assert_eq!(
        right.load("relay.key").await.unwrap().unwrap().as_slice(),
        b"first"
    );
}
