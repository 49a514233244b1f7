use super::activity;
use crate::activitypub::activity::{Activity, ActivityError, Kind, LdSignature, Object};
use crate::activitypub::actor::{Actor, Post};
use crate::activitypub::decision::{Action, Delivery, Options, Why, decide};
use crate::activitypub::ids::{ActorId, Authority, IdError, KeyId, ObjectId};
use crate::activitypub::json::{self, JsonError, Limits};
use crate::activitypub::media::is_activity;

fn refused(body: &[u8]) -> JsonError {
    json::read(body, &Limits::default()).unwrap_err()
}

#[test]
fn documents_that_two_readers_could_understand_differently_are_refused() {
    assert_eq!(
        refused(br#"{"actor":"a","actor":"b"}"#),
        JsonError::DuplicateKey("actor".into())
    );
    assert_eq!(
        refused(br#"{"a":{"x":1,"\u0078":2}}"#),
        JsonError::DuplicateKey("x".into())
    );
    assert_eq!(refused(b"\xEF\xBB\xBF{}"), JsonError::ByteOrderMark);
    assert_eq!(refused(b"{\"a\":\"\xFF\"}"), JsonError::NotUtf8);
    assert_eq!(refused(b"[1e400]"), JsonError::HugeNumber);
    assert_eq!(refused(b"[123456789012345678901]"), JsonError::HugeNumber);
    assert_eq!(
        refused(&[b"[", "9".repeat(40).as_bytes(), b"]"].concat()),
        JsonError::HugeNumber
    );
    assert!(matches!(refused(b"{} {}"), JsonError::Syntax(_)));
    assert!(matches!(refused(b"{\"a\":\"\\ud800\"}"), JsonError::Syntax(_)));
    assert!(matches!(refused(b""), JsonError::Syntax(_)));
    assert!(matches!(refused(b"\"\\"), JsonError::Syntax(_)));
}

#[test]
fn bombs_are_refused_before_anything_is_built() {
    let deep = "[".repeat(33);
    assert_eq!(refused(deep.as_bytes()), JsonError::TooDeep(32));
    let wide = format!("[{}0]", "0,".repeat(60_000));
    assert_eq!(refused(wide.as_bytes()), JsonError::TooManyValues(50_000));
    let long = format!("\"{}\"", "x".repeat(1024 * 1024));
    assert_eq!(refused(long.as_bytes()), JsonError::TooLong(1024 * 1024));
}

#[test]
fn ordinary_numbers_and_brackets_in_strings_are_read() {
    let value = json::read(
        br#"{"a":[1,-2.5,1e3,18446744073709551615],"b":"[[[{{{\"\\"}"#,
        &Limits::default(),
    )
    .unwrap();
    assert_eq!(value["a"][3], 18_446_744_073_709_551_615_u64);
    assert_eq!(value["b"], "[[[{{{\"\\");
}

#[test]
fn authorities_compare_by_canonical_host_and_port() {
    let same =
        |a: &str, b: &str| ActorId::parse(a).unwrap().authority() == ActorId::parse(b).unwrap().authority();
    assert!(same("https://EXAMPLE.org/x", "https://example.org:443/y"));
    assert!(same("https://bücher.example/", "https://xn--bcher-kva.example/"));
    assert!(!same("https://example.org/", "https://example.org:8443/"));
    assert_eq!(
        Authority::parse("Example.ORG:8443").unwrap().as_str(),
        "example.org:8443"
    );
    assert_eq!(Authority::parse("[::1]:80").unwrap().host(), "[::1]");
    assert_eq!(Authority::parse("[::1]").unwrap().host(), "[::1]");
    for bad in ["", "a b", "a/b", "user@host", "a\\b", "https://x", "a:99999"] {
        assert!(Authority::parse(bad).is_err(), "{bad}");
    }
    let deep = Authority::parse("a.evil.com:8443").unwrap();
    assert!(deep.is_within("evil.com") && deep.is_within("a.evil.com"));
    assert!(!Authority::parse("notevil.com").unwrap().is_within("evil.com"));
}

#[test]
fn names_that_a_url_parser_would_repair_are_refused() {
    assert_eq!(
        ObjectId::parse("https://a.example\\@b.example/"),
        Err(IdError::NotAUrl)
    );
    assert_eq!(ObjectId::parse("https://a.exa\nmple/"), Err(IdError::NotAUrl));
    assert_eq!(ObjectId::parse("https://u:p@a.example/"), Err(IdError::Host));
    assert_eq!(ObjectId::parse("file:///etc/passwd"), Err(IdError::Scheme));
    assert_eq!(ObjectId::parse("acct:a@b"), Err(IdError::Scheme));
    assert_eq!(
        ObjectId::parse(&format!("https://a.example/{}", "x".repeat(2048))),
        Err(IdError::TooLong)
    );
    let key = KeyId::parse("https://a.example/users/x#main-key").unwrap();
    assert_eq!(key.likely_actor().unwrap().as_str(), "https://a.example/users/x");
    let key = KeyId::parse("https://a.example/users/x/main-key").unwrap();
    assert_eq!(key.likely_actor().unwrap().as_str(), "https://a.example/users/x");
    assert_eq!(key.url().as_str(), "https://a.example/users/x/main-key");
}

#[test]
fn all_three_spellings_of_public_are_one() {
    for public in [
        "https://www.w3.org/ns/activitystreams#Public",
        "as:Public",
        "Public",
    ] {
        for to in [
            format!("\"{public}\""),
            format!("[\"https://h.example/f\",\"{public}\"]"),
        ] {
            let body = format!(
                r#"{{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u","to":{to},
                    "object":{{"id":"https://h.example/n/1","type":"Note","to":{to}}}}}"#
            );
            assert!(activity(&body).is_public(false), "{to}");
        }
        let follow = format!(
            r#"{{"id":"https://h.example/1","type":"Follow","actor":"https://h.example/u","object":"{public}"}}"#
        );
        assert_eq!(activity(&follow).object, Some(Object::Public(public.into())));
    }
}

