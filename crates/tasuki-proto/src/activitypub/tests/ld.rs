//! `ld_vectors.json` holds documents with the text that their signature is over: a post that a Mastodon server really sent,
//! and documents in the forms of several programs, canonicalized by PyLD.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::super::activity::Activity;
use super::super::json::{Limits, read};
use super::super::ld::{self, LdError, LdSigned};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_400_000)
}

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("ld_vectors.json")).unwrap()
}

fn signed(document: &Value) -> Result<LdSigned, LdError> {
    let body = document.to_string();
    let activity = Activity::read(body.as_bytes(), &Limits::default()).unwrap();
    let value = read(body.as_bytes(), &Limits::default()).unwrap();
    ld::read(&value, &activity, now())
}

/// A plain signed post; `change` spoils it.
fn post(change: impl FnOnce(&mut Value)) -> Value {
    let alice = "https://m.example/users/alice";
    let mut document = json!({
        "@context": ["https://www.w3.org/ns/activitystreams", {"sensitive": "as:sensitive"}],
        "id": format!("{alice}/1/activity"), "type": "Create", "actor": alice, "to": [super::super::PUBLIC],
        "object": {"id": format!("{alice}/1"), "type": "Note", "attributedTo": alice, "to": [super::super::PUBLIC],
            "content": "hello", "sensitive": false},
        "signature": {"type": "RsaSignature2017", "creator": format!("{alice}#main-key"),
            "created": "2026-01-02T03:04:06Z", "signatureValue": "AAAA"},
    });
    change(&mut document);
    document
}

#[test]
fn the_signed_text_is_the_one_that_other_programs_sign() {
    for vector in vectors() {
        let name = &vector["name"];
        let signed = signed(&vector["document"]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            signed
                .messages
                .iter()
                .any(|message| *message == vector["message"]),
            "{name}: {:?}",
            signed.messages
        );
    }
}

#[test]
fn every_change_of_what_is_said_changes_the_signed_text() {
    let vector = vectors().swap_remove(1);
    let changes: [(&str, Value); 7] = [
        ("/object/content", json!("<p>Hi</p>")),
        ("/object/sensitive", json!(true)),
        ("/object/tag/1/name", json!("#dogs")),
        ("/object/attachment/0/focalPoint", json!([0.25, -0.5])),
        ("/object/contentMap", json!({"zh-TW": "<p>x</p>", "en": "y"})),
        ("/published", json!("2026-01-02T03:04:06Z")),
        ("/signature/created", json!("2026-01-02T03:04:07Z")),
    ];
    for (place, value) in changes {
        let mut document = vector["document"].clone();
        *document.pointer_mut(place).unwrap() = value;
        let signed = signed(&document).unwrap();
        assert!(
            !signed
                .messages
                .iter()
                .any(|message| *message == vector["message"]),
            "{place}"
        );
    }
    // And what says the same does not: the order of a set.
    let mut document = vector["document"].clone();
    document["object"]["tag"].as_array_mut().unwrap().reverse();
    assert!(
        signed(&document)
            .unwrap()
            .messages
            .iter()
            .any(|m| *m == vector["message"])
    );
}

#[test]
fn documents_that_cannot_be_judged_are_refused_with_the_reason() {
    let context = |own: Value| post(|d| d["@context"][1] = own);
    let cases: Vec<(Value, &str)> = vec![
        (post(|d| d["signature"] = Value::Null), "no Linked Data signature"),
        (
            post(|d| d["signature"]["type"] = json!("Ed25519Signature2020")),
            "only RsaSignature2017",
        ),
        (post(|d| d["signature"]["creator"] = json!("key")), "creator"),
        (
            post(|d| d["signature"]["created"] = json!("yesterday")),
            "\"created\"",
        ),
        (
            post(|d| d["signature"]["signatureValue"] = json!("!")),
            "\"signatureValue\"",
        ),
        (
            post(|d| d["signature"]["expires"] = json!("2026-01-02T03:04:07Z")),
            "has expired",
        ),
        (post(|d| d["signature"]["nonce"] = json!({"a": 1})), "\"options\""),
        (
            post(|d| {
                d.as_object_mut().unwrap().remove("@context");
            }),
            "no @context",
        ),
        (
            post(|d| d["@context"][1] = json!("https://evil.example/context")),
            "https://evil.example/context",
        ),
        (
            post(|d| d["object"]["@context"] = json!("https://evil.example/c")),
            "https://evil.example/c",
        ),
        (post(|d| d["object"]["@context"] = Value::Null), "own context"),
        (context(json!({"content": "as:summary"})), "another meaning"),
        (
            context(json!({"actor": {"@id": "http://x.example/actor", "@type": "@id"}})),
            "another meaning",
        ),
        (context(json!({"kind": "@type"})), "stands for a keyword"),
        (context(json!({"@vocab": "http://x.example/"})), "not allowed"),
        (
            context(json!({"@import": "https://evil.example/"})),
            "not allowed",
        ),
        (
            context(json!({"x": {"@id": "as:x", "@context": {}}})),
            "in a form that is not read",
        ),
        (context(json!({"x": {"@reverse": "as:object"}})), "@reverse"),
        (context(json!({"x": null})), "in a form that is not read"),
        (
            post(|d| d["object"]["@reverse"] = json!({"as:object": {"id": "https://m.example/x"}})),
            "@reverse",
        ),
        (post(|d| d["object"]["@included"] = json!([])), "@included"),
        (
            post(|d| d["object"]["tag"] = json!([{"id": "_:a"}])),
            "blank nodes",
        ),
        (
            post(|d| d["as:actor"] = json!({"id": "https://m.example/users/bob"})),
            "\"actor\"",
        ),
        (
            post(|d| d["as:object"] = json!({"id": "https://m.example/2"})),
            "\"object\"",
        ),
        (post(|d| d["@type"] = json!("Delete")), "\"type\""),
        (post(|d| d["object"]["as:to"] = json!([])), ""),
    ];
    for (document, reason) in cases {
        match signed(&document) {
            Err(error) => assert!(error.to_string().contains(reason), "{reason}: {error}"),
            Ok(_) if reason.is_empty() => {}
            Ok(_) => panic!("not refused, though {reason:?}: {document}"),
        }
    }
}

