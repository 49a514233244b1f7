//! What the store alone costs: CPU seconds for each 1,000 mails accepted and settled, and a start with a long queue.
//!
//! ```sh
//! cargo bench -p tasuki-store -- accept          # 2, 10 and 100 KiB, from 20 senders
//! cargo bench -p tasuki-store -- queue           # 1,000,000 deferred mails in 100,000 lanes; `queue 50000` for fewer
//! cargo bench -p tasuki-store -- fill DIR        # the same queue into the store of a gateway that is stopped
//! ```
//! `TASUKI_BENCH_STORE=postgres://...` measures an (empty) PostgreSQL database; its own processes' CPU is not counted.
//! `TASUKI_BENCH_DIR` says on which file system the data lies. One line of JSON for each case.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, MailIds, NodeId};
use tasuki_core::store::Store;
use tasuki_core::store::mail::{
    Class, Envelope, Hold, LaneKey, NewDelivery, NewMail, Notify, Outcome, Recipient, Settlement, StoredBody,
};
use tokio::sync::mpsc;

const SENDERS: i64 = 20;
/// As many outcomes as the mail engine settles at once.
const SETTLE: usize = 256;
static IDS: AtomicI64 = AtomicI64::new(1);

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
            runtime.block_on(fill(Path::new(dir), count));
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

fn recipient(domain: &str) -> Recipient {
    Recipient {
        mailbox: format!("bob@{domain}").parse().unwrap(),
        notify: Notify::default(),
        orcpt: None,
    }
}

fn new_mail(domain: &str, body: StoredBody, now: Timestamp) -> NewMail {
    NewMail {
        id: MailId(IDS.fetch_add(1, Ordering::Relaxed)),
        envelope: Envelope {
            reverse_path: "alice@example.org".parse().unwrap(),
            principal: None,
            envid: None,
            ret: None,
            smtputf8: false,
            eight_bit: false,
            is_dsn: false,
            require_tls: false,
            class: Class::default(),
        },
        body,
        deliveries: vec![NewDelivery {
            lane: LaneKey(format!("mx:{domain}")),
            recipients: vec![recipient(domain)],
        }],
        accepted_at: now,
        expires_at: now.plus(Duration::from_secs(5 * 86_400)),
    }
}

fn outcome(mail: MailId, epoch: Epoch, settlement: Settlement) -> Outcome {
    Outcome {
        mail,
        delivery: DeliverySeq(0),
        hold: Hold::Fresh(epoch),
        settlement,
        follow_up: Vec::new(),
    }
}

/// A body as it arrives from a socket: in pieces.
async fn write(store: &dyn Store, bytes: &Bytes) -> StoredBody {
    let mut sink = store.open_body(Some(bytes.len() as u64)).await.unwrap();
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(16 << 10));
        sink.write(piece).await.unwrap();
    }
    sink.finish().await.unwrap()
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
                done.send(outcome(ids[0], epoch, Settlement::Finished))
                    .await
                    .unwrap();
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

/// Mails as another gateway of the store left them, due over the next hour.
async fn fill(dir: &Path, count: i64) {
    let url = std::env::var("TASUKI_BENCH_STORE").unwrap_or_else(|_| tasuki_store::DEFAULT_URL.into());
    let store = tasuki_store::open(&url, dir).await.unwrap();
    let clock = Clock::system();
    IDS.store(
        MailIds::new(NodeId(1000), clock.clone()).next().0,
        Ordering::Relaxed,
    );
    defer_many(&store, count, clock.wall()).await;
    store.close().await;
}

async fn defer_many(store: &Arc<dyn Store>, count: i64, now: Timestamp) {
    let (node, epoch) = store.join("bench").await.unwrap();
    let lanes = (count / 10).max(1);
    let body = Bytes::from(vec![b'x'; 2 << 10]);
    let mut n = 0;
    while n < count {
        let mut mails = Vec::with_capacity(SETTLE);
        for place in n..count.min(n + 256) {
            let stored = write(&**store, &body).await;
            mails.push(new_mail(&format!("d{:05}.sink.test", place % lanes), stored, now));
        }
        let first = n;
        n += i64::try_from(mails.len()).unwrap();
        let domains: Vec<LaneKey> = mails.iter().map(|mail| mail.deliveries[0].lane.clone()).collect();
        let ids = store.enqueue(node, epoch, mails).await.unwrap();
        let outcomes = ids
            .into_iter()
            .zip(domains)
            .zip(first..)
            .map(|((id, lane), place)| {
                let domain = lane.0.trim_start_matches("mx:").to_owned();
                let settlement = Settlement::Deferred {
                    lane,
                    recipients: vec![recipient(&domain)],
                    attempts: 1,
                    due: Timestamp(now.0 + place * 3),
                    last_error: "450 4.2.0 try again later".into(),
                    delay_reported: false,
                };
                outcome(id, epoch, settlement)
            })
            .collect();
        store.settle(node, outcomes).await.unwrap();
    }
}
