//! Copies of a store at work.

use std::collections::HashMap;
use std::path::Path;

use tasuki_core::ids::{DeliverySeq, MailId};
use tasuki_core::store::Store;
use tasuki_core::store::mail::{Hold, Outcome, Settlement};
use tasuki_store::{SegmentFiles, check};

use super::support::{benches, mail, small, write};

/// Copies the store at `store` to a data directory of its own.
async fn copy(store: &dyn Store, to: &Path) -> bool {
    let Some(mut snapshot) = store.snapshot(&to.join("tasuki.db")).await.unwrap() else {
        return false;
    };
    fill(snapshot.as_mut(), to).await;
    snapshot.finish().await.unwrap();
    true
}

async fn fill(snapshot: &mut dyn tasuki_core::store::backup::Snapshot, to: &Path) {
    std::fs::create_dir(to.join("segments")).unwrap();
    for file in snapshot.body_files().to_vec() {
        let mut bytes = Vec::new();
        snapshot.write_bodies(file.segment, &mut bytes).await.unwrap();
        assert_eq!(bytes.len() as u64, file.bytes);
        let name = tasuki_store::segment_file(file.segment);
        std::fs::write(to.join("segments").join(name), bytes).unwrap();
    }
}

async fn body_of(store: &dyn Store, body: &tasuki_core::store::mail::StoredBody) -> Vec<u8> {
    let mut source = store.body(body).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = source.next().await.unwrap() {
        bytes.extend(piece);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_every_mail_of_its_moment_with_its_body_and_none_after() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = store.join("a").await.unwrap();
        let mut bodies = HashMap::new();
        let mut batch = vec![mail(&["example.com"], small())];
        bodies.insert(batch[0].id, b"hello".to_vec());
        for size in [17_000, 100_000, 300_000, 700_001] {
            let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mail = mail(&["example.com"], write(store.as_ref(), &bytes).await);
            bodies.insert(mail.id, bytes);
            batch.push(mail);
        }
        let gone = batch[2].id;
        store.enqueue(node, epoch, batch).await.unwrap();
        // One leaves before: its place in the segment is not copied.
        settle(store.as_ref(), node, epoch, gone).await;
        bodies.remove(&gone);

        let to = tempfile::tempdir().unwrap();
        let Some(mut snapshot) = store.snapshot(&to.path().join("tasuki.db")).await.unwrap() else {
            assert!(bench.url().starts_with("postgres"), "{}", bench.url());
            continue;
        };
        assert_eq!(snapshot.mails(), 4);
        // All leave, and one comes, while the bodies are copied: the copy does not change, and its bodies stay.
        for id in bodies.keys() {
            settle(store.as_ref(), node, epoch, *id).await;
        }
        let late = mail(&["example.com"], write(store.as_ref(), &[9; 40_000]).await);
        store.enqueue(node, epoch, vec![late]).await.unwrap();
        fill(snapshot.as_mut(), to.path()).await;
        snapshot.finish().await.unwrap();

        let copied = to.path().join("tasuki.db");
        let found = check(&copied, false, &SegmentFiles::of(to.path())).await.unwrap();
        assert_eq!((found.mails, found.fault_count), (4, 0), "{:?}", found.faults);
        let restored = tasuki_store::open(tasuki_store::DEFAULT_URL, to.path())
            .await
            .unwrap();
        let (node, epoch) = restored.join("a").await.unwrap();
        let adopted = restored.adopt(node, epoch, 100).await.unwrap();
        assert_eq!(adopted.len(), bodies.len());
        for held in adopted {
            assert_eq!(body_of(restored.as_ref(), &held.body).await, bodies[&held.mail]);
        }
        restored.close().await;
        store.close().await;
    }
}

async fn settle(
    store: &dyn Store,
    node: tasuki_core::ids::NodeId,
    epoch: tasuki_core::ids::Epoch,
    mail: MailId,
) {
    let outcome = Outcome {
        mail,
        delivery: DeliverySeq(0),
        hold: Hold::Fresh(epoch),
        settlement: Settlement::Finished,
        follow_up: Vec::new(),
        story: None,
    };
    store.settle(node, vec![outcome]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_body_is_found_by_the_check_and_refused_by_the_snapshot_with_the_mail() {
    let bench = benches().await.into_iter().next().unwrap();
    let store = bench.open().await;
    let (node, epoch) = store.join("a").await.unwrap();
    let mail = mail(&["example.com"], write(store.as_ref(), &[5; 50_000]).await);
    let id = mail.id.to_string();
    store.enqueue(node, epoch, vec![mail]).await.unwrap();
    let database = bench.dir().join("tasuki.db");
    let live = SegmentFiles::of(bench.dir());
    assert_eq!(check(&database, true, &live).await.unwrap().fault_count, 0);
    for entry in std::fs::read_dir(bench.dir().join("segments")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20_000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let found = check(&database, true, &live).await.unwrap();
    assert_eq!(found.fault_count, 1);
    assert!(found.faults[0].contains(&id), "{:?}", found.faults);
    let to = tempfile::tempdir().unwrap();
    let mut snapshot = store.snapshot(&to.path().join("copy")).await.unwrap().unwrap();
    let segment = snapshot.body_files()[0].segment;
    let why = snapshot.write_bodies(segment, &mut Vec::new()).await.unwrap_err();
    assert!(why.to_string().contains(&id), "{why}");
    drop(snapshot);
    // A file that is no database is said to be none.
    let other = to.path().join("other");
    std::fs::write(&other, vec![7; 8192]).unwrap();
    assert!(check(&other, false, &live).await.is_err());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_at_rest_is_copied_as_it_is() {
    let bench = benches().await.into_iter().next().unwrap();
    let store = bench.open().await;
    let (node, epoch) = store.join("a").await.unwrap();
    let body = write(store.as_ref(), &[5; 50_000]).await;
    store
        .enqueue(node, epoch, vec![mail(&["example.com"], body)])
        .await
        .unwrap();
    store.close().await;
    let to = tempfile::tempdir().unwrap();
    let database = bench.dir().join("tasuki.db");
    let mut snapshot = tasuki_store::snapshot_at_rest(&database, bench.dir(), &to.path().join("tasuki.db"))
        .await
        .unwrap();
    fill(snapshot.as_mut(), to.path()).await;
    snapshot.finish().await.unwrap();
    let again = bench.open().await;
    let other = tempfile::tempdir().unwrap();
    assert!(copy(again.as_ref(), other.path()).await);
    for place in [to.path(), other.path()] {
        let found = check(&place.join("tasuki.db"), false, &SegmentFiles::of(place))
            .await
            .unwrap();
        assert_eq!((found.mails, found.fault_count), (1, 0), "{:?}", found.faults);
    }
    again.close().await;
}
