//! `tasuki demo`: the three main jobs, proved with the real programs over real sockets on this machine.

mod fediverse;
mod instances;
mod keys;
mod mail;
mod minecraft;
mod programs;
mod report;
mod show;
mod smtp;
mod tunnel;
mod web;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tasuki_core::clock::Clock;

use self::instances::Instance;
use self::programs::{Gateway, Programs};
use self::report::{Engines, Proof, Report, Watch, rounded};
use self::show::{Part, Show};
use crate::cli::output;
use crate::exit;

/// The name the demo's gateway is known by; nobody looks it up.
const HOST: &str = "relay.demo.test";
/// What arrives later than this does not count.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// Options of `tasuki demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki demo                   watch it, then play with the addresses it prints; Ctrl-C ends it
  tasuki demo --once            watch it, see the table, and done
  tasuki demo --once --json     for programs: one JSON object; exit code 70 if anything failed")]
pub(crate) struct Args {
    /// End when everything is proved
    #[arg(long)]
    once: bool,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// Use this store in place of an embedded one, for example postgres://user:password@host/database (an empty one)
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// Runs the demo.
pub(crate) fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return exit::Fail::io("cannot start the runtime", &e).report(),
    };
    tasuki_core::tls::install_provider();
    let ok = runtime.block_on(demo(&args));
    runtime.shutdown_background();
    ExitCode::from(if ok { 0 } else { exit::SOFTWARE })
}

async fn demo(args: &Args) -> bool {
    let clock = Clock::system();
    let began = clock.now();
    let show = Show::choose(args.json);
    let mut report = Report {
        ok: false,
        seconds: 0.0,
        store: if args.store.is_some() {
            "postgresql"
        } else {
            "sqlite"
        },
        programs: Vec::new(),
        gateway_ready_seconds: None,
        error: None,
        engines: Engines::default(),
    };
    let stage = Stage {
        clock: clock.clone(),
        show,
    };
    let (mut stop, programs, place) = match prepared() {
        Ok(all) => all,
        Err(error) => {
            eprintln!("tasuki: the demo cannot begin: {error:#}");
            return false;
        }
    };
    report.programs = programs.names();
    let mut standing = None;
    let played = tokio::select! {
        played = stage.play(args, &programs, place.path(), &mut report) => played.map(|s| standing = Some(s)),
        () = stop.asked() => Err(anyhow::anyhow!("stopped before everything was shown")),
    };
    if let Err(error) = played {
        report.error = Some(format!("{error:#}"));
    }
    let engines = [
        &report.engines.mail,
        &report.engines.fediverse,
        &report.engines.tunnel,
    ];
    report.ok = report.error.is_none() && engines.into_iter().all(|e| e.as_ref().is_some_and(|p| p.ok));
    report.seconds = rounded(clock.now().duration_since(began));
    if args.json {
        output::line(json!(report).to_string());
    } else {
        report.print_table();
    }
    if let Some(standing) = standing.filter(|_| !args.once) {
        standing.print_addresses();
        stop.asked().await;
    }
    programs.end().await;
    clear(place).await;
    report.ok
}

/// What must be there before anything runs, and is cleared away at the end however that comes.
fn prepared() -> Result<(Stop, Programs, tempfile::TempDir)> {
    let stop = Stop::listen()?;
    let programs = Programs::find()?;
    let place = tempfile::Builder::new()
        .prefix("tasuki-demo-")
        .tempdir()
        .context("no temporary directory can be made")?;
    Ok((stop, programs, place))
}

