#![allow(clippy::unwrap_used)]

use tasuki_core::{
    Shared,
    accounts::{PrincipalKind, Role},
    ids::PrincipalId,
};
use tasuki_proto::names::Domain;

use super::*;
use crate::config::{DeviceConfig, HeaderConfig, MailConfig, Pattern, SenderConfig, Settings};

fn principal() -> Principal {
    Principal {
        id: PrincipalId(1),
        name: "app".into(),
        kind: PrincipalKind::Service,
        role: Role::None,
        grants: vec!["mail:send:x.org".parse().unwrap()],
        disabled: false,
        created_at: Timestamp(0),
    }
}

fn settings(change: impl FnOnce(&mut MailConfig)) -> Settings {
    let mut config = MailConfig::default();
    config.devices.list.push(DeviceConfig {
        name: "Copier 2F".into(),
        net: vec!["10.0.0.7/32".parse().unwrap()],
        service: "app".into(),
        sender: Mailbox::parse("scan@x.org").unwrap(),
        contact: Mailbox::parse("it@x.org").unwrap(),
        recipients: vec![],
    });
    change(&mut config);
    let shared = Shared {
        host: Some(Domain::parse("relay.example").unwrap()),
        ..Shared::default()
    };
    Settings::new(&config, &shared).unwrap()
}

fn edit(settings: &Settings, who: Option<&Principal>, device: bool, original: &str) -> Result<String, Reply> {
    let trace = Trace {
        helo: "client".into(),
        esmtp: true,
        tls: false,
        login: false,
        smtputf8: false,
        peer: "10.0.0.7:25".parse().unwrap(),
        tls_in_words: None,
        only_recipient: None,
        sender: Some("a@x.org".into()),
    };
    let edit = Edit {
        id: MailId(7),
        accepted_at: Timestamp(0),
        settings,
        trace: &trace,
        principal: who,
        aliased: &[],
        device: settings.device(trace.peer.ip()).filter(|_| device).map(|d| &**d),
    };
    edit.apply(original.as_bytes())
        .map(|edited| edited.text)
        .map(|out| String::from_utf8(out).unwrap())
}

const COMPLETE: &str = "Date: x\r\nMessage-ID: <x>\r\n";

fn lines(text: &str) -> Vec<&str> {
    // Without our Received field, which is three lines or two.
    let fields = text
        .split("\r\n")
        .filter(|l| !l.starts_with(['\t']) && !l.starts_with("Received: "));
    fields
        .filter(|l| !l.is_empty() && !l.starts_with("Date:") && !l.starts_with("Message-ID:"))
        .collect()
}

#[test]
fn a_strangers_header_gets_our_trace_and_nothing_else() {
    let original = "From: a@bank.org\r\nBcc: b@y.org\r\n";
    let text = edit(&settings(|_| {}), None, false, original).unwrap();
    assert!(text.starts_with("Received: from client ([10.0.0.7])\r\n\tby relay.example"));
    assert!(text.ends_with(original), "{text}");
}

#[test]
fn what_is_missing_is_added_and_bcc_is_taken_out() {
    let me = principal();
    let plain = settings(|_| {});
    let text = edit(
        &plain,
        Some(&me),
        false,
        "Bcc: b@y.org,\r\n c@y.org\r\nSubject: s\r\nbcc: d@y.org\r\n",
    )
    .unwrap();
    for field in [
        "From: <a@x.org>\r\n",
        "Date: Thu, 01 Jan 1970",
        "Message-ID: <",
        "Subject: s\r\n",
    ] {
        assert!(text.contains(field), "{text}");
    }
    assert!(!text.contains("y.org"), "{text}");
    let complete = format!("{COMPLETE}From: a@x.org\r\n");
    let text = edit(&plain, Some(&me), false, &complete).unwrap();
    assert!(text.ends_with(&complete), "{text}");
}

#[test]
fn a_network_and_a_login_write_only_as_what_they_were_granted() {
    let me = principal();
    for from in ["a@bank.org", "a@x.org, b@bank.org", "\"a@x.org\" <a@bank.org>"] {
        let original = format!("{COMPLETE}From: {from}\r\n");
        assert_eq!(
            edit(&settings(|_| {}), Some(&me), false, &original)
                .unwrap_err()
                .code,
            550
        );
    }
}

#[test]
fn configured_fields_come_and_go() {
    let me = principal();
    let settings = settings(|c| {
        c.rewrite.remove_headers = vec!["X-Originating-IP".into()];
        c.rewrite.add_headers = vec![HeaderConfig {
            name: "X-Relay".into(),
            value: "yes".into(),
        }];
        c.rewrite.hide_client = true;
    });
    let original = format!("{COMPLETE}From: a@x.org\r\nx-originating-ip: 10.0.0.7\r\nSubject: s\r\n");
    let text = edit(&settings, Some(&me), false, &original).unwrap();
    assert!(text.starts_with("Received: by relay.example (Tasuki)"), "{text}");
    assert!(!text.contains("10.0.0.7"), "{text}");
    assert_eq!(lines(&text), ["X-Relay: yes", "From: a@x.org", "Subject: s"]);
    // Not for mail that others send to us.
    let text = edit(&settings, None, false, &original).unwrap();
    assert!(
        text.contains("from client") && text.ends_with(&original),
        "{text}"
    );
}

#[test]
fn senders_are_rewritten_into_what_is_granted_only() {
    let me = principal();
    let senders = |to: &str| {
        let to = Mailbox::parse(to).unwrap();
        settings(|c| {
            c.rewrite.senders = vec![SenderConfig {
                from: Pattern::try_from("@host.internal".to_owned()).unwrap(),
                to,
            }];
        })
    };
    for (from, expect) in [
        ("root@host.internal", "From: <ops@x.org>"),
        ("Root <root@host.internal>", "From: Root <ops@x.org>"),
        (
            "\"root@host.internal\" <ROOT@host.internal>",
            "From: \"root@host.internal\" <ops@x.org>",
        ),
        ("b@x.org", "From: b@x.org"),
    ] {
        let original = format!("{COMPLETE}From: {from}\r\n");
        let text = edit(&senders("ops@x.org"), Some(&me), false, &original).unwrap();
        assert_eq!(lines(&text), [expect]);
    }
    let original = format!("{COMPLETE}From: root@host.internal\r\n");
    assert!(edit(&senders("ops@bank.org"), Some(&me), false, &original).is_err());
}

#[test]
fn a_device_keeps_an_owned_from_and_answers_reach_who_scanned() {
    let me = principal();
    let settings = settings(|_| {});
    for (original, expect) in [
        ("From: b@x.org\r\n", vec!["From: b@x.org"]),
        (
            "From: Boss <boss@bank.org>\r\n",
            vec!["From: \"Copier 2F\" <scan@x.org>", "Reply-To: boss@bank.org"],
        ),
        (
            "From: boss@bank.org\r\nReply-To: c@y.org\r\n",
            vec!["From: \"Copier 2F\" <scan@x.org>", "Reply-To: c@y.org"],
        ),
        (
            "Subject: s\r\n",
            vec!["From: \"Copier 2F\" <scan@x.org>", "Subject: s"],
        ),
        ("From: copier\r\n", vec!["From: \"Copier 2F\" <scan@x.org>"]),
        (
            "From: a@x.org, b@bank.org\r\n",
            vec![
                "From: \"Copier 2F\" <scan@x.org>",
                "Reply-To: a@x.org, b@bank.org",
            ],
        ),
    ] {
        let text = edit(&settings, Some(&me), true, original).unwrap();
        assert_eq!(lines(&text), expect, "{original}");
    }
}
