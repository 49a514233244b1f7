//! `tasuki fedi`: the brake, taking out what waits, and watching one instance.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::client::Gateway;
use super::{JsonFlag, output, segment};
use crate::exit::Outcome;

/// How often a watched host is asked about.
const LOOK: Duration = Duration::from_millis(500);

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Pull the emergency brake: send nothing to anybody
    #[command(after_help = "Examples:
  tasuki fedi pause --hold --reason 'spam wave'     what comes is kept, and sent after `fedi resume`
  tasuki fedi pause --refuse                        what comes is put off to its sender, who tries again for days

What waits while the brake is pulled does not grow old. Instances can still join and leave.")]
    Pause {
        #[command(flatten)]
        mode: Mode,
        /// Why; shown in `status`
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Release the brake and send what waits
    Resume(JsonFlag),
    /// Take out of all lanes what still waits there
    #[command(after_help = "Examples:
  tasuki fedi purge --host spam.example --dry-run
  tasuki fedi purge --actor https://example.org/users/troll
  tasuki fedi purge --matching 'cheap +pills'

Deletes stay: they go to everybody who got the post. Posts without a Linked Data signature go out as Announces and are kept
without their words: --matching sees their id and their author. `fedi block` does this at once for what it blocks.")]
    Purge {
        #[command(flatten)]
        what: What,
        /// Only say what would be taken out
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Remove instances that nothing has reached for fediverse.prune_after, each with a Reject
    #[command(after_help = "Examples:
  tasuki fedi prune --dry-run
  tasuki fedi prune --confirm

The gateway does this by itself, at most 2% of all instances in a day (at least one); --confirm removes all of them now. While
many instances fail together, or the clock here is wrong, nobody is removed.")]
    Prune {
        /// Only list them
        #[arg(long, conflicts_with = "confirm")]
        dry_run: bool,
        /// Remove all of them, not only as many as a day allows
        #[arg(long)]
        confirm: bool,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Watch what an instance sends and is sent, until Ctrl-C
    #[command(after_help = "Example:
  tasuki fedi follow example.org

With --json each line is one JSON object.")]
    Follow {
        /// The instance's host
        host: String,
        /// End after so many lines
        #[arg(long)]
        count: Option<u64>,
        /// End after so many seconds
        #[arg(long)]
        seconds: Option<u64>,
        #[command(flatten)]
        json: JsonFlag,
    },
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Mode {
    /// Take activities and keep them
    #[arg(long)]
    hold: bool,
    /// Put activities off to their senders
    #[arg(long)]
    refuse: bool,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct What {
    /// What this account did, by its id
    #[arg(long)]
    actor: Option<String>,
    /// What comes from this host, or one below it
    #[arg(long)]
    host: Option<String>,
    /// Posts that match this regular expression, in any case
    #[arg(long)]
    matching: Option<String>,
}

pub(super) fn run(command: Command, gateway: &Gateway) -> Outcome {
    match command {
        Command::Pause { mode, reason, json } => {
            let mode = if mode.refuse { "refuse" } else { "hold" };
            let order = json!({"mode": mode, "reason": reason});
            let answer = gateway.call(Method::POST, "/v1/fediverse/pause", Some(order))?;
            if json.json {
                return output::json(&answer);
            }
            output::line(match mode {
                "refuse" => {
                    "activities are put off to their senders, and nothing is sent, until: tasuki fedi resume"
                }
                _ => "activities are kept, and nothing is sent, until: tasuki fedi resume",
            });
            Ok(())
        }
        Command::Resume(flag) => {
            let answer = gateway.call(Method::POST, "/v1/fediverse/resume", None)?;
            if flag.json {
                return output::json(&answer);
            }
            output::line(match answer["was_paused"].as_bool() {
                Some(true) => "the brake is released: what waits is sent now",
                _ => "the brake was not pulled",
            });
            Ok(())
        }
        Command::Purge { what, dry_run, json } => {
            let order = json!({"actor": what.actor, "host": what.host, "matching": what.matching, "dry_run": dry_run});
            let answer = gateway.call(Method::POST, "/v1/fediverse/purge", Some(order))?;
            if json.json {
                return output::json(&answer);
            }
            for object in answer["objects"].as_array().into_iter().flatten() {
                output::line(object.as_str().unwrap_or_default());
            }
            let verb = if dry_run {
                "would be taken out"
            } else {
                "taken out"
            };
            output::line(format!(
                "{} activities {verb}, with {} deliveries that waited",
                answer["activities"], answer["deliveries"]
            ));
            Ok(())
        }
        Command::Prune {
            dry_run,
            confirm,
            json: flag,
        } => {
            let answer = if dry_run {
                gateway.read("/v1/fediverse/prune")?
            } else {
                let order = json!({"confirm": confirm});
                gateway.call(Method::POST, "/v1/fediverse/prune", Some(order))?
            };
            let columns = [
                ("HOST", "host"),
                ("FAILING SINCE", "failing_since"),
                ("REMOVED", "removed"),
                ("LAST ERROR", "last_error"),
            ];
            output::listing(&answer, "dead", &columns, flag.json, "no instance is dead")
        }
        Command::Follow {
            host,
            count,
            seconds,
            json,
        } => follow(gateway, &host, count, seconds, json),
    }
}

fn follow(
    gateway: &Gateway,
    host: &str,
    count: Option<u64>,
    seconds: Option<u64>,
    flag: JsonFlag,
) -> Outcome {
    let path = format!("/v1/fediverse/follow?host={}", segment(host));
    let mut looks_left = seconds.map(|seconds| seconds.saturating_mul(2));
    let mut left = count;
    let mut answer = gateway.read(&path)?;
    while left != Some(0) && looks_left != Some(0) {
        std::thread::sleep(LOOK);
        let next = answer["next"].as_u64().unwrap_or_default();
        answer = gateway.read(&format!("{path}&after={next}"))?;
        for line in answer["lines"].as_array().into_iter().flatten() {
            if left == Some(0) {
                break;
            }
            left = left.map(|left| left - 1);
            if flag.json {
                output::line(line.to_string());
            } else {
                output::line(in_words(line));
            }
        }
        looks_left = looks_left.map(|left| left - 1);
    }
    Ok(())
}

fn in_words(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or("-");
    let subject = line["id"].as_str().or(line["object"].as_str()).unwrap_or("-");
    let kind = line["kind"]
        .as_str()
        .map(|kind| format!(" {kind}"))
        .unwrap_or_default();
    let reason = match text("reason") {
        "" | "-" => String::new(),
        reason => format!(": {reason}"),
    };
    format!(
        "{} {}{kind} {subject} {}{reason}",
        text("at"),
        text("what"),
        text("outcome")
    )
}