#[test]
fn unlisted_and_private_posts_are_not_public() {
    let create = |to: &str, cc: &str, inner: &str| {
        activity(&format!(
            r#"{{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u","to":["{to}"],"cc":["{cc}"],
                "object":{{"id":"https://h.example/n/1","type":"Note","to":["{inner}"]}}}}"#
        ))
    };
    assert!(create("as:Public", "x", "as:Public").is_public(false));
    assert!(!create("x", "as:Public", "x").is_public(false));
    assert!(!create("x", "y", "x").is_public(false));
    assert!(!create("as:Public", "x", "https://h.example/followers").is_public(false));
    let bare = r#"{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u","object":"https://h.example/n/1"}"#;
    assert!(!activity(bare).is_public(false));
    let moved = r#"{"id":"https://h.example/1","type":"Move","actor":"https://h.example/u","object":"https://h.example/u","target":"https://z.example/u"}"#;
    assert!(activity(moved).is_public(false));
}

#[test]
fn nobody_speaks_about_things_on_another_host() {
    let read = |body: &str| Activity::read(body.as_bytes(), &Limits::default());
    let foreign = |property| Err(ActivityError::ForeignHost { property });
    assert_eq!(
        read(
            r#"{"id":"https://evil.example/1","type":"Create","actor":"https://h.example/u","object":"https://h.example/n"}"#
        ),
        foreign("id")
    );
    for kind in ["Create", "Update", "Delete", "Undo"] {
        assert_eq!(
            read(&format!(
                r#"{{"id":"https://h.example/1","type":"{kind}","actor":"https://h.example/u","object":"https://other.example/n"}}"#
            )),
            foreign("object")
        );
    }
    assert_eq!(
        read(
            r#"{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u",
                "object":{"id":"https://h.example/n","type":"Note","attributedTo":"https://other.example/u"}}"#
        ),
        foreign("object")
    );
    assert!(
        read(r#"{"id":"https://h.example/1","type":"Announce","actor":"https://h.example/u","object":"https://other.example/n"}"#)
            .is_ok()
    );
}

