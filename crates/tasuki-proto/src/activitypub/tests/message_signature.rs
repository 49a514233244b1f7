//! RFC 9421 and RFC 9530, with the vectors of RFC 9421 Appendix B.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sfv::{FieldType as _, ListEntry, Parser};

use crate::activitypub::cavage::{KeyKind, SignatureError, SignedRequest};
use crate::activitypub::message_signature::{
    Outgoing, check_content_digest, check_post, content_digest_header, is_asked_for, is_used, signature_base,
};

const BODY: &[u8] = br#"{"hello": "world"}"#;
const KEY: &str = r#"keyid="https://h.example/u#main-key""#;
const COVERED: &str = r#"("@method" "@target-uri" "content-digest")"#;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_496_400)
}

fn headers(input: &str) -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("host", "relay.example"),
            ("content-digest", &content_digest_header(BODY)),
            ("content-type", "application/activity+json"),
            ("signature-input", input),
            ("signature", "sig1=:AAAA:, sig2=:BBBB:, sig3=:CCCC:"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    )
}

fn check(
    headers: &BTreeMap<String, String>,
) -> Result<crate::activitypub::cavage::Candidate, SignatureError> {
    let request = SignedRequest {
        method: "POST",
        path_and_query: "/inbox?x=1",
        headers,
    };
    assert!(is_used(headers));
    check_post(&request, BODY, "https://relay.example", "relay.example", now())
}

fn judged(input: &str) -> Result<(), SignatureError> {
    check(&headers(input)).map(drop)
}

/// RFC 9421 B.2: the request.
fn appendix_b() -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("host", "example.com"),
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", "application/json"),
            ("content-length", "18"),
            (
                "content-digest",
                "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    )
}

#[test]
fn the_ed25519_signature_of_appendix_b_verifies_over_the_base_made_here() {
    let input = r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#;
    let ListEntry::InnerList(list) = Parser::new(input).parse::<sfv::List>().unwrap().remove(0) else {
        panic!("not a list");
    };
    let headers = appendix_b();
    let request = SignedRequest {
        method: "POST",
        path_and_query: "/foo?param=Value&Pet=dog",
        headers: &headers,
    };
    let names = [
        "date",
        "@method",
        "@path",
        "@authority",
        "content-type",
        "content-length",
    ];
    let base = signature_base(&list, &names, &request, "https://example.com", "example.com").unwrap();
    let spki = STANDARD
        .decode("MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=")
        .unwrap();
    let signature = STANDARD
        .decode("wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==")
        .unwrap();
    UnparsedPublicKey::new(&ED25519, &spki[12..])
        .verify(base.as_bytes(), &signature)
        .unwrap_or_else(|_| panic!("{base}"));
    check_content_digest(&headers["content-digest"], BODY).unwrap();
}

#[test]
fn every_component_has_its_value() {
    let covered = r#"("@method" "@target-uri" "@authority" "@scheme" "@request-target" "@path" "@query" "content-digest" "host")"#;
    let candidate = check(&headers(&format!("sig1={covered};created=1795496400;{KEY}"))).unwrap();
    let digest = content_digest_header(BODY);
    assert_eq!(
        candidate.signing_strings,
        [format!(
            "\"@method\": POST\n\"@target-uri\": https://relay.example/inbox?x=1\n\"@authority\": relay.example\n\
             \"@scheme\": https\n\"@request-target\": /inbox?x=1\n\"@path\": /inbox\n\"@query\": ?x=1\n\
             \"content-digest\": {digest}\n\"host\": relay.example\n\
             \"@signature-params\": {covered};created=1795496400;{KEY}"
        )]
    );
    assert_eq!(candidate.key_id.as_str(), "https://h.example/u#main-key");
    assert_eq!((candidate.kind, candidate.signature.len()), (None, 3));
    assert_eq!(candidate.valid_until, now() + Duration::from_secs(3600));
}

#[test]
fn what_the_relay_signs_is_what_is_read_here() {
    let digest = content_digest_header(BODY);
    let key_id = "https://relay.example/actor#main-key";
    let outgoing = Outgoing::post("https://relay.example/inbox?x=1", &digest, key_id, 1_795_496_400);
    let mut sent = headers(&outgoing.input);
    sent.insert("signature".into(), Outgoing::signature_header(b"abc"));
    let candidate = check(&sent).unwrap();
    assert_eq!(candidate.signing_strings, [outgoing.base]);
    assert_eq!(candidate.kind, Some(KeyKind::Rsa));
    assert_eq!(candidate.signature, b"abc");
}

