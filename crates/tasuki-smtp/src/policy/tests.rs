#![allow(clippy::unwrap_used)]

use tasuki_core::{
    Shared,
    accounts::{PrincipalKind, Role as AdminRole},
    acl::{Effect, Origin, RuleSpec},
    clock::Timestamp,
    ids::PrincipalId,
};

use super::*;
use crate::config::MailConfig;

fn principal(grants: &[&str]) -> Principal {
    Principal {
        id: PrincipalId(1),
        name: "app".into(),
        kind: PrincipalKind::Service,
        role: AdminRole::None,
        grants: grants.iter().map(|g| g.parse().unwrap()).collect(),
        disabled: false,
        created_at: Timestamp(0),
    }
}

fn settings() -> Settings {
    let config = MailConfig {
        relay_domains: vec![Domain::parse("ours.example").unwrap()],
        postmaster: Some(Mailbox::parse("boss@elsewhere.example").unwrap()),
        ..MailConfig::default()
    };
    let shared = Shared {
        host: Some(Domain::parse("relay.example").unwrap()),
        ..Shared::default()
    };
    Settings::new(&config, &shared).unwrap()
}

fn client(role: Role, principal: Option<&Principal>) -> Client<'_> {
    Client {
        role,
        from: "192.0.2.1".parse().ok(),
        principal,
        device: None,
    }
}

fn relays(client: &Client<'_>, to: &str, acl: &Acl) -> bool {
    may_relay_to(client, &Mailbox::parse(to).unwrap(), &settings(), acl).is_ok()
}

#[test]
fn a_sender_must_be_owned() {
    let app = principal(&["mail:send:x.org"]);
    let table = [
        ("a@x.org", true),
        ("a@sub.x.org", true),
        ("a@badx.org", false),
        ("a@y.org", false),
        ("a@[192.0.2.1]", false),
        ("", false),
    ];
    for (sender, allowed) in table {
        let answer = may_send_as(
            &client(Role::Submission, Some(&app)),
            &ReversePath::parse(sender).unwrap(),
        );
        assert_eq!(answer.is_ok(), allowed, "{sender}");
    }
    let any = principal(&["mail:send:*"]);
    assert!(
        may_send_as(
            &client(Role::Submission, Some(&any)),
            &ReversePath::parse("a@y.org").unwrap()
        )
        .is_ok()
    );
    assert!(may_send_as(&client(Role::Submission, Some(&any)), &ReversePath::Null).is_err());
    let bounces = principal(&["mail:send:<>"]);
    assert!(may_send_as(&client(Role::Submission, Some(&bounces)), &ReversePath::Null).is_ok());
    assert_eq!(
        may_send_as(&client(Role::Submission, None), &ReversePath::Null),
        Err(LOGIN_FIRST)
    );
    assert_eq!(
        may_send_as(&client(Role::Submissions, None), &ReversePath::Null),
        Err(LOGIN_FIRST)
    );
    assert!(may_send_as(&client(Role::Relay, None), &ReversePath::Null).is_ok());
}

#[test]
fn strangers_reach_relay_domains_only() {
    let stranger = client(Role::Relay, None);
    let acl = Acl::new();
    for (to, allowed) in [
        ("b@ours.example", true),
        ("b@sub.ours.example", true),
        ("postmaster@relay.example", true),
        ("root@relay.example", false),
        ("b@notours.example", false),
        ("b@elsewhere.example", false),
        ("b%elsewhere.example@ours.example", false),
        ("elsewhere.example!b@ours.example", false),
        ("\"b@elsewhere.example\"@ours.example", false),
        ("b@[192.0.2.9]", false),
    ] {
        assert_eq!(relays(&stranger, to, &acl), allowed, "{to}");
    }
}

#[test]
fn rules_come_before_everything() {
    let app = principal(&["mail:send:*"]);
    let rule = |effect, from: &str, domain: Option<&str>| RuleSpec {
        effect,
        engine: None,
        action: Some(Action::Relay),
        from: vec![from.parse().unwrap()],
        principal: None,
        domain: domain.map(|d| Domain::parse(d).unwrap()),
        reason: String::new(),
    };
    let acl = Acl::new();
    acl.replace(vec![
        (
            Origin::File(1),
            rule(Effect::Deny, "0.0.0.0/0", Some("rival.example")),
        ),
        (Origin::File(2), rule(Effect::Allow, "192.0.2.0/24", None)),
    ]);
    assert!(!relays(
        &client(Role::Submission, Some(&app)),
        "b@rival.example",
        &acl
    ));
    assert!(relays(&client(Role::Relay, None), "b@elsewhere.example", &acl));
    assert!(relays(
        &client(Role::Submission, Some(&app)),
        "b@elsewhere.example",
        &Acl::new()
    ));
}

#[test]
fn an_author_must_be_owned() {
    let app = principal(&["mail:send:x.org"]);
    let check = |text: &str| may_author(&app, &header::Header::parse(text.as_bytes())).is_ok();
    assert!(check("From: A <a@x.org>\r\n"));
    assert!(check("Subject: none\r\n"));
    assert!(!check("From: \"a@x.org\" <a@bank.org>\r\n"));
    assert!(!check("From: a@x.org, b@bank.org\r\n"));
    assert!(!check("From: a@x.org\r\nFrom: b@bank.org\r\n"));
}
