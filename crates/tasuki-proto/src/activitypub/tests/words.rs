use serde_json::json;

use super::super::blocklist::{Listed, Severity, read, write};
use super::super::words::Words;

#[test]
fn the_words_of_a_post_are_what_its_readers_see() {
    let activity = json!({"type": "Create", "object": {"type": "Note", "summary": "CW: Spoiler",
        "content": "<p>Buy <b>CHEAP</b> &amp; good <a href=\"https://secret.example/\">here</a></p>",
        "contentMap": {"de": "<p>Günstig</p>"}, "attachment": [{"name": "A Cat"}], "oneOf": [{"name": "Yes"}],
        "tag": [{"type": "Hashtag", "name": "#Ads"}, {"type": "Mention", "name": "@x"}]}});
    let words = Words::of(&activity);
    for part in ["cw: spoiler", "buy cheap & good here", "günstig", "a cat", "yes"] {
        assert!(words.text.contains(part), "{part}: {:?}", words.text);
    }
    assert!(!words.text.contains("secret"));
    assert_eq!(words.tags, ["ads"]);
    assert_eq!(Words::of(&json!({"type": "Note", "content": "x"})).text, "x\n");
    assert_eq!(Words::of(&json!([1])), Words::default());
    let long =
        json!({"content": "x".repeat(1 << 20), "tag": vec![json!({"type": "Hashtag", "name": "y"}); 1000]});
    let words = Words::of(&long);
    assert!(words.text.len() < 70_000 && words.tags.len() == 200);
}

#[test]
fn lists_of_hosts_are_read_in_the_forms_that_are_exchanged() {
    let text = "#domain,#severity,#reject_media,#reject_reports,#public_comment,#obfuscate\n\
        evil.example,suspend,true,true,\"spam, \"\"lots\"\" of it\",false\n\
        Noisy.Example,silence,false,false,,false\n\
        fine.example,noop,false,false,,false\n\
        ev*l.example,suspend,false,false,,true\n\
        *.farm.example,suspend,false,false,,false\n\
        bad.example,unknown,false,false,,false\n\
        \"open,suspend\n\
        not a host,suspend\n\
        localhost,suspend\n\
        例え.example,suspend\n";
    let (listed, skipped) = read(text);
    let one = |host: &str, severity, comment: &str| Listed {
        host: host.into(),
        severity,
        comment: comment.into(),
    };
    let wanted = [
        one("evil.example", Severity::Suspend, "spam, \"lots\" of it"),
        one("noisy.example", Severity::Silence, ""),
        one("farm.example", Severity::Suspend, ""),
        one("xn--r8jz45g.example", Severity::Suspend, ""),
    ];
    assert_eq!(listed, wanted);
    assert_eq!(
        skipped.iter().map(|s| s.line).collect::<Vec<_>>(),
        [5, 7, 8, 9, 10]
    );
    assert!(skipped[0].why.contains("obfuscated"), "{:?}", skipped[0]);
    // What is written is read again.
    assert_eq!(read(&write(&wanted)), (wanted.to_vec(), Vec::new()));
    let (plain, skipped) = read("# my list\nevil.example\n\ntwo.example\n");
    assert_eq!(plain.len(), 2);
    assert!(skipped.is_empty());
    let (fedi, _) = read("domain,severity,public_comment\na.example,block,x\n");
    assert_eq!(fedi, [one("a.example", Severity::Suspend, "x")]);
}

#[test]
fn what_an_author_wants_stands_in_the_bio() {
    use super::super::actor::{Actor, Wishes};
    use super::super::json::Limits;

    let wishes = |bio: &str, more: &str| {
        let document = format!(
            r#"{{"id":"https://a.example/u","type":"Person","published":"2026-11-01T00:00:00Z","summary":{}{more}}}"#,
            serde_json::Value::from(bio)
        );
        let actor = Actor::read(document.as_bytes(), &Limits::default()).unwrap();
        assert!(actor.published.is_some());
        actor.wishes
    };
    for bio in [
        "#NoRelay",
        "<p>hi <a href=\"https://a.example/tags/nobot\" class=\"mention hashtag\">#<span>nobot</span></a></p>",
        "cats,#norelay.",
    ] {
        assert!(wishes(bio, "").no_relay, "{bio}");
    }
    for bio in ["", "no relay", "#norelays", "nobot", "#NoRelayed"] {
        assert_eq!(wishes(bio, ""), Wishes::default(), "{bio}");
    }
    assert!(wishes("", r#","indexable":false"#).not_indexable);
    assert!(!wishes("", r#","indexable":true"#).not_indexable);
}
