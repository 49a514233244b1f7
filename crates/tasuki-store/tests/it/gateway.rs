//! Identity, audit, bans, endpoints, nodes.

use std::sync::Arc;
use std::time::Duration;

use tasuki_core::accounts::{PrincipalKind, Role, Scope};
use tasuki_core::clock::Timestamp;
use tasuki_core::store::StoreError;
use tasuki_core::store::accounts::{CredentialKind, NewCredential, NewPrincipal, Principal};
use tasuki_core::store::bans::NewBan;
use tasuki_core::store::tunnel::EndpointKind;

use super::support::{benches, entry};

fn agent(name: &str) -> NewPrincipal {
    NewPrincipal {
        name: name.into(),
        kind: PrincipalKind::Agent,
        role: Role::None,
        grants: vec!["tunnel:port:1-9".parse().unwrap()],
        credentials: vec![NewCredential {
            kind: CredentialKind::EnrolCode,
            hash: format!("code of {name}"),
            label: "first".into(),
            scope: "read tunnel".parse().unwrap(),
            created_at: Timestamp(1),
            expires_at: Some(Timestamp(100)),
        }],
        created_at: Timestamp(1),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_is_a_conflict_and_leaves_no_line_in_the_audit() {
    for bench in benches().await {
        let store = bench.open().await;
        let before = store.accounts_version().await.unwrap();
        let made = store
            .create_principal(agent("home"), entry("agent.add"))
            .await
            .unwrap();
        assert!(store.accounts_version().await.unwrap() > before);
        let again = store.create_principal(agent("home"), entry("agent.add")).await;
        assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
        assert_eq!(store.audit(None, 10).await.unwrap(), [entry("agent.add")]);
        assert_eq!(store.principal_by_name("home").await.unwrap(), Some(made));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificates_key_is_one_principals_whoever_adds_it_at_once() {
    for bench in benches().await {
        let store = bench.open().await;
        let one = store.create_principal(agent("one"), entry("a")).await.unwrap().id;
        let two = store.create_principal(agent("two"), entry("a")).await.unwrap().id;
        let certificate = |hash: &str| NewCredential {
            kind: CredentialKind::Certificate,
            hash: hash.into(),
            label: "CN=one".into(),
            scope: Scope::FULL,
            created_at: Timestamp(1),
            expires_at: None,
        };
        let tries = (0..12).map(|i| {
            let (store, new) = (Arc::clone(&store), certificate("key"));
            let of = if i % 2 == 0 { one } else { two };
            tokio::spawn(async move { store.add_credential(of, new, entry("certificate.add")).await })
        });
        let mut won = Vec::new();
        for tried in futures_util::future::join_all(tries).await {
            match tried.unwrap() {
                Ok(credential) => won.push(credential),
                Err(error) => assert!(matches!(error, StoreError::Conflict(_)), "{error:?}"),
            }
        }
        assert_eq!(won.len(), 1);
        let found = store
            .credential_by_hash(CredentialKind::Certificate, "key")
            .await
            .unwrap();
        let (credential, owner) = found.unwrap();
        assert_eq!((credential.id, owner.id), (won[0].id, won[0].principal));
        // Other kinds may have equal hashes; once it is gone it may be anybody's.
        let password = NewCredential {
            kind: CredentialKind::AppPassword,
            ..certificate("key")
        };
        store.add_credential(one, password, entry("p")).await.unwrap();
        store.remove_credential(won[0].id, entry("c")).await.unwrap();
        store
            .add_credential(two, certificate("key"), entry("c"))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_switches_off_is_listed_and_ends_with_whoever_switches_on_again() {
    for bench in benches().await {
        let store = bench.open().await;
        let home = store.create_principal(agent("home"), entry("a")).await.unwrap();
        let other = store.create_principal(agent("other"), entry("a")).await.unwrap();
        let before = store.accounts_version().await.unwrap();
        assert!(
            store
                .lock_principal(home.id, "24 addresses", entry("user.lock"))
                .await
                .unwrap()
        );
        assert!(store.accounts_version().await.unwrap() > before);
        assert!(store.principal(home.id).await.unwrap().unwrap().disabled);
        let locks = store.locks().await.unwrap();
        assert_eq!(locks.len(), 1);
        assert_eq!((&*locks[0].name, &*locks[0].reason), ("home", "24 addresses"));
        // Who is off already is not locked besides, and nothing is written of it.
        let lines = store.audit(None, 20).await.unwrap().len();
        assert!(
            !store
                .lock_principal(home.id, "again", entry("user.lock"))
                .await
                .unwrap()
        );
        assert_eq!(store.audit(None, 20).await.unwrap().len(), lines);
        assert_eq!(store.locks().await.unwrap(), locks);
        // A change that leaves it off leaves it locked.
        let off = store.principal(home.id).await.unwrap().unwrap();
        store
            .update_principal(off.clone(), entry("user.grants"))
            .await
            .unwrap();
        assert_eq!(store.locks().await.unwrap(), locks);
        let on = Principal {
            disabled: false,
            ..off
        };
        store.update_principal(on, entry("user.enable")).await.unwrap();
        assert!(store.locks().await.unwrap().is_empty());
        // A lock goes with its principal.
        assert!(
            store
                .lock_principal(other.id, "x", entry("user.lock"))
                .await
                .unwrap()
        );
        store
            .delete_principal(other.id, entry("user.remove"))
            .await
            .unwrap();
        assert!(store.locks().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_many_redeem_at_once_is_spent_once() {
    for bench in benches().await {
        let store = bench.open().await;
        store
            .create_principal(agent("home"), entry("agent.add"))
            .await
            .unwrap();
        let tries = (0..12).map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = format!("key {i}");
                store
                    .redeem_code("code of home", &key, Timestamp(50), entry("agent.enrol"))
                    .await
                    .is_ok()
            })
        });
        let won = futures_util::future::join_all(tries).await;
        assert_eq!(won.into_iter().filter(|r| *r.as_ref().unwrap()).count(), 1);
        assert_eq!(store.audit(None, 10).await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_code_is_refused() {
    for bench in benches().await {
        let store = bench.open().await;
        store
            .create_principal(agent("home"), entry("agent.add"))
            .await
            .unwrap();
        let late = store
            .redeem_code("code of home", "key", Timestamp(100), entry("agent.enrol"))
            .await;
        assert!(matches!(late, Err(StoreError::NotFound(_))), "{late:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_name_is_kept_for_its_agent_for_30_days() {
    for bench in benches().await {
        let store = bench.open().await;
        let one = store.create_principal(agent("one"), entry("a")).await.unwrap().id;
        let two = store.create_principal(agent("two"), entry("a")).await.unwrap().id;
        let kind = EndpointKind::Minecraft {
            name: Some("mc.example.org".parse().unwrap()),
        };
        let endpoint = store
            .claim_endpoint(one, None, "game", kind.clone(), Timestamp(0), entry("e"))
            .await
            .unwrap();
        let taken = store
            .claim_endpoint(two, None, "game", kind.clone(), Timestamp(1), entry("e"))
            .await;
        assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
        store
            .release_endpoint(endpoint.id, Timestamp(2), entry("e"))
            .await
            .unwrap();
        let buried = store
            .claim_endpoint(two, None, "game", kind.clone(), Timestamp(3), entry("e"))
            .await;
        assert!(matches!(buried, Err(StoreError::Conflict(_))), "{buried:?}");
        let month = Timestamp(2).plus(Duration::from_secs(30 * 24 * 3600));
        store
            .claim_endpoint(two, None, "game", kind, month, entry("e"))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_udp_of_one_port_belong_to_one_agent() {
    for bench in benches().await {
        let store = bench.open().await;
        let one = store.create_principal(agent("one"), entry("a")).await.unwrap().id;
        let two = store.create_principal(agent("two"), entry("a")).await.unwrap().id;
        let (tcp, udp) = (
            EndpointKind::Tcp { port: 30_000 },
            EndpointKind::Udp { port: 30_000 },
        );
        let claim = async |agent, label, kind: &EndpointKind| {
            store
                .claim_endpoint(agent, None, label, kind.clone(), Timestamp(0), entry("e"))
                .await
        };
        claim(one, "voice", &udp).await.unwrap();
        let half = claim(two, "web", &tcp).await;
        assert!(matches!(half, Err(StoreError::Conflict(_))), "{half:?}");
        let whole = claim(one, "web", &tcp).await.unwrap();
        assert_eq!((whole.agent, whole.kind), (one, tcp));
        let same = claim(two, "voice", &udp).await;
        assert!(matches!(same, Err(StoreError::Conflict(_))), "{same:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_web_and_of_games_belongs_to_one_agent() {
    for bench in benches().await {
        let store = bench.open().await;
        let one = store.create_principal(agent("one"), entry("a")).await.unwrap().id;
        let two = store.create_principal(agent("two"), entry("a")).await.unwrap().id;
        let name: tasuki_proto::names::Domain = "mc.example.org".parse().unwrap();
        let game = EndpointKind::Minecraft {
            name: Some(name.clone()),
        };
        let (https, http) = (
            EndpointKind::Https { name: name.clone() },
            EndpointKind::Http { name },
        );
        let claim = async |agent, label, kind: &EndpointKind, at| {
            store
                .claim_endpoint(agent, None, label, kind.clone(), Timestamp(at), entry("e"))
                .await
        };
        claim(one, "game", &game, 0).await.unwrap();
        assert!(matches!(
            claim(two, "web", &https, 1).await,
            Err(StoreError::Conflict(_))
        ));
        let page = claim(one, "web", &https, 2).await.unwrap();
        // One and the same label may change from one kind to the other, but not two labels have both.
        assert!(matches!(
            claim(one, "other", &http, 3).await,
            Err(StoreError::Conflict(_))
        ));
        assert_eq!(claim(one, "web", &http, 4).await.unwrap().id, page.id);
        store
            .release_endpoint(page.id, Timestamp(5), entry("e"))
            .await
            .unwrap();
        assert!(matches!(
            claim(two, "web", &http, 6).await,
            Err(StoreError::Conflict(_))
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_group_share_and_the_last_one_leaves_the_tombstone() {
    for bench in benches().await {
        let store = bench.open().await;
        let mut ids = Vec::new();
        for name in ["one", "two", "three"] {
            ids.push(store.create_principal(agent(name), entry("a")).await.unwrap().id);
        }
        let kind = EndpointKind::Minecraft {
            name: Some("mc.example.org".parse().unwrap()),
        };
        let claim = async |place: usize, group: Option<&str>, at| {
            store
                .claim_endpoint(ids[place], group, "game", kind.clone(), Timestamp(at), entry("e"))
                .await
        };
        // One was here alone, and joins a group.
        claim(0, None, 0).await.unwrap();
        assert!(matches!(
            claim(1, Some("guild"), 1).await,
            Err(StoreError::Conflict(_))
        ));
        claim(0, Some("guild"), 2).await.unwrap();
        let second = claim(1, Some("guild"), 3).await.unwrap();
        assert_eq!(second.group.as_deref(), Some("guild"));
        for group in [None, Some("other")] {
            assert!(
                matches!(claim(2, group, 4).await, Err(StoreError::Conflict(_))),
                "{group:?}"
            );
        }
        // Nor may one of them take it for itself alone.
        assert!(matches!(claim(0, None, 5).await, Err(StoreError::Conflict(_))));
        let all = store.endpoints().await.unwrap();
        assert_eq!(
            all.iter().filter(|e| e.group.as_deref() == Some("guild")).count(),
            2
        );
        for endpoint in all {
            store
                .release_endpoint(endpoint.id, Timestamp(6), entry("e"))
                .await
                .unwrap();
        }
        assert!(matches!(claim(2, None, 7).await, Err(StoreError::Conflict(_))));
        claim(2, Some("guild"), 8).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn regulars_are_remembered_by_network_and_forgotten_in_time() {
    for bench in benches().await {
        let store = bench.open().await;
        let at = |text: &str| text.parse().unwrap();
        let note = async |address, now, forget| {
            store
                .note_regulars(&[address], Timestamp(now), Timestamp(forget))
                .await
                .unwrap();
        };
        note(at("192.0.2.1"), 10, 0).await;
        note(at("2001:db8::7"), 20, 0).await;
        note(at("192.0.2.1"), 30, 0).await;
        let known = store.regulars(Timestamp(0), 10).await.unwrap();
        assert_eq!(
            known,
            [
                (at("192.0.2.1"), Timestamp(30)),
                (at("2001:db8::"), Timestamp(20))
            ]
        );
        assert_eq!(store.regulars(Timestamp(0), 1).await.unwrap().len(), 1);
        note(at("192.0.2.9"), 40, 25).await;
        let known = store.regulars(Timestamp(0), 10).await.unwrap();
        assert_eq!(
            known,
            [(at("192.0.2.9"), Timestamp(40)), (at("192.0.2.1"), Timestamp(30))]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_are_replaced_ended_and_counted() {
    for bench in benches().await {
        let store = bench.open().await;
        let net = "192.0.2.7/32".parse().unwrap();
        let new = |since| NewBan {
            net,
            engine: None,
            reason: "probes".into(),
            by: "gateway".into(),
            since: Timestamp(since),
            until: None,
        };
        assert_eq!(store.add_ban(new(10), entry("ban.add")).await.unwrap().repeats, 0);
        let second = store.add_ban(new(20), entry("ban.add")).await.unwrap();
        assert_eq!(second.repeats, 1);
        assert_eq!(
            store.bans(Timestamp(30)).await.unwrap(),
            std::slice::from_ref(&second)
        );
        store.remove_ban(second.id, entry("ban.remove")).await.unwrap();
        let again = store.remove_ban(second.id, entry("ban.remove")).await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
        assert_eq!(store.ban_repeats(net, Timestamp(30)).await.unwrap(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_secret_wins_and_stays_after_a_restart() {
    for bench in benches().await {
        let store = bench.open().await;
        assert_eq!(store.put_secret_if_absent("k", vec![1]).await.unwrap(), [1]);
        assert_eq!(store.put_secret_if_absent("k", vec![2]).await.unwrap(), [1]);
        store.close().await;
        assert_eq!(bench.open().await.secret("k").await.unwrap(), Some(vec![1]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_removed_only_while_it_is_the_one_that_was_seen() {
    for bench in benches().await {
        let store = bench.open().await;
        store.replace_secret("k", vec![1], entry("made")).await.unwrap();
        let seen = store.secret("k").await.unwrap().unwrap();
        store
            .replace_secret("k", vec![2], entry("changed"))
            .await
            .unwrap();
        assert!(!store.remove_secret("k", &seen, entry("removed")).await.unwrap());
        assert_eq!(store.secret("k").await.unwrap(), Some(vec![2]));
        assert!(store.remove_secret("k", &[2], entry("removed")).await.unwrap());
        assert_eq!(store.secret("k").await.unwrap(), None);
        let lines = store.audit(None, 10).await.unwrap();
        let removals = lines.iter().filter(|line| line.action == "removed");
        assert_eq!(
            removals.count(),
            1,
            "a line for what was done, none for what was not"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_the_same_name_ends_the_life_of_the_first() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, old) = store.join("gw").await.unwrap();
        let (same, new) = store.join("gw").await.unwrap();
        assert_eq!(node, same);
        let beat = |epoch| store.heartbeat(node, epoch, Duration::from_secs(9));
        assert!(matches!(beat(old).await, Err(StoreError::StaleEpoch)));
        beat(new).await.unwrap();
        let stale = store
            .enqueue(
                node,
                old,
                vec![super::support::mail(&["a.example"], super::support::small())],
            )
            .await;
        assert!(matches!(stale, Err(StoreError::StaleEpoch)), "{stale:?}");
    }
}

#[tokio::test]
async fn no_error_shows_the_password() {
    let dir = tempfile::TempDir::new().unwrap();
    for url in [
        "postgres://u:secret-word@127.0.0.1:1/db",
        "postgres://u:secret-word@[bad/db",
    ] {
        let error = tasuki_store::open(url, dir.path()).await.err().unwrap();
        assert!(!format!("{error} {error:?}").contains("secret-word"), "{error:?}");
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_taken_back_after_an_upgrade_that_failed() {
    use sqlx::Connection as _;
    const NEWER: &str = "INSERT INTO migrations (version, name) VALUES (9999, '9999_newer')";
    for bench in benches().await {
        let store = bench.open().await;
        store.note(entry("before")).await.unwrap();
        store.close().await;
        if bench.url().starts_with("sqlite:") {
            let file = bench.dir().join("tasuki.db");
            let mut conn = sqlx::SqliteConnection::connect(file.to_str().unwrap())
                .await
                .unwrap();
            sqlx::query(NEWER).execute(&mut conn).await.unwrap();
            conn.close().await.unwrap();
        } else {
            let mut conn = sqlx::PgConnection::connect(bench.url()).await.unwrap();
            sqlx::query(NEWER).execute(&mut conn).await.unwrap();
            conn.close().await.unwrap();
        }
        let refused = tasuki_store::open(bench.url(), bench.dir()).await.err().unwrap();
        assert!(refused.to_string().contains("migration 9999"), "{refused}");
        let store = tasuki_store::reopen(bench.url(), bench.dir()).await.unwrap();
        store.note(entry("after")).await.unwrap();
        store.close().await;
    }
}
