//! A database goes away and comes back; gateways get in each other's way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use sqlx::{Connection as _, SqliteConnection};
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::DeliverySeq;
use tasuki_core::store::fedi::{EntryKind, NewEntry};
use tasuki_core::store::mail::{Hold, Outcome, QueueFilter, Settled, Settlement};
use tasuki_core::store::{Store, StoreError};
use tempfile::TempDir;

use super::postgres::{self, Server};
use super::support::{lane, mail, recipient, small, write};

fn entry(object: &str) -> NewEntry {
    NewEntry {
        kind: EntryKind::Activity,
        object: object.into(),
        actor: String::new(),
        dedupe: object.into(),
        body: Bytes::from_static(b"{}"),
        announce: None,
        audience: RoaringBitmap::from_iter([1]),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at: Timestamp(1_000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_is_found_again_and_nothing_is_lost() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let dir = TempDir::new().unwrap();
    let store = tasuki_store::open(&server.new_database(), dir.path())
        .await
        .unwrap();
    let (node, epoch) = store.join("gw").await.unwrap();
    let enqueue = async || {
        let new = vec![mail(&["a.example"], small())];
        store.enqueue(node, epoch, new).await
    };
    let first = enqueue().await.unwrap();
    let body = write(&*store, &[7; 300_000]).await;
    store.append(entry("before")).await.unwrap();

    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    let unavailable = |what: &str, error: Option<StoreError>| {
        assert!(
            matches!(error, Some(StoreError::Unavailable(_))),
            "{what}: {error:?}"
        );
    };
    unavailable("enqueue", enqueue().await.err());
    unavailable("append", store.append(entry("while away")).await.err());
    unavailable("ping", store.ping().await.err());
    unavailable("queue", store.queue(&QueueFilter::default(), 9).await.err());
    let settle = async || {
        let outcome = Outcome {
            mail: first[0],
            delivery: DeliverySeq(0),
            hold: Hold::Fresh(epoch),
            settlement: Settlement::Finished,
            follow_up: Vec::new(),
            story: None,
        };
        store.settle(node, vec![outcome]).await
    };
    unavailable("settle", settle().await.err());
    unavailable(
        "heartbeat",
        store.heartbeat(node, epoch, Duration::from_secs(9)).await.err(),
    );

    let _server = tokio::task::spawn_blocking(move || {
        server.start_again();
        server
    })
    .await
    .unwrap();
    // Without anything being done about it: each of these is the first of its kind after the restart.
    let second = enqueue().await.unwrap();
    store.ping().await.unwrap();
    store.append(entry("while away")).await.unwrap();
    assert_eq!(settle().await.unwrap(), [Settled::Done]);
    let third = vec![mail(&["a.example"], body)];
    let third = store.enqueue(node, epoch, third).await.unwrap();
    let rows = store.queue(&QueueFilter::default(), 9).await.unwrap();
    let waiting: Vec<_> = rows.iter().map(|row| row.mail).collect();
    assert_eq!(waiting, [second[0], third[0]]);
    assert_eq!(store.queue_counts().await.unwrap().mails, 2);
    assert_eq!(store.entries(None, 9, u64::MAX).await.unwrap().len(), 2);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_done_does_not_wait_again_after_a_crash_of_the_server() {
    // What a commit does not wait for stays in the server's memory long enough to be lost for sure.
    let mut server = tokio::task::spawn_blocking(|| Server::start_with(&["wal_writer_delay=10s"]))
        .await
        .unwrap();
    let dir = TempDir::new().unwrap();
    let store = tasuki_store::open(&server.new_database(), dir.path())
        .await
        .unwrap();
    let (node, epoch) = store.join("gw").await.unwrap();
    let new = (0..3).map(|_| mail(&["a.example"], small())).collect();
    let ids = store.enqueue(node, epoch, new).await.unwrap();
    for done in &ids[..2] {
        let outcome = Outcome {
            mail: *done,
            delivery: DeliverySeq(0),
            hold: Hold::Fresh(epoch),
            settlement: Settlement::Finished,
            follow_up: Vec::new(),
            story: None,
        };
        assert_eq!(store.settle(node, vec![outcome]).await.unwrap(), [Settled::Done]);
    }
    let _server = tokio::task::spawn_blocking(move || {
        server.crash();
        server.start_again();
        server
    })
    .await
    .unwrap();
    let rows = store.queue(&QueueFilter::default(), 9).await.unwrap();
    let waiting: Vec<_> = rows.iter().map(|row| row.mail).collect();
    assert_eq!(waiting, ids[2..]);
    assert_eq!(store.queue_counts().await.unwrap().mails, 1);
    // The gateway's next life takes up what waits, and nothing else.
    let (node, epoch) = store.join("gw").await.unwrap();
    let adopted = store.adopt(node, epoch, 9).await.unwrap();
    let adopted: Vec<_> = adopted.iter().map(|held| held.mail).collect();
    assert_eq!(adopted, ids[2..]);
    store.close().await;
}

async fn defer_many(store: Arc<dyn Store>, name: &'static str) {
    let (node, epoch) = store.join(name).await.unwrap();
    for due in 0..40 {
        let ids = store
            .enqueue(node, epoch, vec![mail(&["a.example"], small())])
            .await
            .unwrap();
        let outcome = Outcome {
            mail: ids[0],
            delivery: DeliverySeq(0),
            hold: Hold::Fresh(epoch),
            settlement: Settlement::Deferred {
                lane: lane("a.example"),
                recipients: vec![recipient("bob@a.example")],
                attempts: 1,
                due: Timestamp(1_000 - due),
                last_error: "450 later\0".into(),
                delay_reported: false,
            },
            follow_up: Vec::new(),
            story: None,
        };
        assert_eq!(store.settle(node, vec![outcome]).await.unwrap(), [Settled::Done]);
        store
            .host_no("b.example", &format!("https://b.example/{name}/{due}"))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_get_in_each_others_way_try_again() {
    let url = tokio::task::spawn_blocking(|| {
        let url = postgres::new_database();
        // Every two transactions that touch the same row are a failure of serialization now.
        let name = postgres::name_of(&url);
        postgres::shared().ask(
            "postgres",
            &format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"),
        );
        url
    })
    .await
    .unwrap();
    let dir = TempDir::new().unwrap();
    let stores = [
        tasuki_store::open(&url, dir.path()).await.unwrap(),
        tasuki_store::open(&url, dir.path()).await.unwrap(),
    ];
    let [one, two] = &stores;
    tokio::join!(
        defer_many(Arc::clone(one), "one"),
        defer_many(Arc::clone(two), "two")
    );
    let counts = one.queue_counts().await.unwrap();
    assert_eq!((counts.mails, counts.deferred), (80, 80));
    assert_eq!(one.queue(&QueueFilter::default(), 100).await.unwrap().len(), 80);
    for store in stores {
        store.close().await;
    }
    let collisions = tokio::task::spawn_blocking(move || {
        let name = postgres::name_of(&url);
        postgres::shared().ask(
            "postgres",
            &format!("SELECT xact_rollback FROM pg_stat_database WHERE datname = '{name}'"),
        )
    })
    .await
    .unwrap();
    assert_ne!(
        collisions, "0",
        "nobody got in anybody's way: the test shows nothing"
    );
}

/// Outcomes of one call in the next test.
const OUTCOMES: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_that_no_commit_takes_are_bounded_and_none_is_lost() {
    let dir = TempDir::new().unwrap();
    let store = tasuki_store::open(tasuki_store::DEFAULT_URL, dir.path())
        .await
        .unwrap();
    let (node, epoch) = store.join("gw").await.unwrap();
    let enqueue = async || {
        store
            .enqueue(node, epoch, vec![mail(&["a.example"], small())])
            .await
    };
    let id = enqueue().await.unwrap()[0];
    let file = format!("sqlite:{}", dir.path().join("tasuki.db").display());
    let mut beside = SqliteConnection::connect(&file).await.unwrap();
    // Another process writes, and goes on longer than the store waits for it.
    let mut beside = async |sql: &'static str| sqlx::query(sql).execute(&mut beside).await.unwrap();
    beside("BEGIN IMMEDIATE").await;
    let settle = async || {
        let outcome = Outcome {
            mail: id,
            delivery: DeliverySeq(0),
            hold: Hold::Fresh(epoch),
            settlement: Settlement::Finished,
            follow_up: Vec::new(),
            story: None,
        };
        store.settle(node, vec![outcome; OUTCOMES]).await
    };
    // Every commit that fails leaves room for as much as before, and for no more.
    for _ in 0..10 {
        settle().await.unwrap();
    }
    assert!(enqueue().await.is_err());
    for _ in 0..10 {
        settle().await.unwrap();
    }
    assert!(enqueue().await.is_err());
    let mut more = Box::pin(settle());
    let early = tokio::time::timeout(Duration::from_millis(500), &mut more).await;
    assert!(
        early.is_err(),
        "20000 outcomes wait, and it takes more: {early:?}"
    );
    beside("ROLLBACK").await;
    let late = tokio::time::timeout(Duration::from_secs(20), more).await;
    late.expect("there is room again").unwrap();
    assert!(store.queue(&QueueFilter::default(), 9).await.unwrap().is_empty());
    // Who waits when the store ends hears of it.
    beside("BEGIN IMMEDIATE").await;
    for _ in 0..20 {
        settle().await.unwrap();
    }
    let (waits, ()) = tokio::join!(settle(), store.close());
    assert!(matches!(waits, Err(StoreError::Unavailable(_))), "{waits:?}");
}
