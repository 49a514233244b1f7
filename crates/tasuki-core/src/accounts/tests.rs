#![allow(clippy::unwrap_used)]

use tasuki_proto::names::{Domain, ReversePath};

use super::{Grant, PrincipalKind, Role, secrets};
use crate::clock::Timestamp;
use crate::ids::PrincipalId;
use crate::store::accounts::{CredentialKind, Principal};

fn with(grants: &[&str]) -> Principal {
    Principal {
        id: PrincipalId(1),
        name: "app".to_owned(),
        kind: PrincipalKind::Service,
        role: Role::Viewer,
        grants: grants.iter().map(|g| g.parse().unwrap()).collect(),
        disabled: false,
        created_at: Timestamp(0),
    }
}

fn may_send(grant: &str, sender: &str) -> bool {
    with(&[grant]).may_send_as(&ReversePath::parse(sender).unwrap())
}

#[test]
fn grants_survive_their_text_form() {
    for text in [
        "mail:send:example.com",
        "mail:send:*",
        "mail:send:<>",
        "mail:class:bulk",
        "mail:daily:500",
        "mail:hourly:100",
        "mail:addresses:5",
        "fedi:publish",
        "tunnel:name:mc.example.com",
        "tunnel:default",
        "tunnel:port:25565",
        "tunnel:port:1000-2000",
        "tunnel:udp:19132",
        "tunnel:udp:24454-24460",
    ] {
        assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "mail",
        "mail:send",
        "mail:send:",
        "mail:read:x",
        "mail:class:spam",
        "mail:daily:0",
        "mail:daily:many",
        "tunnel:port:0",
        "tunnel:port:9-8",
        "tunnel:udp:9-8",
        "tunnel:port:70000",
        "tunnel:name:*",
    ] {
        assert!(text.parse::<Grant>().is_err(), "{text}");
    }
}

#[test]
fn a_domain_grant_covers_subdomains_at_label_boundaries() {
    assert!(may_send("mail:send:example.com", "a@example.com"));
    assert!(may_send("mail:send:example.com", "a@lists.EXAMPLE.com"));
    assert!(!may_send("mail:send:example.com", "a@badexample.com"));
    assert!(!may_send("mail:send:example.com", "a@example.com.evil.example"));
    assert!(!may_send("mail:send:example.com", "a@com"));
    assert!(!may_send("mail:send:example.com", "a@[192.0.2.1]"));
    assert!(!may_send("mail:send:example.com", ""));
    assert!(may_send("mail:send:*", "a@[192.0.2.1]"));
    assert!(!may_send("mail:send:*", ""));
    assert!(may_send("mail:send:<>", ""));
    assert!(!may_send("mail:send:<>", "a@example.com"));
    let name = |n: &str| n.parse::<Domain>().unwrap();
    let agent = with(&["tunnel:name:mc.example.com", "tunnel:port:1000-1002"]);
    assert!(agent.may_expose_name(&name("mc.example.com")));
    assert!(agent.may_expose_name(&name("survival.mc.example.com")));
    assert!(!agent.may_expose_name(&name("example.com")));
    assert!(!agent.may_expose_name(&name("notmc.example.com")));
    assert!(agent.may_expose_port(1000) && agent.may_expose_port(1002));
    assert!(!agent.may_expose_port(999) && !agent.may_expose_port(1003));
    assert!(!agent.may_expose_default() && !agent.may_publish() && !agent.may_send());
}

#[test]
fn a_disabled_principal_may_nothing() {
    let mut app = with(&["mail:send:*", "tunnel:default", "fedi:publish"]);
    assert!(app.is_at_least(Role::Viewer) && !app.is_at_least(Role::Operator));
    app.disabled = true;
    assert!(!app.may_send() && !app.may_expose_default() && !app.may_publish());
    assert!(!app.is_at_least(Role::None));
}

#[test]
fn roles_grow_and_survive_their_text_form() {
    assert!(Role::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(Role::ALL.iter().all(|r| r.to_string().parse::<Role>() == Ok(*r)));
}

#[test]
fn generated_secrets_are_random_and_tell_their_kind() {
    for kind in [
        CredentialKind::Token,
        CredentialKind::AppPassword,
        CredentialKind::EnrolCode,
    ] {
        let (one, two) = (secrets::generate(kind), secrets::generate(kind));
        assert!(one != two);
        assert_eq!(one.expose().len(), 30);
        assert_eq!(secrets::kind_of(one.expose()), Some(kind));
    }
    assert_eq!(secrets::kind_of("tsk-password"), None);
    assert_eq!(
        secrets::hash_generated("abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn passwords_are_argon2id_at_the_documented_cost() {
    let phc = secrets::hash_password("correct horse").unwrap();
    assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
    assert!(secrets::verify_password("correct horse", Some(&phc)));
    assert!(!secrets::verify_password("correct hors", Some(&phc)));
    assert!(!secrets::verify_password("correct horse", Some("damaged")));
    assert!(!secrets::verify_password("correct horse", None));
}
