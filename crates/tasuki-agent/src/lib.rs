//! The program at home: reads its arguments and its file, keeps its key, shows what happens, runs the agent.
//!
//! Everything about sessions and connections is in `tasuki_tunnel::agent`.

mod config;
mod home;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tasuki_core::shutdown::Shutdown;
use tasuki_tunnel::agent::{Agent, Final, Notice};

use crate::config::Settings;
use crate::home::Home;
use crate::words::Words;

/// The arguments or the file are wrong (EX_USAGE).
const USAGE: u8 = 64;
/// The gateway refuses for good (EX_NOPERM).
const REFUSED: u8 = 77;
/// Something that must be set up first is missing (EX_CONFIG).
const CONFIG: u8 = 78;
/// A file could not be read or written (EX_IOERR).
const IO: u8 = 74;

/// Makes local servers reachable through a Tasuki gateway.
#[derive(Parser, Debug)]
#[command(
    name = "tasuki-agent",
    version,
    max_term_width = 100,
    after_help = "Examples:
  tasuki-agent run --gateway mc.example.org:7443 --pin FINGERPRINT --code CODE --minecraft 127.0.0.1:25565
      the first time: `tasuki tunnel enroll` at the gateway prints gateway, pin and code
  tasuki-agent run --minecraft 127.0.0.1:25565
      later: the key and the gateway are remembered
  tasuki-agent run --tcp 25570=127.0.0.1:8123 --minecraft survival.example.org=127.0.0.1:25565

Exit codes: 64 arguments, 74 files, 77 the gateway refuses, 78 configuration"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Connect to the gateway and serve until stopped
    Run(Run),
}

#[derive(Args, Debug, Default)]
struct Run {
    /// The file with the agent's settings [default: agent.toml here, then /etc/tasuki/agent.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where key and gateway are remembered [default: $STATE_DIRECTORY, then ~/.local/state/tasuki-agent]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The gateway's tunnel address
    #[arg(long, value_name = "HOST:PORT")]
    gateway: Option<String>,
    /// The fingerprint of the gateway's key
    #[arg(long, value_name = "FINGERPRINT")]
    pin: Option<String>,
    /// The one-time code that enrols this agent
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Open a TCP port of the gateway for a local server; port 0 takes any granted one (may be repeated)
    #[arg(long, value_name = "PORT=HOST:PORT")]
    tcp: Vec<String>,
    /// The gateway's UDP port and the local server; port 0 takes the number of a TCP port, or any granted one (may be
    /// repeated)
    #[arg(long, value_name = "PORT=HOST:PORT")]
    udp: Vec<String>,
    /// A local Minecraft server, under a host name or as the gateway's default (may be repeated)
    #[arg(long, value_name = "[NAME=]HOST:PORT")]
    minecraft: Vec<String>,
    /// The host name of the --minecraft server, if it has none of its own
    #[arg(long, value_name = "NAME", requires = "minecraft")]
    name: Option<String>,
    /// Send visitors' addresses to the local TCP servers by PROXY protocol version 2
    #[arg(long)]
    proxy_v2: bool,
}

/// Why the program ends, with its exit code.
struct Fail {
    code: u8,
    text: String,
}

impl Fail {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Runs with these arguments, which do not begin with the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words = Words::of_the_environment();
    let arguments = std::iter::once(OsString::from("tasuki-agent")).chain(arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let Command::Run(arguments) = cli.command;
    match serve(arguments, words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            words.fail(&fail.text);
            ExitCode::from(fail.code)
        }
    }
}

fn serve(arguments: Run, words: Words) -> Result<(), Fail> {
    tasuki_core::tls::install_provider();
    let dir = arguments.dir.clone();
    let code = arguments.code.clone();
    let settings = Settings::gather(arguments)?;
    let home = Home::at(dir, settings.dir.clone())?;
    let key = home.key()?;
    let remembered = home.remembered()?;
    let known_pin = remembered.as_ref().map(|gateway| gateway.pin);
    let config = settings.agent_config(remembered)?;
    let met = known_pin == Some(config.pin);
    words.start(&config, &key.fingerprint().to_string());
    // One thread: a home line is slower than one core, and an idle agent stays small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new(IO, format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let stop = shutdown.clone();
        tokio::spawn(async move {
            stopped().await;
            stop.begin();
        });
        let gateway = config.gateway.clone();
        let pin = config.pin;
        let tell = move |notice: Notice| {
            words.say(&notice);
            // Only a gateway that let us in is worth remembering.
            if matches!(notice, Notice::Connected { .. })
                && let Err(fail) = home.remember(&gateway, pin)
            {
                words.fail(&fail.text);
            }
        };
        match Agent::new(config, key, code)
            .met_before(met)
            .run(shutdown, tell)
            .await
        {
            Ok(()) => {
                words.stopped();
                Ok(())
            }
            Err(error @ Final::Tls(_)) => Err(Fail::new(IO, error.to_string())),
            Err(error) => Err(Fail::new(REFUSED, words.refused(&error))),
        }
    })
}

/// Ctrl-C, or SIGTERM from a service manager.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            let _ = tokio::signal::ctrl_c().await;
            return;
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}
