//! Datagrams from visitors to a local server: at a rate that must pass, and as many as go.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Tunnel, between, number, tasuki};
use crate::process::{PeakMemory, Running};
use crate::report::Line;
use crate::rounds::Plan;

/// What a voice packet may be late, many times over: whatever is still on its way after this is lost.
const QUIET: Duration = Duration::from_secs(1);

pub(super) fn measure(plan: &Plan, case: &str, directory: &Path, log: &Path, line: Line) -> Result<Line> {
    let mut server = Running::part(&["udp-server".into()], log)?;
    let ports: Value = serde_json::from_str(&server.line()?)?;
    let port = |key: &str| -> Result<u16> { Ok(u16::try_from(ports[key].as_u64().context("a port")?)?) };
    let (local, count) = (port("udp")?, port("count")?);
    let tunnel = match line.peer.as_str() {
        "tasuki" => tasuki(
            plan,
            directory,
            log,
            local,
            include_str!("../../config/tunnel.toml"),
            "udp",
        )?,
        "direct" => Tunnel {
            visitors: ([127, 0, 0, 1], local).into(),
            parts: Vec::new(),
        },
        other => bail!("{other} has no UDP here"),
    };
    let rate = match case {
        "udp20k" => "20000",
        _ => "0",
    };
    let roots: Vec<u32> = tunnel.parts.iter().map(Running::pid).collect();
    let peak = PeakMemory::watch(roots.clone());
    let mut load = Running::part(
        &[
            "udp-load",
            "--addr",
            &tunnel.visitors.to_string(),
            "--rate",
            rate,
            "--seconds",
            if plan.quick { "3" } else { "10" },
        ]
        .map(str::to_owned),
        log,
    )?;
    let cpu = between(&mut load, &roots)?;
    let sent: Value = serde_json::from_str(&load.result()?)?;
    let came = arrived(count)?;
    let (sent, seconds) = (number(&sent, "datagrams")?, number(&sent, "seconds")?);
    let datagrams = number(&came, "datagrams")?;
    Ok(Line {
        units_per_s: Some(datagrams / seconds),
        cpu_s_per_1000: (!roots.is_empty()).then(|| cpu * 1000.0 / datagrams.max(1.0)),
        p50_us: Some(number(&came, "p50_us")?),
        p99_us: Some(number(&came, "p99_us")?),
        max_us: Some(number(&came, "max_us")?),
        peak_rss_mib: (!roots.is_empty()).then(|| peak.finish()),
        lost: Some((sent - datagrams).max(0.0) as u64),
        lost_percent: Some((sent - datagrams).max(0.0) * 100.0 / sent.max(1.0)),
        ..line
    })
}

/// What the server has seen, once nothing more comes.
fn arrived(port: u16) -> Result<Value> {
    let ask = || -> Result<Value> {
        let mut text = String::new();
        std::net::TcpStream::connect(("127.0.0.1", port))?.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    };
    let (mut last, mut since) = (ask()?, Instant::now());
    while since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(100));
        let next = ask()?;
        if next["datagrams"] != last["datagrams"] {
            (last, since) = (next, Instant::now());
        }
    }
    Ok(last)
}