#[test]
fn what_the_json_says_and_the_graph_does_not_is_refused() {
    // Public is spelt so that the JSON reader sees it, under a name that means nothing as linked data.
    let hidden = post(|d| {
        d["@context"] = json!("https://w3id.org/security/v1");
    });
    assert!(matches!(signed(&hidden), Err(LdError::Differs(_))));
}

#[test]
fn documents_made_to_burn_cpu_are_refused() {
    let alike = |width: usize| json!(vec![json!({"type": "Document"}); width]);
    let nest = |inner: Value, width: usize| json!(vec![json!({"type": "Note", "attachment": inner}); width]);
    let bombs = [
        post(|d| d["object"]["attachment"] = nest(alike(12), 2)),
        post(|d| d["object"]["attachment"] = nest(nest(alike(9), 9), 9)),
        // Unknown types are things without a name that stand in many places.
        post(|d| d["object"]["attachment"] = json!(vec![json!({"type": ["Neither", "Nor"]}); 12])),
        post(|d| {
            d["object"]["tag"] = json!(
                (0..9_000)
                    .map(|n| json!({"name": n.to_string()}))
                    .collect::<Vec<_>>()
            )
        }),
        post(|d| {
            d["object"]["tag"] = json!(vec![
                json!({"@context": "https://www.w3.org/ns/activitystreams"});
                100
            ])
        }),
        post(|d| d["@context"][1] = (0..1_000).map(|n| (format!("t{n}"), json!("as:x"))).collect()),
    ];
    for (number, bomb) in bombs.into_iter().enumerate() {
        let result = signed(&bomb);
        assert!(
            matches!(result, Err(LdError::TooMuch(_))),
            "bomb {number}: {result:?}"
        );
    }
}

#[test]
fn broken_documents_never_panic() {
    let vectors = vectors();
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let spare = [
        json!(null),
        json!([]),
        json!({}),
        json!("@id"),
        json!("_:x"),
        json!(-1.5e-9),
        json!([[]]),
        json!({"@value": 1}),
        json!({"@list": [{"@list": []}]}),
        json!({"@set": [null]}),
        json!({"@id": "as:x"}),
        json!("a b"),
        json!(true),
        json!({"@value": "x", "@language": "de-DE"}),
        json!({"@type": "@json", "@value": {"b": 1}}),
    ];
    for _ in 0..1_500 {
        let mut document = vectors[random(vectors.len())]["document"].clone();
        for _ in 0..=random(3) {
            let mut at = &mut document;
            for _ in 0..random(5) {
                let children = match &*at {
                    Value::Object(map) => map.len(),
                    Value::Array(items) => items.len(),
                    _ => 0,
                };
                if children == 0 {
                    break;
                }
                let index = random(children);
                at = match at {
                    Value::Object(map) => map.values_mut().nth(index).unwrap(),
                    Value::Array(items) => &mut items[index],
                    _ => unreachable!("only these have children"),
                };
            }
            match at {
                Value::Object(map) if random(2) == 0 => {
                    let key = [
                        "@value",
                        "@id",
                        "@list",
                        "@graph",
                        "@nest",
                        "@index",
                        "@language",
                        "name",
                    ][random(8)];
                    map.insert(key.into(), spare[random(spare.len())].clone());
                }
                other => *other = spare[random(spare.len())].clone(),
            }
        }
        let body = document.to_string();
        if let Ok(activity) = Activity::read(body.as_bytes(), &Limits::default()) {
            let _ = ld::read(&document, &activity, now());
        }
    }
}
