//! The fediverse: independent instances of three styles, on the wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::http;
use crate::support::postgres::Postgres;
use crate::support::{eventually, sha256};

struct Four {
    mastodon: Instance,
    other: Instance,
    misskey: Instance,
    litepub: Instance,
}

/// Two Mastodons, a Misskey and an Akkoma, all subscribed.
fn four(gateway: &Gateway) -> Four {
    let directory = gateway.directory();
    let four = Four {
        mastodon: Instance::start("mastodon", "127.0.0.1", directory, &[]),
        other: Instance::start("mastodon", "127.0.0.2", directory, &[]),
        misskey: Instance::start("misskey", "127.0.0.3", directory, &[]),
        litepub: Instance::start("litepub", "127.0.0.4", directory, &[]),
    };
    for instance in [&four.mastodon, &four.other, &four.misskey] {
        instance.subscribe(&gateway.relay_inbox());
    }
    four.litepub.subscribe(&gateway.relay_actor());
    eventually("the relay follows the LitePub relay back", || {
        (four.litepub.read("state")["follow_back"] == "accepted").then_some(())
    });
    four
}

#[test]
fn four_instances_subscribe_publish_and_receive() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    main_path(&gateway);
}

#[test]
fn the_main_path_holds_on_postgresql_too() {
    let postgres = Postgres::start();
    let gateway = Gateway::start_on(&postgres.url(), Gateway::FEDIVERSE);
    main_path(&gateway);
}

fn main_path(gateway: &Gateway) {
    let four = four(gateway);
    let listed = gateway.json(&["fedi", "subscribers", "--json"]);
    assert_eq!(
        listed["subscribers"].as_array().map(Vec::len),
        Some(4),
        "{listed}"
    );

    // Mastodon and Misskey publish with LD signatures: forwarded byte for byte, announced to LitePub.
    for (author, readers) in [
        (&four.mastodon, [&four.other, &four.misskey]),
        (&four.misskey, [&four.mastodon, &four.other]),
    ] {
        let created = author
            .publish(&json!({"kind": "create", "text": "こんにちは"}))
            .remove(0);
        for reader in readers {
            let got = reader.wait_for("the forward", |got| got["id"] == created["id"]);
            assert_eq!(got["sha256"], created["sha256"], "byte for byte");
            assert_eq!(got["signer"], gateway.relay_actor(), "signed by the relay");
            let body = STANDARD.decode(got["body_base64"].as_str().unwrap()).unwrap();
            assert_eq!(sha256(&body), created["sha256"].as_str().unwrap());
        }
        let announced = four
            .litepub
            .wait_for("the Announce", |got| got["object"] == created["object"]);
        assert_eq!(announced["type"], "Announce");
        assert_eq!(announced["actor"], gateway.relay_actor());
        eventually("LitePub has fetched the post", || {
            fetched(&four.litepub, &created)
        });

        for kind in ["update", "delete"] {
            let changed = author
                .publish(&json!({"kind": kind, "target": created["object"]}))
                .remove(0);
            for reader in readers {
                let got = reader.wait_for(kind, |got| got["id"] == changed["id"]);
                assert_eq!(got["sha256"], changed["sha256"]);
            }
        }
    }

    // LitePub publishes an Announce: everybody else gets one of the relay, and fetches the post from its author.
    let created = four.litepub.publish(&json!({"text": "from LitePub"})).remove(0);
    for reader in [&four.mastodon, &four.other, &four.misskey] {
        let got = reader.wait_for("the Announce", |got| got["object"] == created["object"]);
        assert_eq!(got["type"], "Announce");
        assert_eq!(got["actor"], gateway.relay_actor());
        eventually("the reader has fetched the post", || fetched(reader, &created));
    }

    // Nobody gets back what came from its own host, and nothing was sent that a receiver refuses.
    for instance in [&four.mastodon, &four.other, &four.misskey, &four.litepub] {
        for got in instance.received() {
            let own = got["object"]
                .as_str()
                .unwrap_or_default()
                .starts_with(&instance.base);
            let answer = ["Accept", "Follow"].contains(&got["type"].as_str().unwrap_or_default());
            assert!(
                answer || !own,
                "{} got its own back: {}",
                instance.base,
                got["id"]
            );
            assert_eq!(
                got["outcome"], "accepted",
                "{} from the relay: {}",
                got["type"], instance.base
            );
        }
    }

    // Who leaves gets no more.
    four.other.control("unsubscribe", &json!({}));
    eventually("the relay has forgotten the host", || {
        let listed = gateway.json(&["fedi", "subscribers", "--json"]);
        (listed["subscribers"].as_array().map(Vec::len) == Some(3)).then_some(())
    });
    let created = four
        .mastodon
        .publish(&json!({"text": "after the goodbye"}))
        .remove(0);
    four.misskey
        .wait_for("the forward", |got| got["id"] == created["id"]);
    assert!(!four.other.received().iter().any(|got| got["id"] == created["id"]));
    let refused = four
        .other
        .control("publish", &json!({"text": "no longer welcome"}));
    assert_eq!(refused[0]["status"], 403, "{refused}");
}

