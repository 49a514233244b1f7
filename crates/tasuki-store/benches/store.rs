//! What the store alone costs: CPU seconds for each 1,000 mails accepted and settled, and a start with a long queue.
//!
//! ```sh
//! cargo bench -p tasuki-store -- accept          # 2, 10 and 100 KiB, from 20 senders
//! cargo bench -p tasuki-store -- queue           # 1,000,000 deferred mails in 100,000 lanes; `queue 50000` for fewer
//! cargo bench -p tasuki-store -- fill DIR        # the same queue into the store of a gateway that is stopped
//! ```
//! `TASUKI_BENCH_STORE=postgres://...` measures an (empty) PostgreSQL database; its own processes' CPU is not counted.
//! `TASUKI_BENCH_TRAIL=0` settles without stories for the trail.
//! `TASUKI_BENCH_DIR` says on which file system the data lies. One line of JSON for each case.

#![allow(clippy::unwrap_used, missing_docs)]

mod long_queue;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use long_queue::{SETTLE, defer_many, fill, new_mail, outcome, write};
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, NodeId};
use tasuki_core::store::Store;
use tasuki_core::store::mail::{LaneKey, Settlement};
use tasuki_core::store::trail::{End, Fate, Received, Server, Story};
use tokio::sync::mpsc;

const SENDERS: i64 = 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Not started by `cargo bench`: nothing to test here.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let words: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "--bench")
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let number = |default| words.get(1).map_or(default, |n| n.parse().unwrap());
    match words.first().copied() {
        Some("accept") => runtime.block_on(accept_all(number(20_000))),
        Some("queue") => runtime.block_on(long_queue(number(1_000_000))),
        Some("fill") => {
            let dir = words.get(1).expect("the data directory");
            let count = words.get(2).map_or(1_000_000, |n| n.parse().unwrap());
            let url =
                std::env::var("TASUKI_BENCH_STORE").unwrap_or_else(|_| tasuki_store::DEFAULT_URL.into());
            runtime.block_on(fill(&url, Path::new(dir), count));
        }
        _ => eprintln!("cargo bench -p tasuki-store -- accept|queue [N] or fill DIR [N]"),
    }
}

struct Place {
    url: String,
    dir: PathBuf,
    _own: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let base = std::env::var_os("TASUKI_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let own = tempfile::TempDir::new_in(base).unwrap();
        Self {
            url: std::env::var("TASUKI_BENCH_STORE").unwrap_or_else(|_| tasuki_store::DEFAULT_URL.into()),
            dir: own.path().to_owned(),
            _own: own,
        }
    }

    async fn open(&self) -> Arc<dyn Store> {
        tasuki_store::open(&self.url, &self.dir).await.unwrap()
    }
}

/// What the trail keeps of a delivery, as long as usual; nothing with `TASUKI_BENCH_TRAIL=0`.
fn story(mail: MailId) -> Option<Arc<Story>> {
    static TRAIL: LazyLock<bool> =
        LazyLock::new(|| std::env::var("TASUKI_BENCH_TRAIL").as_deref() != Ok("0"));
    TRAIL.then(|| {
        Arc::new(Story {
            mail,
            delivery: DeliverySeq(0),
            accepted_at: Timestamp(1_000),
            reverse_path: "alice@example.org".parse().unwrap(),
            principal: None,
            size_bytes: 2048,
            received: Some(Box::new(Received {
                client: Some("192.0.2.7:51234".parse().unwrap()),
                helo: "app.example.org".into(),
                message_id: Some(format!("{mail}.7f3a@example.org")),
                ..Received::default()
            })),
            at: Timestamp(2_000),
            attempt: 1,
            lane: LaneKey("mx:a.example".into()),
            fates: vec![Fate {
                recipients: vec![format!("bob{mail}@a.example").parse().unwrap()],
                end: End::Relayed,
                words: "250 2.0.0 ok: queued as 4cVx1k2p8Zz1yQ".into(),
                server: Some(Server {
                    host: "mx1.a.example".into(),
                    addr: Some("198.51.100.4:25".parse().unwrap()),
                    tls: None,
                }),
            }],
            aliases: Vec::new(),
            notices: Vec::new(),
        })
    })
}

/// CPU seconds of this process, user and kernel, to a hundredth.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name may hold blanks; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

/// A line of `/proc/self/status` in MiB.
fn memory_mib(line: &str) -> f64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let found = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let kib: f64 = found.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
    kib / 1024.0
}

