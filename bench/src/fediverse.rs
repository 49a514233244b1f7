//! The fediverse: one author publishes through a relay to many hosts, each with its own name and connection.
//!
//! The hosts' names must resolve to `HOSTS_ADDRESS`; `scripts/bench` runs this in a mount namespace of its own with
//! an `/etc/hosts` that says so.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::drivers::fedi_hosts::make_files;
use crate::process::{PeakMemory, Running, cpu_seconds, free_port, wait_for_port, wait_until};
use crate::report::Line;
use crate::rounds::{LOG, Plan, Suite};

pub(crate) const SUITE: Suite = Suite {
    cases: &["full", "shared", "inbound"],
    more_cases: &[],
    peers: |case| match case {
        "full" => &["tasuki", "activityrelay", "sign", "post"],
        "shared" => &["tasuki", "post"],
        _ => &["tasuki", "activityrelay"],
    },
    slow_peers: &[],
    is_long: |_, _| false,
    measure,
};

const HOSTS_ADDRESS: &str = "127.77.0.1:443";

struct Relay {
    port: u16,
    running: Running,
    durable: bool,
}

fn measure(plan: &Plan, case: &str, peer: &str, directory: &Path) -> Result<Line> {
    let at = directory.display().to_string();
    let log = directory.join(LOG);
    make_files(directory)?;
    let line = Line {
        engine: "fediverse",
        case: case.to_owned(),
        peer: peer.to_owned(),
        ..Line::default()
    };
    if peer == "sign" {
        return alone(
            Running::part(&["sign".into(), "--directory".into(), at], &log)?,
            line,
        );
    }
    let port = free_port()?;
    let mut sink = Running::part(
        &[
            "fedi-hosts",
            "--listen",
            HOSTS_ADDRESS,
            "--directory",
            &at,
            "--relay-actor",
            &format!("http://127.0.0.1:{port}/actor"),
        ]
        .map(str::to_owned),
        &log,
    )?;
    let ports: Value = serde_json::from_str(&sink.line()?)?;
    let count = u16::try_from(ports["count"].as_u64().context("a port")?)?;
    // `inbound` has only the author's own host, which gets nothing back: the price of taking alone.
    let hosts = match (case, plan.quick) {
        ("inbound", _) => 1,
        (_, true) => 300,
        (_, false) => 1000,
    };
    if peer == "post" {
        let arguments = [
            "post",
            "--to",
            HOSTS_ADDRESS,
            "--directory",
            &at,
            "--hosts",
            &hosts.to_string(),
        ]
        .map(str::to_owned);
        return alone(Running::part(&arguments, &log)?, line);
    }
    let relay = match peer {
        "tasuki" => tasuki(plan, directory, &log, port, case == "shared")?,
        "activityrelay" => activityrelay(plan, directory, &log, port)?,
        other => bail!("unknown peer {other}"),
    };
    let roots = vec![relay.running.pid()];
    let load = |joined: bool, from: u64, notes: u64| -> Result<()> {
        let mut arguments = [
            "fedi-load",
            "--relay",
            &format!("127.0.0.1:{}", relay.port),
            "--directory",
            &at,
            "--hosts",
            &hosts.to_string(),
            "--from",
            &from.to_string(),
            "--notes",
            &notes.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if joined {
            arguments.push("--joined".into());
        }
        Running::part(&arguments, &log)?.result().map(drop)
    };
    let peak = PeakMemory::watch(roots.clone());
    load(false, 0, 0)?;
    wait_until("every host's Accept", Duration::from_secs(120), || {
        Ok(counted(count)?["accepts"] == hosts as u64)
    })?;
    if case == "shared" {
        wait_for_shared(plan, directory, hosts)?;
    }
    let others = hosts as u64 - 1;
    let (warm_up, notes) = if case == "inbound" {
        (200, 2000)
    } else {
        (2, if plan.quick { 10 } else { 20 })
    };
    load(true, 0, warm_up)?;
    let lost = wait_for_deliveries(count, others * warm_up)?;
    if lost > 0 {
        bail!(
            "{lost} of {} deliveries of the warm-up did not arrive; see the relay's log",
            others * warm_up
        );
    }
    let (cpu, begin) = (cpu_seconds(&roots), Instant::now());
    load(true, warm_up, notes)?;
    let lost = wait_for_deliveries(count, others * (warm_up + notes))?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds(&roots) - cpu);
    let seen = counted(count)?;
    if seen["bad"] != 0 {
        bail!(
            "{} of {} checked deliveries do not verify: {}",
            seen["bad"],
            seen["checked"],
            seen["first_bad"]
        );
    }
    let units = if case == "inbound" { notes } else { others * notes } as f64;
    Ok(Line {
        units_per_s: Some(units / seconds),
        cpu_s_per_1000: Some(cpu * 1000.0 / units),
        peak_rss_mib: Some(peak.finish()),
        lost: Some(lost),
        durable: Some(relay.durable),
        ..line
    })
}

