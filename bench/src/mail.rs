//! Mail: N messages from parallel senders through a relay to one next hop, 20 connections there for all.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{PeakMemory, Running, cpu_seconds, free_port, wait_for_port, wait_until};
use crate::report::Line;
use crate::rounds::{Plan, Suite};

pub(crate) const SUITE: Suite = Suite {
    cases: &["2k_x20", "10k_x20", "100k_x20", "10k_x1", "10k_x100"],
    peers: |_| &["tasuki", "postfix", "direct"],
    measure,
};

struct Case {
    size: usize,
    senders: usize,
    messages: usize,
}

fn case(name: &str, quick: bool) -> Result<Case> {
    let (size, senders, messages) = match name {
        "2k_x20" => (2048, 20, 20_000),
        "10k_x20" => (10_240, 20, 15_000),
        "100k_x20" => (102_400, 20, 4_000),
        "10k_x1" => (10_240, 1, 3_000),
        "10k_x100" => (10_240, 100, 15_000),
        other => bail!("unknown case {other}"),
    };
    Ok(Case {
        size,
        senders,
        messages: if quick { messages / 4 } else { messages },
    })
}

/// A relay under test: where to send, and whose CPU counts.
struct Relay {
    port: u16,
    roots: Vec<u32>,
    durable: bool,
    _running: Option<Running>,
}

fn measure(plan: &Plan, name: &str, peer: &str) -> Result<Line> {
    let case = case(name, plan.quick)?;
    let directory = tempfile::Builder::new()
        .prefix("bench-mail-")
        .tempdir_in(std::env::current_dir()?.join("target"))?;
    let log = directory.path().join("log");
    let mut sink = Running::part(&["smtp-sink".into()], &log)?;
    let ports: Value = serde_json::from_str(&sink.line()?)?;
    let port_of = |key: &str| -> Result<u16> { Ok(u16::try_from(ports[key].as_u64().context("a port")?)?) };
    let (next_hop, count) = (port_of("smtp")?, port_of("count")?);
    let relay = match peer {
        "tasuki" => tasuki(plan, directory.path(), &log, next_hop)?,
        "postfix" => postfix(directory.path(), &log, next_hop)?,
        "direct" => Relay {
            port: next_hop,
            roots: Vec::new(),
            durable: false,
            _running: None,
        },
        other => bail!("unknown peer {other}"),
    };
    // Warm up: connections, caches, the database's first pages.
    let warm_up = (case.messages / 10).max(case.senders);
    let peak = PeakMemory::watch(relay.roots.clone());
    send(&case, warm_up, relay.port)?;
    wait_for_count(count, warm_up, "warming up")?;
    let (cpu, begin) = (cpu_seconds(&relay.roots), Instant::now());
    send(&case, case.messages, relay.port)?;
    let arrived = wait_for_count(count, warm_up + case.messages, "delivering");
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&relay.roots) - cpu;
    let seen = counted(count)?.0;
    let lost = (warm_up + case.messages).saturating_sub(seen);
    if lost == 0 {
        arrived?;
    }
    Ok(Line {
        engine: "mail",
        case: name.to_owned(),
        peer: peer.to_owned(),
        units_per_s: Some(case.messages as f64 / seconds),
        cpu_s_per_1000: (!relay.roots.is_empty()).then(|| cpu * 1000.0 / case.messages as f64),
        peak_rss_mib: (!relay.roots.is_empty()).then(|| peak.finish()),
        lost: Some(lost as u64),
        durable: Some(relay.durable),
        ..Line::default()
    })
}

/// Postfix's own load generator, each sender on one connection; it ends when every message has its reply.
fn send(case: &Case, messages: usize, port: u16) -> Result<()> {
    let status = Command::new("smtp-source")
        .args([
            "-d",
            "-s",
            &case.senders.to_string(),
            "-m",
            &messages.to_string(),
            "-l",
            &case.size.to_string(),
        ])
        .args([
            "-f",
            "sender@bench.test",
            "-t",
            "recipient@sink.test",
            &format!("inet:127.0.0.1:{port}"),
        ])
        .status()
        .context("smtp-source (Debian package postfix)")?;
    if !status.success() {
        bail!("smtp-source failed: {status}");
    }
    Ok(())
}

