#![allow(clippy::unwrap_used)]

use super::*;

fn reply(text: &str) -> Reply {
    let mut parser = tasuki_proto::smtp::ReplyParser::default();
    let mut line = bytes::BytesMut::from(format!("{text}\r\n").as_bytes());
    parser.parse(&mut line).unwrap().unwrap()
}

#[test]
fn receivers_are_found_by_their_mail_servers() {
    let rules = Providers::check(&[]).unwrap();
    let name = |host: &str| rules.of_host(host).map(|rule| rule.name.as_str());
    for (host, expected) in [
        ("gmail-smtp-in.l.google.com", Some("gmail")),
        ("aspmx.l.google.com", Some("gmail")),
        ("example-org.mail.protection.outlook.com", Some("outlook")),
        ("mta7.am0.yahoodns.net", Some("yahoo")),
        ("mx1.mail.yahoo.co.jp", Some("yahoo-japan")),
        ("mfsmax.docomo.ne.jp", Some("docomo")),
        ("lsean.ezweb.ne.jp", Some("au")),
        ("mx.softbank.jp", Some("softbank")),
        ("mx.notgoogle.com", None),
        ("[192.0.2.1]", None),
    ] {
        assert_eq!(name(host), expected, "{host}");
    }
}

#[test]
fn a_block_of_the_same_name_takes_the_place_of_a_shipped_one() {
    let mine = ProviderConfig {
        name: "gmail".into(),
        mx: vec!["google.com".parse().unwrap()],
        connections: Some(1),
        mails_per_connection: None,
        per_minute: Some(30),
        require_tls: false,
        slow_down: vec!["My Words".into()],
        unknown_may_be_filter: false,
        unknown_user: vec![],
    };
    let rules = Providers::check(std::slice::from_ref(&mine)).unwrap();
    let rule = rules.of_host("aspmx.l.google.com");
    let limits = pace_limits(rule, 5);
    assert_eq!((limits.connections, limits.start), (1, 1));
    assert_eq!(limits.gap, Duration::from_secs(2));
    assert!(is_slow_down(rule, &reply("550 5.7.1 these are MY WORDS"), false));
    assert!(!is_slow_down(rule, &reply("550 5.7.28 not ours"), false));
    assert_eq!(pace_limits(None, 5).connections, 5);
    let off = ProviderConfig {
        mx: vec![],
        ..mine.clone()
    };
    assert!(
        Providers::check(&[off])
            .unwrap()
            .of_host("aspmx.l.google.com")
            .is_none()
    );
    let key = |change: fn(&mut ProviderConfig)| {
        let mut rule = mine.clone();
        change(&mut rule);
        match Providers::check(&[rule]) {
            Err(BuildError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(key(|r| r.per_minute = Some(0)), "mail.providers.per_minute");
    assert_eq!(
        key(|r| r.slow_down = vec![" ".into()]),
        "mail.providers.slow_down"
    );
    assert_eq!(key(|r| r.name = String::new()), "mail.providers.name");
}

#[test]
fn too_fast_is_told_from_not_this_mail() {
    let rules = Providers::check(&[]).unwrap();
    let google = rules.of_host("aspmx.l.google.com");
    let yahoo = rules.of_host("mta7.am0.yahoodns.net");
    let outlook = rules.of_host("example-com.mail.protection.outlook.com");
    let docomo = rules.of_host("mfsmax.docomo.ne.jp");
    for (rule, text) in [
        (
            google,
            "421 4.7.28 Gmail has detected an unusual rate of unsolicited email",
        ),
        (google, "450 4.7.28 Gmail has detected an unusual rate"),
        (
            yahoo,
            "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred",
        ),
        (
            outlook,
            "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.",
        ),
        (
            outlook,
            "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections.",
        ),
        (
            outlook,
            "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)",
        ),
        (docomo, "552 Too many recipients"),
        (None, "421 4.3.2 busy"),
        (None, "450 4.7.1 Error: too many connections from 192.0.2.1"),
    ] {
        assert!(is_slow_down(rule, &reply(text), true), "{text}");
    }
    for (rule, text) in [
        (
            google,
            "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
        ),
        (
            google,
            "550 5.1.1 The email account that you tried to reach does not exist",
        ),
        (yahoo, "451 4.7.1 greylisted"),
        (
            yahoo,
            "553 5.7.2 [TSS09] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.",
        ),
        (docomo, "550 Unknown user someone@docomo.ne.jp"),
        (None, "550 5.7.1 too many connections to spam lists"),
    ] {
        assert!(!is_slow_down(rule, &reply(text), true), "{text}");
    }
    assert!(!is_slow_down(None, &reply("421 4.4.2 idle for too long"), false));
}
