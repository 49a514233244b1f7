//! FEP-8b32, with the vectors of its feature file, and what it stands on: RFC 8785 and multibase.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::activity;
use crate::activitypub::actor::Actor;
use crate::activitypub::jcs::canonical;
use crate::activitypub::json::{self, Limits};
use crate::activitypub::multikey::{Multikey, decode};
use crate::activitypub::proof::{Proof, ProofError, read};

const PUBLIC_KEY: &str = "z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_496_400)
}

/// The signed document of the FEP.
fn document() -> Value {
    json!({
        "@context": ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/data-integrity/v2"],
        "id": "https://server.example/activities/1",
        "type": "Create",
        "actor": "https://server.example/users/alice",
        "object": {
            "id": "https://server.example/objects/1",
            "type": "Note",
            "attributedTo": "https://server.example/users/alice",
            "content": "Hello world",
            "location": { "type": "Place", "longitude": -71.184_902, "latitude": 25.273_962 }
        },
        "proof": {
            "@context": ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/data-integrity/v2"],
            "type": "DataIntegrityProof",
            "cryptosuite": "eddsa-jcs-2022",
            "verificationMethod": "https://server.example/users/alice#ed25519-key",
            "proofPurpose": "assertionMethod",
            "proofValue": "z42ffGu6AUKPCFcFPiabmUvnGLPJzC7e4DGWC52NUasSSH37UMa9c58tdgVszUcZfytxa4fQ5TYHaJENCxUDe9SdL",
            "created": "2023-02-24T23:36:38Z"
        }
    })
}

fn judged(document: &Value) -> Result<Proof, ProofError> {
    let body = document.to_string();
    let read_again = json::read(body.as_bytes(), &Limits::default()).unwrap();
    read(&read_again, body.as_bytes(), &activity(&body), now())
}

fn verifies(proof: &Proof, key: &[u8]) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, key);
    proof
        .messages
        .iter()
        .any(|message| key.verify(message, &proof.signature).is_ok())
}

