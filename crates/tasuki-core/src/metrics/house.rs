//! Figures of the house itself, read at each scrape: process, disk, store, byte budget, certificate, health, runtimes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::Handle;

use super::Metrics;
use super::process::Process;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::health::{Health, Severity, disk_space};
use crate::store::NodeStore;
use crate::tls::Tls;

/// What is read.
#[derive(Clone)]
pub struct House {
    /// The data directory, for its disk.
    pub data_dir: PathBuf,
    /// The store.
    pub store: Arc<dyn NodeStore>,
    /// The byte budget.
    pub budget: Budget,
    /// The certificate.
    pub tls: Tls,
    /// Conditions.
    pub health: Health,
    /// Time.
    pub clock: Clock,
    /// The runtimes with their names: `core`, and the engines'.
    pub runtimes: Vec<(&'static str, Handle)>,
}

impl Metrics {
    /// Adds the figures of the house: `tasuki_process_…`, `tasuki_disk_…`, `tasuki_store_…`, `tasuki_memory_…`,
    /// `tasuki_tls_…`, `tasuki_health_…`, `tasuki_runtime_…`. Called once.
    pub fn register_house(&self, house: House) {
        self.register_collector(Box::new(house));
    }
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("House")
    }
}

impl Collector for House {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        // What the operating system does not tell is left out rather than shown as zero.
        if let Some(process) = Process::look() {
            process_figures(&mut out, &process)?;
        }
        if let Ok(disk) = disk_space(&self.data_dir) {
            out.gauge(
                "disk_free_bytes",
                "Bytes left on the data directory's disk",
                disk.free_bytes,
            )?;
            out.gauge(
                "disk_size_bytes",
                "Size of the data directory's disk",
                disk.size_bytes,
            )?;
            out.gauge(
                "disk_free_inodes",
                "Files that can still be made on the data directory's disk",
                disk.free_inodes,
            )?;
        }
        self.store_figures(&mut out)?;
        self.memory_figures(&mut out)?;
        self.tls_and_health_figures(&mut out)?;
        self.runtime_figures(&mut out)
    }
}

impl House {
    fn store_figures(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let stats = self.store.stats();
        out.counter("store_reads", "Readings since the start", stats.reads)?;
        out.counter("store_commits", "Commits since the start", stats.commits)?;
        out.counter(
            "store_syncs",
            "Syncs to stable storage since the start",
            stats.syncs,
        )?;
        out.gauge(
            "store_waiting_changes",
            "Changes that wait for their commit",
            stats.waiting,
        )?;
        out.gauge(
            "store_size_bytes",
            "Bytes that the database and its segments occupy",
            stats.size_bytes,
        )
    }

    fn memory_figures(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let budget = &self.budget;
        out.gauge(
            "memory_budget_bytes",
            "The byte budget (memory.budget)",
            budget.limit_bytes(),
        )?;
        out.gauge(
            "memory_budget_used_bytes",
            "Bytes of the budget that bodies and flows hold",
            budget.used_bytes(),
        )?;
        out.counter(
            "memory_budget_refusals",
            "How often the byte budget refused to hold more",
            budget.refused(),
        )
    }

    fn tls_and_health_figures(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let left_ms = self.tls.certificate().not_after.0 - self.clock.wall().0;
        out.signed(
            "tls_certificate_left_seconds",
            "Time until the presented certificate expires; negative when it has",
            left_ms.div_euclid(1000),
        )?;
        let conditions = self.health.conditions();
        let count = |severity| conditions.iter().filter(|(_, c)| c.severity == severity).count() as u64;
        out.labelled(
            "health_conditions",
            "What is not well now, by severity; see tasuki status --check",
            "severity",
            &[
                ("warning", count(Severity::Warning)),
                ("critical", count(Severity::Critical)),
            ],
        )
    }

    fn runtime_figures(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let tasks: Vec<(&str, u64)> = self
            .runtimes
            .iter()
            .map(|(name, handle)| (*name, handle.metrics().num_alive_tasks() as u64))
            .collect();
        out.labelled("runtime_tasks", "Tasks that live on a runtime", "runtime", &tasks)?;
        let mut busy = out.0.encode_descriptor(
            "tasuki_runtime_busy_seconds",
            "Time that a runtime's workers spent working",
            None,
            MetricType::Counter,
        )?;
        for (name, handle) in &self.runtimes {
            let metrics = handle.metrics();
            let seconds: f64 = (0..metrics.num_workers())
                .map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64())
                .sum();
            let labels = [("runtime", *name)];
            ConstCounter::new(seconds).encode(busy.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn process_figures(out: &mut Out<'_, '_>, process: &Process) -> fmt::Result {
    out.gauge(
        "process_resident_memory_bytes",
        "Resident memory",
        process.resident_bytes,
    )?;
    let cpu = ConstCounter::new(process.cpu_seconds);
    out.encode("process_cpu_seconds", "CPU time, user and system", &cpu)?;
    out.gauge("process_open_fds", "Open file descriptors", process.open_fds)?;
    if let Some(max) = process.max_fds {
        out.gauge("process_max_fds", "Limit of open file descriptors", max)?;
    }
    out.gauge("process_threads", "Threads", process.threads)?;
    let start = ConstGauge::new(process.start_time_seconds);
    out.encode(
        "process_start_time_seconds",
        "Start of the process, since 1970",
        &start,
    )
}

/// Writes figures under the house's prefix.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn encode(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        let name = format!("tasuki_{name}");
        let encoder = self
            .0
            .encode_descriptor(&name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.signed(name, help, i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn signed(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        self.encode(name, help, &ConstGauge::new(value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encode(name, help, &ConstCounter::new(value))
    }

    fn labelled(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        let name = format!("tasuki_{name}");
        let mut family = self.0.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (value, figure) in values {
            let labels = [(label, *value)];
            let figure = ConstGauge::new(i64::try_from(*figure).unwrap_or(i64::MAX));
            figure.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