async fn accept_all(count: i64) {
    for kib in [2, 10, 100] {
        let place = Place::new();
        let store = place.open().await;
        let life = store.join("bench").await.unwrap();
        accept(&store, life, kib, count / 10).await;
        let clock = Clock::system();
        let (began, cpu, commits) = (clock.now(), cpu_seconds(), store.stats().commits);
        accept(&store, life, kib, count).await;
        let spent = cpu_seconds() - cpu;
        let seconds = clock.now().duration_since(began).as_secs_f64();
        let commits = store.stats().commits - commits;
        println!(
            "{{\"case\":\"accept_{kib}k\",\"mails_per_s\":{:.0},\"cpu_s_per_1000\":{:.4},\"mails_per_commit\":{:.1}}}",
            count as f64 / seconds,
            spent / count as f64 * 1000.0,
            count as f64 / commits as f64,
        );
        store.close().await;
    }
}

/// 20 senders, each waiting for its acknowledgement; outcomes are settled beside them as they come.
async fn accept(store: &Arc<dyn Store>, (node, epoch): (NodeId, Epoch), kib: usize, count: i64) {
    let body = Bytes::from(vec![b'x'; kib << 10]);
    let (done, mut outcomes) = mpsc::channel(4096);
    for _ in 0..SENDERS {
        let (store, body, done) = (Arc::clone(store), body.clone(), done.clone());
        tokio::spawn(async move {
            for _ in 0..count / SENDERS {
                let stored = write(&*store, &body).await;
                let ids = store
                    .enqueue(node, epoch, vec![new_mail("a.example", stored, Timestamp(1_000))])
                    .await
                    .unwrap();
                let mut finished = outcome(ids[0], epoch, Settlement::Finished);
                finished.story = story(ids[0]);
                done.send(finished).await.unwrap();
            }
        });
    }
    drop(done);
    let mut batch = Vec::with_capacity(SETTLE);
    while outcomes.recv_many(&mut batch, SETTLE).await > 0 {
        store.settle(node, std::mem::take(&mut batch)).await.unwrap();
    }
}

/// A start with many deferred mails: until the first delivery is in hand.
async fn long_queue(count: i64) {
    let place = Place::new();
    let clock = Clock::system();
    let began = clock.now();
    let store = place.open().await;
    defer_many(&store, count, Timestamp(1_000)).await;
    store.close().await;
    drop(store);
    let built = clock.now().duration_since(began).as_secs_f64();
    let before = memory_mib("VmRSS");
    let (began, cpu) = (clock.now(), cpu_seconds());
    let store = place.open().await;
    let (node, epoch) = store.join("bench").await.unwrap();
    assert!(store.adopt(node, epoch, 256).await.unwrap().is_empty());
    let now = Timestamp(100_000_000);
    let lanes = store
        .claim_lanes(node, now, Duration::from_secs(60), 256, &[])
        .await
        .unwrap();
    let held = store
        .due(lanes[0].id, lanes[0].epoch, now, 16, &[])
        .await
        .unwrap();
    assert!(!held.is_empty());
    let first = clock.now().duration_since(began).as_secs_f64();
    let first_cpu = cpu_seconds() - cpu;
    let counts = store.queue_counts().await.unwrap();
    assert_eq!(i64::try_from(counts.deferred).unwrap(), count);
    // A minute of what is asked again and again.
    let (began, cpu) = (clock.now(), cpu_seconds());
    for _ in 0..60 {
        store
            .heartbeat(node, epoch, Duration::from_secs(30))
            .await
            .unwrap();
        store.adopt(node, epoch, 256).await.unwrap();
        let renew: Vec<_> = lanes.iter().map(|lane| (lane.id, lane.epoch)).collect();
        store
            .claim_lanes(node, now, Duration::from_secs(60), 0, &renew)
            .await
            .unwrap();
        store.next_due(node).await.unwrap();
        store.queue_counts().await.unwrap();
    }
    let rounds = clock.now().duration_since(began).as_secs_f64() / 60.0;
    println!(
        "{{\"case\":\"queue_{count}\",\"built_s\":{built:.1},\"first_delivery_s\":{first:.3},\"first_delivery_cpu_s\":{first_cpu:.3},\
         \"rss_before_mib\":{before:.0},\"rss_mib\":{:.0},\"peak_rss_mib\":{:.0},\"periodic_round_ms\":{:.2},\"periodic_cpu_ms\":{:.2}}}",
        memory_mib("VmRSS"),
        memory_mib("VmHWM"),
        rounds * 1000.0,
        (cpu_seconds() - cpu) / 60.0 * 1000.0,
    );
    store.close().await;
}
