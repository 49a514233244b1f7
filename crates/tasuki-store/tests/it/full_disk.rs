//! A disk that is full: new work is refused with `Full`, what is stored stays, and work is taken again when space returns.
//!
//! Each test runs itself once more in a mount namespace of its own, with a small file system that is really full.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, NodeId};
use tasuki_core::store::fedi::{EntryKind, NewEntry, NewSubscription, SubscriptionState, SubscriptionStyle};
use tasuki_core::store::mail::{Hold, Outcome, QueueFilter, Settled, Settlement};
use tasuki_core::store::{Store, StoreError};

use super::postgres::{OWN_ROOT, Server, is_root};
use super::support::{entry as audit, mail, read};

/// Set in the second run: where the small file system is.
const SMALL_DISK: &str = "TASUKI_TEST_SMALL_DISK";
const SIZE_MIB: usize = 48;

/// Runs the test `name` again with a small disk; in that second run gives the disk's directory.
fn small_disk(name: &str) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(SMALL_DISK) {
        return Some(dir.into());
    }
    let dir = tempfile::TempDir::new().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !is_root() {
        command.arg("--map-root-user").env(OWN_ROOT, "1");
    }
    command
        .args(["sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size={SIZE_MIB}m,mode=755 tmpfs \"$0\" && exec \"$@\""
        ))
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(SMALL_DISK, dir.path());
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{command:?}: {said}"
    );
    None
}

/// Takes what is left of the disk but for `left` bytes; gives the file that takes it.
fn fill(dir: &Path, name: &str, left: u64) -> PathBuf {
    let path = dir.join(name);
    let mut file = File::create(&path).unwrap();
    let fs = rustix::fs::statvfs(dir).unwrap();
    let len = (fs.f_bavail * fs.f_frsize).saturating_sub(left);
    for piece in std::iter::repeat_n(1 << 16, usize::try_from(len >> 16).unwrap()) {
        file.write_all(&vec![1; piece]).unwrap();
    }
    if left == 0 {
        while file.write_all(&[1; 512]).is_ok() {}
    }
    path
}

fn activity(n: usize, len: usize) -> NewEntry {
    NewEntry {
        kind: EntryKind::Activity,
        object: format!("o{n}"),
        actor: String::new(),
        dedupe: format!("o{n}"),
        body: Bytes::from(vec![b'x'; len]),
        announce: None,
        audience: RoaringBitmap::from_iter([1]),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at: Timestamp(1_000),
    }
}

fn subscription() -> NewSubscription {
    NewSubscription {
        topic: String::new(),
        host: "a.example".into(),
        actor: "https://a.example/actor".into(),
        inbox: "https://a.example/inbox".into(),
        style: SubscriptionStyle::Mastodon,
        state: SubscriptionState::Active,
        follow_id: "https://a.example/follow".into(),
        software: None,
        at: Timestamp(1),
    }
}

fn is_full<T>(what: &str, result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Full) => {}
        Err(error) => panic!("{what}: {error:?}"),
        Ok(_) => panic!("{what}: there was room"),
    }
}

fn text(n: usize) -> Vec<u8> {
    // Some in rows, some in shared segments, some streamed.
    let len = [5_000, 60_000, 400_000][n % 3];
    (0..len).map(|i| ((i * 7 + n) % 251) as u8).collect()
}

/// Accepts mail `n`, or says why not.
async fn accept(store: &dyn Store, life: (NodeId, Epoch), n: usize) -> Result<MailId, StoreError> {
    let mut sink = store.open_body(None).await?;
    for chunk in text(n).chunks(50_000) {
        sink.write(Bytes::copy_from_slice(chunk)).await?;
    }
    let body = sink.finish().await?;
    let ids = store
        .enqueue(life.0, life.1, vec![mail(&["a.example"], body)])
        .await?;
    Ok(ids[0])
}

/// Accepts until the disk is full.
async fn accept_until_full(store: &dyn Store, life: (NodeId, Epoch)) -> Vec<(MailId, usize)> {
    let mut accepted = Vec::new();
    loop {
        let n = accepted.len();
        match accept(store, life, n).await {
            Ok(id) => accepted.push((id, n)),
            Err(StoreError::Full) => return accepted,
            Err(error) => panic!("mail {n}: {error:?}"),
        }
        assert!(n < 3_000, "the disk does not get full");
    }
}

fn finished(id: MailId, epoch: Epoch) -> Outcome {
    Outcome {
        mail: id,
        delivery: DeliverySeq(0),
        hold: Hold::Fresh(epoch),
        settlement: Settlement::Finished,
        follow_up: Vec::new(),
        story: None,
    }
}

/// Everything accepted is there, byte for byte, and nothing else.
async fn assert_kept(store: &dyn Store, life: (NodeId, Epoch), accepted: &[(MailId, usize)]) {
    let held = store.adopt(life.0, life.1, 10_000).await.unwrap();
    let mut ids: Vec<_> = held.iter().map(|held| held.mail).collect();
    ids.sort_unstable();
    let wanted: Vec<_> = accepted.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, wanted);
    for held in &held {
        let (_, n) = accepted.iter().find(|(id, _)| *id == held.mail).unwrap();
        assert_eq!(read(store, &held.body).await, text(*n), "mail {n}");
    }
}

