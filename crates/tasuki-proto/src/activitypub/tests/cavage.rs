use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::activitypub::cavage::{
    POST_COVERED, SignatureError, SignatureHeader, SignedRequest, check_digest, check_post, digest_header,
    signature_header, signing_string,
};
use crate::activitypub::date;

const BODY: &[u8] = br#"{"hello": "world"}"#;
const COVERED: &str = "(request-target) host date digest content-type";

fn now() -> SystemTime {
    // Tue, 24 Nov 2026 05:00:00 GMT
    UNIX_EPOCH + Duration::from_secs(1_795_496_400)
}

fn signature(extra: &str, covered: &str) -> String {
    format!(r#"keyId="https://h.example/u#main-key",{extra}headers="{covered}",signature="AAAA""#)
}

fn headers(signature: &str) -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("host", "relay.example".to_owned()),
            ("date", date::http_date(now())),
            ("digest", digest_header(BODY)),
            ("content-type", "application/activity+json".to_owned()),
            ("signature", signature.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn check(headers: &BTreeMap<String, String>) -> Result<Vec<String>, SignatureError> {
    let request = SignedRequest {
        method: "POST",
        path_and_query: "/inbox",
        headers,
    };
    check_post(&request, BODY, "relay.example", now()).map(|candidate| candidate.signing_strings)
}

/// The message of draft-cavage-http-signatures-12 Appendix C.
fn appendix_c() -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("host", "example.com"),
            ("date", "Sun, 05 Jan 2014 21:31:40 GMT"),
            ("content-type", "application/json"),
            ("digest", "SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="),
            ("content-length", "18"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    )
}

#[test]
fn signing_strings_are_those_of_appendix_c() {
    let target = "/foo?param=value&pet=dog";
    let of = |covered: &[&str]| signing_string("POST", target, covered, appendix_c()).unwrap();
    assert_eq!(of(&["date"]), "date: Sun, 05 Jan 2014 21:31:40 GMT");
    assert_eq!(
        of(&["(request-target)", "host", "date"]),
        "(request-target): post /foo?param=value&pet=dog\nhost: example.com\ndate: Sun, 05 Jan 2014 21:31:40 GMT"
    );
    assert_eq!(
        of(&[
            "(request-target)",
            "host",
            "date",
            "content-type",
            "digest",
            "content-length"
        ]),
        "(request-target): post /foo?param=value&pet=dog\nhost: example.com\ndate: Sun, 05 Jan 2014 21:31:40 GMT\n\
         content-type: application/json\ndigest: SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=\ncontent-length: 18"
    );
    assert_eq!(digest_header(BODY), appendix_c()["digest"]);
}

#[test]
fn a_request_signed_as_the_fediverse_signs_passes() {
    let strings = check(&headers(&signature(r#"algorithm="rsa-sha256","#, COVERED))).unwrap();
    assert_eq!(strings.len(), 1);
    assert!(strings[0].starts_with("(request-target): post /inbox\nhost: relay.example\ndate: "));
    // Spaces after commas, hs2019 with (created), unquoted numbers.
    let created = now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let spaced = format!(
        r#"keyId="https://h.example/u/main-key", algorithm="hs2019", created={created}, expires={}, headers="(request-target) (created) (expires) host digest", signature="AAAA""#,
        created + 300
    );
    let strings = check(&headers(&spaced)).unwrap();
    assert!(strings[0].contains(&format!("\n(created): {created}\n(expires): {}\n", created + 300)));
}

#[test]
fn what_must_be_signed_must_be_signed() {
    for (covered, missing) in [
        ("host date digest", "(request-target)"),
        ("(request-target) host date", "the Digest header"),
        ("(request-target) date digest", "the Host header"),
        ("(request-target) host digest", "the Date header or (created)"),
        (
            "(request-target) host digest (expires)",
            "the Date header or (created)",
        ),
    ] {
        assert_eq!(
            check(&headers(&signature("", covered))),
            Err(SignatureError::NotCovered(missing)),
            "{covered}"
        );
    }
    let mut without_type = headers(&signature("", COVERED));
    without_type.remove("content-type");
    assert_eq!(check(&without_type), Err(SignatureError::HeaderMissing));
    let mut unsigned = headers("");
    unsigned.remove("signature");
    assert_eq!(check(&unsigned), Err(SignatureError::Missing));
}

#[test]
fn the_signed_time_is_within_an_hour_back_and_five_minutes_ahead() {
    let dated = |at: SystemTime| {
        let mut headers = headers(&signature("", COVERED));
        headers.insert("date".to_owned(), date::http_date(at));
        check(&headers).map(|_| ())
    };
    let second = Duration::from_secs(1);
    assert_eq!(dated(now() - Duration::from_secs(3600)), Ok(()));
    assert_eq!(
        dated(now() - Duration::from_secs(3600) - second),
        Err(SignatureError::Old)
    );
    assert_eq!(dated(now() + Duration::from_secs(300)), Ok(()));
    assert_eq!(
        dated(now() + Duration::from_secs(300) + second),
        Err(SignatureError::Ahead)
    );
    let mut odd = headers(&signature("", COVERED));
    odd.insert("date".to_owned(), "yesterday".to_owned());
    assert_eq!(check(&odd), Err(SignatureError::Date));

    let created = now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let pseudo = |extra: String| {
        check(&headers(&signature(
            &extra,
            "(request-target) (created) host digest",
        )))
        .map(|_| ())
    };
    assert_eq!(pseudo(format!("created={created},")), Ok(()));
    assert_eq!(
        pseudo(format!("created={},", created - 4000)),
        Err(SignatureError::Old)
    );
    assert_eq!(
        pseudo(format!("created={},", created + 400)),
        Err(SignatureError::Ahead)
    );
    assert_eq!(
        pseudo(format!("created={created},expires={},", created - 1)),
        Err(SignatureError::Expired)
    );
    assert!(matches!(
        pseudo("created=99999999999999999999,".into()),
        Err(SignatureError::Malformed(_))
    ));
    assert!(matches!(pseudo(String::new()), Err(SignatureError::Malformed(_))));
    assert!(matches!(
        pseudo(format!(r#"created={created},algorithm="rsa-sha256","#)),
        Err(SignatureError::Malformed(_))
    ));
    assert_eq!(
        pseudo(r#"created=-99999999999,"#.into()),
        Err(SignatureError::Old)
    );
}

#[test]
fn a_signature_for_another_host_or_body_is_refused() {
    let mut other = headers(&signature("", COVERED));
    other.insert("host".to_owned(), "other.example".to_owned());
    assert_eq!(check(&other), Err(SignatureError::WrongHost));
    other.insert("host".to_owned(), "Relay.example:443".to_owned());
    assert!(check(&other).is_ok());
    let mut body = headers(&signature("", COVERED));
    body.insert("digest".to_owned(), digest_header(b"another"));
    assert_eq!(check(&body), Err(SignatureError::DigestMismatch));
}

#[test]
fn a_query_string_is_tried_with_and_without() {
    let headers = headers(&signature("", COVERED));
    let request = SignedRequest {
        method: "POST",
        path_and_query: "/inbox?x=1",
        headers: &headers,
    };
    let candidate = check_post(&request, BODY, "relay.example", now()).unwrap();
    assert!(candidate.signing_strings[0].starts_with("(request-target): post /inbox?x=1\n"));
    assert!(candidate.signing_strings[1].starts_with("(request-target): post /inbox\n"));
    assert_eq!(candidate.valid_until, now() + Duration::from_secs(3600));
}

#[test]
fn malformed_signature_headers_are_refused() {
    for bad in [
        "",
        "keyId",
        r#"keyId="https://h.example/u"#,
        r#"keyId="https://h.example/u" signature="AAAA""#,
        r#"keyId="https://h.example/u",signature="A A""#,
        r#"keyId="https://h.example/u",keyId="https://z.example/u",signature="AAAA""#,
        r#"keyId="https://h.example/u",headers="",signature="AAAA""#,
        r#"keyId="https://h.example/u",headers="date date",signature="AAAA""#,
        r#"signature="AAAA""#,
    ] {
        assert!(
            matches!(SignatureHeader::parse(bad), Err(SignatureError::Malformed(_))),
            "{bad}"
        );
    }
    assert!(matches!(
        SignatureHeader::parse(r#"keyId="mailto:x",signature="AAAA""#),
        Err(SignatureError::KeyId(_))
    ));
    assert_eq!(
        SignatureHeader::parse(r#"keyId="https://h.example/u",algorithm="hmac-sha256",signature="AAAA""#),
        Err(SignatureError::Algorithm)
    );
}

#[test]
fn exactly_one_sha_256_digest_counts() {
    let good = digest_header(BODY);
    assert_eq!(check_digest(&good, BODY), Ok(()));
    assert_eq!(check_digest(&good.replace("SHA-256", "sha-256"), BODY), Ok(()));
    assert_eq!(check_digest(&format!("SHA-512=AAAA, {good}"), BODY), Ok(()));
    for bad in [
        "SHA-512=AAAA".to_owned(),
        "SHA-256=AAAA".to_owned(),
        "SHA-256".to_owned(),
        String::new(),
        format!("{good},{good}"),
    ] {
        assert_eq!(check_digest(&bad, BODY), Err(SignatureError::Digest), "{bad}");
    }
}

#[test]
fn the_relays_own_header_is_read_back() {
    let text = signature_header("https://relay.example/actor#main-key", &POST_COVERED, &[1, 2, 3]);
    assert!(!text.contains(", "));
    let parsed = SignatureHeader::parse(&text).unwrap();
    assert_eq!(parsed.covered, POST_COVERED);
    assert_eq!(parsed.signature, [1, 2, 3]);
}

#[test]
fn dates_are_written_and_read() {
    assert_eq!(date::http_date(now()), "Tue, 24 Nov 2026 05:00:00 GMT");
    assert_eq!(
        date::parse_http_date("Tue, 24 Nov 2026 05:00:00 GMT"),
        Some(now())
    );
    assert_eq!(date::timestamp(now()), "2026-11-24T05:00:00Z");
    assert_eq!(
        date::parse_timestamp("2026-11-24T06:00:00.250+01:00"),
        Some(now())
    );
    assert_eq!(date::parse_timestamp("now"), None);
}
