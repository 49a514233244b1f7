use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tasuki_proto::activitypub::PUBLIC;

use crate::world::{Ground, Instance, Mood, PATIENCE, RelayUnderTest, Setup};

/// Waits for a state that only the wire brings about.
pub(crate) async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn instances(relay: &RelayUnderTest, n: usize) -> Vec<Instance> {
    let mut all = Vec::new();
    for _ in 0..n {
        let instance = Instance::start().await;
        instance.subscribe(relay).await;
        all.push(instance);
    }
    all
}

async fn subscribe_litepub(relay: &RelayUnderTest) -> Instance {
    let instance = Instance::start().await;
    let actor = format!("{}/relay", instance.base);
    let follow = json!({"id": format!("{}/f1", instance.base), "type": "Follow", "actor": actor, "object": relay.url("/actor")});
    assert_eq!(instance.post(relay, &actor, &follow).await, StatusCode::ACCEPTED);
    instance
        .wait_for("the Follow back", |got| got["type"] == "Follow")
        .await;
    instance
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_activity_is_forwarded_byte_for_byte_and_announced_to_the_others() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let all = instances(&relay, 3).await;
    let litepub = subscribe_litepub(&relay).await;
    let create = all[0].publish(&relay, 1, true).await;
    for reader in &all[1..] {
        let got = reader
            .wait_for("the forward", |got| got["id"] == create["id"])
            .await;
        assert_eq!(got.body, create.to_string().as_bytes());
    }
    let note = create["object"]["id"].clone();
    let announce = litepub
        .wait_for("the Announce", |got| got["type"] == "Announce")
        .await;
    assert_eq!(
        (&announce.json["object"], &announce.json["actor"]),
        (&note, &json!(relay.url("/actor")))
    );

    // Without a signature everybody gets an Announce.
    let bare = all[0].publish(&relay, 2, false).await;
    for reader in [&all[1], &all[2], &litepub] {
        let id = bare["object"]["id"].clone();
        let got = reader.wait_for("the Announce", |got| got["object"] == id).await;
        assert_eq!(got.json["type"], "Announce");
        assert!(got.json["published"].is_string());
    }
    // Signed Updates go to those who believe signatures; others get nothing, and the origin never gets its own.
    let mut update = all[0].create(1, true);
    update["type"] = json!("Update");
    update["id"] = json!(format!("{}/updates/1", all[0].base));
    assert_eq!(
        all[0].post(&relay, &all[0].user("alice"), &update).await,
        StatusCode::ACCEPTED
    );
    for reader in &all[1..] {
        reader
            .wait_for("the Update", |got| got["id"] == update["id"])
            .await;
    }
    relay.stop().await;
    assert!(
        litepub
            .received()
            .iter()
            .all(|got| got.json["type"] != "Update" && got.json["type"] != "Create")
    );
    assert!(all[0].received().iter().all(|got| got.json["type"] == "Accept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn private_and_unlisted_posts_go_nowhere() {
    let (ground, memory) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let all = instances(&relay, 2).await;
    let before = memory.logged();
    for (to, cc) in [("followers", PUBLIC), ("followers", "nobody")] {
        let mut create = all[0].create(1, true);
        create["to"] = json!([format!("{}/{to}", all[0].base)]);
        create["cc"] = json!([cc]);
        assert_eq!(
            all[0].post(&relay, &all[0].user("alice"), &create).await,
            StatusCode::ACCEPTED
        );
    }
    assert_eq!(memory.logged(), before);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_litepub_announce_is_looked_at_before_it_is_told() {
    let (ground, memory) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let reader = instances(&relay, 1).await.remove(0);
    let litepub = subscribe_litepub(&relay).await;
    let actor = format!("{}/relay", litepub.base);
    let note = |name: &str, to: &str| {
        let id = format!("{}/objects/{name}", litepub.base);
        litepub.put(
            &format!("objects/{name}"),
            json!({"id": id, "type": "Note", "attributedTo": litepub.user("carol"), "to": [to], "content": name}),
        );
        json!({"id": format!("{}/activities/{name}", litepub.base), "type": "Announce", "actor": actor, "object": id,
            "to": [format!("{actor}/followers")]})
    };
    let before = memory.logged();
    let unlisted = note("unlisted", "https://example.org/followers");
    assert_eq!(
        litepub.post(&relay, &actor, &unlisted).await,
        StatusCode::ACCEPTED
    );
    // Somebody else's post is not this server's to tell.
    let mut foreign = note("foreign", PUBLIC);
    foreign["object"] = json!(format!("{}/notes/1", reader.base));
    assert_eq!(litepub.post(&relay, &actor, &foreign).await, StatusCode::ACCEPTED);
    assert_eq!(memory.logged(), before);

    let public = note("public", PUBLIC);
    assert_eq!(litepub.post(&relay, &actor, &public).await, StatusCode::ACCEPTED);
    let got = reader
        .wait_for("the Announce", |got| got["object"] == public["object"])
        .await;
    assert_eq!(got.json["actor"], relay.url("/actor"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_host_does_not_delay_the_others() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let all = instances(&relay, 8).await;
    let (hanging, well) = all.split_at(4);
    for instance in hanging {
        instance.set_mood(Mood::Hangs);
    }
    let began = Instant::now();
    let mut last = json!(null);
    for number in 0..30 {
        last = well[0].publish(&relay, number, true).await;
    }
    for reader in &well[1..] {
        reader
            .wait_for("the last post", |got| got["id"] == last["id"])
            .await;
    }
    // The hanging hosts take three seconds until their first attempt ends.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(hanging.iter().all(|instance| instance.received().len() == 1));
    for instance in hanging {
        instance.set_mood(Mood::Takes);
    }
    for instance in hanging {
        instance
            .wait_for("what waited", |got| got["id"] == last["id"])
            .await;
        until("all that waited", || instance.received().len() >= 31).await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_gets_every_activity_after_a_restart() {
    let ground = Ground::sqlite().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    let all = instances(&relay, 4).await;
    // One host is away all the time, another for the second half: both are behind when the power goes.
    all[1].set_mood(Mood::Answers(503));
    let mut ids = Vec::new();
    for number in 0..400 {
        if number == 200 {
            all[2].set_mood(Mood::Answers(503));
        }
        ids.push(all[0].publish(&relay, number, true).await["id"].clone());
    }
    until("a host fails", || relay.handle.status().failing.len() >= 2).await;
    relay.kill().await;

    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    for number in 400..420 {
        ids.push(all[0].publish(&relay, number, true).await["id"].clone());
    }
    all[1].set_mood(Mood::Takes);
    all[2].set_mood(Mood::Takes);
    for reader in &all[1..] {
        reader.wait_for_all(&ids).await;
    }
    relay.stop().await;

    // After a close in good order nothing is repeated.
    let before: Vec<usize> = all.iter().map(|instance| instance.received().len()).collect();
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let relay = RelayUnderTest::start_on(&ground, Setup::default(), listener).await;
    let marker = all[0].publish(&relay, 1000, true).await;
    for reader in &all[1..] {
        reader
            .wait_for("the next post", |got| got["id"] == marker["id"])
            .await;
    }
    relay.stop().await;
    for (reader, before) in all[1..].iter().zip(&before[1..]) {
        assert_eq!(reader.received().len(), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_and_the_counters_add_up() {
    let relay = RelayUnderTest::start(&Ground::sqlite().await, Setup::default()).await;
    let all = instances(&relay, 3).await;
    all[1].set_mood(Mood::Answers(400));
    let create = all[0].publish(&relay, 1, true).await;
    all[2].wait_for("the post", |got| got["id"] == create["id"]).await;
    // Three Accepts and one post for each of the two readers.
    until("everything is settled", || {
        relay.counter("deliveries_done_total") + relay.counter("deliveries_refused_total")
            == relay.counter("deliveries_due_total")
            && relay.counter("deliveries_due_total") == 5
    })
    .await;
    assert_eq!(relay.counter("deliveries_refused_total"), 1);
    assert_eq!(relay.counter("activities_received_total"), 4);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_told_to_those_who_had_the_post_and_blanks_what_waits() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let all = instances(&relay, 3).await;
    let litepub = subscribe_litepub(&relay).await;
    all[1].set_mood(Mood::Answers(503));
    let create = all[0].publish(&relay, 1, true).await;
    all[2].wait_for("the post", |got| got["id"] == create["id"]).await;
    let note = create["object"]["id"].as_str().unwrap();
    litepub
        .wait_for("the Announce", |got| got["object"] == note)
        .await;
    let delete = json!({"id": format!("{note}#delete"), "type": "Delete", "actor": all[0].user("alice"), "to": [PUBLIC],
        "object": {"id": note, "type": "Tombstone"}, "signature": all[0].ld_signature("alice")});
    assert_eq!(
        all[0].post(&relay, &all[0].user("alice"), &delete).await,
        StatusCode::ACCEPTED
    );
    all[2]
        .wait_for("the Delete", |got| got["id"] == delete["id"])
        .await;
    all[1].set_mood(Mood::Takes);
    all[1]
        .wait_for("the Delete", |got| got["id"] == delete["id"])
        .await;
    assert!(all[1].received().iter().all(|got| got.json["id"] != create["id"]));
    // The post that waited, and the Delete for the host that believes no signatures.
    until("both are settled", || {
        relay.counter("deliveries_blanked_total") == 2
    })
    .await;
    assert!(litepub.received().iter().all(|got| got.json["type"] != "Delete"));
    relay.stop().await;
}
