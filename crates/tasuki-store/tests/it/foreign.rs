//! Databases of other relay programs, written by them.

use std::path::Path;

use tasuki_core::store::fedi::{ModerationEffect, ModerationKind, SubscriptionStyle};
use tasuki_store::{read_activityrelay, read_aode};

/// Made by ActivityRelay 0.3.5 from PyPI: `setup`, `inbox add` three times, `ban add` twice.
const DATABASE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/activityrelay-0.3.5.sqlite3"
);

#[tokio::test]
async fn what_activityrelay_wrote_is_read() {
    let relay = read_activityrelay(Path::new(DATABASE)).await.unwrap();
    assert!(
        relay
            .key_pem
            .unwrap()
            .starts_with("-----BEGIN RSA PRIVATE KEY-----")
    );
    let subscribers: Vec<_> = relay
        .subscribers
        .iter()
        .map(|one| {
            (
                one.inbox.as_str(),
                one.style,
                one.follow_id.as_deref(),
                one.is_pending,
            )
        })
        .collect();
    assert_eq!(
        subscribers,
        [
            (
                "https://akkoma.test/inbox",
                Some(SubscriptionStyle::LitePub),
                Some("https://akkoma.test/activities/1"),
                false
            ),
            (
                "https://mastodon.test/inbox",
                Some(SubscriptionStyle::Mastodon),
                Some("https://mastodon.test/7f2a"),
                false
            ),
            (
                "https://pending.test/inbox",
                Some(SubscriptionStyle::Mastodon),
                Some("https://pending.test/1"),
                false
            ),
        ]
    );
    let block = |kind, subject: &str, reason: &str| {
        (
            ModerationEffect::Block,
            kind,
            subject.to_owned(),
            reason.to_owned(),
        )
    };
    assert_eq!(
        relay.rules,
        [
            block(ModerationKind::Host, "evil.test", "spam"),
            block(ModerationKind::Software, "spamware", "bad")
        ]
    );
}

#[tokio::test]
async fn another_file_is_refused_by_its_name() {
    for path in ["/nowhere", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
        let error = read_activityrelay(Path::new(path)).await.unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}

/// Written by aode-relay (`ap-relay` 0.3.131) itself: a Follow in Mastodon's way, one in LitePub's, a blocked domain.
const AODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/aode-0.3.131");

#[test]
fn what_aode_relay_knew_is_read_from_a_copy() {
    let before = std::fs::read(format!("{AODE}/db")).unwrap();
    let relay = read_aode(Path::new(AODE)).unwrap();
    assert!(relay.key_pem.unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    let found: Vec<_> = relay
        .subscribers
        .iter()
        .map(|one| {
            (
                one.actor.as_str(),
                one.inbox.as_str(),
                one.style.unwrap(),
                one.follow_id.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (
                "https://akkoma.test/relay",
                "https://akkoma.test/inbox",
                SubscriptionStyle::LitePub,
                Some("https://akkoma.test/activities/6e9799c5-9c9e-4b93-b8d4-b70a63a8c038")
            ),
            (
                "https://mastodon.test/actor",
                "https://mastodon.test/inbox",
                SubscriptionStyle::Mastodon,
                Some("https://mastodon.test/63b85b3b-7e8f-4694-b24f-14e01cfa3242")
            ),
        ]
    );
    assert_eq!(
        relay.rules,
        [(
            ModerationEffect::Block,
            ModerationKind::Host,
            "evil.test".to_owned(),
            String::new()
        )]
    );
    assert_eq!(
        std::fs::read(format!("{AODE}/db")).unwrap(),
        before,
        "opening it would change it"
    );
    for path in ["/nowhere", env!("CARGO_MANIFEST_DIR")] {
        let error = read_aode(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}
