//! SCRAM over a real TLS session, by a client of these tests.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tasuki_core::{
    accounts::{Role, Scope, Terms},
    seal::Secret,
    store::audit::Actor,
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::{sink::Sink, support::House, talk::Talk};

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message).as_ref().to_vec()
}

/// Logs in; the last reply. `binding` is what the client says it is bound to.
async fn login(
    client: &mut Talk<TlsStream<TcpStream>>,
    name: &str,
    secret: &str,
    binding: Option<(&str, Vec<u8>)>,
) -> String {
    let (mechanism, header) = match &binding {
        Some((kind, _)) => ("SCRAM-SHA-256-PLUS", format!("p={kind},,")),
        None => ("SCRAM-SHA-256", "n,,".to_owned()),
    };
    let binding = binding.map(|(_, data)| data);
    let bare = format!("n={name},r=fyko+d2lbbFgONRv9qkxdawL");
    let first = STANDARD.encode(format!("{header}{bare}"));
    let reply = client.ask(&format!("AUTH {mechanism} {first}")).await;
    let Some(challenge) = reply.strip_prefix("334 ") else {
        return reply;
    };
    let server_first = String::from_utf8(STANDARD.decode(challenge).unwrap()).unwrap();
    let mut parts = server_first.split(',');
    let nonce = parts.next().unwrap();
    let salt = STANDARD
        .decode(parts.next().unwrap().strip_prefix("s=").unwrap())
        .unwrap();
    let iterations: NonZeroU32 = parts.next().unwrap().strip_prefix("i=").unwrap().parse().unwrap();
    let mut salted = [0; 32];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        &salt,
        secret.as_bytes(),
        &mut salted,
    );
    let client_key = mac(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, &client_key);
    let bound = [header.as_bytes(), binding.as_deref().unwrap_or_default()].concat();
    let without_proof = format!("c={},{nonce}", STANDARD.encode(bound));
    let message = format!("{bare},{server_first},{without_proof}");
    let signature = mac(stored_key.as_ref(), message.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    let last = format!("{without_proof},p={}", STANDARD.encode(proof));
    let reply = client.ask(&STANDARD.encode(last)).await;
    let Some(server_final) = reply.strip_prefix("334 ") else {
        return reply;
    };
    // The server must know the secret too.
    let expected = mac(&mac(&salted, b"Server Key"), message.as_bytes());
    let expected = format!("v={}", STANDARD.encode(expected));
    assert_eq!(STANDARD.decode(server_final).unwrap(), expected.as_bytes());
    client.ask("").await
}

/// What the client sees of its TLS session.
fn seen(client: &Talk<TlsStream<TcpStream>>, kind: &str) -> Vec<u8> {
    let (_, tls) = client.stream().get_ref();
    if kind == "tls-server-end-point" {
        // The private CA signs with ECDSA and SHA-256.
        let leaf = &tls.peer_certificates().unwrap()[0];
        return digest::digest(&digest::SHA256, leaf).as_ref().to_vec();
    }
    tls.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", Some(b""))
        .unwrap()
}

async fn secured(house: &House) -> Talk<TlsStream<TcpStream>> {
    let mut client = house.secured().await;
    let offers = client.expect("EHLO c", "250").await;
    assert!(
        offers.contains("AUTH PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS"),
        "{offers}"
    );
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_password_logs_in_without_crossing_the_wire() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    for kind in [None, Some("tls-exporter"), Some("tls-server-end-point")] {
        let mut client = secured(&house).await;
        let binding = kind.map(|kind| (kind, seen(&client, kind)));
        let reply = login(&mut client, "app", &house.password, binding).await;
        assert!(reply.starts_with("235"), "{reply}");
        let reply = client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        assert!(reply.starts_with("250"), "{reply}");
        client.expect("MAIL FROM:<a@bank.org>", "550 5.7.1").await;
    }
    sink.wait(3).await;
    // Somebody in between ends TLS and begins it again: the two sessions see other octets.
    for kind in ["tls-exporter", "tls-server-end-point", "tls-unique"] {
        let mut client = secured(&house).await;
        let other = vec![7; 32];
        let reply = login(&mut client, "app", &house.password, Some((kind, other))).await;
        assert!(reply.starts_with("535"), "{kind}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_knows_app_passwords_only_and_only_while_they_are_good() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let actor = Actor::gateway("test");
    let own = Secret::new("correct horse battery".to_owned());
    let grants = vec!["mail:send:x.org".parse().unwrap()];
    house
        .accounts
        .create_person("hanako", &own, Role::None, grants, &actor)
        .await
        .unwrap();
    let terms = |scope: &str| Terms {
        scope: scope.parse::<Scope>().unwrap(),
        ..Terms::labelled("phone")
    };
    let make = |scope: &'static str| house.accounts.new_app_password("hanako", terms(scope), &actor);
    let (phone, phone_secret) = make("").await.unwrap();
    let (_, tablet_secret) = make("").await.unwrap();
    let (_, tunnel_secret) = make("tunnel").await.unwrap();
    for (name, secret, expect) in [
        ("hanako", phone_secret.expose(), "235"),
        ("hanako", tablet_secret.expose(), "235"),
        ("HANAKO", tablet_secret.expose(), "235"),
        ("hanako", own.expose(), "535"),
        ("hanako", tunnel_secret.expose(), "535"),
        ("nobody", phone_secret.expose(), "535"),
        ("app", phone_secret.expose(), "535"),
    ] {
        let mut client = secured(&house).await;
        let reply = login(&mut client, name, secret, None).await;
        assert!(reply.starts_with(expect), "{name}: {reply}");
    }
    // Her own password logs in as ever.
    house.login("hanako", own.expose()).await;
    // Revoked is revoked, and takes its shadow with it.
    house
        .accounts
        .remove_credential(phone.id, "phone", &actor)
        .await
        .unwrap();
    let left = house.accounts.credentials("hanako").await.unwrap();
    assert_eq!(left.len(), 1 + 2 + 2, "{left:?}");
    for (secret, expect) in [(&phone_secret, "535"), (&tablet_secret, "235")] {
        let mut client = secured(&house).await;
        let reply = login(&mut client, "hanako", secret.expose(), None).await;
        assert!(reply.starts_with(expect), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_can_be_switched_off() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.scram = false).await;
    let mut client = house.secured().await;
    let offers = client.expect("EHLO c", "250").await;
    assert!(offers.contains("AUTH PLAIN LOGIN\n"), "{offers}");
    let reply = login(&mut client, "app", &house.password, None).await;
    assert!(reply.starts_with("504"), "{reply}");
}
