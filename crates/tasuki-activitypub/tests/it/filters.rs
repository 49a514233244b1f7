//! What hosts leave out.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::{FediConfig, HandleError};
use tasuki_core::store::fedi::{FilterBy, HostFilter};

use crate::deliveries::until;
use crate::world::{Ground, Instance, RelayUnderTest, Setup};

pub(crate) const OPERATOR: (&str, &str) = ("admin", "control.sock");

pub(crate) async fn relay_with(ground: &Ground, change: impl FnOnce(&mut FediConfig)) -> RelayUnderTest {
    let mut setup = Setup::default();
    change(&mut setup.config);
    RelayUnderTest::start(ground, setup).await
}

pub(crate) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn host_of(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

async fn subscribed(relay: &RelayUnderTest, filter: HostFilter) -> Instance {
    let instance = Instance::start().await;
    instance.subscribe(relay).await;
    relay
        .handle
        .set_filter(host_of(&instance), Some(filter), OPERATOR)
        .await
        .unwrap();
    instance
}

pub(crate) async fn post(relay: &RelayUnderTest, author: &Instance, document: &Value) {
    let status = author.post(relay, &author.user("alice"), document).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

pub(crate) async fn gets(reader: &Instance, document: &Value) {
    reader.wait_for("it", |got| got["id"] == document["id"]).await;
}

pub(crate) fn about(create: &Value, kind: &str) -> Value {
    let mut changed = create.clone();
    changed["type"] = json!(kind);
    changed["id"] = json!(format!("{}#{kind}", create["object"]["id"].as_str().unwrap()));
    if kind == "Delete" {
        changed["object"] = create["object"]["id"].clone();
    }
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_is_sent_what_its_filter_lets_through_with_its_edits_and_every_delete() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    let author = Instance::start().await;
    author.subscribe(&relay).await;
    let none = HostFilter::default();
    let all = subscribed(&relay, none.clone()).await;
    assert!(
        relay.handle.filters(None).await.unwrap().is_empty(),
        "a filter of nothing is none"
    );
    let readers = [
        subscribed(
            &relay,
            HostFilter {
                languages: words(&["ja"]),
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                tags_in: words(&["Cats"]),
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                tags_out: words(&["cats"]),
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                no_replies: true,
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                media_only: true,
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                no_sensitive: true,
                ..none.clone()
            },
        )
        .await,
        subscribed(
            &relay,
            HostFilter {
                no_bots: true,
                ..none.clone()
            },
        )
        .await,
    ];
    let changed = |number: usize, key: &str, value: Value| {
        let mut create = author.create(number, true);
        create["object"][key] = value;
        create
    };
    author.put(
        "users/robot",
        json!({"id": author.user("robot"), "type": "Service", "preferredUsername": "robot", "inbox": format!("{}/inbox", author.base),
            "publicKey": {"id": format!("{}#main-key", author.user("robot")), "owner": author.user("robot"),
                "publicKeyPem": crate::world::pem()}}),
    );
    let mut by_bot = changed(7, "attributedTo", json!(author.user("robot")));
    by_bot["actor"] = json!(author.user("robot"));
    by_bot["signature"] = author.ld_signature("robot");
    // Each row: who of the seven gets it.
    let rows = [
        (
            changed(1, "contentMap", json!({"ja": "x"})),
            [1, 0, 1, 1, 0, 1, 1],
        ),
        (
            changed(2, "tag", json!([{"type": "Hashtag", "name": "#CATS"}])),
            [0, 1, 0, 1, 0, 1, 1],
        ),
        (
            changed(3, "inReplyTo", json!("https://b.example/1")),
            [0, 0, 1, 0, 0, 1, 1],
        ),
        (
            changed(4, "attachment", json!([{"type": "Document", "url": "x"}])),
            [0, 0, 1, 1, 1, 1, 1],
        ),
        (changed(5, "sensitive", json!(true)), [0, 0, 1, 1, 0, 0, 1]),
        (by_bot.clone(), [0, 0, 1, 1, 0, 1, 0]),
    ];
    for (document, _) in &rows {
        let status = author
            .post(&relay, document["actor"].as_str().unwrap(), document)
            .await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    for (document, wanted) in &rows {
        gets(&all, document).await;
        for (reader, wanted) in readers.iter().zip(wanted) {
            if *wanted == 1 {
                gets(reader, document).await;
            }
        }
    }
    // Edits go to whoever has the post. A Delete takes out what of its object still waits, so it comes after them.
    for kind in ["Update", "Delete"] {
        for (document, _) in &rows[..5] {
            post(&relay, &author, &about(document, kind)).await;
        }
        for (reader, number) in readers.iter().zip(0..) {
            for (document, _) in rows[..5].iter().filter(|(_, wanted)| wanted[number] == 1) {
                gets(reader, &about(document, kind)).await;
            }
        }
    }
    for (reader, number) in readers.iter().zip(0..) {
        for (document, wanted) in &rows {
            let note = &document["object"]["id"];
            if wanted[number] == 0 {
                let got = reader.received();
                // A Delete goes to everybody: somebody may have the post from elsewhere.
                let is_about = |got: &Value| got["type"] != "Delete" && got["object"]["id"] == *note;
                assert!(got.iter().all(|got| !is_about(&got.json)), "{number} got {note}");
            }
        }
    }
    let why = relay.handle.why(by_bot["id"].as_str().unwrap()).await.unwrap();
    let reason = &why.judged[0].reason;
    assert!(
        reason.contains("bot 1") && reason.contains("language 1") && reason.contains(host_of(&readers[6])),
        "{reason}"
    );
    let why = relay.handle.why(host_of(&readers[0])).await.unwrap();
    assert_eq!(why.filter.unwrap().in_words, "languages ja");

    let listed = relay.handle.filters(Some(host_of(&readers[1]))).await.unwrap();
    assert_eq!((listed.len(), listed[0].by), (1, FilterBy::Operator));
    relay
        .handle
        .set_filter(host_of(&readers[1]), None, OPERATOR)
        .await
        .unwrap();
    let again = relay
        .handle
        .set_filter(host_of(&readers[1]), None, OPERATOR)
        .await;
    assert!(matches!(again, Err(HandleError::NoFilter(_))), "{again:?}");
    let stranger = relay
        .handle
        .set_filter("nobody.example", Some(none), OPERATOR)
        .await;
    assert!(
        matches!(stranger, Err(HandleError::NotSubscribed(_))),
        "{stranger:?}"
    );
    let last = author.publish(&relay, 8, true).await;
    gets(&readers[1], &last).await;
    // Who sets a filter is still told of edits of what it has.
    let only_media = HostFilter {
        media_only: true,
        ..HostFilter::default()
    };
    let host = host_of(&readers[1]);
    relay
        .handle
        .set_filter(host, Some(only_media), OPERATOR)
        .await
        .unwrap();
    post(&relay, &author, &about(&last, "Update")).await;
    gets(&readers[1], &about(&last, "Update")).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_sent_so_many_posts_a_minute_and_only_what_changes_these() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    let author = Instance::start().await;
    author.subscribe(&relay).await;
    let limited = subscribed(
        &relay,
        HostFilter {
            per_minute: 2,
            ..HostFilter::default()
        },
    )
    .await;
    let all = Instance::start().await;
    all.subscribe(&relay).await;
    let mut posts = Vec::new();
    for number in 0..20 {
        posts.push(author.publish(&relay, number, true).await);
    }
    let got = |kind: &str| {
        let received = limited.received();
        received.iter().filter(|got| got.json["type"] == kind).count()
    };
    // A Delete takes out what of its object still waits, so each kind arrives before the next is sent.
    gets(&all, &posts[19]).await;
    for kind in ["Update", "Delete"] {
        for document in &posts {
            post(&relay, &author, &about(document, kind)).await;
        }
        gets(&all, &about(&posts[19], kind)).await;
        // A Delete goes to everybody: somebody may have the post from elsewhere.
        let wanted = |creates| if kind == "Delete" { posts.len() } else { creates };
        until("the changes arrive", || {
            got("Create") >= 2 && got(kind) == wanted(got("Create"))
        })
        .await;
    }
    // Two minutes may have been touched, if the test began at the end of one.
    assert!(got("Create") <= 4, "{}", got("Create"));
    let refused: Vec<_> = relay
        .handle
        .why(posts[19]["id"].as_str().unwrap())
        .await
        .unwrap()
        .judged;
    assert!(
        got("Create") > 2 || refused[0].reason.contains("rate 1"),
        "{refused:?}"
    );
    relay.stop().await;
}
