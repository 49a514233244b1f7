//! `tasuki acl` and `tasuki ban`: who may come in.

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, output, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum AclCommand {
    /// List the rules in the order in which they are tried
    List(JsonFlag),
    /// Add a rule after the others
    #[command(after_help = "Examples:
  tasuki acl add allow --engine mail --action relay --from 192.0.2.0/24 --reason \"office network\"
  tasuki acl add deny --engine fediverse --action subscribe --domain spam.example --reason spam

Actions: connect, relay, subscribe, publish, expose, visit, admin.
The first rule that matches decides; the file's rules come first. What is not given matches everything.")]
    Add {
        /// allow or deny
        effect: String,
        /// mail, fediverse or tunnel
        #[arg(long)]
        engine: Option<String>,
        /// connect, relay, subscribe, publish, expose, visit or admin
        #[arg(long)]
        action: Option<String>,
        /// A network such as 192.0.2.0/24, or an address (may be repeated)
        #[arg(long, value_name = "NET")]
        from: Vec<String>,
        /// Only this person, service or agent
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        /// Only this domain and its subdomains
        #[arg(long)]
        domain: Option<String>,
        /// Why the rule exists
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Remove a rule that was added by command
    Remove {
        /// The number in `tasuki acl list`
        id: String,
    },
    /// Which rule would decide, from where, and why
    #[command(after_help = "Examples:
  tasuki acl explain 192.0.2.7                                        an address, in every engine
  tasuki acl explain shop                                             a person, service or agent
  tasuki acl explain --engine mail --action relay --from 192.0.2.7    one question")]
    Explain {
        /// A client's address, a name in `tasuki user list` and its kin, or the domain of an instance
        #[arg(value_name = "ADDRESS|NAME|DOMAIN")]
        who: Option<String>,
        /// Only what this engine asks: mail, fediverse or tunnel
        #[arg(long)]
        engine: Option<String>,
        /// Only this: connect, relay, subscribe, publish, expose, visit or admin
        #[arg(long)]
        action: Option<String>,
        /// The client's address
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
        /// Who has logged in
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        /// The domain or host concerned
        #[arg(long)]
        domain: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn acl(command: AclCommand, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        AclCommand::List(flag) => {
            let answer = gateway.read("/v1/acl")?;
            let columns = [
                ("ID", "id"),
                ("ORIGIN", "origin"),
                ("EFFECT", "effect"),
                ("ENGINE", "engine"),
                ("ACTION", "action"),
                ("FROM", "from"),
                ("PRINCIPAL", "principal"),
                ("DOMAIN", "domain"),
                ("REASON", "reason"),
            ];
            output::listing(
                &answer,
                "rules",
                &columns,
                flag.json,
                "no rules: each action's own default holds (see `tasuki acl explain`)",
            )
        }
        AclCommand::Add {
            effect,
            engine,
            action,
            from,
            principal,
            domain,
            reason,
        } => {
            let body = json!({"effect": effect, "engine": engine, "action": action, "from": from,
                "principal": principal, "domain": domain, "reason": reason});
            let made = gateway.call(Method::POST, "/v1/acl", Some(body))?;
            output::line(format!("rule {} added", output::cell(&made, "id")));
            Ok(())
        }
        AclCommand::Remove { id } => {
            gateway.call(Method::DELETE, &format!("/v1/acl/{}", segment(&id)), None)?;
            output::line(format!("rule {id} removed"));
            Ok(())
        }
        AclCommand::Explain {
            who,
            engine,
            action,
            from,
            principal,
            domain,
            json,
        } => {
            let body = json!({"who": who, "engine": engine, "action": action, "from": from,
                "principal": principal, "domain": domain});
            let answer = gateway.call(Method::POST, "/v1/acl/explain", Some(body))?;
            let columns = [("ENGINE", "engine"), ("ACTION", "action"), ("ANSWER", "text")];
            match answer["answers"].as_array().map(Vec::as_slice) {
                Some([only]) if !json => {
                    output::line(output::cell(only, "text"));
                    Ok(())
                }
                _ => output::listing(&answer, "answers", &columns, json, "no engine asks about that"),
            }
        }
    }
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum BanCommand {
    /// List the bans that hold now
    List(JsonFlag),
    /// Ban an address or network
    #[command(after_help = "Examples:
  tasuki ban add 203.0.113.9 --reason \"password spray\"
  tasuki ban add 203.0.113.0/24 --engine mail --for 7d --reason spam")]
    Add {
        /// An address, or a network such as 203.0.113.0/24
        net: String,
        /// Only in this engine: mail, fediverse or tunnel
        #[arg(long)]
        engine: Option<String>,
        /// How long, for example 1h or 7d; without it, for ever
        #[arg(long = "for", value_name = "TIME")]
        lasting: Option<String>,
        /// Why; shown in the list
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a ban
    Remove {
        /// The number in `tasuki ban list`, or the address or network
        ban: String,
    },
}

pub(super) fn ban(command: BanCommand, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        BanCommand::List(flag) => {
            let answer = gateway.read("/v1/bans")?;
            let columns = [
                ("ID", "id"),
                ("NET", "net"),
                ("ENGINE", "engine"),
                ("REASON", "reason"),
                ("BY", "by"),
                ("SINCE", "since"),
                ("UNTIL", "until"),
                ("REPEATS", "repeats"),
            ];
            output::listing(&answer, "bans", &columns, flag.json, "nobody is banned")
        }
        BanCommand::Add {
            net,
            engine,
            lasting,
            reason,
        } => {
            let body = json!({"net": net, "engine": engine, "lasting": lasting, "reason": reason});
            let made = gateway.call(Method::POST, "/v1/bans", Some(body))?;
            output::line(format!(
                "ban {} of {} added",
                output::cell(&made, "id"),
                output::cell(&made, "net")
            ));
            Ok(())
        }
        BanCommand::Remove { ban } => {
            gateway.call(Method::DELETE, &format!("/v1/bans/{}", segment(&ban)), None)?;
            output::line(format!("ban {ban} ended"));
            Ok(())
        }
    }
}
