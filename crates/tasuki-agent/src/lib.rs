//! The program at home: reads its arguments and its file, keeps its key, shows what happens, runs the agent.
//!
//! Everything about sessions and connections is in `tasuki_tunnel::agent`.

mod commands;
mod config;
mod control;
mod doctor;
mod findings;
mod home;
mod install;
mod os;
mod screen;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tasuki_core::shutdown::Shutdown;
use tasuki_tunnel::agent::{Agent, Final, Notice};

use crate::config::Settings;
use crate::control::Server;
use crate::home::{Home, Remembered};
use crate::screen::{Messages, Screen};
use crate::words::Words;

/// The arguments or the file are wrong (EX_USAGE).
const USAGE: u8 = 64;
/// The gateway refuses for good (EX_NOPERM).
const REFUSED: u8 = 77;
/// Something that must be set up first is missing (EX_CONFIG).
const CONFIG: u8 = 78;
/// Nothing that was asked for is there (EX_DATAERR).
const NOTHING: u8 = 65;
/// No agent is running, or it does not answer (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;
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
  tasuki-agent players
      who is here; `kick`, `ban`, `unban` and `allow` take a player's name, an address or a network

Exit codes: 64 arguments, 65 nobody there, 69 no agent runs, 74 files, 77 the gateway refuses, 78 configuration"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Connect to the gateway and serve until stopped; in a terminal with a live screen, else with a line for each event
    Run(Run),
    /// Show how the running agent stands
    Status(commands::Listing),
    /// List who is connected
    Players(commands::Listing),
    /// Cut somebody's connections; they may come back
    Kick(commands::Someone),
    /// Keep somebody out, now and later; without a name, list who is kept out
    Ban(commands::SomeoneOrList),
    /// Let somebody in again
    Unban(commands::Someone),
    /// Let only those on a list in; without a name, show the list
    Allow(commands::Allow),
    /// Look for what keeps visitors away, and say what helps
    Doctor(doctor::Doctor),
    /// Write a systemd unit that runs the agent
    Install(install::Install),
}

#[derive(Args, Clone, Debug, Default)]
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
    /// The gateway's front door (TCP), for networks that let no UDP out [default: the gateway's host, port 443]
    #[arg(long, value_name = "HOST:PORT")]
    tls: Option<String>,
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
    /// A local web server with TLS of its own, under a host name (may be repeated)
    #[arg(long, value_name = "NAME=HOST:PORT")]
    https: Vec<String>,
    /// A local web server without TLS, under a host name; the TLS is the gateway's (may be repeated)
    #[arg(long, value_name = "NAME=HOST:PORT")]
    http: Vec<String>,
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
    let outcome = match cli.command {
        Command::Run(arguments) => serve(arguments, words),
        Command::Status(listing) => commands::status(listing, words),
        Command::Players(listing) => commands::players(listing, words),
        Command::Kick(someone) => commands::kick(someone, words),
        Command::Ban(someone) => commands::ban(someone, words),
        Command::Unban(someone) => commands::unban(someone, words),
        Command::Allow(allow) => commands::allow(allow, words),
        Command::Doctor(arguments) => doctor::doctor(arguments, words),
        Command::Install(arguments) => install::install(&arguments, words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            words.fail(&fail.text);
            ExitCode::from(fail.code)
        }
    }
}

/// On the screen, if there is one, and on standard error unless that is the same terminal.
fn say(text: String, messages: Option<&Messages>) {
    if messages.is_none() || !std::io::stderr().is_terminal() {
        eprintln!("{text}");
    }
    if let Some(messages) = messages {
        messages.push(text);
    }
}

fn serve(arguments: Run, words: Words) -> Result<(), Fail> {
    tasuki_core::tls::install_provider();
    let dir = arguments.dir.clone();
    let code = arguments.code.clone();
    let mut settings = Settings::gather(arguments)?;
    let useless_proxy = settings.useless_proxy.take();
    let home = Home::at(dir, settings.dir.clone())?;
    let key = home.key()?;
    let rules = home.rules()?;
    let remembered = home.remembered()?;
    let known_pin = remembered.as_ref().map(|gateway| gateway.pin);
    let mut config = settings.agent_config(remembered)?;
    config.networks = home.networks();
    let met = known_pin == Some(config.pin);
    let mut started = words.start(&config, &key.fingerprint().to_string());
    started.extend(useless_proxy.map(|problem| words.useless_proxy(&problem)));
    // One thread: a home line is slower than one core, and an idle agent stays small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new(IO, format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let stop = shutdown.clone();
        tokio::spawn(async move {
            os::stopped().await;
            stop.begin();
        });
        // Another agent from the same directory would take this one's place at the gateway, and be thrown out by it again.
        let socket = home.socket();
        let listener = os::bind_control(&socket).map_err(|error| {
            let text = match error.kind() {
                std::io::ErrorKind::AddrInUse => words.pick(
                    "an agent runs from this directory already; stop it, or say --dir DIR for a second one".into(),
                    "このディレクトリのエージェントは既に動いています。止めるか、--dir DIR で別の場所を指定してください".into(),
                ),
                _ => format!("{}: {error}", socket.display()),
            };
            Fail::new(IO, text)
        })?;
        let gateway = Remembered {
            gateway: config.gateway.clone(),
            tls: config.tls.clone(),
            pin: config.pin,
        };
        let home_of_commands = home.clone();
        let agent = Agent::new(config, key, code).met_before(met);
        let control = agent.control();
        let known = control.clone();
        // From here on nothing is said but through this, or the screen would be torn.
        let screen = Screen::take();
        let messages = screen.as_ref().map(Screen::messages);
        started.into_iter().for_each(|text| say(text, messages.as_ref()));
        let tell = move |notice: Notice| {
            if let Some(text) = words.notice(&notice) {
                say(text, messages.as_ref());
            }
            // Only a gateway that let us in is worth remembering.
            if matches!(notice, Notice::Connected { .. })
                && let Err(fail) = home
                    .remember(&gateway)
                    .and_then(|()| home.keep_networks(&known.networks()))
            {
                say(fail.text, messages.as_ref());
            }
        };
        control.set_rules(rules);
        let server = Server::new(control.clone(), home_of_commands);
        let drawing = async {
            match &screen {
                Some(screen) => screen.draw(&control, words).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = agent.run(shutdown, tell) => ended,
            () = server.serve(listener) => Ok(()),
            () = drawing => Ok(()),
        };
        drop(screen);
        let _ = std::fs::remove_file(&socket);
        match ended {
            Ok(()) => {
                words.stopped();
                Ok(())
            }
            Err(error @ Final::Tls(_)) => Err(Fail::new(IO, error.to_string())),
            Err(error) => Err(Fail::new(REFUSED, words.refused(&error))),
        }
    })
}
