//! Stolen passwords, floods from one network, and trust that reaches too far: over a real socket.

use std::{net::IpAddr, time::Duration};

use base64::Engine as _;
use futures_util::future::join_all;
use tasuki_core::{
    accounts::{Role, Terms},
    events::What,
    health::Code,
    seal::Secret,
    store::audit::Actor,
};
use tasuki_smtp::{MailConfig, NetworkConfig};
use tokio::net::TcpStream;

use crate::{sink::Sink, support::House, talk::Talk};

const PASSWORD: &str = "correct horse battery";

async fn hanako(house: &House, grants: &[&str]) {
    let actor = Actor::gateway("test");
    let grants = grants.iter().map(|g| g.parse().unwrap()).collect();
    let password = Secret::new(PASSWORD.to_owned());
    house
        .accounts
        .create_person("hanako", &password, Role::None, grants, &actor)
        .await
        .unwrap();
}

/// Clients on loopback come through a load balancer that says where they are from.
fn proxied(config: &mut MailConfig) {
    config.proxy_protocol_from = vec!["127.0.0.1/32".parse().unwrap()];
    config.relay.greet_pause = Duration::ZERO;
}

/// A session from this address.
async fn from(house: &House, ip: &str) -> Talk<TcpStream> {
    house
        .proxied(format!("PROXY TCP4 {ip} 192.0.2.1 77 25\r\n").as_bytes())
        .await
}

/// Logs in from there; the reply.
async fn login_from(house: &House, ip: &str, password: &str) -> String {
    let mut talk = from(house, ip).await;
    talk.expect("EHLO c", "250").await;
    talk.expect("STARTTLS", "220").await;
    let mut talk = talk.start_tls(&house.tls).await;
    talk.expect("EHLO c", "250").await;
    let text = base64::engine::general_purpose::STANDARD.encode(format!("\0hanako\0{password}"));
    talk.ask(&format!("AUTH PLAIN {text}")).await
}

