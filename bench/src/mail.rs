//! Mail: N messages from parallel senders through a relay to one next hop, 20 connections there for all.

mod deferred;
mod postgres;
mod relays;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::drivers::fedi_hosts::make_files;
use crate::process::{PeakMemory, Running, cpu_seconds, free_port, resident_kib, wait_for_port};
use crate::report::Line;
use crate::rounds::{LOG, Plan, Suite};

pub(crate) const SUITE: Suite = Suite {
    cases: &[
        "2k_x20",
        "10k_x20",
        "100k_x20",
        "10k_x1",
        "10k_x100",
        "10k_tls",
        "10k_1000_domains",
        "25m_x50",
        "deferred",
        "idle5000",
    ],
    more_cases: &[],
    peers: |case| match case {
        "10k_x20" | "25m_x50" => &[
            "tasuki",
            "tasuki-postgres",
            "postfix",
            "exim",
            "opensmtpd",
            "haraka",
            "direct",
        ],
        // Debian's OpenSMTPD fails most handshakes ("EVP lib"), with RSA and with elliptic curves; and it waits between two
        // sessions with one host, whatever its limits say: one or two mails a second.
        "10k_tls" | "10k_1000_domains" => &["tasuki", "postfix", "exim", "haraka", "direct"],
        "deferred" | "idle5000" => &["tasuki"],
        _ => &["tasuki", "postfix", "direct"],
    },
    slow_peers: &[],
    is_long: |case, peer| SLOW.contains(&peer) || matches!(case, "deferred" | "idle5000" | "25m_x50"),
    measure,
};

/// With the load of a quick run, and few rounds: they would take longer than all others together.
const SLOW: &[&str] = &["exim", "opensmtpd", "haraka"];

/// Where the name server of `sink.test` listens.
const NAME_SERVER: &str = "127.77.0.53:53";

/// The mail server of all names below `sink.test`. Not 127.0.0.1, which relays take for themselves.
const MAIL_SERVER: &str = "127.77.0.25:25";

struct Case {
    name: String,
    size: usize,
    senders: usize,
    messages: usize,
    tls: bool,
    domains: usize,
}

fn case(name: &str, quick: bool) -> Result<Case> {
    let (size, senders, messages) = match name {
        "2k_x20" => (2048, 20, 20_000),
        "10k_x20" => (10_240, 20, 15_000),
        "100k_x20" => (102_400, 20, 4_000),
        "10k_x1" => (10_240, 1, 3_000),
        "10k_x100" => (10_240, 100, 15_000),
        "10k_tls" | "10k_1000_domains" => (10_240, 20, 10_000),
        // Just under Tasuki's shipped limit.
        "25m_x50" => (26_000_000, 50, 200),
        "deferred" => (2048, 0, 1_000_000),
        "idle5000" => (0, 5000, 0),
        other => bail!("unknown case {other}"),
    };
    Ok(Case {
        name: name.to_owned(),
        size,
        senders,
        messages: if quick { messages / 4 } else { messages },
        tls: name == "10k_tls",
        domains: match name {
            "10k_1000_domains" => 1000,
            "deferred" => 100_000,
            _ => 1,
        },
    })
}

/// What a relay needs to know of its surroundings.
struct Place<'a> {
    plan: &'a Plan,
    directory: &'a Path,
    log: &'a Path,
    /// The sink's port.
    next_hop: u16,
    case: &'a Case,
}

/// A relay under test: where to send, and whose CPU counts.
struct Relay {
    port: u16,
    durable: bool,
    running: Option<Running>,
    /// A database of its own: its CPU counts, its memory does not.
    beside: Option<Running>,
}

fn measure(plan: &Plan, name: &str, peer: &str, directory: &Path) -> Result<Line> {
    // A rate needs no more of the slow ones, which would take longer than all others together.
    let case = case(name, plan.quick || SLOW.contains(&peer))?;
    let log = directory.join(LOG);
    let mut sink = vec!["smtp-sink".to_owned()];
    if case.tls {
        make_files(directory)?;
        sink.extend(["--tls".to_owned(), directory.display().to_string()]);
    }
    if case.domains > 1 {
        sink.extend(["--listen".to_owned(), MAIL_SERVER.to_owned()]);
    }
    let mut sink = Running::part(&sink, &log)?;
    let ports: Value = serde_json::from_str(&sink.line()?)?;
    let port_of = |key: &str| -> Result<u16> { Ok(u16::try_from(ports[key].as_u64().context("a port")?)?) };
    let (next_hop, count) = (port_of("smtp")?, port_of("count")?);
    let names = ["dns".to_owned(), "--listen".to_owned(), NAME_SERVER.to_owned()];
    let mut names = (case.domains > 1)
        .then(|| Running::part(&names, &log))
        .transpose()?;
    names.as_mut().map(Running::line).transpose()?;
    let place = Place {
        plan,
        directory,
        log: &log,
        next_hop,
        case: &case,
    };
    if name == "deferred" {
        return deferred::measure(&place, count, peer);
    }
    let relay = match peer {
        "tasuki" => relays::tasuki(&place)?,
        "tasuki-postgres" => relays::tasuki_on_postgres(&place)?,
        "postfix" => relays::postfix(&place)?,
        "exim" => relays::exim(&place)?,
        "opensmtpd" => relays::opensmtpd(&place)?,
        "haraka" => relays::haraka(&place)?,
        "direct" if case.tls || case.domains > 1 => Relay {
            port: next_hop,
            durable: false,
            running: None,
            beside: None,
        },
        "direct" => return straight(&place),
        other => bail!("unknown peer {other}"),
    };
    let line = Line {
        engine: "mail",
        case: name.to_owned(),
        peer: peer.to_owned(),
        durable: Some(relay.durable),
        ..Line::default()
    };
    if case.messages == 0 {
        return idle(&relay, &case, &log, line);
    }
    relayed(&relay, &case, &place, count, line)
}