fn fetched(reader: &Instance, created: &Value) -> Option<()> {
    let all = reader.read("fetched");
    all.as_array()
        .unwrap()
        .iter()
        .any(|one| one["object"] == created["object"] && one["outcome"] == "fetched")
        .then_some(())
}

#[test]
fn requests_that_break_a_rule_are_refused_and_relayed_to_nobody() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let author = Instance::start("mastodon", "127.0.0.1", directory, &[]);
    let reader = Instance::start("mastodon", "127.0.0.2", directory, &[]);
    for instance in [&author, &reader] {
        instance.subscribe(&gateway.relay_inbox());
    }
    let note = format!("{}/users/alice/statuses/forged", author.base);
    let body = json!({
        "@context": "https://www.w3.org/ns/activitystreams", "id": format!("{note}/activity"), "type": "Create",
        "actor": format!("{}/users/alice", author.base), "to": ["https://www.w3.org/ns/activitystreams#Public"],
        "object": {"id": note, "type": "Note", "attributedTo": format!("{}/users/alice", author.base),
                   "content": "forged", "to": ["https://www.w3.org/ns/activitystreams#Public"]},
    });
    let encoded = STANDARD.encode(body.to_string());
    let inbox = gateway.relay_inbox();
    let old = "Tue, 24 Nov 2020 12:00:00 GMT";
    let wrong_digest = format!("SHA-256={}", STANDARD.encode([0; 32]));
    let stranger = Instance::start("mastodon", "127.0.0.5", directory, &[]);
    let cases = [
        ("no signature", &author, json!({"key": null}), 401),
        ("an old date", &author, json!({"key": "author", "date": old}), 401),
        (
            "a digest of something else",
            &author,
            json!({"key": "author", "headers": {"Digest": wrong_digest}}),
            401,
        ),
        (
            "a signature that covers no digest",
            &author,
            json!({"key": "author", "signed_headers": ["(request-target)", "host", "date"]}),
            401,
        ),
        (
            "somebody else's signature",
            &stranger,
            json!({"key": "author"}),
            403,
        ),
        (
            "not JSON",
            &author,
            json!({"key": "author", "body_base64": STANDARD.encode("{\"type\": ")}),
            400,
        ),
        (
            "no object at all",
            &author,
            json!({"key": "author", "body_base64": STANDARD.encode("[1,2]")}),
            400,
        ),
        (
            "a body over the limit",
            &author,
            json!({"key": "author", "body_base64": STANDARD.encode(vec![b' '; 2 << 20])}),
            413,
        ),
    ];
    for (what, sender, change, status) in cases {
        let mut request = json!({"url": inbox, "body_base64": encoded});
        request
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let answer = sender.control("raw", &request);
        assert_eq!(answer["status"], status, "{what}: {answer}");
        let kind = answer["headers"]
            .as_object()
            .unwrap()
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        assert!(
            kind.is_some_and(|(_, value)| value == "application/problem+json"),
            "{what}: {answer}"
        );
    }
    // The gateway still works, and the forged note went nowhere.
    let created = author.publish(&json!({"text": "a true one"})).remove(0);
    reader.wait_for("the true one", |got| got["id"] == created["id"]);
    assert!(!reader.received().iter().any(|got| got["object"] == note));
    gateway.assert_healthy();
}