#[test]
fn activities_without_what_every_activity_has_are_refused() {
    let missing = |body: &str, what| {
        assert_eq!(
            Activity::read(body.as_bytes(), &Limits::default()),
            Err(ActivityError::Missing(what)),
            "{body}"
        );
    };
    missing(r#"{"type":"Create","actor":"https://h.example/u"}"#, "id");
    missing(
        r#"{"id":"https://h.example/1","actor":"https://h.example/u"}"#,
        "type",
    );
    missing(
        r#"{"id":"https://h.example/1","type":["Create","Delete"],"actor":"https://h.example/u"}"#,
        "type",
    );
    missing(r#"{"id":"https://h.example/1","type":"Create"}"#, "actor");
    missing(
        r#"{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u"}"#,
        "object",
    );
    missing(
        r#"{"id":"https://h.example/1","type":"Create","actor":"https://h.example/u","object":{"type":"Note"}}"#,
        "object",
    );
    missing(
        r#"{"id":"https://h.example/1","type":"Like","actor":"https://h.example/u","object":["https://a.example/","https://b.example/"]}"#,
        "object",
    );
    assert_eq!(
        Activity::read(b"[]", &Limits::default()),
        Err(ActivityError::NotAnObject)
    );
}

fn post(kind: &str, extra: &str) -> Activity {
    activity(&format!(
        r#"{{"id":"https://h.example/1#x","type":"{kind}","actor":"https://h.example/u","to":["as:Public"],
            "object":{{"id":"https://h.example/n/1","type":"Note"}}{extra}}}"#
    ))
}

const SIGNED: &str = r#","signature":{"type":"RsaSignature2017","creator":"https://h.example/u#main-key","created":"2026-11-24T00:00:00Z","signatureValue":"AAAA"}"#;

