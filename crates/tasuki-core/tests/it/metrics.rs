//! What a scrape shows of the house.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tasuki_core::budget::Budget;
use tasuki_core::clock::Clock;
use tasuki_core::events::EventBus;
use tasuki_core::health::{Code, Condition, Health};
use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::metrics::{House, Metrics};
use tasuki_core::store::{NodeStore, Sharing, StoreResult, StoreStats};
use tasuki_core::tls::{Tls, TlsConfig};

struct Idle;

impl Sharing for Idle {
    fn is_shared(&self) -> bool {
        false
    }
}

#[async_trait]
impl NodeStore for Idle {
    async fn join(&self, _name: &str) -> StoreResult<(NodeId, Epoch)> {
        Ok((NodeId(1), Epoch(1)))
    }

    async fn heartbeat(&self, _node: NodeId, _epoch: Epoch, _dead_after: Duration) -> StoreResult<()> {
        Ok(())
    }

    async fn ping(&self) -> StoreResult<()> {
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            commits: 7,
            ..StoreStats::default()
        }
    }

    async fn close(&self) {}
}

#[tokio::test]
async fn a_scrape_shows_the_house_with_a_sentence_for_each_figure() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let events = EventBus::new(clock.clone());
    let budget = Budget::new(1000);
    let _held = budget.try_take(10).unwrap();
    let health = Health::new();
    health.set(
        "store",
        Some(Condition::critical(Code::Store, "the store does not answer")),
    );
    let metrics = Metrics::new();
    metrics.register_house(House {
        data_dir: dir.path().to_owned(),
        store: Arc::new(Idle),
        budget,
        tls: Tls::load(&TlsConfig::default(), dir.path(), None, clock.clone(), events).unwrap(),
        health,
        clock,
        runtimes: vec![("core", tokio::runtime::Handle::current())],
    });
    let text = metrics.encode();
    for line in [
        "tasuki_store_commits_total 7",
        "tasuki_memory_budget_used_bytes 10",
        "tasuki_health_conditions{severity=\"critical\"} 1",
        "tasuki_health_conditions{severity=\"warning\"} 0",
        "# TYPE tasuki_process_cpu_seconds counter",
        "tasuki_process_resident_memory_bytes ",
        "tasuki_process_open_fds ",
        "tasuki_process_threads ",
        "tasuki_process_start_time_seconds ",
        "tasuki_disk_free_bytes ",
        "tasuki_disk_free_inodes ",
        "tasuki_tls_certificate_left_seconds ",
        "tasuki_runtime_tasks{runtime=\"core\"} ",
        "tasuki_runtime_busy_seconds_total{runtime=\"core\"} ",
    ] {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n{text}");
    }
    let named = text.lines().filter(|line| line.starts_with("# TYPE")).count();
    let explained = text.lines().filter(|line| line.starts_with("# HELP")).count();
    assert_eq!(named, explained);
    assert!(text.ends_with("# EOF\n"));
}