#[test]
fn what_another_host_carries_is_believed_by_its_authors_ld_signature_alone() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let [author, carrier, reader] =
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(|bind| Instance::start("mastodon", bind, directory, &[]));
    for instance in [&carrier, &reader] {
        instance.subscribe(&gateway.relay_inbox());
    }
    let carry = |body: &[u8]| {
        let answer = carrier.control(
            "raw",
            &json!({"url": gateway.relay_inbox(), "key": "subscriber", "body_base64": STANDARD.encode(body)}),
        );
        (
            answer["status"].as_u64().unwrap(),
            answer["answer"].as_str().unwrap().to_owned(),
        )
    };
    for kind in ["create", "delete"] {
        let draft = author.control("draft", &json!({"kind": kind, "text": "carried by a friend"}));
        let body = STANDARD.decode(draft["body_base64"].as_str().unwrap()).unwrap();
        let place = body.windows(9).rposition(|text| text == b"/statuses").unwrap();
        let mut tampered = body.clone();
        // Another digit, so that the document stays one with an id.
        tampered[place + 10] = if body[place + 10] == b'0' { b'1' } else { b'0' };
        let (status, answer) = carry(&tampered);
        assert_eq!(status, 403, "{answer}");
        assert!(
            answer.contains("the Linked Data signature does not verify"),
            "{answer}"
        );
        let (status, answer) = carry(&body);
        assert_eq!(status, 202, "{answer}");
        let got = reader.wait_for("the forward", |got| got["id"] == draft["id"]);
        assert_eq!(got["sha256"], draft["sha256"], "byte for byte");
        assert_eq!(got["ld_signed"], true);
    }
    assert!(reader.received().iter().all(|got| got["outcome"] == "accepted"));
    gateway.assert_healthy();
}

#[test]
fn the_documents_of_the_relay_are_as_every_software_wants_them() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let (address, host) = (gateway.address("front.http"), gateway.front_host());
    let accept = "Accept: application/activity+json\r\n";
    let actor = http::get(address, &host, "/actor", accept);
    assert_eq!(actor.status, 200);
    assert_eq!(actor.header("content-type"), Some("application/activity+json"));
    let actor = actor.json();
    assert_eq!(actor["type"], "Application");
    assert_eq!(actor["inbox"], gateway.relay_inbox());
    assert_eq!(actor["endpoints"]["sharedInbox"], gateway.relay_inbox());
    assert_eq!(
        actor["publicKey"]["id"],
        format!("{}#main-key", gateway.relay_actor())
    );

    let account = format!("relay@{host}").replace(':', "%3A");
    let finger = http::get(
        address,
        &host,
        &format!("/.well-known/webfinger?resource=acct:{account}"),
        "",
    )
    .json();
    assert_eq!(finger["subject"], format!("acct:relay@{host}"));
    for version in ["2.0", "2.1"] {
        let links = http::get(address, &host, "/.well-known/nodeinfo", "").json();
        let link = links["links"]
            .as_array()
            .unwrap()
            .iter()
            .find(|link| link["rel"].as_str().unwrap().ends_with(version));
        let path = link.unwrap()["href"]
            .as_str()
            .unwrap()
            .replace(&gateway.public_url(), "");
        assert_eq!(http::get(address, &host, &path, "").json()["version"], version);
    }
    for path in ["/outbox", "/followers", "/following"] {
        assert_eq!(
            http::get(address, &host, path, accept).json()["type"],
            "OrderedCollection",
            "{path}"
        );
    }
    let unknown = http::get(address, "unknown.test", "/actor", accept);
    assert_eq!(unknown.status, 421, "{}", unknown.text());
}

#[test]
fn an_instance_that_serves_only_signed_requests_can_join_and_publish() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let closed = Instance::start("mastodon", "127.0.0.1", directory, &["--secure-mode"]);
    let reader = Instance::start("mastodon", "127.0.0.2", directory, &[]);
    for instance in [&closed, &reader] {
        instance.subscribe(&gateway.relay_inbox());
    }
    let created = closed.publish(&json!({"text": "behind a closed door"})).remove(0);
    // The reader must know the author's key to check the LD signature: its own fetch is signed too.
    let got = reader.wait_for("the forward", |got| got["id"] == created["id"]);
    assert_eq!(got["sha256"], created["sha256"]);
}