#[test]
fn a_linked_data_signature_counts_only_by_the_actor_and_without_graph_marks() {
    assert_eq!(post("Create", "").ld_signature, LdSignature::Absent);
    assert_eq!(post("Create", SIGNED).ld_signature, LdSignature::ByActor);
    assert_eq!(
        post("Create", &SIGNED.replace("/u#", "/z#")).ld_signature,
        LdSignature::Unusable
    );
    assert_eq!(
        post("Create", &SIGNED.replace("2017", "2099")).ld_signature,
        LdSignature::Unusable
    );
    assert_eq!(
        post("Create", &SIGNED.replace("AAAA", "")).ld_signature,
        LdSignature::Unusable
    );
    assert_eq!(
        post("Create", r#","signature":"AAAA""#).ld_signature,
        LdSignature::Unusable
    );
    for mark in ["@graph", "@included", "@reverse"] {
        let marked = format!(r#"{SIGNED},"x":[{{"{mark}":[]}}]"#);
        assert_eq!(
            post("Create", &marked).ld_signature,
            LdSignature::Unusable,
            "{mark}"
        );
    }
}

#[test]
fn the_table_says_what_is_sent_to_whom() {
    let table = |kind: &str, extra: &str| {
        let decision = decide(&post(kind, extra), Options::default());
        (
            decision.for_subscriber(Delivery::Forward),
            decision.for_subscriber(Delivery::Announce),
        )
    };
    assert_eq!(table("Create", SIGNED), (Action::Forward, Action::Announce));
    assert_eq!(table("Create", ""), (Action::Announce, Action::Announce));
    for kind in ["Update", "Delete", "Undo", "Move", "Add", "Remove"] {
        assert_eq!(
            table(kind, SIGNED),
            (Action::Forward, Action::Drop(Why::CannotBeAnnounced)),
            "{kind}"
        );
        assert_eq!(
            table(kind, ""),
            (Action::Drop(Why::Unsigned), Action::Drop(Why::Unsigned)),
            "{kind}"
        );
    }
    assert_eq!(table("Announce", SIGNED).0, Action::Drop(Why::Boost));
    let boosts = Options {
        boosts: true,
        ..Options::default()
    };
    let boost = decide(&post("Announce", SIGNED), boosts);
    assert_eq!(
        (boost.to_forward, boost.to_announce),
        (Action::Forward, Action::Drop(Why::CannotBeAnnounced))
    );
    assert_eq!(
        decide(&post("Announce", ""), boosts).to_forward,
        Action::Drop(Why::Unsigned)
    );
    assert_eq!(table("Like", SIGNED).0, Action::Drop(Why::Kind));
    let mut private = post("Create", SIGNED);
    private.addressing.public_in_to = false;
    private.addressing.public_in_cc = true;
    let to_forward = |options| decide(&private, options).to_forward;
    assert_eq!(to_forward(Options::default()), Action::Drop(Why::NotPublic));
    private.object = None;
    let unlisted = Options {
        unlisted: true,
        ..Options::default()
    };
    assert_eq!(decide(&private, unlisted).to_forward, Action::Forward);
}

#[test]
fn the_same_news_has_the_same_key() {
    let create = post("Create", "");
    let boost = r#"{"id":"https://r.example/9","type":"Announce","actor":"https://r.example/relay","object":"https://h.example/n/1"}"#;
    assert_eq!(create.news_key(false), activity(boost).news_key(true));
    assert_ne!(create.news_key(false), activity(boost).news_key(false));
    assert_ne!(create.news_key(false), post("Delete", "").news_key(false));
    let first = post("Update", r#","updated":"2026-01-01T00:00:00Z""#).news_key(false);
    let second = post("Update", r#","updated":"2026-01-02T00:00:00Z""#).news_key(false);
    assert_ne!(first, second);
    assert_eq!(
        post("Update", "").news_key(false),
        post("Update", "").news_key(false)
    );
}

#[test]
fn a_deleted_account_names_itself() {
    let body = r#"{"id":"https://h.example/u#delete","type":"Delete","actor":"https://h.example/u","object":"https://h.example/u","to":["as:Public"]}"#;
    assert!(activity(body).is_self_delete());
    assert!(!post("Delete", "").is_self_delete());
    assert_eq!(post("Delete", "").kind, Kind::Delete);
}

#[test]
fn only_activitystreams_content_types_are_documents() {
    assert!(is_activity("application/activity+json"));
    assert!(is_activity("Application/Activity+JSON; charset=utf-8"));
    assert!(is_activity(
        r#"application/ld+json; profile="https://www.w3.org/ns/activitystreams""#
    ));
    assert!(is_activity(
        r#"application/ld+json;profile="https://example.org https://www.w3.org/ns/activitystreams""#
    ));
    for other in [
        "application/json",
        "text/html",
        "application/ld+json",
        "",
        r#"application/ld+json; profile="x;profile=https://www.w3.org/ns/activitystreams""#,
    ] {
        assert!(!is_activity(other), "{other}");
    }
}

#[test]
fn an_actors_key_and_inbox_belong_to_its_own_host() {
    let read = |body: &str| Actor::read(body.as_bytes(), &Limits::default()).unwrap();
    let actor = read(
        r#"{"id":"https://h.example/relay","type":"Application","preferredUsername":"relay","inbox":"https://h.example/relay/inbox",
            "endpoints":{"sharedInbox":"https://h.example/inbox"},
            "publicKey":{"id":"https://h.example/relay#main-key","owner":"https://h.example/relay","publicKeyPem":"PEM"}}"#,
    );
    assert_eq!(
        actor.inbox.as_ref().unwrap().as_str(),
        "https://h.example/relay/inbox"
    );
    assert_eq!(actor.keys[0].text, "PEM");
    assert!(actor.is_instance());
    let forged = read(
        r#"{"id":"https://h.example/u","type":"Person","inbox":"https://victim.example/inbox",
            "publicKey":[{"id":"https://h.example/u#k","owner":"https://victim.example/u","publicKeyPem":"PEM"},
                         {"id":"https://victim.example/u#k","owner":"https://h.example/u","publicKeyPem":"PEM"}]}"#,
    );
    assert_eq!(forged.inbox, None);
    assert!(forged.keys.is_empty());
    assert!(!forged.is_instance());
}

#[test]
fn a_fetched_post_belongs_to_an_author_on_its_host() {
    let read = |body: &str| Post::read(body.as_bytes(), &Limits::default());
    let post = read(r#"{"id":"https://h.example/n","type":"Note","attributedTo":"https://h.example/u","to":["as:Public"]}"#).unwrap();
    assert!(post.addressing.public_in_to && post.is_content());
    assert!(
        read(r#"{"id":"https://h.example/n","type":"Note","attributedTo":"https://z.example/u"}"#).is_err()
    );
    assert!(read(r#"{"id":"https://h.example/n","type":"Note"}"#).is_err());
}
