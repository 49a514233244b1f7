//! `tasuki mail dkim`: the keys that sign our mail.

use http::Method;
use serde_json::{Value, json};
use tasuki_proto::smtp::zone;

use super::{Context, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make the first keys of a domain; its mail is signed from now on. Prints the DNS records to publish
    #[command(after_help = "Examples:
  tasuki mail dkim add example.com
  tasuki mail dkim add example.com --algorithm rsa --selector mail")]
    Add {
        /// Whose mail is signed, with subdomains that have no keys of their own
        domain: String,
        /// rsa or ed25519 (may be repeated); both if not given
        #[arg(long = "algorithm", value_name = "NAME")]
        algorithms: Vec<String>,
        /// The keys' name in the DNS; the day if not given. With two algorithms r or e is added
        #[arg(long)]
        selector: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change a domain's keys in two steps: the first call makes the next keys and prints their DNS records; said
    /// again once these are published, mail is signed with them
    Rotate {
        /// Whose
        domain: String,
        /// Change over although the DNS does not show the records yet
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List keys, and whether the DNS shows their records
    List(JsonFlag),
    /// Remove a domain's keys; its mail is no longer signed
    Remove {
        /// Whose
        domain: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Add {
            domain,
            algorithms,
            selector,
            json,
        } => {
            let body = json!({"domain": domain, "algorithms": algorithms, "selector": selector});
            let made = gateway.call(Method::POST, "/v1/mail/dkim", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!("mail of {domain} is signed from now on; publish:"));
            records(&made, "active");
            Ok(())
        }
        Command::Rotate { domain, force, json } => {
            let path = format!("/v1/mail/dkim/{}/rotate", segment(&domain));
            let made = gateway.call(Method::POST, &path, Some(json!({"force": force})))?;
            if json {
                return output::json(&made);
            }
            let keys = made["keys"].as_array().map_or(&[][..], Vec::as_slice);
            if keys.iter().any(|key| key["state"] == "next") {
                output::line(format!(
                    "next keys made, the old ones still sign; publish these, then say `tasuki mail dkim rotate {domain}` again:"
                ));
                records(&made, "next");
            } else {
                output::line(format!(
                    "mail of {domain} is signed with the new keys from now on"
                ));
                for key in keys.iter().filter(|key| key["state"] == "retired") {
                    output::line(format!("remove {} in a week", output::cell(key, "name")));
                }
            }
            Ok(())
        }
        Command::List(flag) => {
            let answer = gateway.read("/v1/mail/dkim")?;
            let columns = [
                ("DOMAIN", "domain"),
                ("SELECTOR", "selector"),
                ("ALGORITHM", "algorithm"),
                ("STATE", "state"),
                ("IN DNS", "published"),
                ("MADE", "made_at"),
            ];
            output::listing(
                &answer,
                "keys",
                &columns,
                flag.json,
                "no keys yet: tasuki mail dkim add DOMAIN",
            )
        }
        Command::Remove { domain, yes } => {
            if !yes && !confirmed(&format!("Stop signing the mail of {domain}?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            let path = format!("/v1/mail/dkim/{}", segment(&domain));
            gateway.call(Method::DELETE, &path, None)?;
            output::line(format!("mail of {domain} is no longer signed"));
            Ok(())
        }
    }
}

/// The records of keys in this state, as lines for a zone file.
fn records(answer: &Value, state: &str) {
    let keys = answer["keys"].as_array().map_or(&[][..], Vec::as_slice);
    for key in keys.iter().filter(|key| key["state"] == state) {
        output::line("");
        let (name, record) = (output::cell(key, "name"), output::cell(key, "record"));
        output::line(zone::line(&name, "TXT", &record));
    }
}