fn counted(port: u16) -> Result<(usize, usize)> {
    let mut text = String::new();
    std::net::TcpStream::connect(("127.0.0.1", port))?.read_to_string(&mut text)?;
    let (distinct, total) = text.trim().split_once(' ').context("two numbers")?;
    Ok((distinct.parse()?, total.parse()?))
}

/// Waits until `messages` have arrived; gives up when nothing has moved for 20 s.
fn wait_for_count(port: u16, messages: usize, what: &str) -> Result<()> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let seen = counted(port)?.0;
        if seen >= messages {
            return Ok(());
        }
        if seen > last {
            (last, moved) = (seen, Instant::now());
        } else if moved.elapsed() > Duration::from_secs(20) {
            bail!("{what}: {seen} of {messages} arrived, then nothing for 20 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tasuki(plan: &Plan, directory: &Path, log: &Path, next_hop: u16) -> Result<Relay> {
    let port = free_port()?;
    let data = directory.join("data");
    let config = directory.join("tasuki.toml");
    fs::write(
        &config,
        include_str!("../config/mail.toml")
            .replace("DATA", &data.display().to_string())
            .replace("PORT_NEXT_HOP", &next_hop.to_string())
            .replace("PORT_RELAY", &port.to_string()),
    )?;
    let program = plan.program("tasuki")?;
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("TASUKI_CONFIG", &config).args(arguments);
        command
    };
    let made = ours(&["init", "--host", "relay.bench.test"]).output()?;
    if !made.status.success() {
        bail!("tasuki init: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut running = Running::start(&mut ours(&["serve"]), log)?;
    running.drain();
    wait_for_port(port)?;
    let added = ours(&["service", "add", "bench", "--send-as", "*"]).output()?;
    if !added.status.success() {
        bail!("tasuki service add: {}", String::from_utf8_lossy(&added.stderr));
    }
    Ok(Relay {
        port,
        roots: vec![running.pid()],
        durable: true,
        _running: Some(running),
    })
}

fn postfix(directory: &Path, log: &Path, next_hop: u16) -> Result<Relay> {
    let port = free_port()?;
    let etc = directory.join("postfix");
    let spool = directory.join("spool");
    let state = directory.join("state");
    for made in [&etc, &spool, &state] {
        fs::create_dir_all(made)?;
    }
    // Its daemons run as the user postfix and must reach their directories.
    for path in [directory, spool.as_path()] {
        let mut mode = fs::metadata(path)?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(path, mode)?;
    }
    Command::new("chown")
        .args(["postfix", &state.display().to_string()])
        .status()?;
    fs::write(
        etc.join("main.cf"),
        include_str!("../config/postfix.cf")
            .replace("DIRECTORY", &directory.display().to_string())
            .replace("PORT_NEXT_HOP", &next_hop.to_string()),
    )?;
    fs::write(
        etc.join("master.cf"),
        include_str!("../config/postfix-master.cf").replace("PORT_RELAY", &port.to_string()),
    )?;
    let configured = Command::new("postfix")
        .args(["-c", &etc.display().to_string(), "check"])
        .output()
        .context("postfix")?;
    if !configured.status.success() {
        bail!("postfix check: {}", String::from_utf8_lossy(&configured.stderr));
    }
    let mut running = Running::start(
        Command::new("/usr/lib/postfix/sbin/master").args(["-c", &etc.display().to_string(), "-d"]),
        log,
    )?;
    running.drain();
    wait_for_port(port)?;
    wait_until("postfix's queue manager", Duration::from_secs(10), || {
        Ok(spool.join("public/qmgr").exists())
    })?;
    Ok(Relay {
        port,
        roots: vec![running.pid()],
        durable: true,
        _running: Some(running),
    })
}
