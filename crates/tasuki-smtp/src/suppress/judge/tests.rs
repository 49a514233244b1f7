#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Providers;

fn reply(text: &str) -> tasuki_proto::smtp::Reply {
    let mut parser = tasuki_proto::smtp::ReplyParser::default();
    let mut line = bytes::BytesMut::from(format!("{text}\r\n").as_bytes());
    parser.parse(&mut line).unwrap().unwrap()
}

fn says(stage: Stage, text: &str, hosts: &[&str], own: &[ProviderConfig]) -> bool {
    let providers = Providers::check(own).unwrap();
    let rules: Vec<_> = hosts.iter().map(|host| providers.of_host(host)).collect();
    says_gone(&ClientFailure::new(stage, Problem::Refused(reply(text))), &rules)
}

#[test]
fn only_the_plainest_refusals_say_that_there_is_no_such_mailbox() {
    for (text, gone) in [
        ("550 5.1.1 no such user", true),
        ("550 5.1.6 moved", true),
        ("556 5.1.10 null MX", true),
        ("550 5.1.0 address rejected", false),
        ("550 5.1.2 no such domain", false),
        ("553 5.1.3 bad syntax", false),
        ("450 4.1.1 cannot look it up", false),
        ("550 4.1.1 cannot look it up", false),
        ("550 5.2.1 user unknown", false),
        ("552 5.2.2 over quota", false),
        ("550 5.7.1 user unknown to you", false),
        ("550 User unknown", false),
        ("550 5.5.0 mailbox unavailable", false),
        ("530 5.1.1 log in first", false),
    ] {
        assert_eq!(
            says(Stage::Recipient, text, &["mx.example.net"], &[]),
            gone,
            "{text}"
        );
    }
    for stage in [Stage::Mail, Stage::Data, Stage::EndOfData, Stage::Connect] {
        assert!(!says(stage, "550 5.1.1 no such user", &[], &[]), "{stage:?}");
    }
}

#[test]
fn a_carriers_filter_is_not_believed() {
    for host in [
        "mfsmax.docomo.ne.jp",
        "lsean.ezweb.ne.jp",
        "mx.au.com",
        "mx.softbank.jp",
    ] {
        for text in ["550 5.1.1 unknown user", "550 : User unknown"] {
            assert!(!says(Stage::Recipient, text, &[host], &[]), "{host}: {text}");
        }
    }
    // Through a smarthost the domain tells.
    assert!(!says(
        Stage::Recipient,
        "550 5.1.1 unknown user",
        &["smtp.provider.example", "docomo.ne.jp"],
        &[]
    ));
}

#[test]
fn a_receivers_rule_can_name_the_words_of_one_without_codes() {
    let rule: ProviderConfig =
        toml::from_str("name = \"old\"\nmx = [\"old.example\"]\nunknown_user = [\"Mailbox Unavailable\"]")
            .unwrap();
    for (text, gone) in [
        ("550 mailbox unavailable", true),
        ("550 5.5.0 requested action not taken: MAILBOX UNAVAILABLE", true),
        ("550 5.7.1 mailbox unavailable", false),
        ("550 5.2.1 mailbox unavailable", false),
        ("550 5.1.2 mailbox unavailable", false),
        ("553 5.1.3 mailbox unavailable", false),
        ("450 mailbox unavailable", false),
        ("550 go away", false),
    ] {
        let own = std::slice::from_ref(&rule);
        assert_eq!(
            says(Stage::Recipient, text, &["mx.old.example"], own),
            gone,
            "{text}"
        );
        assert!(
            !says(Stage::Recipient, text, &["mx.other.example"], own),
            "{text}"
        );
    }
    let empty = ProviderConfig {
        unknown_user: vec![" ".into()],
        ..rule
    };
    assert!(Providers::check(&[empty]).is_err());
}
