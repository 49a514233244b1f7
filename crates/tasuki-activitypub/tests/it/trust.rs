use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::json;
use tasuki_activitypub::FediConfig;
use tasuki_proto::activitypub::PUBLIC;

use crate::world::{Ground, Instance, Letter, RelayUnderTest, Setup};

struct Trio {
    relay: RelayUnderTest,
    author: Instance,
    reader: Instance,
    memory: std::sync::Arc<crate::memory::Memory>,
}

async fn trio() -> Trio {
    let (ground, memory) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let (author, reader) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    reader.subscribe(&relay).await;
    Trio {
        relay,
        author,
        reader,
        memory,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_without_subscription_is_refused() {
    let t = trio().await;
    let stranger = Instance::start().await;
    let before = t.memory.logged();
    let status = stranger
        .post(&t.relay, &stranger.user("alice"), &stranger.create(1, true))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(stranger.gets().is_empty(), "a stranger's key is not even fetched");
    assert_eq!(t.memory.logged(), before);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signer_is_the_actor() {
    let t = trio().await;
    let mallory = Instance::start().await;
    let create = t.author.create(1, true).to_string();
    let before = t.memory.logged();
    // Another host's key, another user's key, another key under the right name.
    for letter in [
        Letter::new(
            &t.relay,
            &format!("{}#main-key", mallory.user("alice")),
            create.as_bytes(),
        ),
        Letter::new(
            &t.relay,
            &format!("{}#main-key", t.author.user("bob")),
            create.as_bytes(),
        ),
        Letter::by_other_key(
            &t.relay,
            &format!("{}#main-key", t.author.user("alice")),
            create.as_bytes(),
        ),
    ] {
        let (status, problem) = t.author.send(&t.relay, letter).await;
        assert!(
            status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED,
            "{problem}"
        );
        assert_eq!(problem["status"], status.as_u16());
    }
    // A file that a user uploaded, with somebody else's id in it.
    let upload = format!("{}/media/file#main-key", t.author.base);
    t.author.put(
        "media/file",
        json!({"id": t.author.user("alice"), "type": "Person", "inbox": format!("{}/inbox", t.author.base),
            "publicKey": {"id": upload, "owner": t.author.user("alice"), "publicKeyPem": "x"}}),
    );
    let (status, problem) = t
        .author
        .send(&t.relay, Letter::new(&t.relay, &upload, create.as_bytes()))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    assert_eq!(t.memory.logged(), before);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_brings_is_believed_by_the_authors_own_signature() {
    let t = trio().await;
    let stranger = Instance::start().await;
    let bringer = format!("{}#main-key", t.author.actor());
    let before = t.memory.logged();
    let bring = async |key: &str, document: &serde_json::Value| {
        let letter = Letter::new(&t.relay, key, document.to_string().as_bytes());
        let (status, problem) = t.author.send(&t.relay, letter).await;
        let detail = problem["detail"].as_str().unwrap_or_default().to_owned();
        (status.as_u16(), detail)
    };
    let signed = stranger.ld_sign(&stranger.create(1, false));
    let mut tampered = signed.clone();
    tampered["object"]["content"] = json!("post 2");
    let mut unknown = signed.clone();
    unknown["@context"] = json!([
        "https://www.w3.org/ns/activitystreams",
        "https://evil.example/context"
    ]);
    // By the relay's subscriber of another host, whose signature it is not.
    let mut other = stranger.create(2, false);
    other["signature"] = t.author.ld_sign(&t.author.create(2, false))["signature"].clone();
    let mut follow = stranger.follow("f1");
    follow["signature"] = signed["signature"].clone();
    for (document, key, reason) in [
        (
            &tampered,
            &bringer,
            "does not verify with the actor's key: the document was changed",
        ),
        (&unknown, &bringer, "https://evil.example/context"),
        (
            &stranger.create(3, false),
            &bringer,
            "has no Linked Data signature",
        ),
        (&other, &bringer, "not one by the actor"),
        (&follow, &bringer, "only the actor's own server may send this"),
        (
            &signed,
            &format!("{}#main-key", Instance::start().await.actor()),
            "not subscribed",
        ),
        (&signed, &t.relay.url("/actor#main-key"), "sends to itself"),
    ] {
        let (status, detail) = bring(key, document).await;
        assert!(
            status == 403 && detail.contains(reason),
            "{reason}: {status} {detail}"
        );
    }
    assert_eq!(t.memory.logged(), before);

    assert_eq!(bring(&bringer, &signed).await.0, 202);
    let got = t
        .reader
        .wait_for("the carried post", |got| got["id"] == signed["id"])
        .await;
    assert_eq!(got.body, signed.to_string().as_bytes(), "the very bytes");
    // Not back to the bringer, and no second time by another way.
    assert_eq!(bring(&bringer, &signed).await.0, 202);
    assert_eq!(t.memory.logged(), before + 1);
    assert!(
        t.author
            .received()
            .iter()
            .all(|got| got.json["id"] != signed["id"])
    );
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spoiled_requests_are_refused_with_a_clear_reason() {
    let t = trio().await;
    let key = format!("{}#main-key", t.author.user("alice"));
    let create = t.author.create(1, true).to_string();
    let fresh = || Letter::new(&t.relay, &key, create.as_bytes());
    let now = SystemTime::now();
    let cases: Vec<(&str, Letter, u16)> = vec![
        (
            "body",
            {
                let mut l = fresh();
                l.body.push(b' ');
                l
            },
            401,
        ),
        (
            "no signature",
            {
                let mut l = fresh();
                l.headers.remove("signature");
                l
            },
            401,
        ),
        (
            "content type",
            {
                let mut l = fresh();
                l.headers.insert("content-type".into(), "text/html".into());
                l
            },
            415,
        ),
        (
            "garbled signature",
            {
                let mut l = fresh();
                l.headers.insert("signature".into(), "x".into());
                l
            },
            400,
        ),
        (
            "old",
            Letter::at(&t.relay, &key, create.as_bytes(), now - Duration::from_secs(4000)),
            401,
        ),
        (
            "ahead",
            Letter::at(&t.relay, &key, create.as_bytes(), now + Duration::from_secs(400)),
            401,
        ),
        (
            "other host",
            Letter::for_host("other.example", &key, create.as_bytes()),
            401,
        ),
        ("not JSON", Letter::new(&t.relay, &key, b"{"), 400),
        (
            "twice",
            Letter::new(
                &t.relay,
                &key,
                br#"{"id":"https://a.example/","id":"https://b.example/"}"#,
            ),
            400,
        ),
        (
            "too large",
            Letter::new(&t.relay, &key, &vec![b' '; (1 << 20) + 1]),
            413,
        ),
    ];
    for (name, mut letter, expected) in cases {
        if name == "other host" {
            letter.headers.insert("host".into(), "other.example".into());
        }
        let (status, problem) = t.author.send(&t.relay, letter).await;
        assert_eq!(status.as_u16(), expected, "{name}: {problem}");
        assert_eq!(problem["status"], expected, "{name}");
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty()),
            "{name}"
        );
    }
    // A query string that the signer left out of its signature.
    let mut letter = fresh();
    letter.path = "/inbox?x=1".to_owned();
    assert_eq!(t.author.send(&t.relay, letter).await.0, StatusCode::ACCEPTED);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn activities_that_cannot_be_judged_are_refused_with_a_text_of_their_own() {
    let t = trio().await;
    let user = t.author.user("alice");
    let key = format!("{user}#main-key");
    let post = t.author.create(1, true);
    let without = |name: &str| {
        let mut document = post.clone();
        document.as_object_mut().unwrap().remove(name);
        document.to_string().into_bytes()
    };
    let with = |name: &str, value: serde_json::Value| {
        let mut document = post.clone();
        document[name] = value;
        document.to_string().into_bytes()
    };
    let mut marked = vec![0xEF, 0xBB, 0xBF];
    marked.extend(post.to_string().into_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "not JSON"),
        (b"[1,2]".to_vec(), "not a JSON object"),
        (b"{\"a\":\"\xff\"}".to_vec(), "not UTF-8"),
        (marked, "byte order mark"),
        (
            format!("{}1{}", "[".repeat(40), "]".repeat(40)).into_bytes(),
            "deeper than 32",
        ),
        (
            format!("[{}1]", "1,".repeat(60_000)).into_bytes(),
            "more than 50000 values",
        ),
        (
            with("big", json!(1))
                .iter()
                .map(|b| *b as char)
                .collect::<String>()
                .replace("\"big\":1", "\"big\":1e999")
                .into_bytes(),
            "too large",
        ),
        (without("type"), "no usable \"type\""),
        (without("id"), "no usable \"id\""),
        (without("actor"), "no usable \"actor\""),
        (without("object"), "no usable \"object\""),
        (with("id", json!("urn:x")), "\"id\" is not usable"),
        (with("actor", json!({"id": 7})), "no usable \"actor\""),
        (with("id", json!("https://elsewhere.example/1")), "host of \"id\""),
        (
            with(
                "object",
                json!({"id": "https://elsewhere.example/1", "type": "Note"}),
            ),
            "host of \"object\"",
        ),
    ];
    for (body, reason) in cases {
        let (status, problem) = t.author.send(&t.relay, Letter::new(&t.relay, &key, &body)).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            status == StatusCode::BAD_REQUEST && detail.contains(reason),
            "{reason}: {status} {problem}"
        );
    }
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_or_the_same_news_counts_once() {
    let t = trio().await;
    let key = format!("{}#main-key", t.author.user("alice"));
    let create = t.author.create(1, true).to_string();
    let before = t.memory.logged();
    for _ in 0..2 {
        let letter = Letter::new(&t.relay, &key, create.as_bytes());
        let again = Letter {
            path: letter.path.clone(),
            headers: letter.headers.clone(),
            body: letter.body.clone(),
        };
        assert_eq!(t.author.send(&t.relay, letter).await.0, StatusCode::ACCEPTED);
        assert_eq!(t.author.send(&t.relay, again).await.0, StatusCode::ACCEPTED);
    }
    assert_eq!(t.memory.logged(), before + 1);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_fetched_again_once() {
    let t = trio().await;
    t.author.publish(&t.relay, 1, true).await;
    t.author.rotate_key();
    let key = format!("{}#main-key", t.author.user("alice"));
    let letter = |number| {
        Letter::by_other_key(
            &t.relay,
            &key,
            t.author.create(number, true).to_string().as_bytes(),
        )
    };
    assert_eq!(t.author.send(&t.relay, letter(2)).await.0, StatusCode::ACCEPTED);
    // Signatures by the old key no longer count, and do not make the relay fetch again and again.
    let fetches = t.author.gets().len();
    for number in 3..6 {
        let create = t.author.create(number, true);
        assert_eq!(
            t.author.post(&t.relay, &t.author.user("alice"), &create).await,
            StatusCode::UNAUTHORIZED
        );
    }
    assert_eq!(t.author.gets().len(), fetches);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_of_somebody_who_is_gone_is_taken_and_forgotten() {
    let t = trio().await;
    let before = t.memory.logged();
    for instance in [&t.author, &Instance::start().await] {
        instance.put("users/gone", json!({"type": "Tombstone"}));
        let gone = instance.user("gone");
        let delete = json!({"id": format!("{gone}#delete"), "type": "Delete", "actor": gone, "object": gone, "to": [PUBLIC]});
        assert_eq!(
            instance.post(&t.relay, &gone, &delete).await,
            StatusCode::ACCEPTED
        );
    }
    assert_eq!(t.memory.logged(), before);
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_while_the_store_is_away() {
    let t = trio().await;
    t.author.publish(&t.relay, 1, true).await;
    t.memory.set_away(true);
    let create = t.author.create(2, true);
    let status = t.author.post(&t.relay, &t.author.user("alice"), &create).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    t.memory.set_away(false);
    assert_eq!(
        t.author.post(&t.relay, &t.author.user("alice"), &create).await,
        StatusCode::ACCEPTED
    );
    t.reader
        .wait_for("the post", |got| got["id"] == create["id"])
        .await;
    t.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_budget_puts_senders_off() {
    let (ground, _) = Ground::memory();
    let setup = Setup {
        budget: 4096,
        ..Setup::default()
    };
    let relay = RelayUnderTest::start(&ground, setup).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let held = relay.budget.try_take(4000).unwrap();
    let status = instance
        .post(&relay, &instance.user("alice"), &instance.create(1, true))
        .await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    drop(held);
    instance.publish(&relay, 1, true).await;
    assert_eq!(relay.budget.used_bytes(), 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_never_fetched() {
    let (ground, memory) = Ground::memory();
    let config = FediConfig {
        danger_allow_private_addresses: false,
        ..Setup::default().config
    };
    let setup = Setup {
        config,
        public_url: Some(Some("https://relay.example".to_owned())),
        ..Setup::default()
    };
    let relay = RelayUnderTest::start(&ground, setup).await;
    let bait = Instance::start().await;
    let port = bait.base.rsplit(':').next().unwrap().to_owned();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "0x7f000001",
    ] {
        for scheme in ["http", "https"] {
            let base = format!("{scheme}://{host}:{port}");
            let follow = json!({"id": format!("{base}/f1"), "type": "Follow", "actor": format!("{base}/actor"), "object": PUBLIC});
            let letter = Letter::for_host(
                "relay.example",
                &format!("{base}/actor#main-key"),
                follow.to_string().as_bytes(),
            );
            let (status, problem) = bait.send(&relay, letter).await;
            assert!(
                status == StatusCode::FORBIDDEN || status == StatusCode::SERVICE_UNAVAILABLE,
                "{base}: {status} {problem}"
            );
        }
    }
    assert!(bait.gets().is_empty());
    assert_eq!(memory.logged(), 0);
    relay.stop().await;
}
