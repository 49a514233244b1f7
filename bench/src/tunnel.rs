//! Tunnels: a port of the gateway joined to a local server, each tunnel with its two processes.

mod beside_mail;
mod udp;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{PeakMemory, Running, cpu_seconds, free_port, resident_kib, wait_for_port};
use crate::report::Line;
use crate::rounds::{LOG, Plan, Suite};

pub(crate) const SUITE: Suite = Suite {
    cases: &[
        "bulk1_up",
        "bulk1_down",
        "bulk8_up",
        "bulk8_down",
        "rtt_idle",
        "rtt_loaded",
        "conn16",
        "conn64",
        "idle5000",
        "udp20k",
        "udp_overload",
        "rtt_while_mail",
    ],
    more_cases: &[],
    peers: |case| match case {
        "udp20k" | "udp_overload" => &["tasuki", "direct"],
        "rtt_while_mail" => &["tasuki"],
        _ => &[
            "tasuki",
            "quinn",
            "rathole-tcp",
            "rathole-noise",
            "rathole-tls",
            "bore",
            "direct",
        ],
    },
    slow_peers: &["rathole-tls", "bore"],
    is_long: |_, _| false,
    measure,
};

/// A tunnel under test: the visitors' address, and whose CPU and memory count.
pub(crate) struct Tunnel {
    visitors: SocketAddr,
    /// The gateway's process, then the one at home.
    pub(crate) parts: Vec<Running>,
}

fn measure(plan: &Plan, case: &str, peer: &str, directory: &Path) -> Result<Line> {
    let log = directory.join(LOG);
    let line = Line {
        engine: "tunnel",
        case: case.to_owned(),
        peer: peer.to_owned(),
        ..Line::default()
    };
    if matches!(case, "udp20k" | "udp_overload") {
        return udp::measure(plan, case, directory, &log, line);
    }
    let mut server = Running::part(&["tcp-server".into()], &log)?;
    let local: u16 = server.line()?.parse()?;
    if case == "rtt_while_mail" {
        return beside_mail::measure(plan, directory, &log, local, line);
    }
    let tunnel = match peer {
        "tasuki" => tasuki(
            plan,
            directory,
            &log,
            local,
            include_str!("../config/tunnel.toml"),
            "tcp",
        )?,
        "quinn" => quinn_copy(directory, &log, local)?,
        "rathole-tcp" | "rathole-noise" | "rathole-tls" => rathole(plan, directory, &log, local, peer)?,
        "bore" => bore(plan, &log, local)?,
        "direct" => Tunnel {
            visitors: ([127, 0, 0, 1], local).into(),
            parts: Vec::new(),
        },
        other => bail!("unknown peer {other}"),
    };
    let seconds = match (plan.quick, case) {
        (false, _) => "4",
        (true, "bulk1_up" | "bulk1_down" | "bulk8_up" | "bulk8_down") => "2",
        (true, _) => "1",
    };
    let load = |mode: &str, connections: usize| {
        Running::part(
            &[
                "tcp-load",
                mode,
                "--addr",
                &tunnel.visitors.to_string(),
                "--connections",
                &connections.to_string(),
                "--seconds",
                seconds,
            ]
            .map(str::to_owned),
            &log,
        )
    };
    let roots: Vec<u32> = tunnel.parts.iter().map(Running::pid).collect();
    let figures = match case {
        "bulk1_up" => bulk(load("up", 1)?, &roots, line)?,
        "bulk1_down" => bulk(load("down", 1)?, &roots, line)?,
        "bulk8_up" => bulk(load("up", 8)?, &roots, line)?,
        "bulk8_down" => bulk(load("down", 8)?, &roots, line)?,
        "rtt_idle" => rtt(load("rtt", 1)?, line)?,
        "rtt_loaded" => rtt(load("rtt-loaded", 1)?, line)?,
        "conn16" => connects(load("connect", 16)?, &roots, line)?,
        "conn64" => connects(load("connect", 64)?, &roots, line)?,
        "idle5000" => idle(load("hold", 5000)?, &roots, line, 5000)?,
        other => bail!("unknown case {other}"),
    };
    Ok(figures)
}

/// Waits for the load's `begin` and `end`, with the CPU seconds between them.
fn between(load: &mut Running, roots: &[u32]) -> Result<f64> {
    while load.line()? != "begin" {}
    let before = cpu_seconds(roots);
    while load.line()? != "end" {}
    Ok(cpu_seconds(roots) - before)
}