/// Until the relay knows of every host that it takes a shared signature: it has asked for its NodeInfo.
fn wait_for_shared(plan: &Plan, directory: &Path, hosts: usize) -> Result<()> {
    let program = plan.program("tasuki")?;
    wait_until("every host's NodeInfo", Duration::from_secs(300), || {
        let said = Command::new(&program)
            .env("TASUKI_CONFIG", directory.join("tasuki.toml"))
            .args(["fedi", "subscribers", "--json"])
            .output()?;
        let listed: Value = serde_json::from_slice(&said.stdout)?;
        let subscribers = listed["subscribers"].as_array().context("subscribers")?;
        let shared = subscribers.iter().filter(|one| one["signature"] == "shared");
        Ok(shared.count() == hosts)
    })
}

fn alone(part: Running, line: Line) -> Result<Line> {
    let figure: Value = serde_json::from_str(&part.result()?)?;
    Ok(Line {
        units_per_s: figure["units_per_s"].as_f64(),
        cpu_s_per_1000: figure["cpu_s_per_1000"].as_f64(),
        ..line
    })
}

fn counted(port: u16) -> Result<Value> {
    let mut text = String::new();
    std::net::TcpStream::connect(("127.0.0.1", port))?.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits for that many distinct deliveries; after 20 s without a new one, returns how many are missing.
fn wait_for_deliveries(port: u16, wanted: u64) -> Result<u64> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let seen = counted(port)?["distinct"].as_u64().context("distinct")?;
        if seen >= wanted {
            return Ok(0);
        }
        if seen > last {
            (last, moved) = (seen, Instant::now());
        } else if moved.elapsed() > Duration::from_secs(20) {
            return Ok(wanted - seen);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tasuki(plan: &Plan, directory: &Path, log: &Path, port: u16, shared: bool) -> Result<Relay> {
    let config = directory.join("tasuki.toml");
    fs::write(
        &config,
        include_str!("../config/fediverse.toml")
            .replace("DIRECTORY", &directory.display().to_string())
            .replace("PORT_FRONT", &port.to_string())
            .replace("SHARED", if shared { "true" } else { "false" }),
    )?;
    let program = plan.program("tasuki")?;
    let made = Command::new(&program)
        .env("TASUKI_CONFIG", &config)
        .args(["init", "--host", "relay.bench.test"])
        .output()?;
    if !made.status.success() {
        bail!("tasuki init: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut running = Running::start(
        Command::new(&program).env("TASUKI_CONFIG", &config).arg("serve"),
        log,
    )?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        running,
        durable: true,
    })
}

fn activityrelay(plan: &Plan, directory: &Path, log: &Path, port: u16) -> Result<Relay> {
    let config = directory.join("activityrelay.yaml");
    fs::write(
        &config,
        include_str!("../config/activityrelay.yaml")
            .replace("DIRECTORY", &directory.display().to_string())
            .replace("PORT_RELAY", &port.to_string()),
    )?;
    let program = plan.tool("venv/bin/activityrelay")?;
    // Even with --skip-questions it asks whether to start at once; an empty input means no.
    let made = Command::new(&program)
        .args(["-c", &config.display().to_string(), "setup", "--skip-questions"])
        .stdin(std::process::Stdio::null())
        .output()?;
    if !directory.join("activityrelay.sqlite3").exists() {
        bail!("activityrelay setup: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut running = Running::start(
        Command::new(&program)
            .args(["-c", &config.display().to_string(), "run"])
            .env("SSL_CERT_FILE", directory.join("ca.pem")),
        log,
    )?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        running,
        durable: false,
    })
}
