//! `tasuki service`: programs and networks that send mail.

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Add a program that sends mail; its password is printed once
    #[command(after_help = "Examples:
  tasuki service add shop --send-as shop.example
  tasuki service add backup --send-as '*'")]
    Add {
        /// 1 to 64 of a-z 0-9 . _ - @; it is the login name
        name: String,
        /// Domain whose addresses it may send from, or '*' for any (may be repeated)
        #[arg(long = "send-as", value_name = "DOMAIN")]
        send_as: Vec<String>,
        /// Other grants, for example fedi:publish or mail:send:<> (may be repeated)
        #[arg(long = "grant", value_name = "GRANT")]
        grants: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List programs
    List(JsonFlag),
    /// Remove a program with its passwords
    Remove {
        /// Which
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Add {
            name,
            send_as,
            mut grants,
            json,
        } => {
            grants.extend(send_as.iter().map(|domain| format!("mail:send:{domain}")));
            if grants.is_empty() {
                return Err(Fail::new(
                    exit::USAGE,
                    "a service that may do nothing is of no use: say --send-as DOMAIN, whose addresses it may send from",
                ));
            }
            let body = json!({"name": name, "grants": grants});
            let made = gateway.call(Method::POST, "/v1/services", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!("service {name} added"));
            output::line(format!("login:    {name}"));
            output::line(format!("password: {}", output::cell(&made, "password")));
            output::line("The password is shown only now.");
            if let Some(example) = made.get("example").and_then(serde_json::Value::as_str) {
                output::line("");
                output::line("Try it:");
                output::line(format!("  {example}"));
            }
            Ok(())
        }
        Command::List(flag) => {
            let answer = gateway.read("/v1/services")?;
            let columns = [
                ("NAME", "name"),
                ("GRANTS", "grants"),
                ("DISABLED", "disabled"),
                ("SINCE", "created_at"),
            ];
            output::listing(
                &answer,
                "services",
                &columns,
                flag.json,
                "no services yet: tasuki service add NAME --send-as DOMAIN",
            )
        }
        Command::Remove { name, yes } => {
            if !yes && !confirmed(&format!("Remove the service {name} with its passwords?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            gateway.call(Method::DELETE, &format!("/v1/services/{}", segment(&name)), None)?;
            output::line(format!("service {name} removed"));
            Ok(())
        }
    }
}
