//! `tasuki mail`: the mail engine.

use super::{Context, dkim, output, recipients, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List what waits for delivery, oldest first
    Queue {
        /// Only senders that contain this text
        #[arg(long, value_name = "TEXT")]
        sender: Option<String>,
        /// Only recipients in this domain
        #[arg(long, value_name = "DOMAIN")]
        to: Option<String>,
        /// Only this mail
        #[arg(long, value_name = "ID")]
        mail: Option<String>,
        /// How many lines
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Print the gateway's JSON in place of a table
        #[arg(long)]
        json: bool,
    },
    /// The keys that sign our domains' mail
    #[command(subcommand)]
    Dkim(dkim::Command),
    /// Addresses of domains whose recipients are kept in the store
    #[command(subcommand)]
    Recipients(recipients::Command),
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let (sender, to, mail, limit, json) = match command {
        Command::Recipients(command) => return recipients::run(command, context),
        Command::Queue {
            sender,
            to,
            mail,
            limit,
            json,
        } => (sender, to, mail, limit, json),
        Command::Dkim(command) => return dkim::run(command, context),
    };
    let mut path = format!("/v1/mail/queue?limit={limit}");
    for (key, value) in [("sender", sender), ("to", to), ("mail", mail)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", segment(&value)));
        }
    }
    let answer = context.gateway()?.read(&path)?;
    let columns = [
        ("MAIL", "mail"),
        ("STATE", "state"),
        ("FROM", "reverse_path"),
        ("TO", "recipients"),
        ("BYTES", "size_bytes"),
        ("SINCE", "accepted_at"),
        ("TRIES", "attempts"),
        ("NEXT", "next_try"),
        ("LAST ERROR", "last_error"),
    ];
    output::listing(&answer, "queue", &columns, json, "the queue is empty")
}