#[test]
fn a_signature_that_covers_too_little_is_refused() {
    use SignatureError::{Malformed, NotCovered};
    let with = |covered: &str| judged(&format!("sig1={covered};created=1795496400;{KEY}"));
    assert_eq!(
        with(r#"("@target-uri" "content-digest")"#),
        Err(NotCovered("@method"))
    );
    assert_eq!(
        with(r#"("@method" "content-digest")"#),
        Err(NotCovered("@target-uri"))
    );
    assert_eq!(
        with(r#"("@method" "@path" "content-digest")"#),
        Err(NotCovered("@target-uri"))
    );
    assert_eq!(
        with(r#"("@method" "@authority" "content-digest")"#),
        Err(NotCovered("@target-uri"))
    );
    assert_eq!(
        with(r#"("@method" "@target-uri")"#),
        Err(NotCovered("the Content-Digest header"))
    );
    assert_eq!(
        with(r#"("@method" "@authority" "@path" "content-digest")"#),
        Ok(())
    );
    for odd in [
        r#"("@method" "@target-uri" "content-digest";req)"#,
        r#"("@method" "@target-uri" "content-digest" "@status")"#,
        r#"("@method" "@target-uri" "content-digest" "@query-param";name="x")"#,
        r#"("@method" "@method" "@target-uri" "content-digest")"#,
        r#"("@method" "@target-uri" "Content-Digest" "content-digest")"#,
        r#"("@method" "@target-uri" "content-digest" 7)"#,
        "()",
    ] {
        assert!(matches!(with(odd), Err(Malformed(_))), "{odd}: {:?}", with(odd));
    }
    assert_eq!(
        with(r#"("@method" "@target-uri" "content-digest" "x-not-there")"#),
        Err(SignatureError::HeaderMissing)
    );
}

#[test]
fn its_time_is_within_the_window() {
    let at = |created: i64, more: &str| judged(&format!("sig1={COVERED};created={created}{more};{KEY}"));
    let now = 1_795_496_400;
    assert_eq!(at(now, ""), Ok(()));
    assert_eq!(at(now + 300, ""), Ok(()));
    assert_eq!(at(now + 301, ""), Err(SignatureError::Ahead));
    assert_eq!(at(now - 3600, ""), Ok(()));
    assert_eq!(at(now - 3601, ""), Err(SignatureError::Old));
    assert_eq!(at(now - 10, &format!(";expires={now}")), Ok(()));
    assert_eq!(
        at(now - 10, &format!(";expires={}", now - 1)),
        Err(SignatureError::Expired)
    );
    assert_eq!(at(-1, ""), Err(SignatureError::Old));
    assert_eq!(at(999_999_999_999_999, ""), Err(SignatureError::Ahead));
    assert_eq!(
        judged(&format!("sig1={COVERED};{KEY}")),
        Err(SignatureError::NotCovered("created"))
    );
    assert!(matches!(
        judged(&format!("sig1={COVERED};created=\"now\";{KEY}")),
        Err(SignatureError::Malformed(_))
    ));
}

#[test]
fn algorithms_keys_and_tags_are_judged() {
    let with = |more: &str| check(&headers(&format!("sig1={COVERED};created=1795496400;{more}")));
    assert_eq!(
        with(&format!("{KEY};alg=\"ed25519\"")).unwrap().kind,
        Some(KeyKind::Ed25519)
    );
    for alg in ["rsa-pss-sha512", "hmac-sha256", "none", "RSA-V1_5-SHA256", ""] {
        assert_eq!(
            with(&format!("{KEY};alg=\"{alg}\"")),
            Err(SignatureError::MessageAlgorithm)
        );
    }
    assert_eq!(with("nonce=\"x\""), Err(SignatureError::Malformed("no keyid")));
    for key in [
        "main-key",
        "acct:u@h.example",
        "ftp://h.example/k",
        "https://u:p@h.example/k",
    ] {
        assert!(
            matches!(with(&format!("keyid=\"{key}\"")), Err(SignatureError::KeyId(_))),
            "{key}"
        );
    }
    assert!(with(&format!("{KEY};tag=\"activitypub\"")).is_ok());
    assert_eq!(with(&format!("{KEY};tag=\"payments\"")), Err(SignatureError::Tag));
}

#[test]
fn of_several_signatures_the_first_that_satisfies_counts() {
    let good = format!("{COVERED};created=1795496400;{KEY}");
    let chosen = |input: String| check(&headers(&input)).map(|candidate| candidate.signature);
    let second = STANDARD.decode("BBBB").unwrap();
    // For another application, by another key form, or over too little.
    for first in [
        format!("{good};tag=\"payments\""),
        format!("{COVERED};created=1795496400;keyid=\"x\""),
        format!("(\"@method\");created=1795496400;{KEY}"),
        "7".to_owned(),
    ] {
        assert_eq!(
            chosen(format!("sig1={first}, sig2={good}")),
            Ok(second.clone()),
            "{first}"
        );
    }
    assert_eq!(
        chosen(format!("other={good}")),
        Err(SignatureError::Malformed(
            "a signature is announced that is not there"
        ))
    );
    let many = (0..20).map(|n| format!("x{n}=1, ")).collect::<String>();
    assert!(
        chosen(format!("{many}sig1={good}")).is_err(),
        "not endlessly many"
    );
}

#[test]
fn requests_for_others_and_other_bodies_are_refused() {
    let good = format!("sig1={COVERED};created=1795496400;{KEY}");
    let with = |name: &str, value: &str| {
        let mut headers = headers(&good);
        headers.insert(name.to_owned(), value.to_owned());
        check(&headers).map(drop)
    };
    assert_eq!(with("host", "other.example"), Err(SignatureError::WrongHost));
    assert_eq!(with("host", "RELAY.example:443"), Ok(()));
    let other = content_digest_header(b"{}");
    assert_eq!(
        with("content-digest", &other),
        Err(SignatureError::ContentDigestMismatch)
    );
    for broken in ["(", "sig1=()", "sig1", "\u{e9}", &"x".repeat(9000)] {
        assert!(with("signature-input", broken).is_err(), "{broken}");
        assert!(with("signature", broken).is_err(), "{broken}");
    }
    let mut bare = headers(&good);
    bare.remove("content-digest");
    assert_eq!(check(&bare).map(drop), Err(SignatureError::HeaderMissing));
    bare.remove("signature");
    assert_eq!(check(&bare).map(drop), Err(SignatureError::Missing));
}

#[test]
fn a_content_digest_is_right_in_every_part_that_is_known() {
    use SignatureError::{ContentDigest, ContentDigestMismatch};
    let right = content_digest_header(BODY);
    let wrong = content_digest_header(b"");
    assert_eq!(right, "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
    assert_eq!(check_content_digest(&right, BODY), Ok(()));
    assert_eq!(
        check_content_digest(&format!("md5=:AAAA:, {right}"), BODY),
        Ok(())
    );
    for (header, error) in [
        (wrong.clone(), ContentDigestMismatch),
        ("md5=:AAAA:".to_owned(), ContentDigest),
        (format!("{right}, {wrong}"), ContentDigest),
        (format!("{wrong}, {right}"), ContentDigest),
        (format!("{right}, sha-512=:AAAA:"), ContentDigestMismatch),
        (
            "sha-256=\"X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=\"".to_owned(),
            ContentDigest,
        ),
        (
            "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=".to_owned(),
            ContentDigest,
        ),
        (
            "SHA-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:".to_owned(),
            ContentDigest,
        ),
        (String::new(), ContentDigest),
    ] {
        assert_eq!(check_content_digest(&header, BODY), Err(error), "{header}");
    }
}

#[test]
fn a_wish_for_what_the_relay_signs_is_understood() {
    for asked in [
        r#"sig1=("@method" "@target-uri" "content-digest");created;keyid"#,
        r#"a=("@method");created, b=("x-other")"#,
        r#"sig=("content-digest");created;keyid;tag="activitypub""#,
    ] {
        assert!(is_asked_for(asked), "{asked}");
    }
    for not in [
        "",
        "sig1",
        "sig1=()",
        r#"sig1=("x-other")"#,
        "((",
        r#"sig1=("@method";req)"#,
    ] {
        assert!(!is_asked_for(not), "{not}");
    }
    let list = Parser::new(r#"sig1=("@method")"#)
        .parse::<sfv::Dictionary>()
        .unwrap();
    assert_eq!(list.serialize().as_deref(), Some(r#"sig1=("@method")"#));
}

#[test]
fn random_headers_never_panic() {
    let mut state = 9421_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let alphabet: Vec<char> = "sig1=(\"@methodtarget-uricontent-digest\");created=179keyid:/,; \\AZaz09+"
        .chars()
        .collect();
    for _ in 0..20_000 {
        let length = random(120);
        let text: String = (0..length).map(|_| alphabet[random(alphabet.len())]).collect();
        let mut headers = headers(&text);
        headers.insert("signature".into(), text.clone());
        headers.insert("content-digest".into(), text.clone());
        let _ = check(&headers);
        let _ = check_content_digest(&text, BODY);
        let _ = is_asked_for(&text);
    }
}
