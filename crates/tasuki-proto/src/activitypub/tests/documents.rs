use std::time::{Duration, UNIX_EPOCH};

use crate::activitypub::actor::Actor;
use crate::activitypub::documents::{Facts, NodeInfoVersion, Relay};
use crate::activitypub::ids::{ActorId, InboxUrl};
use crate::activitypub::json::Limits;
use crate::activitypub::subscription::Follow;
use crate::activitypub::topic::Topic;
use crate::activitypub::{CONTEXT, PUBLIC};

fn relay() -> Relay {
    Relay::new("https", "relay.example")
}

#[test]
fn the_actor_is_what_every_client_demands() {
    let actor = relay().actor("Relay", "About", "PEM");
    assert_eq!(actor["id"], "https://relay.example/actor");
    assert_eq!(actor["type"], "Application");
    assert_eq!(actor["inbox"], "https://relay.example/inbox");
    assert_eq!(actor["endpoints"]["sharedInbox"], actor["inbox"]);
    assert_eq!(actor["publicKey"]["id"], "https://relay.example/actor#main-key");
    assert_eq!(actor["publicKey"]["owner"], actor["id"]);
    assert_eq!(actor["@context"][0], CONTEXT);
    assert_eq!(actor["manuallyApprovesFollowers"], false);
    let read = Actor::read(actor.to_string().as_bytes(), &Limits::default()).unwrap();
    assert_eq!(read.keys[0].text, "PEM");
    assert_eq!(read.inbox, read.shared_inbox);
}

#[test]
fn webfinger_knows_the_relay_by_account_and_by_url() {
    let relay = relay();
    for resource in [
        "acct:relay@relay.example",
        "acct:relay@RELAY.example",
        "relay@relay.example",
        "https://relay.example/actor",
        "https://relay.example/",
    ] {
        assert_eq!(relay.topic_of_resource(resource), Some(Topic::All), "{resource}");
    }
    for resource in [
        "acct:admin@relay.example",
        "acct:relay@other.example",
        "https://other.example/actor",
        "",
    ] {
        assert_eq!(relay.topic_of_resource(resource), None, "{resource}");
    }
    let jrd = relay.webfinger();
    assert_eq!(jrd["subject"], "acct:relay@relay.example");
    assert_eq!(jrd["links"][0]["rel"], "self");
    assert_eq!(jrd["links"][0]["href"], relay.actor_id());
}

#[test]
fn a_topic_has_an_actor_of_its_own_with_the_same_key() {
    let topic = Topic::parse("tag/猫").unwrap();
    let relay = relay().at(&topic);
    let actor = relay.actor("Cats", "About", "PEM");
    let id = "https://relay.example/tag/%E7%8C%AB";
    assert_eq!(actor["id"], id);
    for (field, value) in [
        ("inbox", "/inbox"),
        ("outbox", "/outbox"),
        ("followers", "/followers"),
        ("following", "/following"),
    ] {
        assert_eq!(actor[field], format!("{id}{value}"));
    }
    assert_eq!(actor["endpoints"]["sharedInbox"], actor["inbox"]);
    assert_eq!(actor["publicKey"]["id"], format!("{id}#main-key"));
    assert_eq!(actor["publicKey"]["owner"], id);
    assert_eq!(actor["preferredUsername"], "tag.xn--z7x");
    assert_eq!(relay.webfinger()["subject"], "acct:tag.xn--z7x@relay.example");
    for resource in [id, "acct:tag.xn--z7x@relay.example", "acct:tag.猫@relay.example"] {
        assert_eq!(
            relay.topic_of_resource(resource),
            Some(topic.clone()),
            "{resource}"
        );
    }
    assert_eq!(relay.topic_of_id("https://relay.example.evil/tag/cats"), None);

    let by_all = self::relay().announce("7", "https://h.example/n/1", UNIX_EPOCH);
    let announce = relay.announce_as(&by_all).unwrap();
    assert_eq!(announce["id"], format!("{id}/activities/7"));
    assert_eq!(announce["actor"], id);
    assert_eq!(announce["to"][0], format!("{id}/followers"));
    assert_eq!(
        (&announce["object"], &announce["published"]),
        (&by_all["object"], &by_all["published"])
    );
}

#[test]
fn nodeinfo_lists_peers_by_host() {
    let peers = ["a.example".to_owned(), "b.example".to_owned()];
    let facts = Facts {
        software_version: "0.1.0",
        repository: Some("https://git.example/tasuki"),
        name: "Relay",
        summary: "About",
        contact: "op@relay.example",
        open: true,
        topic_mode: "any",
        topics: &["tag/cats".to_owned()],
        peers: &peers,
        peer_count: 2,
    };
    let v2_1 = relay().nodeinfo(NodeInfoVersion::V2_1, &facts);
    assert_eq!(v2_1["version"], "2.1");
    assert_eq!(v2_1["metadata"]["peers"][1], "b.example");
    assert_eq!(v2_1["metadata"]["topicRelays"], "any");
    assert_eq!(v2_1["metadata"]["topics"][0], "tag/cats");
    assert_eq!(v2_1["software"]["repository"], "https://git.example/tasuki");
    let v2_0 = relay().nodeinfo(NodeInfoVersion::V2_0, &facts);
    assert!(v2_0["software"].get("repository").is_none());
    let links = relay().nodeinfo_links();
    assert_eq!(links["links"][0]["href"], "https://relay.example/nodeinfo/2.0");
    assert_eq!(relay().instance(&facts)["uri"], "relay.example");
}

#[test]
fn an_accept_embeds_the_follow_as_it_was() {
    let follow = Follow {
        id: "https://h.example/activities/follow-relay/abc".into(),
        actor: ActorId::parse("https://h.example/users/relay").unwrap(),
        object: PUBLIC.into(),
        inbox: InboxUrl::parse("https://h.example/inbox").unwrap(),
    };
    let accept = relay().accept("1", &follow);
    assert_eq!(accept["type"], "Accept");
    assert_eq!(accept["id"], "https://relay.example/activities/1");
    assert_eq!(accept["actor"], "https://relay.example/actor");
    assert_eq!(accept["object"]["id"], follow.id);
    assert_eq!(accept["object"]["actor"], "https://h.example/users/relay");
    assert_eq!(accept["object"]["object"], PUBLIC);
    assert_eq!(relay().reject("1", &follow)["type"], "Reject");
}

#[test]
fn an_announce_goes_to_followers_with_a_time_and_a_plain_object() {
    let at = UNIX_EPOCH + Duration::from_secs(1_795_496_400);
    let announce = relay().announce("7", "https://h.example/n/1", at);
    assert_eq!(announce["to"][0], "https://relay.example/followers");
    assert!(announce.get("cc").is_none());
    assert_eq!(announce["object"], "https://h.example/n/1");
    assert_eq!(announce["published"], "2026-11-24T05:00:00Z");
}

#[test]
fn collections_exist_and_show_nothing() {
    let followers = relay().empty_collection("followers");
    assert_eq!(followers["id"], "https://relay.example/followers");
    assert_eq!(followers["totalItems"], 0);
    assert!(followers["orderedItems"].as_array().unwrap().is_empty());
}