fn number(json: &Value, key: &str) -> Result<f64> {
    json[key].as_f64().with_context(|| format!("{key} in {json}"))
}

fn bulk(mut load: Running, roots: &[u32], line: Line) -> Result<Line> {
    let peak = PeakMemory::watch(roots.to_vec());
    let cpu = between(&mut load, roots)?;
    let figure: Value = serde_json::from_str(&load.result()?)?;
    let (bytes, seconds) = (number(&figure, "bytes")?, number(&figure, "seconds")?);
    Ok(Line {
        gbit_s: Some(bytes * 8.0 / seconds / 1e9),
        cpu_s_per_gib: (!roots.is_empty()).then(|| cpu / (bytes / f64::from(1 << 30))),
        peak_rss_mib: (!roots.is_empty()).then(|| peak.finish()),
        ..line
    })
}

fn rtt(load: Running, line: Line) -> Result<Line> {
    let figure: Value = serde_json::from_str(&load.result()?)?;
    Ok(Line {
        p50_us: Some(number(&figure, "p50_us")?),
        p99_us: Some(number(&figure, "p99_us")?),
        ..line
    })
}

fn connects(mut load: Running, roots: &[u32], line: Line) -> Result<Line> {
    let cpu = between(&mut load, roots)?;
    let figure: Value = serde_json::from_str(&load.result()?)?;
    let (made, seconds) = (number(&figure, "connections")?, number(&figure, "seconds")?);
    Ok(Line {
        units_per_s: Some(made / seconds),
        cpu_s_per_1000: (!roots.is_empty()).then(|| cpu * 1000.0 / made),
        ..line
    })
}

fn idle(mut load: Running, roots: &[u32], line: Line, connections: usize) -> Result<Line> {
    let before = resident_kib(roots);
    if load.line()? != "ready" {
        bail!("the connections were not opened");
    }
    let held = resident_kib(roots).saturating_sub(before);
    Ok(Line {
        kib_per_conn: (!roots.is_empty()).then(|| held as f64 / connections as f64),
        ..line
    })
}

fn quinn_copy(directory: &Path, log: &Path, local: u16) -> Result<Tunnel> {
    let certificate = directory.join("quinn.der").display().to_string();
    let mut server = Running::part(
        &["quinn-server".into(), "--certificate".into(), certificate.clone()],
        log,
    )?;
    let ports: Value = serde_json::from_str(&server.line()?)?;
    let mut client = Running::part(
        &[
            "quinn-client",
            "--certificate",
            &certificate,
            "--gateway",
            &format!("127.0.0.1:{}", ports["quic"]),
            "--local",
            &format!("127.0.0.1:{local}"),
        ]
        .map(str::to_owned),
        log,
    )?;
    client.line()?;
    let visitors = format!("127.0.0.1:{}", ports["tcp"]).parse()?;
    Ok(Tunnel {
        visitors,
        parts: vec![server, client],
    })
}

fn rathole(plan: &Plan, directory: &Path, log: &Path, local: u16, kind: &str) -> Result<Tunnel> {
    let (control, port) = (free_port()?, free_port()?);
    let program = plan.tool("bin/rathole")?;
    let (mut server, mut client) = (
        format!(
            "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[server.services.bench]\nbind_addr = \"127.0.0.1:{port}\"\n"
        ),
        format!(
            "[client]\nremote_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[client.services.bench]\nlocal_addr = \"127.0.0.1:{local}\"\n"
        ),
    );
    if kind == "rathole-tls" {
        let (identity, ca) = rathole_identity(directory)?;
        server += &format!(
            "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{identity}\"\npkcs12_password = \"bench\"\n"
        );
        client += &format!(
            "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{ca}\"\nhostname = \"gateway.bench.test\"\n"
        );
    }
    if kind == "rathole-noise" {
        let made = Command::new(&program).arg("--genkey").output()?;
        let text = String::from_utf8(made.stdout)?;
        let keys: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.ends_with(':'))
            .collect();
        let [private, public] = keys[..] else {
            bail!("rathole --genkey printed {text:?}")
        };
        server += &format!(
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"\n"
        );
        client += &format!(
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"\n"
        );
    }
    let (server_file, client_file) = (directory.join("server.toml"), directory.join("client.toml"));
    fs::write(&server_file, server)?;
    fs::write(&client_file, client)?;
    let mut parts = vec![Running::start(Command::new(&program).arg(&server_file), log)?];
    wait_for_port(control)?;
    parts.push(Running::start(Command::new(&program).arg(&client_file), log)?);
    parts.iter_mut().for_each(Running::drain);
    wait_for_port(port)?;
    Ok(Tunnel {
        visitors: ([127, 0, 0, 1], port).into(),
        parts,
    })
}