/// Removes the directory. A command that was cut off may need a moment to be gone, and makes files until then.
async fn clear(place: tempfile::TempDir) {
    let path = place.keep();
    for _ in 0..20 {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    eprintln!(
        "tasuki: {} could not be removed; remove it by hand",
        path.display()
    );
}

/// The signals that end the demo: Ctrl-C, `kill`, a terminal that is closed.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn asked(&mut self) {
        let [int, term, hup] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

/// What everything on the stage shares.
struct Stage {
    clock: Clock,
    show: Show,
}

/// Everything that runs, after the proofs.
struct Standing {
    place: PathBuf,
    gateway: Gateway,
    login: (String, String),
    instances: Vec<Arc<Instance>>,
}

impl Stage {
    async fn play(
        &self,
        args: &Args,
        programs: &Programs,
        place: &Path,
        report: &mut Report,
    ) -> Result<Standing> {
        let part = self.show.part("gateway");
        part.step("starting in a temporary directory, on free loopback ports");
        let mut watch = Watch::start(&self.clock);
        let (sink, mails) = smtp::sink().await?;
        let config = config(place, sink.port(), args.store.as_deref());
        let started = Gateway::start(programs, place, &config, HOST).await;
        let gateway = match started {
            Ok(gateway) => gateway,
            Err(error) => {
                part.end(false, "did not start");
                return Err(error);
            }
        };
        let ready = watch.lap();
        report.gateway_ready_seconds = Some(ready);
        part.end(
            true,
            &format!(
                "ready after {ready:.2} s with {} listeners",
                gateway.addresses.len()
            ),
        );

        let (mail, fediverse, tunnel) = tokio::join!(
            self.mail(&gateway, mails),
            self.fediverse(&gateway),
            self.tunnel(&gateway)
        );
        let (mail, login) = mail;
        let (fediverse, instances) = fediverse;
        report.engines = Engines {
            mail: Some(mail),
            fediverse: Some(fediverse),
            tunnel: Some(tunnel),
        };
        let engines = [
            &report.engines.mail,
            &report.engines.fediverse,
            &report.engines.tunnel,
        ];
        if !engines.into_iter().flatten().all(|p| p.ok) && !args.json {
            eprintln!("the gateway{}", gateway.last_words());
        }
        Ok(Standing {
            place: place.to_owned(),
            gateway,
            login,
            instances,
        })
    }

    fn ended(&self, part: &Part, mut proof: Proof, done: Result<()>, success: &str) -> Proof {
        match done {
            Ok(()) => {
                proof.ok = true;
                part.end(true, &format!("{success} ({:.2} s)", proof.seconds()));
                proof
            }
            Err(error) => {
                part.end(false, &format!("{error:#}"));
                proof.failed(&error)
            }
        }
    }
}

fn config(place: &Path, sink: u16, store: Option<&str>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    format!(
        r#"# Made by `tasuki demo`.
[server]
data = {data}
host = "{HOST}"
danger_public_url = "http://127.0.0.1:0"

[store]
url = {store}

[front]
listen = ["127.0.0.1:0"]
tls_listen = ["127.0.0.1:0"]

[admin]
listen = "127.0.0.1:0"

[mail]
default_route = "sink"
[mail.relay]
listen = ["127.0.0.1:0"]
[mail.submission]
listen = ["127.0.0.1:0"]
[mail.submissions]
listen = ["127.0.0.1:0"]
[[mail.smarthosts]]
name = "sink"
host = "127.0.0.1"
port = {sink}
tls = "none"

[fediverse]
danger_allow_private_addresses = true

[tunnel.quic]
listen = "127.0.0.1:0"
[tunnel.minecraft]
listen = "127.0.0.1:0"
"#,
        data = quoted(&place.join("data").display().to_string()),
        store = quoted(store.unwrap_or_default()),
    )
}

impl Standing {
    fn print_addresses(&self) {
        let line = |what: &str, value: String| output::line(format!("  {what:<24}{value}"));
        output::line("");
        output::line("Everything is still running. Play with it:");
        for (name, addr) in &self.gateway.addresses {
            line(name, addr.to_string());
        }
        let (login, password) = &self.login;
        line("mail login", format!("{login} / {password}"));
        line("trust this CA", self.gateway.ca_file().display().to_string());
        for instance in &self.instances {
            line(instance.name, instance.base.clone());
        }
        let config = self.place.join("tasuki.toml");
        line(
            "ask the gateway",
            format!("tasuki --config {} status", config.display()),
        );
        output::line("Ctrl-C ends it.");
    }
}
