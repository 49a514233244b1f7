//! Topic relays: hashtags, instances, languages and lists of the operator's, each with an actor of its own.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::{FediConfig, HandleError, Mode, TopicMode, TopicsConfig};
use tasuki_core::store::fedi::{ModerationEffect, ModerationKind, TopicList};

use crate::deliveries::until;
use crate::world::{Ground, Instance, Received, RelayUnderTest, Setup, client};

const OPERATOR: (&str, &str) = ("admin", "control.sock");

async fn relay_with(topics: TopicsConfig) -> RelayUnderTest {
    let setup = Setup::default();
    let config = FediConfig {
        topics,
        ..setup.config
    };
    let setup = Setup {
        config,
        ..Setup::default()
    };
    RelayUnderTest::start(&Ground::sqlite().await, setup).await
}

async fn open_relay() -> RelayUnderTest {
    relay_with(TopicsConfig {
        mode: TopicMode::Any,
        ..TopicsConfig::default()
    })
    .await
}

/// A post with hashtags.
fn tagged(author: &Instance, number: usize, signed: bool, tags: &[&str]) -> Value {
    let mut create = author.create(number, signed);
    let tags: Vec<Value> = tags
        .iter()
        .map(|tag| json!({"type": "Hashtag", "name": format!("#{tag}")}))
        .collect();
    create["object"]["tag"] = json!(tags);
    create
}