/// A certificate for `gateway.bench.test` as PKCS#12, and its CA.
fn rathole_identity(directory: &Path) -> Result<(String, String)> {
    crate::drivers::fedi_hosts::make_files(directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["pkcs12", "-export", "-passout", "pass:bench"])
        .args(["-in", &path("host.pem"), "-inkey", &path("host.key")])
        .args(["-out", &path("identity.p12")])
        .output()
        .context("openssl")?;
    if !made.status.success() {
        bail!("openssl pkcs12: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok((path("identity.p12"), path("ca.pem")))
}

/// bore's server has one control port, which cannot be chosen.
fn bore(plan: &Plan, log: &Path, local: u16) -> Result<Tunnel> {
    const CONTROL: u16 = 7835;
    let port = free_port()?;
    let program = plan.tool("bin/bore")?;
    let text = port.to_string();
    let mut server = Running::start(
        Command::new(&program)
            .args(["server", "--min-port", &text, "--max-port", &text])
            .args(["--bind-addr", "127.0.0.1"]),
        log,
    )?;
    server.drain();
    wait_for_port(CONTROL)?;
    let mut client = Running::start(
        Command::new(&program)
            .args(["local", &local.to_string(), "--to", "127.0.0.1", "--port", &text])
            .args(["--local-host", "127.0.0.1"]),
        log,
    )?;
    client.drain();
    wait_for_port(port)?;
    Ok(Tunnel {
        visitors: ([127, 0, 0, 1], port).into(),
        parts: vec![server, client],
    })
}

/// A command to the gateway of [`tasuki`] in this directory.
fn ours(plan: &Plan, directory: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(plan.program("tasuki")?);
    command
        .env("TASUKI_CONFIG", directory.join("tasuki.toml"))
        .args(arguments);
    Ok(command)
}

/// Runs a command that must succeed, and gives what it printed.
fn done(what: &str, command: &mut Command) -> Result<Vec<u8>> {
    let made = command.output().with_context(|| what.to_owned())?;
    if !made.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(made.stdout)
}

/// A gateway with `config` and an agent that exposes the local server's port: a TCP port, or with `kind` "udp" TCP and UDP
/// of one number.
pub(crate) fn tasuki(
    plan: &Plan,
    directory: &Path,
    log: &Path,
    local: u16,
    config_text: &str,
    kind: &str,
) -> Result<Tunnel> {
    let (quic, port) = (free_port()?, free_port()?);
    let config = directory.join("tasuki.toml");
    let data = directory.join("data");
    fs::write(
        &config,
        config_text
            .replace("DATA", &data.display().to_string())
            .replace("PORT_QUIC", &quic.to_string()),
    )?;
    let ours = |arguments: &[&str]| ours(plan, directory, arguments);
    done(
        "tasuki init",
        &mut ours(&["init", "--host", "gateway.bench.test"])?,
    )?;
    let mut gateway = Running::start(&mut ours(&["serve"])?, log)?;
    gateway.drain();
    crate::process::wait_until(
        "the gateway's control socket",
        std::time::Duration::from_secs(20),
        || Ok(ours(&["status"])?.output()?.status.success()),
    )?;
    let (number, route) = (port.to_string(), format!("{port}=127.0.0.1:{local}"));
    let mut enroll = ours(&["tunnel", "enroll", "bench", "--port", &number, "--json"])?;
    let mut routes = vec!["--tcp", &route];
    if kind == "udp" {
        enroll.args(["--udp", &number]);
        routes.extend(["--udp", &route]);
    }
    let ticket: Value = serde_json::from_slice(&done("tasuki tunnel enroll", &mut enroll)?)?;
    let text = |key: &str| {
        ticket[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("{key} in {ticket}"))
    };
    let mut agent = Running::start(
        Command::new(plan.program("tasuki-agent")?)
            .args(["run", "--dir", &directory.join("agent").display().to_string()])
            .args([
                "--gateway",
                &format!("127.0.0.1:{quic}"),
                "--pin",
                &text("pin")?,
                "--code",
                &text("code")?,
            ])
            .args(routes),
        log,
    )?;
    agent.drain();
    wait_for_port(port)?;
    Ok(Tunnel {
        visitors: ([127, 0, 0, 1], port).into(),
        parts: vec![gateway, agent],
    })
}
