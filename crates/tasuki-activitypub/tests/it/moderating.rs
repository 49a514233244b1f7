//! Moderation: who may not publish or receive, what is not relayed, and what an operator is told.

use http::StatusCode;
use serde_json::json;
use tasuki_core::store::fedi::{ModerationEffect as Effect, ModerationKind as Kind};

use crate::deliveries::until;
use crate::world::{Ground, Instance, Letter, Mood, RelayUnderTest, Setup};

const ADMIN: (&str, &str) = ("admin", "socket");

fn host(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

async fn trio() -> (RelayUnderTest, [Instance; 3]) {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let all = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    for instance in &all {
        instance.subscribe(&relay).await;
    }
    (relay, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_host_is_removed_told_so_and_neither_heard_nor_served() {
    let (relay, [author, evil, late]) = trio().await;
    // What evil published before the block still waits for a host that is away.
    late.set_mood(Mood::Answers(503));
    let before = evil.publish(&relay, 1, true).await;
    author.wait_for("the post", |got| got["id"] == before["id"]).await;
    until("it waits for the host that is away", || {
        relay
            .handle
            .status()
            .failing
            .iter()
            .any(|lane| lane.host == host(&late))
    })
    .await;
    let removed = relay
        .handle
        .moderate(Effect::Block, Kind::Host, host(&evil), "spam", ADMIN)
        .await
        .unwrap();
    assert_eq!(removed, [host(&evil)]);
    evil.wait_for("the Reject", |got| got["type"] == "Reject").await;
    for (actor, document) in [
        (evil.user("alice"), evil.create(2, true)),
        (evil.actor(), evil.follow("again")),
    ] {
        let status = evil.post(&relay, &actor, &document).await;
        let is_follow = document["type"] == "Follow";
        assert_eq!(
            status,
            if is_follow {
                StatusCode::ACCEPTED
            } else {
                StatusCode::FORBIDDEN
            }
        );
    }
    assert!(
        relay.handle.status().active == 2,
        "a Follow is answered by a Reject"
    );
    let after = author.publish(&relay, 3, true).await;
    late.set_mood(Mood::Takes);
    late.wait_for("what comes after", |got| got["id"] == after["id"])
        .await;
    until("the old post is not sent any more", || {
        relay.counter("deliveries_blanked_total") == 1
    })
    .await;
    assert!(late.received().iter().all(|got| got.json["id"] != before["id"]));
    assert!(evil.received().iter().all(|got| got.json["id"] != after["id"]));

    let why = relay.handle.why(host(&evil)).await.unwrap();
    assert!(
        why.verdicts
            .iter()
            .any(|v| v.contains("blocked by this relay") && v.contains("spam")),
        "{why:?}"
    );
    let refused = why.judged.iter().find(|one| one.status == 403).unwrap();
    assert!(refused.reason.contains("blocked by this relay"), "{refused:?}");
    relay.handle.lift(Kind::Host, host(&evil), ADMIN).await.unwrap();
    assert!(relay.handle.lift(Kind::Host, host(&evil), ADMIN).await.is_err());
    evil.subscribe(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_filters_and_accounts_stop_what_they_name_and_nothing_else() {
    let (relay, [author, limited, reader]) = trio().await;
    for (effect, kind, subject) in [
        (Effect::Limit, Kind::Host, host(&limited)),
        (Effect::Silence, Kind::Tag, "#Ads"),
        (Effect::Silence, Kind::Regex, "post [57]"),
        (Effect::Block, Kind::Actor, &author.user("troll")),
    ] {
        relay
            .handle
            .moderate(effect, kind, subject, "", ADMIN)
            .await
            .unwrap();
    }
    let status = limited
        .post(&relay, &limited.user("alice"), &limited.create(1, true))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let mut troll = author.create(2, true);
    troll["actor"] = json!(author.user("troll"));
    troll["object"]["attributedTo"] = troll["actor"].clone();
    let status = author.post(&relay, &author.user("troll"), &troll).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let mut tagged = author.create(3, true);
    tagged["object"]["tag"] = json!([{"type": "Hashtag", "name": "#ads"}]);
    let silenced = author.create(5, true);
    for document in [&tagged, &silenced] {
        let status = author.post(&relay, &author.user("alice"), document).await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    let fine = author.publish(&relay, 4, true).await;
    for instance in [&reader, &limited] {
        instance
            .wait_for("the good post", |got| got["id"] == fine["id"])
            .await;
        let bad = [&tagged["id"], &silenced["id"], &troll["id"]];
        assert!(
            instance
                .received()
                .iter()
                .all(|got| !bad.contains(&&got.json["id"]))
        );
    }
    let why = relay.handle.why(silenced["id"].as_str().unwrap()).await.unwrap();
    assert!(why.judged[0].reason.contains("a filter"), "{why:?}");
    let why = relay
        .handle
        .why(fine["object"]["id"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(why.judged[0].outcome, "relayed");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_software_is_blocked_also_when_it_is_found_out_later() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    relay
        .handle
        .moderate(Effect::Block, Kind::Software, "Spamware", "", ADMIN)
        .await
        .unwrap();
    let instance = Instance::start().await;
    instance.put_software("spamware", "1.0");
    instance.subscribe(&relay).await;
    instance
        .wait_for("the Reject", |got| got["type"] == "Reject")
        .await;
    until("it is removed", || relay.handle.status().active == 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_hosts_is_taken_over_after_a_dry_run_and_written_again() {
    let (relay, _) = trio().await;
    relay
        .handle
        .moderate(Effect::Limit, Kind::Host, "mine.example", "my own", ADMIN)
        .await
        .unwrap();
    let list = "#domain,#severity,#public_comment\nevil.example,suspend,spam\nmine.example,suspend,x\n127.0.0.1,suspend,\nb*d.example,suspend,\n";
    let dry = relay.handle.import_blocklist(list, true, ADMIN).await.unwrap();
    assert_eq!(
        (
            dry.added.len(),
            dry.kept,
            dry.skipped.len(),
            dry.removed_subscribers.len()
        ),
        (2, 1, 1, 3)
    );
    assert_eq!(
        relay.handle.rules().await.unwrap().len(),
        1,
        "a dry run changes nothing"
    );
    assert_eq!(relay.handle.status().active, 3);
    let done = relay.handle.import_blocklist(list, false, ADMIN).await.unwrap();
    assert_eq!(
        done.added,
        dry.added
            .iter()
            .zip(&done.added)
            .map(|(_, new)| new.clone())
            .collect::<Vec<_>>()
    );
    assert_eq!(done.removed_subscribers, dry.removed_subscribers);
    assert_eq!(relay.handle.status().active, 0);
    let text = relay.handle.export_blocklist().await.unwrap();
    assert!(
        text.contains("evil.example,suspend,false,false,\"spam\",false\n"),
        "{text}"
    );
    assert!(
        text.contains("mine.example,silence,false,false,\"my own\",false\n"),
        "{text}"
    );
    let again = relay.handle.import_blocklist(&text, false, ADMIN).await.unwrap();
    assert_eq!((again.added.len(), again.known), (0, 3));
    relay.stop().await;
}

/// A Delete of note 1, signed as far as a relay can see.
fn delete_of(author: &Instance) -> serde_json::Value {
    json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/delete/1", author.base),
        "type": "Delete", "actor": author.user("alice"), "to": ["https://www.w3.org/ns/activitystreams#Public"],
        "object": format!("{}/notes/1", author.base), "signature": author.ld_signature("alice")})
}

async fn delete_while_away(relay: &RelayUnderTest, author: &Instance, late: &Instance) -> serde_json::Value {
    let create = author.publish(relay, 1, true).await;
    late.wait_for("the post", |got| got["id"] == create["id"]).await;
    late.set_mood(Mood::Answers(503));
    let delete = delete_of(author);
    assert_eq!(
        author.post(relay, &author.user("alice"), &delete).await,
        StatusCode::ACCEPTED
    );
    until("the Delete waits for the host that is away", || {
        let failing = relay.handle.status().failing;
        failing.iter().any(|lane| lane.host == host(late))
    })
    .await;
    delete
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_goes_out_although_its_author_was_blocked_and_not_to_a_blocked_host() {
    let (relay, [evil, late, other]) = trio().await;
    let delete = delete_while_away(&relay, &evil, &late).await;
    relay
        .handle
        .moderate(Effect::Block, Kind::Host, host(&evil), "", ADMIN)
        .await
        .unwrap();
    late.set_mood(Mood::Takes);
    late.wait_for("the Delete", |got| got["id"] == delete["id"]).await;

    let delete = delete_while_away(&relay, &other, &late).await;
    let blanked = relay.counter("deliveries_blanked_total");
    relay
        .handle
        .moderate(Effect::Block, Kind::Host, host(&late), "", ADMIN)
        .await
        .unwrap();
    late.set_mood(Mood::Takes);
    late.wait_for("the Reject", |got| got["type"] == "Reject").await;
    until("the Delete is not sent", || {
        relay.counter("deliveries_blanked_total") > blanked
    })
    .await;
    assert!(late.received().iter().all(|got| got.json["id"] != delete["id"]));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_subscriber_carries_is_judged_by_its_authors_host_too() {
    let (relay, [carrier, reader, _]) = trio().await;
    let author = Instance::start().await;
    let carry = async |number: usize| {
        let create = author.ld_sign(&author.create(number, false));
        let key = format!("{}#main-key", carrier.actor());
        let letter = Letter::new(&relay, &key, create.to_string().as_bytes());
        let (status, problem) = carrier.send(&relay, letter).await;
        (create, status, problem)
    };
    let (fine, status, problem) = carry(1).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{problem}");
    reader
        .wait_for("what was carried", |got| got["id"] == fine["id"])
        .await;
    for (number, effect) in [(2, Effect::Limit), (3, Effect::Block)] {
        relay
            .handle
            .moderate(effect, Kind::Host, host(&author), "", ADMIN)
            .await
            .unwrap();
        let (_, status, problem) = carry(number).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{effect:?}: {problem}");
    }
    relay.handle.lift(Kind::Host, host(&author), ADMIN).await.unwrap();
    relay
        .handle
        .moderate(Effect::Block, Kind::Actor, &author.user("alice"), "", ADMIN)
        .await
        .unwrap();
    let (_, status, problem) = carry(4).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    assert_eq!(relay.handle.status().active, 3, "the carrier is nobody's author");
    relay.stop().await;
}