fn published() -> [u8; 32] {
    match Multikey::parse(PUBLIC_KEY) {
        Some(Multikey::Ed25519(key)) => key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_proof_of_the_fep_verifies_until_anything_is_changed() {
    let proof = judged(&document()).unwrap();
    assert_eq!(
        proof.messages[0]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>(),
        "cf63e2308ce7d1137667192c5c5e751ba7b1c6e3d5e746a7b717d309654ad1980793e8d97e2de4b989b2b2d7a5fae8cf941f102a03c0ecab00f03eaa2330c650"
    );
    assert!(verifies(&proof, &published()));
    assert_eq!(
        proof.key_id.as_str(),
        "https://server.example/users/alice#ed25519-key"
    );
    assert!(activity(&document().to_string()).has_proof);

    let changes: [(&str, Value); 5] = [
        ("/object/content", json!("Hello  world")),
        ("/object/location/latitude", json!(25.273_963)),
        ("/id", json!("https://server.example/activities/2")),
        ("/proof/created", json!("2023-02-24T23:36:39Z")),
        ("/object/attributedTo", json!("https://server.example/users/bob")),
    ];
    for (place, value) in changes {
        let mut changed = document();
        *changed.pointer_mut(place).unwrap() = value;
        assert!(!verifies(&judged(&changed).unwrap(), &published()), "{place}");
    }
    let mut more = document();
    more["to"] = json!("https://www.w3.org/ns/activitystreams#Public");
    assert!(!verifies(&judged(&more).unwrap(), &published()));
}

#[test]
fn a_proof_counts_only_for_its_purpose_by_a_key_of_the_actors_host_and_in_its_time() {
    let with = |name: &str, value: Value| {
        let mut changed = document();
        changed["proof"][name] = value;
        judged(&changed).map(drop)
    };
    for purpose in [json!("authentication"), json!(["assertionMethod"]), Value::Null] {
        assert_eq!(with("proofPurpose", purpose), Err(ProofError::Purpose));
    }
    for method in [
        "https://elsewhere.example/users/alice#ed25519-key",
        "https://server.example.evil.example/users/alice#ed25519-key",
        "did:key:z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2#z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2",
        "",
    ] {
        assert_eq!(
            with("verificationMethod", json!(method)),
            Err(ProofError::Method),
            "{method}"
        );
        let mut changed = document();
        changed["proof"]["verificationMethod"] = json!(method);
        assert!(!activity(&changed.to_string()).has_proof, "{method}");
    }
    for suite in ["eddsa-rdfc-2022", "ecdsa-jcs-2019", "EDDSA-JCS-2022"] {
        assert_eq!(with("cryptosuite", json!(suite)), Err(ProofError::Absent));
    }
    assert_eq!(
        with("type", json!("Ed25519Signature2020")),
        Err(ProofError::Absent)
    );
    assert_eq!(
        with("created", json!("2026-11-24T05:06:00Z")),
        Err(ProofError::Ahead)
    );
    assert_eq!(
        with("created", json!("yesterday")),
        Err(ProofError::Form("created"))
    );
    assert_eq!(
        with("expires", json!("2026-11-24T04:59:59Z")),
        Err(ProofError::Expired)
    );
    assert!(with("expires", json!("2026-11-25T00:00:00Z")).is_ok());
    assert_eq!(
        with("@context", json!("https://www.w3.org/ns/activitystreams")),
        Err(ProofError::Context)
    );
    assert!(matches!(
        with("previousProof", json!("urn:x")),
        Err(ProofError::Form(_))
    ));
    for value in [
        json!("m42ff"),
        json!("z42ff"),
        json!("z0OIl"),
        json!(7),
        Value::Null,
    ] {
        assert_eq!(with("proofValue", value), Err(ProofError::Form("proofValue")));
    }
}

#[test]
fn documents_that_read_differently_are_refused() {
    for (place, value) in [
        ("@graph", json!([{"id": "https://server.example/other"}])),
        ("@included", json!([])),
        ("@reverse", json!({})),
    ] {
        let mut changed = document();
        changed["object"][place] = value;
        assert_eq!(judged(&changed), Err(ProofError::Graph), "{place}");
    }
    // The same key twice never gets here.
    let body = document().to_string();
    let twice = body.replacen(
        "\"type\":\"Create\"",
        "\"type\":\"Create\",\"type\":\"Delete\"",
        1,
    );
    assert_ne!(body, twice);
    assert!(json::read(twice.as_bytes(), &Limits::default()).is_err());
}

#[test]
fn one_of_several_proofs_counts_and_a_later_linked_data_signature_does_not_break_it() {
    let mut several = document();
    let proof = several["proof"].clone();
    several["proof"] = json!([{"type": "DataIntegrityProof", "cryptosuite": "mldsa44-jcs-2024"}, proof]);
    assert!(verifies(&judged(&several).unwrap(), &published()));
    let mut signed_later = document();
    signed_later["signature"] = json!({"type": "RsaSignature2017"});
    let proof = judged(&signed_later).unwrap();
    assert_eq!(proof.messages.len(), 2);
    assert!(verifies(&proof, &published()));
    several["proof"] = json!([]);
    assert_eq!(judged(&several), Err(ProofError::Absent));
    assert!(!activity(&several.to_string()).has_proof);
}

#[test]
fn numbers_and_keys_are_written_as_rfc_8785_says() {
    // RFC 8785 3.2.2 and 3.2.3, Appendix B.
    let input = r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
        "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#;
    assert_eq!(
        canonical(input).unwrap(),
        r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
    );
    let text = canonical(
        r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",
            "\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#,
    )
    .unwrap();
    let order: Vec<String> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
        .map(str::to_owned)
        .to_vec();
    let places: Vec<usize> = order
        .iter()
        .map(|word| text.find(word.as_str()).unwrap())
        .collect();
    assert!(places.is_sorted(), "{text}");
    for (number, written) in [
        (json!(0), "0"),
        (json!(-0.0), "0"),
        (json!(0.1), "0.1"),
        (json!(1.0), "1"),
        (json!(-5), "-5"),
        (json!(1e21), "1e+21"),
        (json!(1e20), "100000000000000000000"),
        (json!(5e-324), "5e-324"),
        (json!(9_007_199_254_740_993_i64), "9007199254740992"),
    ] {
        assert_eq!(canonical(&number.to_string()).unwrap(), written);
    }
}

#[test]
fn multikeys_are_read_and_other_texts_are_not() {
    assert_eq!(decode("z"), Some(vec![]));
    assert_eq!(decode("z1112"), Some(vec![0, 0, 0, 1]));
    assert_eq!(decode("z5Q"), Some(vec![255]));
    assert_eq!(
        decode("z2NEpo7TZRRrLZSi2U").as_deref(),
        Some(&b"Hello World!"[..])
    );
    let long = format!("z{}", "2".repeat(5000));
    for bad in [
        "",
        "6MkrJV",
        "m6MkrJV",
        "z6Mkr0",
        "z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ",
        &long,
    ] {
        assert_eq!(Multikey::parse(bad), None, "{bad}");
    }
}

#[test]
fn an_actors_keys_are_those_of_its_own_host_under_its_own_name() {
    let alice = "https://server.example/users/alice";
    let read_with = |method: Value| {
        let actor = json!({"id": alice, "type": "Person", "inbox": format!("{alice}/inbox"), "assertionMethod": method});
        Actor::read(actor.to_string().as_bytes(), &Limits::default())
            .unwrap()
            .keys
    };
    let key = json!({"id": format!("{alice}#ed25519-key"), "type": "Multikey", "controller": alice, "publicKeyMultibase": PUBLIC_KEY});
    assert_eq!(read_with(json!([key.clone()]))[0].text, PUBLIC_KEY);
    assert_eq!(read_with(key.clone()).len(), 1);
    for (name, value) in [
        ("controller", json!("https://server.example/users/bob")),
        ("id", json!("https://elsewhere.example/users/alice#ed25519-key")),
        ("type", json!("Ed25519VerificationKey2020")),
        ("publicKeyMultibase", json!("zzz")),
    ] {
        let mut changed = key.clone();
        changed[name] = value;
        assert!(read_with(changed).is_empty(), "{name}");
    }
    assert!(read_with(json!(["https://server.example/key"])).is_empty());
    assert_eq!(read_with(json!(vec![key; 50])).len(), 8);
}

#[test]
fn what_is_signed_here_verifies_here() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let mut unsigned = document();
    let options = unsigned["proof"].as_object_mut().unwrap();
    options.remove("proofValue");
    let options = Value::Object(options.clone());
    unsigned.as_object_mut().unwrap().remove("proof");
    let hash = |value: &Value| Sha256::digest(canonical(&value.to_string()).unwrap()).to_vec();
    let signature = pair.sign(&[hash(&options), hash(&unsigned)].concat());
    let mut signed = document();
    signed["proof"]["proofValue"] = json!(base58(signature.as_ref()));
    let proof = judged(&signed).unwrap();
    assert!(verifies(&proof, pair.public_key().as_ref()));
    assert!(!verifies(&proof, &published()));
}

/// Multibase base58btc, for tests.
fn base58(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut digits: Vec<usize> = Vec::new();
    for byte in bytes {
        let mut carry = usize::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let text: String = std::iter::repeat_n(0, zeros)
        .chain(digits.into_iter().rev())
        .map(|digit| char::from(ALPHABET[digit]))
        .collect();
    format!("z{text}")
}
