#![allow(clippy::unwrap_used)]

use super::*;

fn host() -> Domain {
    Domain::parse("relay.example").unwrap()
}

#[test]
fn mail_takes_all_advertised_parameters() {
    let text = "FROM:<a@x.org> SIZE=1000 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1 AUTH=<>";
    let envelope = parse_mail(text, &[]).unwrap();
    assert_eq!(envelope.size, Some(1000));
    assert_eq!(envelope.body, BodyType::EightBitMime);
    assert!(envelope.smtputf8);
    assert_eq!(envelope.ret, Some(ReturnPart::Headers));
    assert_eq!(envelope.envid.as_deref(), Some("QQ+2B1"));
    assert!(parse_mail("from:<>", &[]).unwrap().from.is_null());
    assert!(parse_mail("FROM: <a@x.org>", &[]).is_ok());
    assert_eq!(
        parse_mail("FROM:<a@x.org> SIZE=99999999999999999999", &[])
            .unwrap()
            .size,
        Some(u64::MAX)
    );
    assert_eq!(
        parse_mail("FROM:<@a.org,@b.org:a@x.org>", &[])
            .unwrap()
            .from
            .to_string(),
        "a@x.org"
    );
}

#[test]
fn mail_with_a_bad_argument_says_which() {
    let long = format!(
        "FROM:<{}@{}>",
        "a".repeat(64),
        ["b".repeat(60), "c".repeat(60), "d".repeat(63), "e".repeat(9)].join(".")
    );
    let table = [
        ("", 501),
        ("FROM", 501),
        ("FROM:", 501),
        ("FROM:a@x.org", 501),
        ("FROM:<a@x.org", 501),
        ("FROM:<a@x.org>SIZE=1", 501),
        ("TO:<a@x.org>", 501),
        ("FROM:<a>", 501),
        ("FROM:<a@>", 501),
        ("FROM:<@a.org>", 501),
        ("FROM:<@a.org,b.org:a@x.org>", 501),
        ("FROM:<a@x.org> SIZE=-1", 501),
        ("FROM:<a@x.org> SIZE=", 501),
        ("FROM:<a@x.org> SIZE=1 SIZE=1", 501),
        ("FROM:<a@x.org> SIZE=111111111111111111111", 501),
        ("FROM:<a@x.org> BODY=BINARYMIME", 501),
        ("FROM:<a@x.org> BODY=7BIT BODY=7BIT", 501),
        ("FROM:<a@x.org> RET=ALL", 501),
        ("FROM:<a@x.org> ENVID=a+b", 501),
        ("FROM:<a@x.org> ENVID=+0D+0A", 501),
        ("FROM:<a@x.org> SMTPUTF8=1", 501),
        ("FROM:<a@x.org> FOO=1", 555),
        ("FROM:<a@x.org> NOTIFY=NEVER", 555),
        ("FROM:<太郎@x.org>", 553),
        (&long, 501),
    ];
    for (text, code) in table {
        assert_eq!(
            parse_mail(text, &[]).unwrap_err().reply(true).code,
            code,
            "{text}"
        );
    }
}

#[test]
fn rcpt_takes_all_advertised_parameters() {
    let r = parse_rcpt(
        "TO:<b@y.org> NOTIFY=SUCCESS,delay ORCPT=rfc822;b+2Bx@y.org",
        false,
        &host(),
        &[],
    )
    .unwrap();
    assert_eq!(
        r.notify.unwrap(),
        Notify {
            success: true,
            failure: false,
            delay: true
        }
    );
    assert_eq!(r.notify.unwrap().keyword(), "SUCCESS,DELAY");
    assert_eq!(r.orcpt.unwrap().decoded(), ("rfc822", "b+x@y.org".to_owned()));
    let r = parse_rcpt("TO:<PostMaster>", false, &host(), &[]).unwrap();
    assert_eq!(r.mailbox.to_string(), "postmaster@relay.example");
    assert!(parse_rcpt("TO:<太郎@y.org>", true, &host(), &[]).is_ok());
    assert_eq!(
        parse_rcpt("TO:<a@例え.jp>", false, &host(), &[])
            .unwrap()
            .mailbox
            .to_string(),
        "a@xn--r8jz45g.jp"
    );
}

#[test]
fn rcpt_with_a_bad_argument_says_which() {
    let table = [
        ("TO:<>", 501),
        ("TO:<b@y.org> NOTIFY=NEVER,DELAY", 501),
        ("TO:<b@y.org> NOTIFY=", 501),
        ("TO:<b@y.org> ORCPT=b@y.org", 501),
        ("TO:<b@y.org> ORCPT=rfc822;a+0Ab", 501),
        ("TO:<b@y.org> SIZE=1", 555),
        ("TO:<太郎@y.org>", 553),
        ("TO:<b@y.org><c@z.org>", 501),
        ("TO:<b@y.org> NOTIFY=NEVER NOTIFY=NEVER", 501),
        ("TO:<b@[10.0.0]>", 501),
        ("TO:<b@y.org.>", 501),
        ("TO:<b@y..org>", 501),
    ];
    for (text, code) in table {
        assert_eq!(
            parse_rcpt(text, false, &host(), &[])
                .unwrap_err()
                .reply(false)
                .code,
            code,
            "{text}"
        );
    }
}

/// The forms by which relays have been talked into forwarding. Each either fails to parse, or yields a mailbox whose
/// domain is the stranger's, or one that is known to hide a route.
#[test]
fn every_relay_trick_is_refused_or_seen_through() {
    let ours = Domain::parse("relay.example").unwrap();
    let tricks = [
        "victim@elsewhere.org",
        "victim%elsewhere.org@relay.example",
        "victim%elsewhere.org",
        "elsewhere.org!victim",
        "elsewhere.org!victim@relay.example",
        "\"victim@elsewhere.org\"@relay.example",
        "\"victim@elsewhere.org\"",
        "victim@elsewhere.org@relay.example",
        "@relay.example:victim@elsewhere.org",
        "@relay.example,@x.org:victim@elsewhere.org",
        "victim@[192.0.2.1]",
        "victim@[IPv6:2001:db8::1]",
        "victim@192.0.2.1",
        "victim@elsewhere.org.",
        "victim@relay.example.",
        "victim@",
        "victim",
        "@elsewhere.org",
        "\"victim%elsewhere.org\"@relay.example",
        "\"elsewhere.org!victim\"@relay.example",
        "victim@relay.example@elsewhere.org",
        "\"victim\"@elsewhere.org",
        "victim@ELSEWHERE.org",
        "victim@relay.example%elsewhere.org",
        "victim@elsewhere.org:25",
        "victim@[relay.example]",
        "a!b%c@relay.example",
        "victim@relay.example\u{0}.elsewhere.org",
        "<victim@elsewhere.org>",
        "victim@badrelay.example",
        "victim@sub.relay.example",
        "\"\\victim@elsewhere.org\"@relay.example",
        "victim(@relay.example)@elsewhere.org",
        "relay.example,victim@elsewhere.org",
    ];
    for trick in tricks {
        let Ok(recipient) = parse_rcpt(&format!("TO:<{trick}>"), false, &ours, &[]) else {
            continue;
        };
        let ours_exactly = recipient.mailbox.domain() == Some(&ours);
        assert!(
            !ours_exactly || recipient.mailbox.hides_route(),
            "{trick} reads as {:?}",
            recipient.mailbox
        );
    }
}