async fn is_disabled(house: &House) -> bool {
    house.accounts.by_name("hanako").await.unwrap().unwrap().disabled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_used_from_too_many_addresses_locks_its_account() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        proxied(c);
        c.limits.addresses_per_hour = 3;
    })
    .await;
    hanako(&house, &["mail:send:x.org"]).await;
    let mut events = house.events.subscribe();
    for ip in ["198.51.100.1", "198.51.100.2", "198.51.100.1", "198.51.100.3"] {
        let reply = login_from(&house, ip, PASSWORD).await;
        assert!(reply.starts_with("235"), "{ip}: {reply}");
    }
    // The fourth address is one too many, and looks like a wrong password; then nobody gets in from anywhere.
    for ip in ["203.0.113.9", "198.51.100.1"] {
        let reply = login_from(&house, ip, PASSWORD).await;
        assert!(reply.starts_with("535 5.7.8"), "{ip}: {reply}");
    }
    assert!(is_disabled(&house).await);
    let told = async {
        loop {
            if let What::PrincipalLocked { name, reason, .. } = events.recv().await.unwrap().what {
                return (name, reason);
            }
        }
    };
    let (name, reason) = tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    assert_eq!(name, "hanako");
    assert!(
        reason.contains("4 addresses") && !reason.contains("203.0.113.9"),
        "{reason}"
    );
    let locks = house.accounts.locks().await.unwrap();
    assert_eq!((locks.len(), locks[0].name.as_str()), (1, "hanako"));
    // Whoever lets her in again ends the lock, and the count begins anew.
    let actor = Actor::gateway("test");
    house
        .accounts
        .set_disabled("hanako", false, &actor)
        .await
        .unwrap();
    assert!(house.accounts.locks().await.unwrap().is_empty());
    for ip in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
        let reply = login_from(&house, ip, PASSWORD).await;
        assert!(reply.starts_with("235"), "{ip}: {reply}");
    }
    // Who travels is given more.
    let grants = ["mail:send:x.org", "mail:addresses:5"]
        .map(|g| g.parse().unwrap())
        .to_vec();
    house.accounts.set_grants("hanako", grants, &actor).await.unwrap();
    for ip in ["203.0.113.9", "203.0.113.10"] {
        let reply = login_from(&house, ip, PASSWORD).await;
        assert!(reply.starts_with("235"), "{ip}: {reply}");
    }
    assert!(!is_disabled(&house).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_hourly_cap_a_person_waits_and_who_goes_on_is_locked_in_the_middle_of_a_session() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.limits.recipients_per_hour = 5;
        c.max_recipients = 1000;
        c.limits.recipients_per_day = 0;
    })
    .await;
    hanako(&house, &["mail:send:x.org"]).await;
    let mut client = house.login("hanako", PASSWORD).await;
    client.expect("MAIL FROM:<h@x.org>", "250").await;
    for n in 0..5 {
        client.expect(&format!("RCPT TO:<r{n}@y.org>"), "250").await;
    }
    client
        .expect(
            "RCPT TO:<r5@y.org>",
            "451 4.7.1 the hourly cap of 5 recipients is reached, it is free again at ",
        )
        .await;
    client.expect("RSET", "250").await;
    // An hour later it is.
    house.clock.advance(Duration::from_secs(3600));
    let reply = client.mail("h@x.org", &["a@y.org"], "Subject: 1\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    assert!(!is_disabled(&house).await);
    // A thief does not wait. Errors of its own end a session, so it comes again and again.
    let mut said = String::new();
    for _ in 0..40 {
        let mut thief = house.secured().await;
        thief.expect("EHLO c", "250").await;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("\0hanako\0{PASSWORD}"));
        said = thief.ask(&format!("AUTH PLAIN {text}")).await;
        if !said.starts_with("235") {
            break;
        }
        thief.expect("MAIL FROM:<h@x.org>", "250").await;
        for n in 0..9 {
            let reply = thief.ask(&format!("RCPT TO:<v{n}@y.org>")).await;
            if reply.starts_with("421 4.7.0") {
                break;
            }
            assert!(
                reply.starts_with("250") || reply.starts_with("451 4.7.1"),
                "{reply}"
            );
        }
    }
    assert!(said.starts_with("535"), "{said}");
    assert!(is_disabled(&house).await);
    // A session from before goes no further.
    client.expect("MAIL FROM:<h@x.org>", "421 4.7.0").await;
    // A service has its own caps only, and its queue that tries again is no thief.
    let password = house.service("news", &["mail:send:x.org", "mail:hourly:2"]).await;
    for _ in 0..15 {
        let mut client = house.login("news", &password).await;
        client.expect("MAIL FROM:<n@x.org>", "250").await;
        for n in 0..9 {
            let reply = client.ask(&format!("RCPT TO:<v{n}@y.org>")).await;
            assert!(
                reply.starts_with("250") || reply.starts_with("451 4.7.1 the hourly cap of 2"),
                "{reply}"
            );
        }
    }
    assert!(!house.accounts.by_name("news").await.unwrap().unwrap().disabled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_guessers_of_one_password_are_no_faster_than_one_and_its_owner_still_gets_in() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, proxied).await;
    hanako(&house, &["mail:send:x.org"]).await;
    let reply = login_from(&house, "198.51.100.1", PASSWORD).await;
    assert!(reply.starts_with("235"), "{reply}");
    // Each from a network of its own, so that nobody is banned; in the form of app passwords, which cost no time to check.
    // A hundred at once are heard: each waits for its refusal, as one guesser would.
    let guess = async |n: u8| login_from(&house, &format!("100.{n}.1.1"), &format!("tsp_{n:026}")).await;
    for reply in join_all((0..99).map(guess)).await {
        assert!(reply.starts_with("535"), "{reply}");
    }
    let mut slowed = String::new();
    for n in 99..110 {
        slowed = guess(n).await;
        if !slowed.starts_with("535") {
            break;
        }
    }
    assert!(slowed.starts_with("421 4.7.0"), "{slowed}");
    // A right one that was not used lately, so that nothing of it is remembered.
    let actor = Actor::gateway("test");
    let made = house
        .accounts
        .new_app_password("hanako", Terms::default(), &actor)
        .await;
    let (_, fresh) = made.unwrap();
    let reply = login_from(&house, "203.0.113.200", fresh.expose()).await;
    assert!(reply.starts_with("421"), "a stranger waits: {reply}");
    let reply = login_from(&house, "198.51.100.1", fresh.expose()).await;
    assert!(reply.starts_with("235"), "she is known there: {reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted_by_address_and_by_prefix() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        proxied(c);
        c.limits.connections_per_address = 2;
        c.limits.connections_per_prefix = 3;
    })
    .await;
    let banner = async |ip: &str, family: &str| {
        let header = format!(
            "PROXY {family} {ip} {} 77 25\r\n",
            if family == "TCP4" {
                "192.0.2.1"
            } else {
                "2001:db8::"
            }
        );
        house.banner_behind(header.as_bytes()).await
    };
    for (family, ips, neighbour, elsewhere) in [
        (
            "TCP4",
            [
                "198.51.100.1",
                "198.51.100.1",
                "198.51.100.1",
                "198.51.100.2",
                "198.51.100.3",
            ],
            "198.51.100.4",
            "198.51.101.1",
        ),
        (
            "TCP6",
            [
                "2001:db8:1:1::1",
                "2001:db8:1:1::2",
                "2001:db8:1:1::3",
                "2001:db8:1:2::1",
                "2001:db8:1:3::1",
            ],
            "2001:db8:1:4::1",
            "2001:db8:2::1",
        ),
    ] {
        // Two of one address, one of its neighbour: the third of the address and the fourth of the prefix are too many.
        let mut open = Vec::new();
        for (ip, welcome) in ips.into_iter().zip([true, true, false, true, false]) {
            let (talk, said) = banner(ip, family).await;
            assert_eq!(said.starts_with("220"), welcome, "{ip}: {said}");
            assert!(welcome || said.starts_with("421 4.7.0"), "{ip}: {said}");
            open.push(talk);
        }
        let (_, said) = banner(elsewhere, family).await;
        assert!(said.starts_with("220"), "{elsewhere}: {said}");
        drop(open);
        house
            .until("there is room again", |look| look.figure("sessions_open") == 0)
            .await;
        let (_, said) = banner(neighbour, family).await;
        assert!(said.starts_with("220"), "{neighbour}: {said}");
        house
            .until("it is over", |look| look.figure("sessions_open") == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_address_that_stands_for_many_machines_is_warned_of() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.mynetworks = vec![NetworkConfig {
            net: "127.0.0.0/8".parse().unwrap(),
            service: "office".into(),
        }];
    })
    .await;
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let warned = || {
        let conditions = house.health.conditions();
        let mut trust = conditions.into_iter().filter(|(_, c)| c.code == Code::Trust);
        trust.next().map(|(_, c)| c.sentence)
    };
    for n in 0..10 {
        assert_eq!(warned(), None, "{n} names are not many");
        let mut client = house.relay().await;
        client.expect(&format!("EHLO client{n}.example"), "250").await;
        client.expect("MAIL FROM:<a@x.org>", "250").await;
    }
    let sentence = warned().unwrap();
    assert!(
        sentence.contains(&local.to_string()) && sentence.contains("mynetworks"),
        "{sentence}"
    );
}
