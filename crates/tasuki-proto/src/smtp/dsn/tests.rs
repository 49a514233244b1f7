#![allow(clippy::unwrap_used)]

use super::*;

fn report(action: Action, status: EnhancedCode, to: &str, header: &[u8]) -> String {
    let recipient = ReportedRecipient {
        mailbox: Mailbox::parse("b@y.org").unwrap(),
        orcpt: Some(OriginalRecipient::parse("rfc822;b+2Bx@y.org").unwrap()),
        status,
        remote_mta: Some("mx.y.org".into()),
        diagnostic: Some("550 5.1.1 no such\r\nAction: delivered\r\nuser 日".into()),
        last_attempt: Some(OffsetDateTime::UNIX_EPOCH),
    };
    let other = ReportedRecipient {
        mailbox: Mailbox::parse("太郎@y.org").unwrap(),
        orcpt: None,
        remote_mta: None,
        diagnostic: Some("the mail expired".into()),
        last_attempt: None,
        ..recipient.clone()
    };
    let notice = Notice {
        reporting_mta: &Domain::parse("relay.example").unwrap(),
        to: &Mailbox::parse(to).unwrap(),
        date: OffsetDateTime::UNIX_EPOCH,
        arrival: OffsetDateTime::UNIX_EPOCH,
        will_retry_until: Some(OffsetDateTime::UNIX_EPOCH),
        envid: Some("QQ+2B1"),
        mail_id: "0123456789abc",
        unique: "u1",
        action,
        recipients: &[recipient, other],
        header,
    };
    String::from_utf8(write(&notice)).unwrap()
}

#[test]
fn a_failure_notice_has_its_three_parts_and_no_injected_field() {
    let text = report(
        Action::Failed,
        EnhancedCode(5, 1, 1),
        "a@x.org",
        b"Subject: hi\r\n",
    );
    let parts: Vec<_> = text.split("--=_tasuki_u1").collect();
    assert_eq!(parts.len(), 5);
    assert!(
        parts[0].starts_with("From: Mail Delivery System <MAILER-DAEMON@relay.example>\r\nTo: <a@x.org>\r\n")
    );
    assert!(parts[0].contains("Auto-Submitted: auto-replied\r\n"));
    let status = "\r\nContent-Type: message/delivery-status\r\n\r\n\
        Reporting-MTA: dns; relay.example\r\n\
        Original-Envelope-Id: QQ+1\r\n\
        X-Tasuki-Mail-Id: 0123456789abc\r\n\
        Arrival-Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822; b+x@y.org\r\n\
        Final-Recipient: rfc822; b@y.org\r\n\
        Action: failed\r\n\
        Status: 5.1.1\r\n\
        Remote-MTA: dns; mx.y.org\r\n\
        Diagnostic-Code: smtp; 550 5.1.1 no such??Action: delivered??user ?\r\n\
        Last-Attempt-Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n\
        \r\n\
        Final-Recipient: utf-8; \\x{592A}\\x{90CE}@y.org\r\n\
        Action: failed\r\n\
        Status: 5.1.1\r\n\
        Diagnostic-Code: X-Tasuki; the mail expired\r\n\
        \r\n";
    assert_eq!(parts[2], status);
    assert_eq!(
        parts[3],
        "\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: hi\r\n\r\n"
    );
    let base64: String = parts[1]
        .split("\r\n\r\n")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    let human = String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap();
    assert!(
        human.contains("could not be delivered") && human.contains("届けられませんでした"),
        "{human}"
    );
    assert!(text.is_ascii());
    assert!(text.lines().all(|line| line.len() < 998) && !text.replace("\r\n", "").contains(['\r', '\n']));
}

#[test]
fn a_delay_notice_says_until_when() {
    let text = report(Action::Delayed, EnhancedCode(4, 4, 1), "a@x.org", b"");
    assert_eq!(
        text.matches("Will-Retry-Until: Thu, 01 Jan 1970 00:00:00 +0000\r\n")
            .count(),
        2
    );
    assert!(text.contains("Action: delayed\r\nStatus: 4.4.1\r\n"));
}

#[test]
fn a_long_or_eight_bit_header_is_cut_and_encoded() {
    let long = b"X-Long: 0123456789012345678901234567890123456789\r\n".repeat(2000);
    let text = report(Action::Failed, EnhancedCode(5, 0, 0), "a@x.org", &long);
    assert!(text.len() < 50_000);
    let text = report(
        Action::Relayed,
        EnhancedCode(2, 0, 0),
        "a@x.org",
        "Subject: 日本\r\n".as_bytes(),
    );
    assert!(text.is_ascii() && text.contains("Content-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDog"));
}