/// Polls until `n` is accepted: the store looks at the disk by itself.
async fn accept_again(store: &dyn Store, life: (NodeId, Epoch), n: usize) -> MailId {
    for _ in 0..200 {
        match accept(store, life, n).await {
            Ok(id) => return id,
            Err(StoreError::Full) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("space came back, but mail is still refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_work_on_sqlite_and_loses_nothing() {
    let name = "full_disk::a_full_disk_refuses_new_work_on_sqlite_and_loses_nothing";
    let Some(dir) = small_disk(name) else { return };
    let store = tasuki_store::open(tasuki_store::DEFAULT_URL, &dir).await.unwrap();
    let life = store.join("gw").await.unwrap();
    let mut sink = store.open_body(None).await.unwrap();
    let mut accepted = accept_until_full(&*store, life).await;
    assert!(accepted.len() > 30, "{} accepted", accepted.len());

    // Below the reserve for certain: the database's own log moves the mark.
    let other = fill(&dir, "other", 1 << 20);
    // The reserve is kept for the work at hand: nothing new, of either engine, but outcomes are stored.
    is_full("append", store.append(activity(0, 10)).await);
    is_full(
        "subscribe",
        store.subscribe(subscription(), Vec::new(), None).await,
    );
    is_full("a body", store.open_body(None).await);
    let (gone, _) = accepted.remove(0);
    let settled = store.settle(life.0, vec![finished(gone, life.1)]).await.unwrap();
    assert_eq!(settled, [Settled::Done]);
    assert_eq!(listed(&*store).await, accepted.len());

    // Somebody else takes the reserve too: every write fails, each with the right reason.
    let ballast = fill(&dir, "ballast", 0);
    is_full("a body under way", stream(&mut *sink).await);
    drop(sink);
    is_full("a note", note_until_refused(&store).await);
    assert_eq!(listed(&*store).await, accepted.len());

    std::fs::remove_file(ballast).unwrap();
    std::fs::remove_file(other).unwrap();
    for (id, _) in accepted.drain(..10) {
        store.settle(life.0, vec![finished(id, life.1)]).await.unwrap();
    }
    let n = 2_999;
    accepted.push((accept_again(&*store, life, n).await, n));
    store.append(activity(0, 10)).await.unwrap();
    store.close().await;

    let store = tasuki_store::open(tasuki_store::DEFAULT_URL, &dir).await.unwrap();
    let life = store.join("gw").await.unwrap();
    assert_kept(&*store, life, &accepted).await;
    assert_eq!(store.entries(None, 9, u64::MAX).await.unwrap().len(), 1);
    store.close().await;
}

async fn listed(store: &dyn Store) -> usize {
    store.queue(&QueueFilter::default(), 10_000).await.unwrap().len()
}

async fn stream(sink: &mut dyn tasuki_core::store::mail::BodySink) -> Result<(), StoreError> {
    for _ in 0..200 {
        sink.write(Bytes::from(vec![7; 50_000])).await?;
    }
    Ok(())
}

/// Changes that do not ask for the reserve, until the database itself has no room.
async fn note_until_refused(store: &Arc<dyn Store>) -> Result<(), StoreError> {
    for _ in 0..5_000 {
        let mut line = audit("test");
        line.detail = "x".repeat(10_000);
        store.note(line).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_work_on_postgresql_and_loses_nothing() {
    let name = "full_disk::a_full_disk_refuses_new_work_on_postgresql_and_loses_nothing";
    let Some(dir) = small_disk(name) else { return };
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let url = server.new_database_in(&dir.join("tables"));
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let own = tempfile::TempDir::new().unwrap();
    let store = tasuki_store::open(&url, own.path()).await.unwrap();
    let life = store.join("gw").await.unwrap();
    let mut accepted = accept_until_full(&*store, life).await;
    assert!(accepted.len() > 10, "{} accepted", accepted.len());
    let appended = async {
        for n in 0..500 {
            store.append(activity(n, 200_000)).await?;
        }
        Ok(())
    };
    is_full("append", appended.await);
    let (gone, _) = accepted.remove(0);
    let settled = store.settle(life.0, vec![finished(gone, life.1)]).await.unwrap();
    assert_eq!(settled, [Settled::Done]);

    std::fs::remove_file(ballast).unwrap();
    let n = 2_999;
    accepted.push((accept_again(&*store, life, n).await, n));
    store.append(activity(1_000, 10)).await.unwrap();
    store.close().await;
    let store = tasuki_store::open(&url, own.path()).await.unwrap();
    let life = store.join("gw").await.unwrap();
    assert_kept(&*store, life, &accepted).await;
    store.close().await;
    drop(server);
}
