//! `tasuki token`: tokens for the admin API.

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, output, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make a token for a person or service; it is printed once
    #[command(after_help = "Examples:
  tasuki token new monitoring --role viewer --valid-for 365d    for a program: makes the service `monitoring`
  tasuki token new admin                                        for a person, with the person's own role
  tasuki token new admin --read-only --engine mail              less than the person may: reads the mail engine
  curl -H \"Authorization: Bearer TOKEN\" http://127.0.0.1:8600/v1/status")]
    New {
        /// A person or service; a name that is new becomes a service with the role of --role
        name: String,
        /// For a new name: viewer (reads), operator (runs it), admin (everything)
        #[arg(long)]
        role: Option<String>,
        /// How long it holds, for example 12h or 90d; without it, until it is revoked
        #[arg(long, value_name = "TIME")]
        valid_for: Option<String>,
        /// It only reads, whatever its owner's role is
        #[arg(long)]
        read_only: bool,
        /// It reaches only this engine: mail, fediverse or tunnel
        #[arg(long)]
        engine: Option<String>,
        /// What it is for, shown in listings
        #[arg(long, default_value = "")]
        label: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List tokens (never the tokens themselves)
    List(JsonFlag),
    /// Revoke a token by its number
    Revoke {
        /// The number in `tasuki token list`
        id: String,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::New {
            name,
            role,
            valid_for,
            read_only,
            engine,
            label,
            json,
        } => {
            let body = json!({"name": name, "role": role, "valid_for": valid_for, "label": label,
                "read_only": read_only, "engine": engine});
            let made = gateway.call(Method::POST, "/v1/tokens", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!("token: {}", output::cell(&made, "token")));
            output::line(format!(
                "It acts as {name} with the role {}{}, and is shown only now.",
                output::cell(&made, "role"),
                engine.map_or_else(String::new, |engine| format!(" in the {engine} engine alone"))
            ));
            Ok(())
        }
        Command::List(flag) => {
            let answer = gateway.read("/v1/tokens")?;
            let columns = [
                ("ID", "id"),
                ("OF", "principal"),
                ("ROLE", "role"),
                ("SCOPE", "scope"),
                ("LABEL", "label"),
                ("SINCE", "created_at"),
                ("EXPIRES", "expires_at"),
            ];
            output::listing(
                &answer,
                "tokens",
                &columns,
                flag.json,
                "no tokens: tasuki token new NAME",
            )
        }
        Command::Revoke { id } => {
            gateway.call(Method::DELETE, &format!("/v1/tokens/{}", segment(&id)), None)?;
            output::line(format!("token {id} revoked"));
            Ok(())
        }
    }
}
