//! A host that returns: its backlog drains at a pace, and what is new does not wait for it.

use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use serde_json::json;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::fedi::{EntryKind, NewEntry};

use crate::deliveries::until;
use crate::world::{Ground, Instance, RelayUnderTest, Setup};

/// More than a lane keeps in memory.
const BACKLOG: usize = 450;

fn entry(number: usize, kind: EntryKind, object: &str, audience: u32, at: Timestamp) -> NewEntry {
    let id = format!("https://author.test/activities/{number}");
    NewEntry {
        kind,
        object: object.to_owned(),
        actor: "https://author.test/users/a".to_owned(),
        dedupe: id.clone(),
        body: Bytes::from(
            json!({"id": id, "type": "Create", "actor": "https://author.test/users/a", "object": object})
                .to_string(),
        ),
        announce: None,
        audience: RoaringBitmap::from_iter([audience]),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_overtakes_a_backlog_and_everything_comes_once() {
    let ground = Ground::sqlite().await;
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    relay.stop().await;
    let host = instance.base.strip_prefix("http://").unwrap();
    let store = std::sync::Arc::clone(&ground.fedi);
    let number = store
        .host_no(host, &format!("{}/inbox", instance.base))
        .await
        .unwrap()
        .0;
    let now = Clock::system().wall();
    let old = now.minus(Duration::from_secs(600));
    for n in 0..BACKLOG {
        let object = format!("https://author.test/{n}");
        let kind = EntryKind::Activity;
        store.append(entry(n, kind, &object, number, old)).await.unwrap();
    }
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let count = || {
        let got = instance.received();
        let ids: Vec<String> = got
            .iter()
            .filter_map(|one| one.json["id"].as_str().map(str::to_owned))
            .filter(|id| id.starts_with("https://author.test/"))
            .collect();
        ids
    };
    until("the backlog begins", || !count().is_empty()).await;
    // Two new posts with an edit of the second, and an edit of a post that still waits.
    for (n, kind, object) in [
        (BACKLOG, EntryKind::Activity, "new"),
        (BACKLOG + 1, EntryKind::Activity, "newer"),
        (BACKLOG + 2, EntryKind::Change, "newer"),
        (BACKLOG + 3, EntryKind::Change, "https://author.test/449"),
    ] {
        let at = Clock::system().wall();
        store.append(entry(n, kind, object, number, at)).await.unwrap();
    }
    until("everything", || count().len() >= BACKLOG + 4).await;
    let ids = count();
    let place = |n: usize| {
        let id = format!("https://author.test/activities/{n}");
        ids.iter().position(|one| *one == id).unwrap()
    };
    let last = place(BACKLOG - 1);
    for n in BACKLOG..BACKLOG + 3 {
        assert!(place(n) + 100 < last, "{n} came as number {} of {last}", place(n));
    }
    assert!(place(BACKLOG + 1) < place(BACKLOG + 2), "an edit after its post");
    assert!(last < place(BACKLOG + 3), "an edit of what waited, after it");
    let mut all = ids.clone();
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), ids.len()), (BACKLOG + 4, BACKLOG + 4), "each once");
    relay.stop().await;
}