async fn post(relay: &RelayUnderTest, author: &Instance, document: &Value) {
    let status = author.post(relay, &author.user("alice"), document).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

fn about(create: &Value, kind: &str) -> Value {
    let mut changed = create.clone();
    changed["type"] = json!(kind);
    changed["id"] = json!(format!("{}#{kind}", create["object"]["id"].as_str().unwrap()));
    if kind == "Delete" {
        changed["object"] = create["object"]["id"].clone();
    }
    changed
}

async fn gets(reader: &Instance, document: &Value) -> Received {
    reader
        .wait_for("the post", |got| got["id"] == document["id"])
        .await
}

/// How often something about a post came, the Deletes apart.
fn copies(reader: &Instance, create: &Value) -> usize {
    let note = &create["object"]["id"];
    let is_copy = |got: &&Received| got.json["id"] == create["id"] || got.json["object"] == *note;
    reader
        .received()
        .iter()
        .filter(is_copy)
        .filter(|got| got.json["type"] != "Delete")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_topic_has_documents_of_its_own_under_one_spelling() {
    let relay = open_relay().await;
    let read = async |path: &str| client().get(relay.url(path)).send().await.unwrap();
    let whole: Value = read("/actor").await.json().await.unwrap();
    for (path, account) in [
        ("/tag/cats", "tag.cats"),
        ("/tag/%E7%8C%AB", "tag.xn--z7x"),
        ("/instance/a.example", "instance.a.example"),
        ("/lang/ja", "lang.ja"),
    ] {
        let actor: Value = read(path).await.json().await.unwrap();
        let id = relay.url(path);
        assert_eq!(actor["id"], id);
        assert_eq!(actor["inbox"], format!("{id}/inbox"));
        assert_eq!(actor["endpoints"]["sharedInbox"], actor["inbox"]);
        assert_eq!(actor["publicKey"]["id"], format!("{id}#main-key"));
        assert_eq!(
            actor["publicKey"]["publicKeyPem"],
            whole["publicKey"]["publicKeyPem"]
        );
        let subject = format!("acct:{account}@{}", relay.addr);
        let found: Value = read(&format!("/.well-known/webfinger?resource={subject}"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(
            (&found["subject"], &found["links"][0]["href"]),
            (&json!(subject), &json!(id))
        );
        for name in ["outbox", "followers", "following"] {
            let collection: Value = read(&format!("{path}/{name}")).await.json().await.unwrap();
            assert_eq!(collection["id"], format!("{id}/{name}"));
        }
    }
    for path in [
        "/tag/Cats",
        "/tag/a%20b",
        "/lang/english!",
        "/list/none",
        "/user/cats",
        "/tag/cats/x",
    ] {
        assert_eq!(read(path).await.status().as_u16(), 404, "{path}");
    }
    let page = read("/").await.text().await.unwrap();
    assert!(page.contains(&relay.url("/tag/cats/inbox")), "{page}");
    relay.stop().await;

    let relay = relay_with(TopicsConfig {
        mode: TopicMode::Listed,
        tags: vec!["#Cats".into()],
        ..TopicsConfig::default()
    })
    .await;
    let read = async |path: &str| client().get(relay.url(path)).send().await.unwrap();
    for (path, status) in [
        ("/tag/cats", 200),
        ("/tag/dogs", 404),
        ("/lang/ja", 404),
        ("/instance/a.example", 404),
    ] {
        assert_eq!(read(path).await.status().as_u16(), status, "{path}");
    }
    let info: Value = read("/nodeinfo/2.1").await.json().await.unwrap();
    assert_eq!(
        (&info["metadata"]["topicRelays"], &info["metadata"]["topics"]),
        (&json!("listed"), &json!(["tag/cats"]))
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_in_several_gets_one_copy_from_the_actor_that_it_joined_first() {
    let relay = open_relay().await;
    let [author, cats, both, whole, other] = [(); 5].map(|()| Instance::start());
    let (author, cats, both, whole, other) = (author.await, cats.await, both.await, whole.await, other.await);
    author.subscribe(&relay).await;
    let accept = cats.join(&relay, "tag/cats").await;
    assert_eq!(
        (&accept.json["type"], &accept.json["actor"]),
        (&json!("Accept"), &json!(relay.url("/tag/cats")))
    );
    assert_eq!(accept.key_id, relay.url("/tag/cats#main-key"));
    both.join(&relay, "tag/dogs").await;
    both.join(&relay, "tag/cats").await;
    both.subscribe(&relay).await;
    whole.subscribe(&relay).await;
    whole.join(&relay, "tag/cats").await;
    other.join(&relay, "lang/ja").await;

    let of_cats = tagged(&author, 1, true, &["Cats"]);
    let of_both = tagged(&author, 2, true, &["cats", "dogs"]);
    let mut japanese = tagged(&author, 3, true, &[]);
    japanese["object"]["content"] = json!("ねこ");
    for document in [&of_cats, &of_both, &japanese] {
        post(&relay, &author, document).await;
    }
    let signer = async |reader: &Instance, document: &Value| gets(reader, document).await.key_id;
    assert_eq!(signer(&cats, &of_cats).await, relay.url("/tag/cats#main-key"));
    assert_eq!(
        signer(&both, &of_cats).await,
        relay.url("/tag/cats#main-key"),
        "joined before the whole relay"
    );
    assert_eq!(signer(&both, &of_both).await, relay.url("/tag/dogs#main-key"));
    assert_eq!(signer(&both, &japanese).await, relay.url("/actor#main-key"));
    assert_eq!(signer(&whole, &of_both).await, relay.url("/actor#main-key"));
    assert_eq!(signer(&other, &japanese).await, relay.url("/lang/ja#main-key"));
    gets(&whole, &japanese).await;
    // Only Announces now, and the last of all: what came twice would be here by then.
    let host = both.base.trim_start_matches("http://");
    let form = tasuki_core::store::fedi::DeliveryForm::Announce;
    relay
        .handle
        .choose_form(host, Some(form), OPERATOR.0, OPERATOR.1)
        .await
        .unwrap();
    let last = tagged(&author, 4, true, &["dogs"]);
    post(&relay, &author, &last).await;
    let got = both
        .wait_for("the Announce", |got| got["object"] == last["object"]["id"])
        .await;
    assert_eq!(got.json["actor"], relay.url("/tag/dogs"));
    assert_eq!(got.json["to"][0], relay.url("/tag/dogs/followers"));
    assert!(
        got.json["id"]
            .as_str()
            .unwrap()
            .starts_with(&relay.url("/tag/dogs/activities/"))
    );
    gets(&whole, &last).await;
    for (reader, counts) in [
        (&cats, [1, 1, 0, 0]),
        (&both, [1, 1, 1, 1]),
        (&whole, [1, 1, 1, 1]),
        (&other, [0, 0, 1, 0]),
    ] {
        let seen = [&of_cats, &of_both, &japanese, &last].map(|document| copies(reader, document));
        assert_eq!(seen, counts, "{}", reader.base);
    }
    let why = relay.handle.why(of_cats["id"].as_str().unwrap()).await.unwrap();
    assert!(why.judged[0].reason.contains("tag/cats 2"), "{why:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_and_deletes_reach_whoever_got_the_post_from_the_same_actor() {
    let relay = open_relay().await;
    let (author, cats, dogs) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    author.subscribe(&relay).await;
    cats.join(&relay, "tag/cats").await;
    dogs.join(&relay, "tag/dogs").await;
    let create = tagged(&author, 1, true, &["cats"]);
    post(&relay, &author, &create).await;
    gets(&cats, &create).await;
    // The hashtag is another one now.
    let mut update = about(&create, "Update");
    update["object"]["tag"] = json!([{"type": "Hashtag", "name": "#dogs"}]);
    post(&relay, &author, &update).await;
    assert_eq!(gets(&cats, &update).await.key_id, relay.url("/tag/cats#main-key"));
    assert_eq!(gets(&dogs, &update).await.key_id, relay.url("/tag/dogs#main-key"));
    // Whoever has left since had it too.
    let follow = cats.follow("follow-tag-cats");
    let undo =
        json!({"id": format!("{}/undo", cats.base), "type": "Undo", "actor": cats.actor(), "object": follow});
    assert_eq!(
        cats.post_to(&relay, "tag/cats", &cats.actor(), &undo).await,
        StatusCode::ACCEPTED
    );
    assert_eq!(relay.handle.status().active, 2);
    let delete = about(&create, "Delete");
    post(&relay, &author, &delete).await;
    assert_eq!(gets(&cats, &delete).await.key_id, relay.url("/tag/cats#main-key"));
    assert_eq!(gets(&dogs, &delete).await.key_id, relay.url("/tag/dogs#main-key"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_joined_topics_only_is_relayed_what_is_of_these() {
    let relay = open_relay().await;
    let (author, cats, whole) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    author.join(&relay, "tag/cats").await;
    cats.join(&relay, "tag/cats").await;
    whole.subscribe(&relay).await;
    let off_topic = tagged(&author, 1, true, &["dogs"]);
    let on_topic = tagged(&author, 2, true, &["cats"]);
    for document in [&off_topic, &on_topic] {
        let status = author
            .post_to(&relay, "tag/cats", &author.user("alice"), document)
            .await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    for reader in [&cats, &whole] {
        gets(reader, &on_topic).await;
        assert_eq!(copies(reader, &off_topic), 0);
    }
    let why = relay.handle.why(off_topic["id"].as_str().unwrap()).await.unwrap();
    assert_eq!(why.judged[0].outcome, "off_topic");
    // An edit that leaves the topic still goes to whoever has the post, and so does the Delete.
    let mut update = about(&on_topic, "Update");
    update["object"]["tag"] = json!([]);
    post(&relay, &author, &update).await;
    let delete = about(&on_topic, "Delete");
    post(&relay, &author, &delete).await;
    for reader in [&cats, &whole] {
        gets(reader, &update).await;
        gets(reader, &delete).await;
    }
    let of_nothing = about(&off_topic, "Update");
    post(&relay, &author, &of_nothing).await;
    let why = relay
        .handle
        .why(of_nothing["id"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(why.judged[0].outcome, "no_receivers");
    // The host joins the whole relay: now everything counts.
    author.subscribe(&relay).await;
    let any = tagged(&author, 3, true, &[]);
    post(&relay, &author, &any).await;
    gets(&whole, &any).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_one_topic_keeps_the_others_and_a_removal_may_be_of_one() {
    let relay = open_relay().await;
    let reader = Instance::start().await;
    reader.join(&relay, "tag/cats").await;
    reader.join(&relay, "tag/dogs").await;
    reader.subscribe(&relay).await;
    let joined = async || {
        let listed = relay.handle.subscribers().await.unwrap();
        listed.into_iter().map(|one| one.topic).collect::<Vec<_>>()
    };
    assert_eq!(joined().await, ["tag/cats", "tag/dogs", ""]);
    // By id, whatever inbox it comes to.
    let undo = json!({"id": format!("{}/undo-1", reader.base), "type": "Undo", "actor": reader.actor(),
        "object": format!("{}/follow-tag-cats", reader.base)});
    assert_eq!(
        reader.post(&relay, &reader.actor(), &undo).await,
        StatusCode::ACCEPTED
    );
    assert_eq!(joined().await, ["tag/dogs", ""]);
    let host = reader.base.trim_start_matches("http://");
    relay
        .handle
        .remove(host, Some(""), OPERATOR.0, OPERATOR.1)
        .await
        .unwrap();
    let reject = reader.wait_for("the Reject", |got| got["type"] == "Reject").await;
    assert_eq!(reject.json["actor"], relay.url("/actor"));
    assert_eq!(joined().await, ["tag/dogs"]);
    let missing = relay
        .handle
        .remove(host, Some("tag/cats"), OPERATOR.0, OPERATOR.1)
        .await;
    assert!(
        matches!(missing, Err(HandleError::NotSubscribed(_))),
        "{missing:?}"
    );
    relay
        .handle
        .remove(host, None, OPERATOR.0, OPERATOR.1)
        .await
        .unwrap();
    let reject = reader
        .wait_for("the other Reject", |got| {
            got["type"] == "Reject" && got["actor"] != relay.url("/actor").as_str()
        })
        .await;
    assert_eq!(reject.json["actor"], relay.url("/tag/dogs"));
    assert_eq!(reject.key_id, relay.url("/tag/dogs#main-key"));
    assert_eq!(relay.handle.status().active, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_litepub_server_joins_a_topic_and_is_followed_back_by_it() {
    let relay = open_relay().await;
    let (author, akkoma) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    akkoma.put_software("akkoma", "3.16.0");
    let actor = format!("{}/relay", akkoma.base);
    let topic = relay.url("/tag/cats");
    let follow = json!({"id": format!("{}/f1", akkoma.base), "type": "Follow", "actor": actor, "object": topic, "to": [topic]});
    assert_eq!(
        akkoma.post_to(&relay, "tag/cats", &actor, &follow).await,
        StatusCode::ACCEPTED
    );
    let back = akkoma
        .wait_for("the Follow back", |got| got["type"] == "Follow")
        .await;
    assert_eq!(
        (&back.json["actor"], &back.json["object"]),
        (&json!(topic), &json!(actor))
    );
    let create = tagged(&author, 1, true, &["cats"]);
    post(&relay, &author, &create).await;
    let got = akkoma
        .wait_for("the Announce", |got| got["object"] == create["object"]["id"])
        .await;
    assert_eq!(
        (&got.json["actor"], got.key_id),
        (&json!(topic), format!("{topic}#main-key"))
    );
    // What it announces is read from its own server, and belongs to topics by what is there.
    let reader = Instance::start().await;
    reader.join(&relay, "tag/cats").await;
    for (number, tag) in [(1, "dogs"), (2, "cats")] {
        let note = format!("{}/objects/{number}", akkoma.base);
        let mut post = tagged(&akkoma, 9, false, &[tag])["object"].clone();
        post["id"] = json!(note);
        akkoma.put(&format!("objects/{number}"), post);
        let announce = json!({"id": format!("{note}/announce"), "type": "Announce", "actor": actor, "object": note,
            "to": [format!("{actor}/followers")]});
        assert_eq!(
            akkoma.post_to(&relay, "tag/cats", &actor, &announce).await,
            StatusCode::ACCEPTED
        );
    }
    let note = format!("{}/objects/2", akkoma.base);
    let got = reader
        .wait_for("the Announce", |got| got["object"] == note.as_str())
        .await;
    assert_eq!(got.json["actor"], topic);
    assert!(
        reader
            .received()
            .iter()
            .all(|got| got.json["object"] != format!("{}/objects/1", akkoma.base).as_str())
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_what_is_closed_silenced_or_beyond_the_bounds() {
    let relay = relay_with(TopicsConfig {
        mode: TopicMode::Any,
        max: 2,
        per_host: 1,
        ..TopicsConfig::default()
    })
    .await;
    let (one, two, three) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    let answer = async |host: &Instance, topic: &str| host.join(&relay, topic).await.json["type"].clone();
    assert_eq!(answer(&one, "tag/cats").await, "Accept");
    assert_eq!(
        answer(&one, "tag/dogs").await,
        "Reject",
        "one topic for each host"
    );
    assert_eq!(answer(&two, "tag/dogs").await, "Accept");
    assert_eq!(answer(&three, "tag/birds").await, "Reject", "two topics in all");
    assert_eq!(answer(&three, "tag/cats").await, "Accept", "one that is there");
    let why = relay.handle.why(&three.actor()).await.unwrap();
    assert!(
        why.judged
            .iter()
            .any(|one| one.reason.contains("as many topics as it can")),
        "{why:?}"
    );
    // A silenced hashtag has no relay, and what it had ends.
    let add = |kind, subject| {
        relay
            .handle
            .moderate(ModerationEffect::Silence, kind, subject, "spam", OPERATOR)
    };
    add(ModerationKind::Tag, "cats").await.unwrap();
    assert_eq!(
        client()
            .get(relay.url("/tag/birds"))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16(),
        200
    );
    let host = three.base.trim_start_matches("http://");
    let why = relay.handle.why(host).await.unwrap();
    assert!(
        why.verdicts
            .iter()
            .any(|text| text.contains("tag/cats is silenced")),
        "{why:?}"
    );
    let author = Instance::start().await;
    author.subscribe(&relay).await;
    post(&relay, &author, &tagged(&author, 1, true, &["cats", "dogs"])).await;
    let open = tagged(&author, 2, true, &["dogs"]);
    post(&relay, &author, &open).await;
    gets(&two, &open).await;
    assert_eq!(
        copies(&three, &tagged(&author, 1, true, &[])) + copies(&two, &tagged(&author, 1, true, &[])),
        0
    );
    let page = client()
        .get(relay.url("/"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(page.contains("Topics"));
    relay.stop().await;

    let closed = relay_with(TopicsConfig::default()).await;
    let one = Instance::start().await;
    let status = one
        .post_to(&closed, "tag/cats", &one.actor(), &one.follow("f"))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(closed.handle.status().active, 0);
    let page = client()
        .get(closed.url("/"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(!page.contains("Topics"));
    closed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_the_operators_has_an_actor_too() {
    let relay = relay_with(TopicsConfig::default()).await;
    let (author, reader, far) = (
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    );
    author.subscribe(&relay).await;
    far.subscribe(&relay).await;
    let list = |tags: &[&str], instances: Vec<String>| TopicList {
        name: "nihon".into(),
        title: "Japan".into(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        instances,
        languages: vec!["JA".into()],
    };
    for (bad, why) in [
        (
            TopicList {
                name: "Nihon".into(),
                ..list(&["x"], Vec::new())
            },
            "name of a list",
        ),
        (
            TopicList {
                languages: Vec::new(),
                ..list(&[], Vec::new())
            },
            "from 1 to",
        ),
        (list(&["a b"], Vec::new()), "not a topic"),
    ] {
        let refused = relay
            .handle
            .put_list(bad, OPERATOR)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let far_host = far.base.trim_start_matches("http://").to_owned();
    let made = relay
        .handle
        .put_list(list(&["#Tokyo"], vec![far_host]), OPERATOR)
        .await
        .unwrap();
    assert_eq!(
        made.inbox.as_deref(),
        Some(relay.url("/list/nihon/inbox").as_str())
    );
    assert_eq!(
        (made.list.tags, made.list.languages),
        (vec!["tokyo".to_owned()], vec!["ja".to_owned()])
    );
    assert_eq!(reader.join(&relay, "list/nihon").await.json["type"], "Accept");
    let by_tag = tagged(&author, 1, true, &["tokyo"]);
    let mut by_language = tagged(&author, 2, true, &[]);
    by_language["object"]["contentMap"] = json!({"ja": "x"});
    let neither = tagged(&author, 3, true, &["paris"]);
    let by_host = tagged(&far, 4, true, &[]);
    for document in [&by_tag, &by_language, &neither] {
        post(&relay, &author, document).await;
    }
    post(&relay, &far, &by_host).await;
    for document in [&by_tag, &by_language, &by_host] {
        assert_eq!(
            gets(&reader, document).await.key_id,
            relay.url("/list/nihon#main-key")
        );
    }
    assert_eq!(copies(&reader, &neither), 0);
    let page = client()
        .get(relay.url("/"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(page.contains("list/nihon: Japan"), "{page}");
    assert_eq!(relay.handle.lists().await.unwrap()[0].subscribers, 1);
    assert_eq!(
        relay.handle.remove_list("nihon", OPERATOR).await.unwrap().len(),
        1
    );
    reader.wait_for("the Reject", |got| got["type"] == "Reject").await;
    let still = client().get(relay.url("/list/nihon")).send().await.unwrap();
    assert_eq!(still.status().as_u16(), 200, "its Reject must be verifiable");
    until("nobody gets it", || relay.handle.status().active == 2).await;
    assert!(matches!(
        relay.handle.remove_list("nihon", OPERATOR).await,
        Err(HandleError::NoSuchList(_))
    ));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_approves_a_host_once_for_all_that_it_joins() {
    let setup = Setup::default();
    let topics = TopicsConfig {
        mode: TopicMode::Any,
        ..TopicsConfig::default()
    };
    let config = FediConfig {
        mode: Mode::Approval,
        topics,
        ..setup.config
    };
    let setup = Setup {
        config,
        ..Setup::default()
    };
    let relay = RelayUnderTest::start(&Ground::memory().0, setup).await;
    let reader = Instance::start().await;
    for topic in ["tag/cats", "tag/dogs"] {
        let follow = reader.follow(topic);
        assert_eq!(
            reader.post_to(&relay, topic, &reader.actor(), &follow).await,
            StatusCode::ACCEPTED
        );
    }
    assert_eq!(
        (relay.handle.status().active, relay.handle.status().pending),
        (0, 1)
    );
    let host = reader.base.trim_start_matches("http://");
    relay.handle.approve(host, OPERATOR.0, OPERATOR.1).await.unwrap();
    for topic in ["tag/cats", "tag/dogs"] {
        let accept = reader
            .wait_for("the Accept", |got| {
                got["actor"] == relay.url(&format!("/{topic}")).as_str()
            })
            .await;
        assert_eq!(accept.json["type"], "Accept");
    }
    assert_eq!(reader.join(&relay, "lang/ja").await.json["type"], "Accept");
    relay.stop().await;
}
