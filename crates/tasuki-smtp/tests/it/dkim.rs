//! Signatures on the wire, and the life of their keys.

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tasuki_core::store::audit::Actor;
use tasuki_proto::{names::Domain, smtp::dkim::Algorithm};
use tasuki_smtp::{DkimKey, KeyState};

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

const BOTH: [Algorithm; 2] = [Algorithm::RsaSha256, Algorithm::Ed25519Sha256];

fn x_org() -> Domain {
    Domain::parse("x.org").unwrap()
}

/// The values of a signature field, without white space.
fn tag(field: &str, name: &str) -> String {
    let tags = field.split_once(':').unwrap().1.split(';');
    let mut tags = tags.filter_map(|t| t.split_once('='));
    let value = tags.find(|(n, _)| n.trim() == name).unwrap().1;
    value.split_whitespace().collect()
}

/// The signature fields in front of a message, and the rest.
fn split(text: &str) -> (Vec<String>, &str) {
    let (mut fields, mut rest) = (Vec::new(), text);
    while rest.starts_with("DKIM-Signature:") {
        let end = rest.find("\r\n\tb=").unwrap();
        let end = end
            + 2
            + rest[end + 2..]
                .match_indices("\r\n")
                .find(|(at, _)| !rest[end + 2 + at + 2..].starts_with('\t'))
                .unwrap()
                .0
            + 2;
        fields.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    (fields, rest)
}

/// Verifies a signature from the text of RFC 6376 alone: the fields of `h=` from the last one up, then its own.
fn verify(field: &str, header: &str, key: &DkimKey) {
    let mut fields: Vec<String> = Vec::new();
    for line in header.split_inclusive("\r\n") {
        if line.starts_with([' ', '\t']) {
            fields.last_mut().unwrap().push_str(line);
        } else {
            fields.push(line.to_owned());
        }
    }
    let relaxed = |field: &str| {
        let (name, value) = field.split_once(':').unwrap();
        let value: Vec<&str> = value.split_whitespace().collect();
        format!("{}:{}", name.trim().to_lowercase(), value.join(" "))
    };
    let mut input = String::new();
    for name in tag(field, "h").split(':') {
        let at = fields
            .iter()
            .rposition(|f| f.to_lowercase().starts_with(&format!("{name}:")));
        if let Some(at) = at {
            input += &format!("{}\r\n", relaxed(&fields.remove(at)));
        }
    }
    let own = &field[..field.find("\r\n\tb=").unwrap() + 5];
    input += &relaxed(own);
    let value = STANDARD.decode(tag(field, "b")).unwrap();
    let public = STANDARD.decode(tag(&format!("x:{}", key.record), "p")).unwrap();
    if key.algorithm == "ed25519-sha256" {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, input.as_bytes());
        UnparsedPublicKey::new(&ED25519, public)
            .verify(digest.as_ref(), &value)
            .unwrap();
    } else {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
            .verify(input.as_bytes(), &value)
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_mail_is_signed_with_each_key_of_its_domain() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let actor = Actor::gateway("test");
    let keys = house
        .handle
        .dkim_add(x_org(), &BOTH, Some("mail"), &actor)
        .await
        .unwrap();
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["mailr._domainkey.x.org", "maile._domainkey.x.org"]);
    assert!(
        keys[0].record.starts_with("v=DKIM1; k=rsa; p=MIIB"),
        "{}",
        keys[0].record
    );
    assert!(house.handle.dkim_add(x_org(), &BOTH, None, &actor).await.is_err());
    let mut client = house.submission().await;
    // The author's domain is below the one with the keys; the last lines are white space.
    let text = "From: Anna <a@sub.x.org>\r\nSubject: a  long\r\n subject\r\n\r\nbody \t text\r\n..dot\r\n \r\n\t\r\n";
    client.mail("a@x.org", &["b@y.org"], text).await;
    let received = sink.wait(1).await;
    let (fields, message) = split(&received[0].text);
    assert_eq!(fields.len(), 2);
    let (header, body) = message.split_once("\r\n\r\n").unwrap();
    assert!(body.starts_with("body \t text\r\n"));
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"body text\r\n.dot\r\n");
    for (field, key) in fields.iter().zip(&keys) {
        assert_eq!(
            (tag(field, "d"), tag(field, "a")),
            ("x.org".into(), key.algorithm.to_owned())
        );
        assert_eq!(tag(field, "bh"), STANDARD.encode(hash.as_ref()));
        assert!(tag(field, "h").starts_with("from:from:subject:subject:date:date:"));
        verify(field, &format!("{header}\r\n"), key);
    }
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_mail_is_never_signed_whatever_it_claims() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.relay_domains = vec!["y.org".parse().unwrap()]).await;
    let actor = Actor::gateway("test");
    house.handle.dkim_add(x_org(), &BOTH, None, &actor).await.unwrap();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nbuy this")
        .await;
    assert!(sink.wait(1).await[0].text.starts_with("Received:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_mail_is_signed_as_it_stands_in_the_store() {
    let sink = Sink::with(&["PIPELINING", "CHUNKING"], None, Arc::new(|_| None)).await;
    let house = House::with_sink(&sink, |_| {}).await;
    let actor = Actor::gateway("test");
    let keys = house
        .handle
        .dkim_add(x_org(), &BOTH[1..], None, &actor)
        .await
        .unwrap();
    let mut client = house.submission().await;
    let body = "0123456789abcdef 0123456789abcdef\r\n".repeat(20_000);
    client
        .mail("a@x.org", &["b@y.org"], &format!("From: a@x.org\r\n\r\n{body}"))
        .await;
    let received = sink.wait(1).await;
    let (fields, message) = split(&received[0].text);
    let (header, rest) = message.split_once("\r\n\r\n").unwrap();
    let hash = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        format!("{}\r\n", rest.trim_end()).as_bytes(),
    );
    assert_eq!(tag(&fields[0], "bh"), STANDARD.encode(hash.as_ref()));
    verify(&fields[0], &format!("{header}\r\n"), &keys[0]);
    assert!(sink.commands().iter().any(|c| c.starts_with("BDAT ")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_key_puts_mail_off_and_never_sends_it_unsigned() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let actor = Actor::gateway("test");
    house
        .handle
        .dkim_add(x_org(), &BOTH[1..], None, &actor)
        .await
        .unwrap();
    let ring = house.secrets.load("mail.dkim").await.unwrap().unwrap();
    let damaged = String::from_utf8(ring.to_vec())
        .unwrap()
        .replace("\"pkcs8\":\"M", "\"pkcs8\":\"N");
    let entry = |action: &str| actor.entry(house.clock.wall(), action, "mail.dkim", "");
    house
        .secrets
        .replace("mail.dkim", damaged.as_bytes(), entry("damage"))
        .await
        .unwrap();
    let mut client = house.submission().await;
    client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nx")
        .await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    let look = house.look().await;
    assert!(look.errors()[0].contains("is unreadable"), "{:?}", look.errors());
    assert_eq!(house.health.conditions()[0].0, "mail.dkim");
    assert!(sink.received().is_empty());
    house
        .secrets
        .replace("mail.dkim", &ring, entry("repair"))
        .await
        .unwrap();
    house.clock.advance(std::time::Duration::from_secs(120));
    house.handle.retry_now();
    assert!(sink.wait(1).await[0].text.starts_with("DKIM-Signature:"));
    assert!(house.health.conditions().is_empty());
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_keys_sign_once_the_dns_shows_them() {
    let sink = Sink::start().await;
    let (names, hop) = (Names::default(), plain_smarthost(sink.addr));
    let records = Arc::clone(&names.2);
    let house = House::start(names, |c| {
        c.smarthosts = vec![hop];
        c.default_route = "hop".into();
    })
    .await;
    let actor = Actor::gateway("test");
    assert!(house.handle.dkim_rotate(x_org(), false, &actor).await.is_err());
    let first = house
        .handle
        .dkim_add(x_org(), &BOTH[1..], None, &actor)
        .await
        .unwrap();
    let next = house.handle.dkim_rotate(x_org(), false, &actor).await.unwrap();
    assert_eq!(next[0].state, KeyState::Next);
    assert_ne!(first[0].selector, next[0].selector);
    assert!(house.handle.dkim_rotate(x_org(), false, &actor).await.is_err());
    let mut client = house.submission().await;
    client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nx")
        .await;
    assert_eq!(
        tag(&split(&sink.wait(1).await[0].text).0[0], "s"),
        first[0].selector
    );
    // A record in two strings with white space is the same record.
    let record = next[0]
        .record
        .replace("p=", "p= ")
        .replace("k=ed25519", "t=s;k=ed25519");
    records.lock().unwrap().push((next[0].name.clone(), record));
    let after = house.handle.dkim_rotate(x_org(), false, &actor).await.unwrap();
    assert_eq!(
        after.iter().map(|k| k.state).collect::<Vec<_>>(),
        [KeyState::Retired, KeyState::Active]
    );
    let listed = house.handle.dkim_list().await.unwrap();
    assert_eq!(
        listed.iter().map(|(_, p)| *p).collect::<Vec<_>>(),
        [Some(false), Some(true)]
    );
    client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nx")
        .await;
    let received = sink.wait(2).await;
    let (fields, _) = split(&received[1].text);
    assert_eq!(fields.len(), 1);
    assert_eq!(tag(&fields[0], "s"), next[0].selector);
    house.handle.dkim_remove(&x_org(), &actor).await.unwrap();
    client
        .mail("a@x.org", &["b@y.org"], "From: a@x.org\r\n\r\nx")
        .await;
    assert!(sink.wait(3).await[2].text.starts_with("Received:"));
}
