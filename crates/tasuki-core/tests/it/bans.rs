use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::bans::{BanError, Bans, Exempt, Offence, Standing};
use tasuki_core::clock::Clock;
use tasuki_core::engine::EngineKind::{self, Fediverse, Mail, Tunnel};
use tasuki_core::events::{EventBus, What};
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::{Actor, StoreError};

use crate::fakes::FakeStore;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

struct House {
    store: Arc<FakeStore>,
    clock: Clock,
    events: EventBus,
    bans: Bans,
}

fn house() -> House {
    let store = Arc::new(FakeStore::default());
    let clock = Clock::adjustable();
    let events = EventBus::new(clock.clone());
    let bans = Bans::new(store.clone(), clock.clone(), events.clone());
    House {
        store,
        clock,
        events,
        bans,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl House {
    fn guess(&self, engine: EngineKind, from: &str, times: u64) {
        for secret_hash in 0..times {
            self.bans
                .offence(engine, ip(from), Offence::WrongSecret { secret_hash });
        }
    }

    fn repeat(&self, engine: EngineKind, from: &str, what: Offence, times: u32) {
        for _ in 0..times {
            self.bans.offence(engine, ip(from), what);
        }
    }

    fn is_banned(&self, engine: EngineKind, from: &str) -> bool {
        matches!(self.bans.standing(engine, ip(from)), Standing::Banned(_))
    }

    /// Waits until the store holds `count` bans, ended ones too.
    async fn stored(&self, count: usize) {
        let there = async {
            while self.store.data().unwrap().bans.len() < count {
                self.store.changed.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), there)
            .await
            .unwrap();
    }
}

#[test]
fn the_same_wrong_secret_counts_once_and_different_ones_ban_the_address_in_that_engine() {
    let house = house();
    for _ in 0..1_000 {
        let what = Offence::WrongSecret { secret_hash: 7 };
        house.bans.offence(Mail, ip("203.0.113.9"), what);
    }
    assert_eq!(house.bans.standing(Mail, ip("203.0.113.9")), Standing::Clear);
    house.guess(Mail, "203.0.113.9", 10);
    assert!(house.is_banned(Mail, "203.0.113.9"));
    assert!(house.is_banned(Mail, "::ffff:203.0.113.9"));
    assert!(!house.is_banned(Fediverse, "203.0.113.9"));
    assert!(!house.is_banned(Tunnel, "203.0.113.9"));
    assert!(!house.is_banned(Mail, "203.0.113.10"));
    house.clock.advance(10 * MINUTE);
    assert!(!house.is_banned(Mail, "203.0.113.9"));
}

#[test]
fn nine_wrong_secrets_an_hour_are_a_person() {
    let house = house();
    for _ in 0..5 {
        house.guess(Mail, "203.0.113.9", 9);
        assert!(!house.is_banned(Mail, "203.0.113.9"));
        house.clock.advance(60 * MINUTE);
    }
}

#[test]
fn an_attack_counts_in_all_engines_but_for_the_single_address() {
    let house = house();
    house.repeat(Mail, "203.0.113.9", Offence::RelayProbe, 5);
    for engine in EngineKind::ALL {
        assert!(house.is_banned(engine, "203.0.113.9"), "{engine}");
        assert!(!house.is_banned(engine, "203.0.113.10"), "{engine}");
    }
}

#[test]
fn many_names_that_do_not_exist_are_a_spray() {
    let house = house();
    for name_hash in 0..10 {
        house
            .bans
            .offence(Mail, ip("203.0.113.9"), Offence::UnknownName { name_hash });
    }
    assert!(house.is_banned(Tunnel, "203.0.113.9"));
}

#[test]
fn the_prefix_is_banned_when_several_of_its_addresses_offended() {
    let house = house();
    house.guess(Mail, "203.0.113.1", 10);
    house.guess(Mail, "203.0.113.2", 10);
    assert!(!house.is_banned(Mail, "203.0.113.200"));
    house.guess(Mail, "203.0.113.3", 10);
    assert!(house.is_banned(Mail, "203.0.113.200"));
    assert!(!house.is_banned(Tunnel, "203.0.113.200"));
    assert!(!house.is_banned(Mail, "203.0.114.1"));
}

#[test]
fn the_same_address_again_and_again_does_not_condemn_its_neighbours() {
    let house = house();
    for _ in 0..6 {
        house.guess(Mail, "203.0.113.1", 10);
        house.clock.advance(11 * MINUTE);
    }
    assert!(!house.is_banned(Mail, "203.0.113.2"));
}

#[test]
fn an_ipv6_customer_is_banned_as_a_whole() {
    let house = house();
    for secret_hash in 0..10 {
        let from = ip(&format!("2001:db8:1:2::{secret_hash:x}"));
        house
            .bans
            .offence(Mail, from, Offence::WrongSecret { secret_hash });
    }
    assert!(house.is_banned(Mail, "2001:db8:1:2:ffff::1"));
    assert!(!house.is_banned(Mail, "2001:db8:1:3::1"));
}

#[test]
fn loopback_and_exempt_networks_are_never_banned() {
    let house = house();
    house.bans.set_exempt([
        Exempt::from("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap()),
        Exempt {
            net: "198.51.100.0/24".parse().unwrap(),
            engine: Some(Mail),
            why: "mail.devices".to_owned(),
        },
    ]);
    for from in [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "192.0.2.7",
        "198.51.100.7",
    ] {
        house.repeat(Mail, from, Offence::RelayProbe, 500);
        assert_eq!(house.bans.standing(Mail, ip(from)), Standing::Clear, "{from}");
    }
    house.repeat(Tunnel, "198.51.100.7", Offence::Scan, 500);
    assert!(house.is_banned(Tunnel, "198.51.100.7"));
    assert!(!house.is_banned(Mail, "198.51.100.7"));
    // Also not by the ban of the prefix around it.
    for last in 1..=3 {
        house.repeat(
            Fediverse,
            &format!("198.51.100.{last}"),
            Offence::BadSignature,
            60,
        );
    }
    assert!(house.is_banned(Fediverse, "198.51.100.99"));
    assert!(!house.is_banned(Mail, "198.51.100.99"));
}

#[test]
fn a_rule_that_lets_everybody_in_does_not_switch_the_bans_off() {
    let house = house();
    house
        .bans
        .set_exempt(["0.0.0.0/0", "::/0"].map(|net| net.parse::<ipnet::IpNet>().unwrap()));
    house.repeat(Mail, "203.0.113.9", Offence::RelayProbe, 5);
    assert!(house.is_banned(Mail, "203.0.113.9"));
}

#[test]
fn a_proven_address_is_slowed_more_and_more_and_never_banned() {
    let house = house();
    house.bans.proved(ip("203.0.113.9"));
    house.guess(Mail, "203.0.113.9", 10);
    let slowed = |s: u64| Standing::Slowed(Duration::from_secs(s));
    assert_eq!(house.bans.standing(Mail, ip("203.0.113.9")), slowed(2));
    house.guess(Mail, "203.0.113.9", 10);
    assert_eq!(house.bans.standing(Mail, ip("203.0.113.9")), slowed(4));
    house.repeat(Mail, "203.0.113.9", Offence::RelayProbe, 100);
    assert!(!house.is_banned(Mail, "203.0.113.9"));
    house.clock.advance(31 * DAY);
    house.guess(Mail, "203.0.113.9", 10);
    assert!(house.is_banned(Mail, "203.0.113.9"));
}

#[tokio::test]
async fn bans_are_stored_announced_and_longer_each_time() {
    let house = house();
    let shutdown = Shutdown::new(Duration::from_secs(10));
    house.bans.start(&shutdown).await.unwrap();
    let mut events = house.events.subscribe();
    for (round, minutes) in [10, 40, 160].into_iter().enumerate() {
        house.guess(Mail, "203.0.113.9", 10);
        house.stored(round + 1).await;
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv())
            .await
            .unwrap();
        let What::Banned { net, until, reason } = event.unwrap().what else {
            panic!("not a ban");
        };
        assert_eq!(net.to_string(), "203.0.113.9/32");
        assert!(reason.contains("wrong logins"), "{reason}");
        let data = house.store.data().unwrap();
        let ban = data.bans.last().unwrap();
        assert_eq!(ban.until.unwrap().since(ban.since), minutes * MINUTE);
        assert_eq!(ban.until, Some(until));
        assert_eq!(data.audit.last().unwrap().action, "ban.add");
        drop(data);
        house.clock.advance(minutes * MINUTE - MINUTE);
        assert!(house.is_banned(Mail, "203.0.113.9"));
        house.clock.advance(2 * MINUTE);
        assert!(!house.is_banned(Mail, "203.0.113.9"));
    }
    shutdown.begin();
    assert_eq!(shutdown.drained().await, 0);
}

#[tokio::test]
async fn what_was_ordered_before_the_shutdown_is_stored() {
    let house = house();
    let shutdown = Shutdown::new(Duration::from_secs(10));
    house.bans.start(&shutdown).await.unwrap();
    house.guess(Mail, "203.0.113.9", 10);
    house.bans.proved(ip("198.51.100.1"));
    shutdown.begin();
    assert_eq!(shutdown.drained().await, 0);
    let data = house.store.data().unwrap();
    assert_eq!((data.bans.len(), data.proved.len()), (1, 1));
}

#[tokio::test]
async fn bans_and_proofs_survive_a_restart_and_reach_other_gateways() {
    let house = house();
    let shutdown = Shutdown::new(Duration::from_secs(10));
    house.bans.start(&shutdown).await.unwrap();
    let other = Bans::new(
        house.store.clone(),
        house.clock.clone(),
        EventBus::new(house.clock.clone()),
    );
    house.bans.proved(ip("198.51.100.1"));
    house.guess(Mail, "203.0.113.9", 10);
    house.guess(Mail, "198.51.100.1", 10);
    house.stored(1).await;
    assert_eq!(other.standing(Mail, ip("203.0.113.9")), Standing::Clear);
    other.start(&Shutdown::new(MINUTE)).await.unwrap();
    assert!(matches!(
        other.standing(Mail, ip("203.0.113.9")),
        Standing::Banned(_)
    ));
    for secret_hash in 0..10 {
        other.offence(Mail, ip("198.51.100.1"), Offence::WrongSecret { secret_hash });
    }
    assert!(matches!(
        other.standing(Mail, ip("198.51.100.1")),
        Standing::Slowed(_)
    ));
    // Removed there, known here after the next refresh.
    let id = other.list().await.unwrap()[0].id;
    other.remove(id, &Actor::control_socket(0)).await.unwrap();
    assert!(house.is_banned(Mail, "203.0.113.9"));
    house.bans.refresh().await.unwrap();
    assert!(!house.is_banned(Mail, "203.0.113.9"));
    shutdown.begin();
    shutdown.drained().await;
}

#[tokio::test]
async fn a_ban_by_hand_holds_for_proven_addresses_and_is_explained_and_removed() {
    let house = house();
    house.bans.proved(ip("203.0.113.9"));
    let actor = Actor::principal("alice", ip("192.0.2.1"));
    let net = "203.0.113.0/25".parse().unwrap();
    let ban = house
        .bans
        .add(net, None, "sends spam", None, &actor)
        .await
        .unwrap();
    assert_eq!(
        house.bans.standing(Tunnel, ip("203.0.113.9")),
        Standing::Banned("sends spam".to_owned())
    );
    assert!(!house.is_banned(Tunnel, "203.0.113.129"));
    let why = house.bans.explain(ip("203.0.113.9"));
    assert!(
        why.because.iter().any(
            |line| line.contains("203.0.113.0/25 in all engines for ever") && line.contains("sends spam")
        ),
        "{why:?}"
    );
    house.bans.remove(ban.id, &actor).await.unwrap();
    assert!(!house.is_banned(Tunnel, "203.0.113.9"));
    let again = house.bans.remove(ban.id, &actor).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))));
    let audit: Vec<String> = house
        .store
        .data()
        .unwrap()
        .audit
        .iter()
        .map(|a| format!("{} {} {}", a.who, a.action, a.object))
        .collect();
    assert_eq!(
        audit,
        ["alice ban.add 203.0.113.0/25", "alice ban.remove 203.0.113.0/25"]
    );
}

