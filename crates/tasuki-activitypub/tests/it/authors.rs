//! Who wants to be relayed, how much may be published, and other relays.

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_activitypub::FediConfig;
use tasuki_core::store::fedi::BrakeMode;
use tasuki_proto::activitypub::PUBLIC;
use tasuki_proto::activitypub::date;

use crate::forms::wait_for_software;
use crate::world::{Ground, Instance, Letter, RelayUnderTest, Setup};

async fn relay_with(change: impl FnOnce(&mut FediConfig)) -> (RelayUnderTest, Instance, Instance) {
    let mut setup = Setup::default();
    change(&mut setup.config);
    let relay = RelayUnderTest::start(&Ground::sqlite().await, setup).await;
    let (author, reader) = (Instance::start().await, Instance::start().await);
    author.subscribe(&relay).await;
    reader.subscribe(&relay).await;
    (relay, author, reader)
}

/// The document of an account, with something more in it.
async fn account(instance: &Instance, name: &str, more: &Value) {
    let path = format!("users/{name}");
    let url = format!("{}/{path}", instance.base);
    let mut document: Value = crate::world::client()
        .get(url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    document
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    instance.put(&path, document);
}

fn post(instance: &Instance, number: usize, user: &str) -> Value {
    let mut create = instance.create(number, true);
    create["actor"] = json!(instance.user(user));
    create["object"]["attributedTo"] = create["actor"].clone();
    create["signature"] = instance.ld_signature(user);
    create
}

async fn send(relay: &RelayUnderTest, instance: &Instance, document: &Value) -> (StatusCode, Value) {
    let key = format!("{}#main-key", document["actor"].as_str().unwrap());
    instance
        .send(relay, Letter::new(relay, &key, document.to_string().as_bytes()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_to_be_relayed_is_not() {
    let (relay, author, reader) = relay_with(|config| config.honor_indexable = true).await;
    account(
        &author,
        "shy",
        &json!({"summary": "<p>cats, #<span>NoRelay</span></p>"}),
    )
    .await;
    account(&author, "hidden", &json!({"indexable": false})).await;
    account(
        &author,
        "open",
        &json!({"indexable": true, "summary": "no relay of mine"}),
    )
    .await;
    let shy = post(&author, 1, "shy");
    for document in [&shy, &post(&author, 2, "hidden")] {
        assert_eq!(send(&relay, &author, document).await.0, StatusCode::ACCEPTED);
    }
    let open = post(&author, 3, "open");
    assert_eq!(send(&relay, &author, &open).await.0, StatusCode::ACCEPTED);
    reader.wait_for("the post", |got| got["id"] == open["id"]).await;
    assert_eq!(
        relay.counter("activities_received_total{outcome=\"opted_out\"}"),
        2
    );
    let why = relay.handle.why(shy["id"].as_str().unwrap()).await.unwrap();
    assert!(why.judged[0].reason.contains("does not want to be"), "{why:?}");

    // Another bio, told by an Update of the account: from now on, not a day later.
    account(&author, "shy", &json!({"summary": "cats"})).await;
    let mut update = post(&author, 4, "shy");
    update["type"] = json!("Update");
    update["object"] = json!({"id": author.user("shy"), "type": "Person", "to": [PUBLIC]});
    assert_eq!(send(&relay, &author, &update).await.0, StatusCode::ACCEPTED);
    let later = post(&author, 5, "shy");
    assert_eq!(send(&relay, &author, &later).await.0, StatusCode::ACCEPTED);
    reader
        .wait_for("the later post", |got| got["id"] == later["id"])
        .await;
    assert!(reader.received().iter().all(|got| got.json["id"] != shy["id"]));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_an_author_who_opts_out_is_not_sent_but_what_takes_back() {
    let (relay, author, reader) = relay_with(|config| config.boosts = true).await;
    let admin = ("admin", "socket");
    let pause = relay.handle.pause(BrakeMode::Hold, "", admin);
    pause.await.unwrap();
    let waiting = post(&author, 1, "shy");
    let about_it = |kind: &str, object: Value| {
        json!({"id": format!("{}/{kind}", author.base), "type": kind, "actor": author.user("shy"), "to": [PUBLIC],
            "object": object, "signature": author.ld_signature("shy")})
    };
    let boost = about_it("Announce", json!("https://c.example/1"));
    let undo = about_it("Undo", json!(boost["id"]));
    for document in [&waiting, &boost, &undo] {
        assert_eq!(send(&relay, &author, document).await.0, StatusCode::ACCEPTED);
    }
    account(&author, "shy", &json!({"summary": "#NoRelay"})).await;
    let update = about_it(
        "Update",
        json!({"id": author.user("shy"), "type": "Person", "to": [PUBLIC]}),
    );
    assert_eq!(send(&relay, &author, &update).await.0, StatusCode::ACCEPTED);
    let fine = post(&author, 2, "open");
    assert_eq!(send(&relay, &author, &fine).await.0, StatusCode::ACCEPTED);
    relay.handle.resume(admin).await.unwrap();
    for wanted in [&fine, &undo] {
        reader.wait_for("it", |got| got["id"] == wanted["id"]).await;
    }
    let stopped = [&waiting["id"], &boost["id"], &update["id"]];
    let received = reader.received();
    assert!(received.iter().all(|got| !stopped.contains(&&got.json["id"])));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_too_much_is_put_off_and_new_accounts_earlier() {
    let (relay, author, reader) = relay_with(|config| {
        (config.author_per_hour, config.new_author_per_hour) = (9, 3);
    })
    .await;
    let today = date::timestamp(std::time::SystemTime::now());
    account(&author, "fresh", &json!({"published": today})).await;
    for (user, burst) in [("fresh", 1), ("alice", 3)] {
        for number in 0..burst {
            let (status, problem) = send(&relay, &author, &post(&author, number, user)).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{user} {number}: {problem}");
        }
        let (status, problem) = send(&relay, &author, &post(&author, 50, user)).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{user}");
        assert!(
            problem["detail"].as_str().unwrap().contains("this account"),
            "{problem}"
        );
        // What takes something back is never held up.
        let delete = json!({"id": format!("{}/delete/{user}", author.base), "type": "Delete", "actor": author.user(user),
            "to": [PUBLIC], "object": format!("{}/notes/{user}", author.base), "signature": author.ld_signature(user)});
        assert_eq!(send(&relay, &author, &delete).await.0, StatusCode::ACCEPTED);
        reader
            .wait_for("the Delete", |got| got["id"] == delete["id"])
            .await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_joined_lately_has_its_own_limit() {
    let (relay, author, _reader) = relay_with(|config| config.new_host_per_minute = 6).await;
    for number in 0..2 {
        let user = format!("user{number}");
        assert_eq!(
            send(&relay, &author, &post(&author, number, &user)).await.0,
            StatusCode::ACCEPTED
        );
    }
    let (status, problem) = send(&relay, &author, &post(&author, 9, "user9")).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(
        problem["detail"].as_str().unwrap().contains("this instance"),
        "{problem}"
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_relay_announces_goes_no_further() {
    let (relay, author, reader) = relay_with(|_| {}).await;
    let other = Instance::start().await;
    other.put_software("activityrelay", "0.3.5");
    let actor = format!("{}/relay", other.base);
    let follow = json!({"id": format!("{}/f1", other.base), "type": "Follow", "actor": actor, "object": relay.url("/actor")});
    assert_eq!(other.post(&relay, &actor, &follow).await, StatusCode::ACCEPTED);
    wait_for_software(&relay, &other, "activityrelay 0.3.5").await;
    // It hears what is published here, and tells of it, of others' posts and of its own.
    let create = author.publish(&relay, 1, true).await;
    other
        .wait_for("the Announce", |got| got["object"] == create["object"]["id"])
        .await;
    let own = format!("{}/objects/1", other.base);
    other.put(
        "objects/1",
        json!({"id": own, "type": "Note", "attributedTo": actor, "to": [PUBLIC]}),
    );
    for (number, object) in [
        create["object"]["id"].as_str().unwrap(),
        &own,
        "https://c.example/1",
    ]
    .iter()
    .enumerate()
    {
        let announce = json!({"id": format!("{}/activities/{number}", other.base), "type": "Announce", "actor": actor,
            "to": [format!("{actor}/followers")], "object": object});
        assert_eq!(other.post(&relay, &actor, &announce).await, StatusCode::ACCEPTED);
    }
    assert_eq!(
        relay.counter("activities_received_total{outcome=\"from_relay\"}"),
        3
    );
    let last = author.publish(&relay, 2, true).await;
    reader
        .wait_for("the last post", |got| got["id"] == last["id"])
        .await;
    assert!(reader.received().iter().all(|got| got.json["type"] != "Announce"));
    relay.stop().await;
}
