#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn dots_of_carriers_are_taken_where_they_are_asked_for_and_quoted() {
    for (text, wire) in [
        ("foo..bar@docomo.ne.jp", "\"foo..bar\"@docomo.ne.jp"),
        ("foo.@ezweb.ne.jp", "\"foo.\"@ezweb.ne.jp"),
        (".foo@ezweb.ne.jp", "\".foo\"@ezweb.ne.jp"),
        ("\"foo..bar\"@docomo.ne.jp", "\"foo..bar\"@docomo.ne.jp"),
        ("foo@docomo.ne.jp", "foo@docomo.ne.jp"),
    ] {
        let mailbox = Mailbox::parse_legacy(text).unwrap();
        assert_eq!(mailbox.to_string(), wire, "{text}");
        // What goes on the wire is the same address by the strict grammar.
        assert_eq!(Mailbox::parse(wire).unwrap(), mailbox, "{text}");
    }
    for text in [
        "a b..c@x.org",
        "..@x.org",
        "a..b",
        "a..b@",
        "a..\"b@x.org",
        "a..b@c@x.org",
    ] {
        assert!(Mailbox::parse_legacy(text).is_err(), "{text}");
    }
    assert!(Mailbox::parse("foo..bar@docomo.ne.jp").is_err());
}

#[test]
fn domain_is_a_lower_case_a_label() {
    let same = [
        ("Example.ORG", "example.org"),
        ("例え.jp", "xn--r8jz45g.jp"),
        ("XN--R8JZ45G.jp", "xn--r8jz45g.jp"),
    ];
    for (text, expect) in same {
        assert_eq!(Domain::parse(text).unwrap().as_str(), expect, "{text}");
    }
    assert_eq!(Domain::parse("xn--r8jz45g.jp").unwrap().to_unicode(), "例え.jp");
    assert_eq!(Domain::parse("localhost").unwrap().as_str(), "localhost");
}

#[test]
fn what_is_not_a_domain_is_refused_by_reason() {
    let long = "a".repeat(64);
    let very_long = ["abcdefgh"; 40].join(".");
    let table = [
        ("", DomainError::Empty),
        (".", DomainError::EmptyLabel),
        ("example.org.", DomainError::EmptyLabel),
        (".example.org", DomainError::EmptyLabel),
        ("a..b", DomainError::EmptyLabel),
        ("127.0.0.1", DomainError::Address),
        ("127.1", DomainError::Address),
        ("0x7f.0x1", DomainError::Address),
        ("2130706433", DomainError::Address),
        ("a b.org", DomainError::Character),
        ("a_b.org", DomainError::Character),
        ("-a.org", DomainError::Character),
        ("a-.org", DomainError::Character),
        ("a\u{0}.org", DomainError::Character),
        ("a%.org", DomainError::Character),
        ("xn--a.org", DomainError::Character),
        (&long, DomainError::TooLong),
        (&very_long, DomainError::TooLong),
    ];
    for (text, expect) in table {
        assert_eq!(Domain::parse(text).unwrap_err(), expect, "{text:?}");
    }
}

#[test]
fn a_subdomain_is_within_its_parent_at_label_boundaries_only() {
    let d = |t| Domain::parse(t).unwrap();
    assert!(d("a.example.org").is_within(&d("example.org")));
    assert!(d("example.org").is_within(&d("example.org")));
    assert!(!d("badexample.org").is_within(&d("example.org")));
    assert!(!d("org").is_within(&d("example.org")));
    assert_eq!(d("a.b").parent(), Some(d("b")));
    assert_eq!(d("b").parent(), None);
}

#[test]
fn a_mailbox_keeps_its_local_part_and_quotes_it_only_when_needed() {
    let table = [
        (
            "User.Name+tag@Example.ORG",
            "User.Name+tag",
            "User.Name+tag@example.org",
        ),
        (r#""a b"@x.org"#, "a b", r#""a b"@x.org"#),
        (r#""plain"@x.org"#, "plain", "plain@x.org"),
        (r#""a\"b\\c"@x.org"#, r#"a"b\c"#, r#""a\"b\\c"@x.org"#),
        (r#""u@d"@x.org"#, "u@d", r#""u@d"@x.org"#),
        (r#"""@x.org"#, "", r#"""@x.org"#),
        ("太郎@例え.jp", "太郎", "太郎@xn--r8jz45g.jp"),
        ("a@[192.0.2.1]", "a", "a@[192.0.2.1]"),
        ("a@[ipv6:2001:DB8::1]", "a", "a@[IPv6:2001:db8::1]"),
    ];
    for (text, local, shown) in table {
        let mailbox = Mailbox::parse(text).unwrap();
        assert_eq!(mailbox.local(), local, "{text}");
        assert_eq!(mailbox.to_string(), shown, "{text}");
        assert_eq!(Mailbox::parse(shown).unwrap(), mailbox, "{text}");
    }
}

#[test]
fn what_is_not_a_mailbox_is_refused() {
    let long = format!("{}@x.org", "a".repeat(65));
    let table = [
        "",
        "a",
        "@",
        "@x.org",
        "a@",
        "a@@x.org",
        "a b@x.org",
        "a..b@x.org",
        ".a@x.org",
        "a.@x.org",
        "a@x.org.",
        "a@.",
        "a@x..org",
        "\"a@x.org",
        "\"a\"b@x.org",
        "\"a\\",
        "a@[192.0.2]",
        "a@[192.0.2.1",
        "a@[2001:db8::1]",
        "a@[IPv6:192.0.2.1]",
        "a@[x]",
        "a@192.0.2.1",
        "a\r\n@x.org",
        "\"a\r\n\"@x.org",
        "\"a\\\u{0}\"@x.org",
        "a\u{0}@x.org",
        "<a@x.org>",
        "a@x.org>",
        &long,
    ];
    for text in table {
        assert!(Mailbox::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_local_part_that_can_be_read_as_a_route_is_known() {
    for text in ["u%d@x.org", "d!u@x.org", "\"u@d\"@x.org"] {
        assert!(Mailbox::parse(text).unwrap().hides_route(), "{text}");
    }
    assert!(!Mailbox::parse("u+d@x.org").unwrap().hides_route());
}

#[test]
fn a_reverse_path_may_be_null() {
    assert!(ReversePath::parse("").unwrap().is_null());
    assert_eq!(ReversePath::parse("a@x.org").unwrap().to_string(), "a@x.org");
    assert_eq!(ReversePath::Null.to_string(), "");
    let json = serde_json::to_string(&[ReversePath::Null, ReversePath::parse("a@x.org").unwrap()]).unwrap();
    assert_eq!(json, r#"["","a@x.org"]"#);
    assert_eq!(
        serde_json::from_str::<Vec<ReversePath>>(&json).unwrap()[0],
        ReversePath::Null
    );
}