fn relayed(relay: &Relay, case: &Case, place: &Place<'_>, count: u16, line: Line) -> Result<Line> {
    let own: Vec<u32> = relay.running.iter().map(Running::pid).collect();
    let roots: Vec<u32> = relay
        .running
        .iter()
        .chain(&relay.beside)
        .map(Running::pid)
        .collect();
    let measured = !roots.is_empty();
    // Warm up: connections, caches, the database's first pages; a JIT needs some thousand, but not of the largest.
    let warm_up = match line.peer.as_str() {
        "haraka" => case.messages.min(2000),
        _ => (case.messages / 10).max(case.senders),
    };
    let peak = PeakMemory::watch(own);
    send(case, place, relay.port, 0, warm_up)?;
    if !wait_for_count(count, warm_up, "warming up")? {
        bail!("warming up took more than {LONGEST:?}");
    }
    let (cpu, begin) = (cpu_seconds(&roots), Instant::now());
    send(case, place, relay.port, warm_up, case.messages)?;
    let arrived = wait_for_count(count, warm_up + case.messages, "delivering");
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&roots) - cpu;
    let seen = counted(count)?.0;
    let missing = (warm_up + case.messages).saturating_sub(seen);
    // A relay that has not delivered all in this time has its rate all the same; nothing is known of losses then.
    let is_cut = matches!(arrived, Ok(false));
    if missing == 0 {
        arrived?;
    }
    let delivered = seen.saturating_sub(warm_up) as f64;
    Ok(Line {
        units_per_s: Some(delivered / seconds),
        cpu_s_per_1000: measured.then(|| cpu * 1000.0 / delivered.max(1.0)),
        peak_rss_mib: measured.then(|| peak.finish()),
        lost: (!is_cut).then_some(missing as u64),
        ..line
    })
}

/// The generator straight into Postfix's own sink: what the machine gives. The sink does not count; every message had
/// its reply when the generator ends.
fn straight(place: &Place<'_>) -> Result<Line> {
    let port = free_port()?;
    let mut command = Command::new("smtp-sink");
    command.args(["-u", "nobody", &format!("127.0.0.1:{port}"), "256"]);
    let mut sink = Running::start(&mut command, place.log)?;
    sink.drain();
    wait_for_port(port)?;
    let case = place.case;
    send(case, place, port, 0, case.messages / 10)?;
    let begin = Instant::now();
    send(case, place, port, 0, case.messages)?;
    Ok(Line {
        engine: "mail",
        case: case.name.to_owned(),
        peer: "direct".to_owned(),
        units_per_s: Some(case.messages as f64 / begin.elapsed().as_secs_f64()),
        durable: Some(false),
        ..Line::default()
    })
}

fn idle(relay: &Relay, case: &Case, log: &Path, line: Line) -> Result<Line> {
    let roots: Vec<u32> = relay.running.iter().map(Running::pid).collect();
    let before = resident_kib(&roots);
    let mut held = Running::part(
        &[
            "smtp-idle",
            "--to",
            &format!("127.0.0.1:{}", relay.port),
            "--connections",
            &case.senders.to_string(),
        ]
        .map(str::to_owned),
        log,
    )?;
    if held.line()? != "ready" {
        bail!("the connections were not opened");
    }
    let after = resident_kib(&roots);
    Ok(Line {
        kib_per_conn: Some(after.saturating_sub(before) as f64 / case.senders as f64),
        peak_rss_mib: Some(after as f64 / 1024.0),
        ..line
    })
}

/// Sends and returns when every message has its reply: with Postfix's own generator, each sender on one connection,
/// or with ours where it must do what that cannot.
fn send(case: &Case, place: &Place<'_>, port: u16, from: usize, messages: usize) -> Result<()> {
    if case.tls || case.domains > 1 {
        let to = if port == place.next_hop && case.domains > 1 {
            MAIL_SERVER.to_owned()
        } else {
            format!("127.0.0.1:{port}")
        };
        let mut arguments = [
            "smtp-load",
            "--to",
            &to,
            "--senders",
            &case.senders.to_string(),
            "--messages",
            &messages.to_string(),
            "--from",
            &from.to_string(),
            "--size",
            &case.size.to_string(),
            "--domains",
            &case.domains.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if case.tls {
            let ca: PathBuf = place.directory.join("ca.pem");
            arguments.extend(["--tls".to_owned(), ca.display().to_string()]);
        }
        return Running::part(&arguments, place.log)?.result().map(drop);
    }
    let status = Command::new("smtp-source")
        .args(["-d", "-s", &case.senders.to_string()])
        .args(["-m", &messages.to_string(), "-l", &case.size.to_string()])
        .args(["-f", "sender@bench.test", "-t", "recipient@sink.test"])
        .arg(format!("inet:127.0.0.1:{port}"))
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

/// How long a step may take while something arrives.
const LONGEST: Duration = Duration::from_secs(120);

/// Waits until `messages` have arrived; false when that takes longer than [`LONGEST`], an error when nothing has moved for
/// 20 s.
fn wait_for_count(port: u16, messages: usize, what: &str) -> Result<bool> {
    let begin = Instant::now();
    let (mut last, mut moved) = (0, begin);
    loop {
        let seen = counted(port)?.0;
        if seen >= messages {
            return Ok(true);
        }
        if begin.elapsed() > LONGEST {
            return Ok(false);
        }
        if seen > last {
            (last, moved) = (seen, Instant::now());
        } else if moved.elapsed() > Duration::from_secs(20) {
            bail!("{what}: {seen} of {messages} arrived, then nothing for 20 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
