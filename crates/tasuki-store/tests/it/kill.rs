//! `kill -9` at any moment: what was acknowledged is there afterwards, whole.
//!
//! A second process (this binary, running one of these tests again) takes mail and log entries and prints each
//! acknowledgement; it is killed in the middle of it, several times, each time on what the one before left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use rand::RngExt as _;
use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, MailId};
use tasuki_core::store::Store;
use tasuki_core::store::fedi::{Appended, EntryKind, NewEntry};
use tasuki_core::store::mail::{Hold, Outcome, Settlement};
use tasuki_core::store::trail::Traced;

use super::support::{Bench, benches, mail, read};
use super::trail::story;

const URL: &str = "TASUKI_TEST_KILL_URL";
const DIR: &str = "TASUKI_TEST_KILL_DIR";
const FIRST: &str = "TASUKI_TEST_KILL_FIRST";
const ROUNDS: i64 = 5;
const WRITERS: i64 = 12;

/// The body that belongs to this id.
fn text(id: i64) -> Vec<u8> {
    let len = [300, 5_000, 40_000, 300_000][usize::try_from(id % 4).unwrap()];
    (0..len).map(|i| ((i * 13 + id) % 251) as u8).collect()
}

fn activity(n: i64) -> NewEntry {
    NewEntry {
        kind: EntryKind::Activity,
        object: format!("o{n}"),
        actor: String::new(),
        dedupe: format!("o{n}"),
        body: Bytes::from(text(n)),
        announce: None,
        audience: RoaringBitmap::from_iter([1]),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at: Timestamp(1_000),
    }
}

/// The second process: writes until it is killed.
async fn write_until_killed(url: &str) -> ! {
    let dir = std::env::var_os(DIR).unwrap();
    let store = tasuki_store::open(url, dir.as_ref()).await.unwrap();
    let life = store.join("gw").await.unwrap();
    let next = Arc::new(AtomicI64::new(std::env::var(FIRST).unwrap().parse().unwrap()));
    println!("ready");
    let writers = (0..WRITERS).map(|writer| {
        let (store, next) = (Arc::clone(&store), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if writer == 0 {
                    let done = store.append(activity(id)).await.unwrap();
                    assert!(matches!(done, Appended::Stored(_)));
                    println!("entry {id}");
                    continue;
                }
                let mut sink = store.open_body(None).await.unwrap();
                for chunk in text(id).chunks(30_000) {
                    sink.write(Bytes::copy_from_slice(chunk)).await.unwrap();
                }
                let mut new = mail(&["a.example"], sink.finish().await.unwrap());
                new.id = MailId(id);
                store.enqueue(life.0, life.1, vec![new]).await.unwrap();
                println!("mail {id}");
                if id % 3 == 0 {
                    // Said before: the outcome may be stored or not when the end comes.
                    println!("settling {id}");
                    let outcome = Outcome {
                        mail: MailId(id),
                        delivery: DeliverySeq(0),
                        hold: Hold::Fresh(life.1),
                        settlement: Settlement::Finished,
                        follow_up: Vec::new(),
                        story: Some(Arc::new(story(MailId(id), "bob@a.example", 2_000))),
                    };
                    store.settle(life.0, vec![outcome]).await.unwrap();
                }
            }
        })
    });
    futures_util::future::join_all(writers).await;
    unreachable!("the writers do not end");
}

/// What the killed processes said.
#[derive(Default)]
struct Said {
    mails: BTreeSet<i64>,
    settling: BTreeSet<i64>,
    entries: BTreeSet<i64>,
}

impl Said {
    fn take(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(word), Some(Ok(id))) = (words.next(), words.next().map(str::parse::<i64>)) else {
            return;
        };
        match word {
            "mail" => self.mails.insert(id),
            "settling" => self.settling.insert(id),
            "entry" => self.entries.insert(id),
            _ => false,
        };
    }
}

/// Starts the second process and kills it after `after` acknowledgements.
fn round(name: &str, bench: &Bench, first: i64, after: usize, said: &mut Said) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(URL, bench.url())
        .env(DIR, bench.dir())
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = 0;
    while seen < after {
        let line = lines
            .next()
            .expect("the process writes until it is killed")
            .unwrap();
        seen += usize::from(line.starts_with("mail ") || line.starts_with("entry "));
        said.take(&line);
    }
    child.kill().unwrap();
    // What it said before the end came counts.
    for line in lines.map_while(Result::ok) {
        said.take(&line);
    }
    child.wait().unwrap();
}

async fn assert_kept(store: &dyn Store, said: &Said) {
    let (node, epoch) = store.join("gw").await.unwrap();
    let held = store.adopt(node, epoch, 1_000_000).await.unwrap();
    let found: BTreeMap<i64, _> = held.iter().map(|held| (held.mail.0, &held.body)).collect();
    assert_eq!(found.len(), held.len(), "no mail twice");
    for id in &said.mails {
        assert!(
            found.contains_key(id) || said.settling.contains(id),
            "mail {id} was acknowledged and is lost"
        );
    }
    // The trail knows what the queue has forgotten, neither more nor less.
    for id in &said.settling {
        let told = store.trail(&Traced::Mail(MailId(*id)), 1).await.unwrap();
        let still_waits = found.contains_key(id);
        assert_eq!(told.len(), usize::from(!still_waits), "mail {id}: {told:?}");
    }
    for (id, body) in found {
        assert!(
            read(store, body).await == text(id),
            "the body of mail {id} is damaged"
        );
    }
    let entries = store.entries(None, 1_000_000, u64::MAX).await.unwrap();
    let kept: BTreeSet<_> = entries.iter().map(|entry| entry.object.clone()).collect();
    for id in &said.entries {
        assert!(
            kept.contains(&format!("o{id}")),
            "entry {id} was acknowledged and is lost"
        );
    }
    let mails = i64::try_from(held.len()).unwrap();
    let counts = store.queue_counts().await.unwrap();
    assert_eq!(
        i64::try_from(counts.mails).unwrap(),
        mails,
        "the figures agree with the rows"
    );
}

async fn killed_again_and_again(name: &'static str, mut bench: Bench) {
    let mut said = Said::default();
    for number in 0..ROUNDS {
        let after = rand::rng().random_range(40..250);
        let (back_bench, back) = tokio::task::spawn_blocking(move || {
            round(name, &bench, 1 + number * 1_000_000, after, &mut said);
            (bench, said)
        })
        .await
        .unwrap();
        (said, bench) = (back, back_bench);
        let store = bench.open().await;
        assert_kept(&*store, &said).await;
        store.close().await;
    }
    let settled = said.mails.intersection(&said.settling).count();
    assert!(
        said.entries.len() > 3 && settled > 10 && said.mails.len() > settled + 20,
        "too little happened: the test shows nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_kill_9_is_there_on_sqlite() {
    if let Ok(url) = std::env::var(URL) {
        write_until_killed(&url).await;
    }
    let bench = benches().await.remove(0);
    killed_again_and_again(
        "kill::what_was_acknowledged_before_kill_9_is_there_on_sqlite",
        bench,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_kill_9_is_there_on_postgresql() {
    if let Ok(url) = std::env::var(URL) {
        write_until_killed(&url).await;
    }
    let bench = benches().await.remove(1);
    killed_again_and_again(
        "kill::what_was_acknowledged_before_kill_9_is_there_on_postgresql",
        bench,
    )
    .await;
}
