use super::super::decision::Delivery;
use super::super::json::Limits;
use super::super::software::{
    Known, NodeInfoError, inbox_limit_bytes, is_mastodon_family, read_facts, read_links, refuses_forwards,
    takes_forwarded_deletes, takes_forwards, usual_form,
};
use super::super::subscription::Style;

#[test]
fn the_newest_nodeinfo_names_the_software() {
    let limits = Limits::default();
    let links = br#"{"links":[
        {"rel":"http://nodeinfo.diaspora.software/ns/schema/2.1","href":"https://a.example/nodeinfo/2.1"},
        {"rel":"http://nodeinfo.diaspora.software/ns/schema/2.0","href":"https://a.example/nodeinfo/2.0"},
        {"rel":"https://www.w3.org/ns/activitystreams#Application","href":"https://a.example/actor"}]}"#;
    assert_eq!(
        read_links(links, &limits).unwrap(),
        "https://a.example/nodeinfo/2.1"
    );
    for bad in [
        &b"{}"[..],
        b"[]",
        br#"{"links":[{"rel":"x","href":"y"}]}"#,
        br#"{"links":[3]}"#,
    ] {
        assert_eq!(read_links(bad, &limits), Err(NodeInfoError::NoLink));
    }
    let software = |text: &str| read_facts(text.as_bytes(), &limits).map(|facts| facts.software);
    assert_eq!(
        software(r#"{"software":{"name":"Iceshrimp.NET","version":"2026.1\u0007"}}"#).unwrap(),
        "iceshrimp.net 2026.1"
    );
    assert_eq!(
        software(r#"{"software":{"name":"mastodon"}}"#).unwrap(),
        "mastodon"
    );
    assert_eq!(
        software(r#"{"software":{"version":"1"}}"#),
        Err(NodeInfoError::NoName)
    );
    assert_eq!(software("{}"), Err(NodeInfoError::NoName));
    assert!(matches!(software("{"), Err(NodeInfoError::Json(_))));
    assert!(
        software(&format!(
            r#"{{"software":{{"name":"{0}","version":"{0}"}}}}"#,
            "x".repeat(500)
        ))
        .unwrap()
        .len()
            < 130
    );
}

#[test]
fn what_a_server_says_of_its_people_is_read_and_strange_things_are_not() {
    let facts = |more: &str| {
        let text = format!(r#"{{"software":{{"name":"mastodon","version":"4.5"}}{more}}}"#);
        let facts = read_facts(text.as_bytes(), &Limits::default()).unwrap();
        (facts.users, facts.open_registrations)
    };
    let full = r#","openRegistrations":true,"usage":{"users":{"total":12}}"#;
    assert_eq!(facts(full), (Some(12), Some(true)));
    assert_eq!(facts(""), (None, None));
    let strange = r#","openRegistrations":"no","usage":{"users":{"total":-1}}"#;
    assert_eq!(facts(strange), (None, None));
}

#[test]
fn the_form_follows_style_and_software() {
    let form = |software: Option<&'static str>| {
        usual_form(Style::Mastodon, software.map_or(Known::Nothing, Known::Software))
    };
    assert_eq!(usual_form(Style::Mastodon, Known::NotYet), Delivery::Forward);
    assert_eq!(
        form(None),
        Delivery::Announce,
        "many drop what they answer 202 to"
    );
    for taker in [
        "mastodon 4.5.4",
        "misskey 2025.12.2",
        "sharkey 2025.4",
        "iceshrimp 2023.12",
    ] {
        assert_eq!(form(Some(taker)), Delivery::Forward, "{taker}");
    }
    for other in [
        "iceshrimp.net 2026.1",
        "gotosocial 0.20",
        "friendica 2026.05",
        "something new",
    ] {
        assert_eq!(form(Some(other)), Delivery::Announce, "{other}");
    }
    assert_eq!(
        usual_form(Style::LitePub, Known::Software("mastodon 4.5.4")),
        Delivery::Announce
    );
}

#[test]
fn what_single_programs_take_is_known() {
    assert!(takes_forwarded_deletes("iceshrimp.net 2026.1") && !takes_forwards("iceshrimp.net 2026.1"));
    assert!(!takes_forwarded_deletes("iceshrimp 2023.12"));
    assert_eq!(inbox_limit_bytes("sharkey 2025.4"), Some(64 * 1024));
    assert_eq!(inbox_limit_bytes("mastodon 4.5.4"), None);
    assert!(is_mastodon_family("glitch 4.5") && !is_mastodon_family("mastodonish 1"));
}

#[test]
fn only_answers_about_the_form_teach_another_form() {
    for software in [None, Some("iceshrimp.net 1"), Some("mastodon 4.5")] {
        assert!(refuses_forwards(software, 400) && refuses_forwards(software, 403));
        for status in [200, 202, 404, 408, 410, 413, 429, 500, 503] {
            assert!(!refuses_forwards(software, status), "{status}");
        }
    }
    assert!(refuses_forwards(None, 401) && refuses_forwards(Some("iceshrimp.net 1"), 401));
    assert!(!refuses_forwards(Some("mastodon 4.5"), 401));
}
