//! A start with a long queue: how long until the first delivery, and how much memory it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::relays::Tasuki;
use super::{Place, counted};
use crate::process::{PeakMemory, Running, cpu_seconds};
use crate::report::Line;

/// Ten mails for each destination were deferred once by another run; they fall due over the next hour. Nobody sends more.
pub(super) fn measure(place: &Place<'_>, count: u16, peer: &str) -> Result<Line> {
    let messages = place.case.messages;
    let gateway = Tasuki::prepare(place, "")?;
    let fill = [
        "fill-queue".to_owned(),
        "--data".to_owned(),
        place.directory.join("data").display().to_string(),
        "--count".to_owned(),
        messages.to_string(),
    ];
    Running::part(&fill, place.log)?.result()?;
    forget_files();
    let began = Instant::now();
    let mut running = gateway.serve(place)?;
    let roots = [running.pid()];
    running.drain();
    let peak = PeakMemory::watch(roots.to_vec());
    while counted(count)?.1 == 0 {
        if began.elapsed() > Duration::from_secs(120) {
            bail!("no delivery within 120 s of the start");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = began.elapsed().as_secs_f64();
    // What is done again and again meets the whole queue.
    let seconds = if place.plan.quick { 20 } else { 60 };
    let (before, cpu, since) = (counted(count)?.1, cpu_seconds(&roots), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let delivered = counted(count)?.1 - before;
    let cpu = cpu_seconds(&roots) - cpu;
    Ok(Line {
        engine: "mail",
        case: place.case.name.clone(),
        peer: peer.to_owned(),
        units_per_s: Some(delivered as f64 / since.elapsed().as_secs_f64()),
        cpu_s_per_1000: (delivered > 0).then(|| cpu * 1000.0 / delivered as f64),
        first_s: Some(first),
        peak_rss_mib: Some(peak.finish()),
        durable: Some(true),
        ..Line::default()
    })
}

/// Writes back and forgets what the kernel has in memory of files, so that the start reads the disk. Not a reason to fail.
fn forget_files() {
    let _ = std::process::Command::new("sync").status();
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}