#[tokio::test]
async fn what_is_exempt_cannot_be_banned_by_hand() {
    let house = house();
    house
        .bans
        .set_exempt(["192.0.2.0/24".parse::<ipnet::IpNet>().unwrap()]);
    let actor = Actor::control_socket(0);
    for net in ["192.0.2.7/32", "127.0.0.0/8", "127.0.0.1/32", "::1/128"] {
        let refused = house.bans.add(net.parse().unwrap(), None, "", None, &actor).await;
        assert!(matches!(refused, Err(BanError::Exempt { .. })), "{net}");
    }
}

#[tokio::test]
async fn a_store_that_fails_loses_no_ban_that_holds() {
    let house = house();
    let shutdown = Shutdown::new(Duration::from_secs(10));
    house.bans.start(&shutdown).await.unwrap();
    house.store.fail(true);
    house.guess(Mail, "203.0.113.9", 10);
    shutdown.begin();
    assert_eq!(shutdown.drained().await, 0);
    assert!(house.bans.refresh().await.is_err());
    assert!(house.is_banned(Mail, "203.0.113.9"));
}

#[tokio::test]
async fn an_explanation_tells_the_rule_the_default_and_the_ban_that_stands_in_the_way() {
    use tasuki_core::acl::{Acl, Action, Effect, Origin, Question, RuleSpec};
    let house = house();
    let net = "198.51.100.7/32".parse().unwrap();
    house
        .bans
        .add(net, Some(Mail), "spray", None, &Actor::gateway("test"))
        .await
        .unwrap();
    let acl = Acl::new();
    let explain = |engine, action, from: &str| {
        let question = Question {
            engine,
            action,
            from: Some(ip(from)),
            principal: None,
            domain: None,
        };
        acl.explain(&question, &house.bans).to_string()
    };
    assert_eq!(
        explain(Mail, Action::Connect, "198.51.100.7"),
        "no rule matches; by default everybody may connect. But the address is banned there: spray (see `tasuki ban list`)"
    );
    assert!(!explain(Tunnel, Action::Connect, "198.51.100.7").contains("banned"));
    acl.replace(vec![(
        Origin::File(2),
        RuleSpec {
            effect: Effect::Deny,
            engine: Some(Fediverse),
            action: None,
            from: vec!["203.0.113.0/24".parse().unwrap()],
            principal: None,
            domain: None,
            reason: "spam".to_owned(),
        },
    )]);
    assert_eq!(
        explain(Fediverse, Action::Publish, "203.0.113.9"),
        "denied by rule 2 of the configuration file (spam)"
    );
}
