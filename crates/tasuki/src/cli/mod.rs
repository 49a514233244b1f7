//! The command line: one file for each group of commands.
//!
//! Commands that ask or change something speak with the running gateway through `control.sock` in its data directory;
//! whoever may open that socket may do everything. `init`, `serve`, `check` and `demo` need no running gateway.

mod access;
mod audit;
mod backup;
mod brake;
mod check;
mod client;
mod dkim;
mod dns;
mod explain;
mod fedi;
mod filter;
mod import;
mod init;
mod key;
mod mail;
mod moderate;
mod opt_out;
pub(crate) mod output;
mod people;
mod recipients;
mod serve;
mod service;
mod smarthost;
mod status;
mod suppress;
mod tls_report;
mod token;
mod topics;
mod tunnel;
mod upgrade;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Loaded;
use crate::exit::{self, Outcome};
use crate::place::{DataDir, PlaceArgs};

use self::client::Gateway;

/// One relay gateway for mail, the fediverse and game servers at home.
#[derive(Parser, Debug)]
#[command(
    name = "tasuki",
    version,
    about,
    max_term_width = 100,
    after_help = "Examples:
  tasuki serve                                          run here, on loopback only, with ./data
  tasuki demo                                           watch all three engines work, in a temporary directory
  tasuki init --host relay.example.org                  prepare a gateway for the public
  tasuki service add shop --send-as shop.example        an account for a program that sends mail
  tasuki tunnel enroll home --name mc.example.org       a code for an agent at home
  tasuki status                                         how the gateway is doing

Exit codes: 64 usage or configuration, 65 no such thing, 69 no gateway running, 73/74 files, 75 busy, 77 not allowed, 78 data directory"
)]
struct Cli {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Prepare a gateway: configuration file, data directory, keys, admin user
    Init(init::Args),
    /// Run the gateway in the foreground
    Serve(serve::Args),
    /// Check the configuration file; names file, line and key of a mistake
    Check(check::Args),
    /// Watch all three engines do their work on this machine, in a temporary directory
    Demo(crate::demo::Args),
    /// How the running gateway is doing
    Status(status::Args),
    /// Read the configuration file again, without a restart
    Reload(status::ReloadArgs),
    /// Go on in a new process, with another version or configuration: players stay, nobody is refused
    Upgrade(upgrade::Args),
    /// People who use the gateway
    #[command(subcommand)]
    User(people::Command),
    /// Programs and networks that send mail
    #[command(subcommand)]
    Service(service::Command),
    /// Tokens for the admin API
    #[command(subcommand)]
    Token(token::Command),
    /// Access rules
    #[command(subcommand)]
    Acl(access::AclCommand),
    /// Banned addresses
    #[command(subcommand)]
    Ban(access::BanCommand),
    /// Who changed what, when, from where
    Audit(audit::Args),
    /// Copy the whole gateway into one file, while it runs
    Backup(backup::Args),
    /// Make a data directory from a backup
    Restore(backup::RestoreArgs),
    /// What is stored
    #[command(subcommand)]
    Store(backup::StoreCommand),
    /// Keys of the gateway
    #[command(subcommand)]
    Key(key::Command),
    /// The mail engine
    #[command(subcommand)]
    Mail(mail::Command),
    /// The fediverse engine
    #[command(subcommand)]
    Fedi(fedi::Command),
    /// The tunnel engine
    #[command(subcommand)]
    Tunnel(tunnel::Command),
    /// Run the agent from this program: the same as `tasuki-agent`, where only this one is at hand
    #[command(disable_help_flag = true)]
    Agent {
        /// Arguments of `tasuki-agent`, for example --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// Reads the arguments and does what they say.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let context = Context { place: cli.place };
    let done = match cli.command {
        Command::Init(args) => init::run(args, &context),
        Command::Serve(args) => serve::run(args, &context),
        Command::Check(args) => check::run(args, &context),
        Command::Demo(args) => return crate::demo::run(args),
        Command::Status(args) => status::run(args, &context),
        Command::Reload(args) => status::reload(args, &context),
        Command::Upgrade(args) => upgrade::run(args, &context),
        Command::User(command) => people::run(command, &context),
        Command::Service(command) => service::run(command, &context),
        Command::Token(command) => token::run(command, &context),
        Command::Acl(command) => access::acl(command, &context),
        Command::Ban(command) => access::ban(command, &context),
        Command::Audit(args) => audit::run(args, &context),
        Command::Backup(args) => backup::run(args, &context),
        Command::Restore(args) => backup::run_restore(args, &context),
        Command::Store(command) => backup::run_store(command, &context),
        Command::Key(command) => key::run(command, &context),
        Command::Mail(command) => mail::run(command, &context),
        Command::Fedi(command) => fedi::run(command, &context),
        Command::Tunnel(command) => tunnel::run(command, &context),
        Command::Agent { args } => return tasuki_agent::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

/// What every command may need: where things are.
struct Context {
    place: PlaceArgs,
}

impl Context {
    /// The configuration that holds here.
    fn load(&self) -> Outcome<Loaded> {
        Loaded::read(self.place.config_file().as_deref(), self.place.data.as_deref())
    }

    /// The data directory. `--data` is enough for it, even if the configuration file cannot be read.
    fn data_dir(&self) -> Outcome<DataDir> {
        match &self.place.data {
            Some(path) => Ok(DataDir::new(path.clone())),
            None => Ok(self.load()?.data_dir()),
        }
    }

    /// The gateway that runs here.
    fn gateway(&self) -> Outcome<Gateway> {
        Ok(Gateway::at(self.data_dir()?.socket()))
    }
}

/// One segment of a request's path.
fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes())
        .map(|part| if part == "+" { "%20" } else { part })
        .collect()
}

/// `--json`, for every listing.
#[derive(clap::Args, Debug, Clone, Copy)]
struct JsonFlag {
    /// Print the gateway's JSON in place of a table
    #[arg(long)]
    json: bool,
}

/// Asks a question on the terminal; without a terminal the answer is no.
fn confirmed(question: &str) -> bool {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if !std::io::stdin().is_terminal() {
        return false;
    }
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}
