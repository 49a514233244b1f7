//! Doing nothing: the gateway with all engines on and one agent joined, and that agent; memory and CPU over a minute.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{cpu_seconds, resident_kib};
use crate::report::Line;
use crate::rounds::{LOG, Plan, Suite};
use crate::tunnel;

pub(crate) const SUITE: Suite = Suite {
    cases: &["gateway", "agent"],
    more_cases: &[],
    peers: |_| &["tasuki"],
    slow_peers: &[],
    is_long: |_, _| true,
    measure,
};

/// How long the caches, key generation and first timers of a start may take before it counts.
const SETTLE: Duration = Duration::from_secs(5);

fn measure(plan: &Plan, case: &str, peer: &str, directory: &Path) -> Result<Line> {
    let log = directory.join(LOG);
    let config = include_str!("../config/idle.toml");
    let pair = tunnel::tasuki(plan, directory, &log, 1, config, "tcp")?;
    let (root, program) = match (case, pair.parts.as_slice()) {
        ("gateway", [gateway, _]) => (gateway.pid(), "tasuki"),
        ("agent", [_, agent]) => (agent.pid(), "tasuki-agent"),
        _ => bail!("unknown case {case}"),
    };
    std::thread::sleep(SETTLE);
    let (cpu, begin) = (cpu_seconds(&[root]), Instant::now());
    std::thread::sleep(Duration::from_secs(60));
    let cpu = cpu_seconds(&[root]) - cpu;
    Ok(Line {
        engine: "idle",
        case: case.to_owned(),
        peer: peer.to_owned(),
        cpu_percent: Some(100.0 * cpu / begin.elapsed().as_secs_f64()),
        peak_rss_mib: Some(resident_kib(&[root]) as f64 / 1024.0),
        binary_mib: Some(stripped_mib(&plan.program(program)?, directory)?),
        ..Line::default()
    })
}

/// The program's size without symbols.
fn stripped_mib(program: &Path, directory: &Path) -> Result<f64> {
    let stripped = directory.join("stripped");
    let status = Command::new("strip")
        .arg("-o")
        .args([&stripped, program])
        .status()?;
    if !status.success() {
        bail!("strip: {status}");
    }
    Ok(fs::metadata(&stripped)?.len() as f64 / f64::from(1 << 20))
}
