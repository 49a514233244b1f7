//! Players while the mail engine of the same gateway works as fast as it can.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Tunnel, done, number, ours, tasuki};
use crate::process::{Running, cpu_seconds, free_port, wait_until};
use crate::report::Line;
use crate::rounds::Plan;

/// Mails that have gone through before anybody is measured.
const WARM: u64 = 2_000;

pub(super) fn measure(plan: &Plan, directory: &Path, log: &Path, local: u16, line: Line) -> Result<Line> {
    let mut sink = Running::part(&["smtp-sink".into()], log)?;
    let ports: Value = serde_json::from_str(&sink.line()?)?;
    let (next_hop, relay) = (&ports["smtp"], free_port()?);
    let config = include_str!("../../config/tunnel_and_mail.toml")
        .replace("PORT_NEXT_HOP", &next_hop.to_string())
        .replace("PORT_RELAY", &relay.to_string());
    let Tunnel { visitors, parts } = tasuki(plan, directory, log, local, &config, "tcp")?;
    done(
        "tasuki service add",
        &mut ours(
            plan,
            directory,
            &["service", "add", "mailer", "--send-as", "bench.test"],
        )?,
    )?;
    let roots: Vec<u32> = parts.iter().map(Running::pid).collect();
    // More than it can do: the senders are ended with the round.
    let _senders = Running::part(
        &[
            "smtp-load",
            "--to",
            &format!("127.0.0.1:{relay}"),
            "--senders",
            "20",
            "--messages",
            "10000000",
            "--size",
            "10240",
        ]
        .map(str::to_owned),
        log,
    )?;
    let count = u16::try_from(ports["count"].as_u64().context("a port")?)?;
    wait_until("the first mails", std::time::Duration::from_secs(60), || {
        Ok(delivered(count)? >= WARM)
    })?;
    let seconds = if plan.quick { 4 } else { 10 };
    let mut load = Running::part(
        &[
            "tcp-load",
            "players",
            "--addr",
            &visitors.to_string(),
            "--connections",
            "20",
            "--seconds",
            &seconds.to_string(),
        ]
        .map(str::to_owned),
        log,
    )?;
    while load.line()? != "begin" {}
    let (mails, cpu) = (delivered(count)?, cpu_seconds(&roots));
    while load.line()? != "end" {}
    let (mails, cpu) = (delivered(count)? - mails, cpu_seconds(&roots) - cpu);
    let figure: Value = serde_json::from_str(&load.result()?)?;
    Ok(Line {
        units_per_s: Some(mails as f64 / number(&figure, "seconds")?),
        cpu_s_per_1000: Some(cpu * 1000.0 / mails.max(1) as f64),
        p50_us: Some(number(&figure, "p50_us")?),
        p99_us: Some(number(&figure, "p99_us")?),
        max_us: Some(number(&figure, "max_us")?),
        ..line
    })
}

/// Mails that the sink has seen.
fn delivered(port: u16) -> Result<u64> {
    let mut text = String::new();
    std::net::TcpStream::connect(("127.0.0.1", port))?.read_to_string(&mut text)?;
    let (distinct, _) = text.trim().split_once(' ').context("two numbers")?;
    Ok(distinct.parse()?)
}
