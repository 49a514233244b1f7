//! `tasuki upgrade`: the gateway goes on in a new process, and nobody is refused or leaves the game.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::{Context, output};
use crate::exit::{Fail, Outcome};

/// How long the whole takes at most: the start, the drain, the store, and the last words.
const PATIENCE: Duration = Duration::from_secs(240);

#[derive(clap::Args, Debug)]
#[command(
    after_help = "The new process starts with the arguments of the old one and reads the configuration again. It gets every listener,
and the connections of players and other visitors of the tunnel's TCP endpoints; their agents come back by themselves.
Mail and web requests under way are finished by the old process within the drain; new ones wait meanwhile.
If the new process does not start, the old one goes on, and this command says why.
A listener whose new address overlaps the old one (127.0.0.1:25565, then 0.0.0.0:25565) needs a stop and a start.

Examples:
  tasuki upgrade                          after a new package was installed, or the configuration needs a restart
  tasuki upgrade --binary /opt/tasuki/bin/tasuki --drain 30"
)]
pub(super) struct Args {
    /// The program to go on with (default: the running one's path, with what lies there now)
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Seconds that mail and web requests under way may take to finish, at most 60
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=60))]
    drain: u64,
    /// Print the gateway's JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let binary = match &args.binary {
        None => None,
        Some(path) => Some(std::path::absolute(path).map_err(|e| Fail::io(path.display(), &e))?),
    };
    let wanted = json!({ "binary": binary, "drain_s": args.drain });
    let answer = context
        .gateway()?
        .call_within(PATIENCE, Method::POST, "/v1/upgrade", Some(wanted))?;
    if args.json {
        return output::json(&answer);
    }
    let field = |path: &str| output::cell(&answer, &format!("upgraded/{path}"));
    output::line(format!(
        "process {} ({}) has taken over from process {} ({}): {} listeners, {} visitors of the tunnel who rested {} ms here",
        field("pid"),
        field("version"),
        field("from_pid"),
        field("from_version"),
        field("listeners"),
        field("connections"),
        field("rested_ms"),
    ));
    Ok(())
}
