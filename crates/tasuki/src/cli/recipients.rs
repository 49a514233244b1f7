//! `tasuki mail recipients`: addresses of domains whose recipients are kept in the store.

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, output, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List the known addresses of a domain
    List {
        /// The domain
        domain: String,
        #[command(flatten)]
        flag: JsonFlag,
    },
    /// Add addresses; their domain needs table = true in mail.recipients
    #[command(after_help = "Example:
  tasuki mail recipients add anna@example.org bob@example.org")]
    Add {
        /// Addresses
        #[arg(required = true)]
        addresses: Vec<String>,
    },
    /// Remove addresses
    Remove {
        /// Addresses
        #[arg(required = true)]
        addresses: Vec<String>,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    let change = |body| gateway.call(Method::POST, "/v1/mail/recipients", Some(body));
    match command {
        Command::List { domain, flag } => {
            let answer = gateway.read(&format!("/v1/mail/recipients?domain={}", segment(&domain)))?;
            let columns = [("LOCAL PART", "local"), ("DOMAIN", "domain")];
            let empty = "no known addresses: tasuki mail recipients add ADDRESS";
            output::listing(&answer, "recipients", &columns, flag.json, empty)
        }
        Command::Add { addresses } => {
            let answer = change(json!({"add": addresses}))?;
            output::line(format!("{} added", output::cell(&answer, "added")));
            Ok(())
        }
        Command::Remove { addresses } => {
            let answer = change(json!({"remove": addresses}))?;
            output::line(format!("{} removed", output::cell(&answer, "removed")));
            Ok(())
        }
    }
}