#[test]
fn a_subscriber_that_hangs_or_fails_holds_up_nobody_and_gets_everything_later() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let [author, prompt, hanging, failing] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]
        .map(|bind| Instance::start("mastodon", bind, directory, &[]));
    for instance in [&author, &prompt, &hanging, &failing] {
        instance.subscribe(&gateway.relay_inbox());
    }
    hanging.control("behave", &json!({"inbox": "hang"}));
    failing.control("behave", &json!({"inbox": 503}));
    let sent = author.publish(&json!({"text": "for all", "count": 10}));
    for one in &sent {
        prompt.wait_for("the forward", |got| got["id"] == one["id"]);
    }
    hanging.control("behave", &json!({"inbox": "normal"}));
    failing.control("behave", &json!({"inbox": "normal"}));
    for one in &sent {
        hanging.wait_for("the forward", |got| got["id"] == one["id"]);
        failing.wait_for("the forward", |got| got["id"] == one["id"]);
    }
    gateway.assert_healthy();
}

#[test]
fn an_instance_that_knows_only_newer_signatures_joins_publishes_and_receives() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let modern = Instance::start("modern", "127.0.0.1", directory, &[]);
    let mastodon = Instance::start("mastodon", "127.0.0.2", directory, &[]);
    // A Follow signed with RSA by RFC 9421; the Accept is refused under the draft, and sent again as it is asked for.
    for instance in [&modern, &mastodon] {
        instance.subscribe(&gateway.relay_inbox());
    }
    let host = modern.base.trim_start_matches("http://").to_owned();
    eventually("what it takes is known", || {
        let form = gateway.json(&["fedi", "form", &host, "--json"]);
        (form["signature"] == "rfc9421" && form["software"] == "newcomer 1.0").then_some(())
    });
    // Signed with Ed25519, and proven by FEP-8b32 only: others are sent an Announce.
    let created = modern.publish(&json!({"text": "by Ed25519"})).remove(0);
    let got = mastodon.wait_for("the Announce", |got| got["object"] == created["object"]);
    assert_eq!(got["type"], "Announce");
    let created = mastodon.publish(&json!({"text": "to the modern one"})).remove(0);
    let got = modern.wait_for("the Announce", |got| got["object"] == created["object"]);
    assert!(got["headers"]["signature-input"].is_string(), "{got}");
    // What somebody else brings is believed by the proof, until a letter of it is changed.
    let draft = modern.control("draft", &json!({"text": "carried"}));
    let body = STANDARD.decode(draft["body_base64"].as_str().unwrap()).unwrap();
    let bring = |body: &[u8]| {
        let raw =
            json!({"url": gateway.relay_inbox(), "key": "subscriber", "body_base64": STANDARD.encode(body)});
        mastodon.control("raw", &raw)
    };
    let changed = String::from_utf8(body.clone())
        .unwrap()
        .replace("carried", "forged!");
    let refused = bring(changed.as_bytes());
    assert_eq!(refused["status"], 403, "{refused}");
    assert!(
        refused["answer"]
            .as_str()
            .unwrap()
            .contains("integrity proof does not verify"),
        "{refused}"
    );
    let taken = bring(&body);
    assert_eq!(taken["status"], 202, "{taken}");
    let third = Instance::start("mastodon", "127.0.0.3", directory, &[]);
    third.subscribe(&gateway.relay_inbox());
    let draft = modern.control("draft", &json!({"text": "carried again"}));
    let body = STANDARD.decode(draft["body_base64"].as_str().unwrap()).unwrap();
    assert_eq!(bring(&body)["status"], 202);
    third.wait_for("the Announce", |got| got["object"] == draft["object"]);
}

#[test]
fn the_relays_key_is_changed_while_posts_flow() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let four = four(&gateway);
    let readers = [&four.other, &four.misskey];
    for number in 0..6 {
        if number == 2 {
            let done = gateway.json(&["fedi", "rotate-key", "--json"]);
            assert_eq!(done["told"], 4, "{done}");
            assert!(done["old_key_until"].is_string(), "{done}");
        }
        let created = four
            .mastodon
            .publish(&json!({"text": format!("post {number}")}))
            .remove(0);
        for reader in readers {
            reader.wait_for("the forward", |got| got["id"] == created["id"]);
        }
        four.litepub
            .wait_for("the Announce", |got| got["object"] == created["object"]);
    }
    for instance in [&four.other, &four.misskey, &four.litepub] {
        let told = instance.wait_for("the Update", |got| got["type"] == "Update");
        assert_eq!(told["actor"], gateway.relay_actor());
    }
    let (_, said) = gateway.fails(&["fedi", "rotate-key"]);
    assert!(said.contains("still signs until"), "{said}");
}
