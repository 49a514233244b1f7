use std::time::Duration;

use super::{MAX_POLICY_LEN, Mode, MxPattern, Policy, StsError, record_id};
use crate::names::Domain;

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

#[test]
fn a_policy_is_read_as_the_rfc_shows_it() {
    // RFC 8461 3.2, the example.
    let text = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\nmax_age: 604800\r\n";
    let policy = Policy::parse(text.as_bytes()).unwrap();
    assert_eq!(policy.mode, Mode::Enforce);
    assert_eq!(policy.max_age, Duration::from_secs(604_800));
    assert!(policy.allows(&domain("mail.example.com")) && policy.allows(&domain("a.example.net")));
    for other in [
        "example.net",
        "a.b.example.net",
        "mail.example.org",
        "xmail.example.com",
    ] {
        assert!(!policy.allows(&domain(other)), "{other}");
    }
    let again = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&again).unwrap(), policy);
}

#[test]
fn line_ends_blanks_order_and_unknown_fields_do_not_matter() {
    let text =
        "max_age:86400 \nfuture: x: y\n\nmx:\tMX.Example.com\t\nmode:testing\nmode: enforce\nversion:STSv1";
    let policy = Policy::parse(text.as_bytes()).unwrap();
    assert_eq!(policy.mode, Mode::Testing, "the first of a repeated field holds");
    assert!(policy.allows(&domain("mx.example.com")));
    let none = Policy::parse(b"version: STSv1\nmode: none\nmax_age: 0\n").unwrap();
    assert_eq!((none.mode, none.mx.len()), (Mode::None, 0));
    let long = Policy::parse(b"version: STSv1\nmode: none\nmax_age: 9999999999\n").unwrap();
    assert_eq!(long.max_age, Duration::from_secs(31_557_600));
}

#[test]
fn every_malformed_policy_is_refused() {
    let full = [
        "version: STSv1",
        "mode: enforce",
        "mx: mx.example.com",
        "max_age: 86400",
    ];
    let with = |at: usize, line: &str| {
        let mut lines = full;
        lines[at] = line;
        lines.join("\n")
    };
    for (text, error) in [
        (String::new(), StsError::Missing("version")),
        (with(0, ""), StsError::Missing("version")),
        (with(0, "version: STSv2"), StsError::Value("version")),
        (with(0, "version: stsv1"), StsError::Value("version")),
        (with(0, "Version: STSv1"), StsError::Missing("version")),
        (with(0, "version : STSv1"), StsError::Missing("version")),
        (with(1, ""), StsError::Missing("mode")),
        (with(1, "mode:"), StsError::Value("mode")),
        (with(1, "mode: Enforce"), StsError::Value("mode")),
        (with(1, "mode: enforce testing"), StsError::Value("mode")),
        (with(2, ""), StsError::Missing("mx")),
        (with(2, "mx:"), StsError::Value("mx")),
        (with(2, "mx: *"), StsError::Value("mx")),
        (with(2, "mx: *.*.example.com"), StsError::Value("mx")),
        (with(2, "mx: mx.*.example.com"), StsError::Value("mx")),
        (with(2, "mx: .example.com"), StsError::Value("mx")),
        (with(2, "mx: mx.example.com."), StsError::Value("mx")),
        (with(2, "mx: 192.0.2.1"), StsError::Value("mx")),
        (with(2, "mx mx.example.com"), StsError::Line(3)),
        (with(3, ""), StsError::Missing("max_age")),
        (with(3, "max_age:"), StsError::Value("max_age")),
        (with(3, "max_age: -1"), StsError::Value("max_age")),
        (with(3, "max_age: +1"), StsError::Value("max_age")),
        (with(3, "max_age: 1d"), StsError::Value("max_age")),
        (with(3, "max_age: 12345678901"), StsError::Value("max_age")),
        ("<html>not found</html>".to_owned(), StsError::Line(1)),
        (
            format!("{}\n{}", full.join("\n"), "x".repeat(MAX_POLICY_LEN)),
            StsError::TooLong,
        ),
    ] {
        assert_eq!(Policy::parse(text.as_bytes()), Err(error), "{text:.80}");
    }
    assert_eq!(
        Policy::parse(b"version: STSv1\n\xff: x\n"),
        Err(StsError::Encoding)
    );
}

#[test]
fn a_record_counts_only_if_it_is_the_only_one_and_has_an_id() {
    let id = |texts: &[&str]| record_id(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(id(&["v=STSv1; id=20160831085700Z;"]).unwrap(), "20160831085700Z");
    assert_eq!(id(&["v=STSv1;id=a"]).unwrap(), "a");
    assert_eq!(id(&["v=spf1 -all", "v=STSv1 ; x=y; id=1 ;"]).unwrap(), "1");
    assert_eq!(id(&[]), Err(StsError::Records(0)));
    assert_eq!(
        id(&["v=STSv1; id=1;", "v=STSv1; id=2;"]),
        Err(StsError::Records(2))
    );
    for other in [
        "",
        "v=STSv1",
        "v=STSv10; id=1",
        "V=STSv1; id=1",
        " v=STSv1; id=1",
        "v=TLSRPTv1; rua=x",
    ] {
        assert_eq!(id(&[other]), Err(StsError::Records(0)), "{other}");
    }
    let long = format!("v=STSv1; id={}", "a".repeat(33));
    for bad in [
        "v=STSv1;",
        "v=STSv1; id=",
        "v=STSv1; id=a-b",
        "v=STSv1; ID=1",
        "v=STSv1; id=é",
        &long,
    ] {
        assert_eq!(id(&[bad]), Err(StsError::Id), "{bad}");
    }
}

#[test]
fn a_wildcard_stands_for_one_label() {
    let pattern: MxPattern = "*.Example.com".parse().unwrap();
    assert_eq!(pattern.to_string(), "*.example.com");
    assert!(pattern.matches(&domain("mx.example.com")));
    assert!(!pattern.matches(&domain("example.com")) && !pattern.matches(&domain("a.b.example.com")));
}
