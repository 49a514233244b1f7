//! A gateway with nothing to do, and how it hears of something.

use std::time::{Duration, Instant};

use bytes::Bytes;
use roaring::RoaringBitmap;
use serde_json::json;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::FediStore as _;
use tasuki_core::store::fedi::{EntryKind, HostFacts, NewEntry};

use crate::deliveries::until;
use crate::memory::Memory;
use crate::world::{Ground, Instance, PATIENCE, RelayUnderTest, Setup};

/// Longer than any engine that polls would be silent.
const QUIET: Duration = Duration::from_secs(4);

/// Waits for a time of [`QUIET`] in which the store is asked nothing.
async fn wait_for_quiet(memory: &Memory) {
    let begin = Instant::now();
    loop {
        let before = memory.asked();
        if tokio::time::timeout(QUIET, memory.wait_for_more_than(before))
            .await
            .is_err()
        {
            return;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "an idle engine asks its store again and again"
        );
    }
}

fn entry(id: &str, audience: u32, at: Timestamp) -> NewEntry {
    NewEntry {
        kind: EntryKind::Control,
        object: id.to_owned(),
        actor: String::new(),
        dedupe: id.to_owned(),
        body: Bytes::from(json!({"id": id, "type": "Accept"}).to_string()),
        announce: None,
        audience: RoaringBitmap::from_iter([audience]),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_engine_does_not_ask_a_store_that_is_its_own() {
    let (ground, memory) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let host = instance.base.strip_prefix("http://").unwrap();
    let facts = HostFacts {
        at: Clock::system().wall(),
        ..HostFacts::default()
    };
    memory.note_facts(host, facts).await.unwrap();
    wait_for_quiet(&memory).await;
    assert_eq!(relay.counter("subscribers"), 1);

    // What comes now is sent at once, and the checkpoint follows.
    let number = memory
        .host_no(host, &format!("{}/inbox", instance.base))
        .await
        .unwrap();
    memory
        .append(entry("https://relay.test/1", number.0, Clock::system().wall()))
        .await
        .unwrap();
    instance
        .wait_for("the letter", |got| got["id"] == "https://relay.test/1")
        .await;
    let newest = memory.progress().await.unwrap().newest;
    until("the checkpoint", || memory.all_up_to() == newest).await;
    wait_for_quiet(&memory).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_gateway_appends_to_a_shared_store_is_sent() {
    let (ground, memory) = Ground::memory();
    memory.set_shared();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let host = instance.base.strip_prefix("http://").unwrap();
    let number = memory
        .host_no(host, &format!("{}/inbox", instance.base))
        .await
        .unwrap();
    memory.append_elsewhere(entry("https://relay.test/2", number.0, Clock::system().wall()));
    instance
        .wait_for("the letter", |got| got["id"] == "https://relay.test/2")
        .await;
    relay.stop().await;
}
