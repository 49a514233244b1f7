//! What the engine writes: before a `202` one transaction, however many are subscribed; about progress one a second at most.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use serde_json::json;
use tasuki_activitypub::{TopicMode, TopicsConfig};
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::fedi::{
    BrakeMode, FilterBy, HostFacts, HostFilter, KeptFilter, NewSubscription, SubscriptionState,
    SubscriptionStyle,
};

use crate::deliveries::until;
use crate::filters::{OPERATOR, post, relay_with, words};
use crate::world::{Ground, Instance, Mood, RelayUnderTest, Setup};

/// Subscribers that are never reached: the brake holds everything.
async fn crowd(ground: &Ground, n: u32) {
    let join = async |number: u32| {
        let host = format!("h{number}.example");
        let new = NewSubscription {
            topic: if number.is_multiple_of(2) {
                String::new()
            } else {
                "tag/cats".into()
            },
            actor: format!("https://{host}/actor"),
            inbox: format!("https://{host}/inbox"),
            style: SubscriptionStyle::Mastodon,
            state: SubscriptionState::Active,
            follow_id: format!("https://{host}/follow"),
            software: None,
            at: Timestamp(i64::from(number)),
            host: host.clone(),
        };
        ground.fedi.subscribe(new, Vec::new(), None).await.unwrap();
        // It was looked at a moment ago: nobody asks it what it runs.
        let facts = HostFacts {
            software: Some("mastodon 4.5.4".into()),
            at: Clock::system().wall(),
            ..HostFacts::default()
        };
        ground.fedi.note_facts(&host, facts).await.unwrap();
        let filter = HostFilter {
            languages: words(if number.is_multiple_of(3) {
                &["ja"]
            } else {
                &["en", "und"]
            }),
            per_minute: number % 7,
            ..HostFilter::default()
        };
        let kept = KeptFilter {
            host: host.clone(),
            filter,
            by: FilterBy::Operator,
            at: Timestamp(1),
        };
        ground.fedi.set_filter(&host, Some(kept), None).await.unwrap();
    };
    iter(0..n).for_each_concurrent(256, join).await;
}

/// Commits in SQLite's write-ahead log (<https://www.sqlite.org/fileformat2.html#walformat>), and the log's name for itself,
/// which changes when it begins anew.
fn commits(log: &Path) -> (usize, Vec<u8>) {
    let bytes = std::fs::read(log).unwrap();
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    if bytes.len() < 32 {
        return (0, Vec::new());
    }
    let frame = 24 + usize::try_from(number(8)).unwrap();
    let salts = &bytes[16..24];
    let frames = (32..bytes.len().saturating_sub(frame - 1)).step_by(frame);
    let commits = frames
        .take_while(|at| bytes[at + 8..at + 16] == *salts)
        .filter(|at| number(at + 4) != 0)
        .count();
    (commits, salts.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_202_takes_one_transaction_for_ten_as_for_ten_thousand_subscribers() {
    let mut seen = Vec::new();
    for n in [10, 100, 1_000, 10_000] {
        let ground = Ground::sqlite().await;
        let log = ground.keys.path().join("tasuki.db-wal");
        crowd(&ground, n).await;
        let relay = relay_with(&ground, |config| {
            config.topics = TopicsConfig {
                mode: TopicMode::Any,
                ..TopicsConfig::default()
            };
        })
        .await;
        let author = Instance::start().await;
        author.subscribe(&relay).await;
        relay
            .handle
            .pause(BrakeMode::Hold, "a test", OPERATOR)
            .await
            .unwrap();
        author.publish(&relay, 0, true).await;
        // Something else may be written in between: the least of some is what it takes.
        let mut least = usize::MAX;
        for number in 1..10 {
            let mut create = author.create(number, true);
            create["object"]["tag"] = json!([{"type": "Hashtag", "name": "#cats"}]);
            let (before, name) = commits(&log);
            post(&relay, &author, &create).await;
            let (after, same) = commits(&log);
            if name == same {
                least = least.min(after - before);
            }
        }
        seen.push((n, least));
        relay.stop().await;
    }
    assert!(seen.iter().all(|(_, commits)| *commits == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_noted_at_most_once_a_second_whatever_is_going_on() {
    let (ground, memory) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let author = Instance::start().await;
    author.subscribe(&relay).await;
    let readers = [
        Instance::start().await,
        Instance::start().await,
        Instance::start().await,
    ];
    for reader in &readers {
        reader.subscribe(&relay).await;
    }
    readers[1].set_mood(Mood::Answers(503));
    readers[2].set_mood(Mood::Hangs);
    let mut number = 0;
    let published = async {
        while memory.checkpoints().len() < 5 {
            number += 1;
            author.publish(&relay, number, true).await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, published)
        .await
        .unwrap();
    let newest = author.publish(&relay, 100_000, true).await;
    readers[0]
        .wait_for("the last", |got| got["id"] == newest["id"])
        .await;
    let noted = memory.checkpoints().len();
    until("the last is noted", || memory.checkpoints().len() > noted).await;
    let all = memory.checkpoints();
    for pair in all.windows(2) {
        let between = pair[1].duration_since(pair[0]);
        // Two calls are timed where they arrive, some microseconds after they were made.
        assert!(
            between >= Duration::from_millis(990),
            "{between:?} of {}",
            all.len()
        );
    }
    relay.stop().await;
}
