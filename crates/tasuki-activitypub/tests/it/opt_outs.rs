//! Domains that do not want to be relayed.

use http::StatusCode;
use serde_json::json;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{
    BrakeMode, ModerationEffect, ModerationKind, ModerationRule, SubscriptionState,
};

use crate::filters::{OPERATOR, about, gets, host_of, post, relay_with};
use crate::forms::status;
use crate::selfservice::{Browser, proven};
use crate::world::{Ground, Instance};

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_opts_out_of_being_relayed_and_comes_back() {
    let relay = relay_with(&Ground::sqlite().await, |config| config.boosts = true).await;
    let (shy, reader, booster) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    reader.subscribe(&relay).await;
    booster.subscribe(&relay).await;
    let browser = Browser::default();
    let host = host_of(&shy);
    // It is no subscriber: it has no filter, and it may opt out.
    let (page, expires, grant) = proven(&browser, &relay, &shy).await;
    assert!(
        !page.text.contains("/filter/set") && page.text.contains("/filter/opt-out"),
        "{}",
        page.text
    );
    let say = async |browser: &Browser, host: &str, wish: &str| {
        let fields = [
            ("host", host),
            ("expires", expires.as_str()),
            ("grant", grant.as_str()),
            ("wish", wish),
        ];
        browser.submit(&relay, "/filter/opt-out", &fields).await
    };
    assert_eq!(say(&Browser::default(), host, "out").await.status, 403);
    assert_eq!(say(&browser, host_of(&reader), "out").await.status, 403);
    assert_eq!(say(&browser, host, "sideways").await.status, 400);
    let fields = [
        ("host", host),
        ("expires", expires.as_str()),
        ("grant", grant.as_str()),
    ];
    let filter = browser.submit(&relay, "/filter/set", &fields).await;
    assert!(filter.status == 404 && filter.text.contains("not a subscriber"));
    assert!(relay.handle.rules().await.unwrap().is_empty());
    let out = say(&browser, host, "out").await;
    assert!(
        out.status == 200 && out.text.contains("by its own wish"),
        "{}",
        out.text
    );
    let rules = relay.handle.rules().await.unwrap();
    assert_eq!(
        (rules.len(), rules[0].kind, rules[0].subject.as_str()),
        (1, ModerationKind::OptOut, host)
    );
    // Now it joins: it receives, and nothing of it goes on but what takes back.
    shy.subscribe(&relay).await;
    let hidden = shy.publish(&relay, 1, true).await;
    let boost = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/boosts/1", booster.base),
        "type": "Announce", "actor": booster.user("alice"), "to": ["https://www.w3.org/ns/activitystreams#Public"],
        "object": hidden["object"]["id"], "signature": booster.ld_signature("alice")});
    post(&relay, &booster, &boost).await;
    // Somebody else brings it.
    let carried = shy.ld_sign(&shy.create(2, false));
    let brought = booster.post(&relay, &booster.actor(), &carried).await;
    assert_eq!(brought, StatusCode::ACCEPTED);
    let delete = about(&hidden, "Delete");
    post(&relay, &shy, &delete).await;
    gets(&reader, &delete).await;
    for id in [&hidden["id"], &boost["id"], &carried["id"]] {
        let why = relay.handle.why(id.as_str().unwrap()).await.unwrap();
        let judged = &why.judged[0];
        assert_eq!(judged.outcome, "domain_opted_out", "{why:?}");
        assert!(reader.received().iter().all(|got| got.json["id"] != *id), "{id}");
    }
    let why = relay.handle.why(host).await.unwrap();
    assert!(why.verdicts[0].contains("opted out"), "{why:?}");
    let read = booster.publish(&relay, 3, true).await;
    gets(&shy, &read).await;
    // And back.
    let back = say(&browser, host, "in").await;
    assert!(
        back.status == 200 && back.text.contains("value=\"out\""),
        "{}",
        back.text
    );
    assert_eq!(say(&browser, host, "in").await.status, 200, "there is none");
    let shown = shy.publish(&relay, 4, true).await;
    gets(&reader, &shown).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_a_domain_that_opts_out_is_taken_out() {
    let relay = relay_with(&Ground::sqlite().await, |config| config.boosts = true).await;
    let (shy, other, reader) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    for instance in [&shy, &other, &reader] {
        instance.subscribe(&relay).await;
    }
    let liked = other.publish(&relay, 7, true).await;
    let boost = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/boosts/1", shy.base),
        "type": "Announce", "actor": shy.user("alice"), "to": ["https://www.w3.org/ns/activitystreams#Public"],
        "object": liked["object"]["id"], "signature": shy.ld_signature("alice")});
    post(&relay, &shy, &boost).await;
    gets(&reader, &boost).await;
    relay
        .handle
        .pause(BrakeMode::Hold, "a test", OPERATOR)
        .await
        .unwrap();
    let waiting = shy.publish(&relay, 1, true).await;
    let gone = shy.publish(&relay, 2, true).await;
    post(&relay, &shy, &about(&gone, "Delete")).await;
    let undo = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/undo/1", shy.base),
        "type": "Undo", "actor": shy.user("alice"), "to": ["https://www.w3.org/ns/activitystreams#Public"],
        "object": boost, "signature": shy.ld_signature("alice")});
    post(&relay, &shy, &undo).await;
    let (host, kind) = (host_of(&shy), ModerationKind::OptOut);
    let effect = ModerationEffect::OptOut;
    let done = relay.handle.moderate(effect, kind, host, "by mail", OPERATOR);
    assert_eq!(done.await.unwrap(), Vec::<String>::new());
    relay.handle.resume(OPERATOR).await.unwrap();
    let last = other.publish(&relay, 3, true).await;
    gets(&reader, &last).await;
    gets(&reader, &about(&gone, "Delete")).await;
    gets(&reader, &undo).await;
    assert!(
        reader
            .received()
            .iter()
            .all(|got| got.json["id"] != waiting["id"])
    );
    let status = status(&relay, &shy).await;
    assert!(status.state == SubscriptionState::Active, "it stays a subscriber");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_domain_cannot_fill_the_list_with_names_below_it() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    // All of them end as the instance's own host does.
    for number in 0..200 {
        let host = format!("10.{number}.0.1");
        let (effect, kind) = (ModerationEffect::OptOut, ModerationKind::OptOut);
        let done = relay.handle.moderate(effect, kind, &host, "by mail", OPERATOR);
        done.await.unwrap();
    }
    let (shy, browser) = (Instance::start().await, Browser::default());
    let (_, expires, grant) = proven(&browser, &relay, &shy).await;
    let fields = [
        ("host", host_of(&shy)),
        ("expires", expires.as_str()),
        ("grant", grant.as_str()),
        ("wish", "out"),
    ];
    let full = browser.submit(&relay, "/filter/opt-out", &fields).await;
    assert!(
        full.status == 503 && full.text.contains("ask the operator"),
        "{}",
        full.text
    );
    let by = (ModerationKind::OptOut, "10.7.0.1");
    relay.handle.lift(by.0, by.1, OPERATOR).await.unwrap();
    assert_eq!(
        browser.submit(&relay, "/filter/opt-out", &fields).await.status,
        200
    );
    // Who is out already says nothing new.
    let audited = relay.handle.rules().await.unwrap();
    assert_eq!(
        browser.submit(&relay, "/filter/opt-out", &fields).await.status,
        200
    );
    assert_eq!(relay.handle.rules().await.unwrap(), audited);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_stopped_by_a_wish_that_another_gateway_was_told() {
    let ground = Ground::sqlite().await;
    let relay = relay_with(&ground, |_| {}).await;
    let (shy, other, reader) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    for instance in [&shy, &other, &reader] {
        instance.subscribe(&relay).await;
    }
    relay
        .handle
        .pause(BrakeMode::Hold, "a test", OPERATOR)
        .await
        .unwrap();
    let waiting = shy.publish(&relay, 1, true).await;
    let gone = shy.publish(&relay, 2, true).await;
    post(&relay, &shy, &about(&gone, "Delete")).await;
    let rule = ModerationRule {
        effect: ModerationEffect::OptOut,
        kind: ModerationKind::OptOut,
        subject: host_of(&shy).to_owned(),
        reason: String::new(),
        at: Timestamp(0),
    };
    ground.fedi.moderate(vec![rule], None).await.unwrap();
    // The rules are read again.
    let (effect, kind) = (ModerationEffect::Block, ModerationKind::Host);
    let more = relay.handle.moderate(effect, kind, "evil.example", "", OPERATOR);
    more.await.unwrap();
    relay.handle.resume(OPERATOR).await.unwrap();
    let last = other.publish(&relay, 3, true).await;
    gets(&reader, &last).await;
    gets(&reader, &about(&gone, "Delete")).await;
    let received = reader.received();
    assert!(received.iter().all(|got| got.json["id"] != waiting["id"]));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_below_a_domain_that_is_out_is_answered_and_nothing_is_kept_of_it() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    let shy = Instance::start().await;
    let (browser, host) = (Browser::default(), host_of(&shy));
    let (_, expires, grant) = proven(&browser, &relay, &shy).await;
    let (effect, kind) = (ModerationEffect::OptOut, ModerationKind::OptOut);
    let above = relay.handle.moderate(effect, kind, "127.0.0.1", "", OPERATOR);
    above.await.unwrap();
    let fields = [
        ("host", host),
        ("expires", expires.as_str()),
        ("grant", grant.as_str()),
        ("wish", "out"),
    ];
    let said = browser.submit(&relay, "/filter/opt-out", &fields).await;
    assert!(
        said.status == 200 && said.text.contains("by the wish of 127.0.0.1"),
        "{}",
        said.text
    );
    assert_eq!(relay.handle.rules().await.unwrap().len(), 1);
    relay.stop().await;
}
