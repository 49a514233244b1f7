//! Load drivers and side-by-side comparisons with peers.
//!
//! `scripts/bench` builds this program and the peers, then calls `bench run`. The other subcommands are the parts a
//! run starts as processes of their own (sinks, servers, drivers), so that their CPU time is never counted with the
//! thing measured.
//!
//! Every figure is taken in turns, one peer after the other in one run, at shipped defaults.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock itself")]

mod drivers;
mod fediverse;
mod idle;
mod mail;
mod process;
mod report;
mod rounds;
mod tunnel;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Compares Tasuki with other relays and tunnels, side by side"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures one engine and its peers.
    Run(rounds::Plan),
    /// Part of a run: takes mail and counts distinct Message-IDs.
    SmtpSink(drivers::smtp_sink::Sink),
    /// Part of a run: senders that can do STARTTLS and many domains.
    SmtpLoad(drivers::smtp_load::Load),
    /// Part of a run: holds SMTP connections that do nothing.
    SmtpIdle(drivers::smtp_load::Idle),
    /// Part of a run: the name server of `sink.test`.
    Dns(drivers::dns::Dns),
    /// Part of a run: fills the store of a stopped gateway with a long queue.
    FillQueue(drivers::fill_queue::Fill),
    /// Part of a run: the local server behind a tunnel.
    TcpServer,
    /// Part of a run: loads a TCP address and prints a JSON figure.
    TcpLoad(drivers::tcp::Load),
    /// Part of a run: the local server behind a UDP port.
    UdpServer,
    /// Part of a run: visitors who send datagrams.
    UdpLoad(drivers::udp::Load),
    /// Part of a run: a bare QUIC copy, gateway side.
    QuinnServer(drivers::quic::Server),
    /// Part of a run: a bare QUIC copy, home side.
    QuinnClient(drivers::quic::Client),
    /// Part of a run: many fediverse hosts over HTTPS that count what they receive.
    FediHosts(drivers::fedi_hosts::Hosts),
    /// Part of a run: joins hosts to a relay and publishes through it.
    FediLoad(drivers::fedi_load::Load),
    /// Part of a run: RSA-2048 signatures alone.
    Sign(drivers::fedi_load::Sign),
    /// Part of a run: HTTPS POSTs alone.
    Post(drivers::fedi_load::Post),
}

fn main() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed twice"))?;
    match Arguments::parse().command {
        Command::Run(plan) => rounds::run(&plan),
        Command::SmtpSink(sink) => drivers::smtp_sink::run(&sink),
        Command::SmtpLoad(load) => drivers::smtp_load::run(&load),
        Command::SmtpIdle(idle) => drivers::smtp_load::idle(&idle),
        Command::Dns(dns) => drivers::dns::run(&dns),
        Command::FillQueue(fill) => drivers::fill_queue::run(&fill),
        Command::TcpServer => drivers::tcp::serve(),
        Command::TcpLoad(load) => drivers::tcp::load(&load),
        Command::UdpServer => drivers::udp::serve(),
        Command::UdpLoad(load) => drivers::udp::load(&load),
        Command::QuinnServer(server) => drivers::quic::server(&server),
        Command::QuinnClient(client) => drivers::quic::client(&client),
        Command::FediHosts(hosts) => drivers::fedi_hosts::run(&hosts),
        Command::FediLoad(load) => drivers::fedi_load::run(&load),
        Command::Sign(sign) => drivers::fedi_load::sign(&sign),
        Command::Post(post) => drivers::fedi_load::post(&post),
    }
}
