//! `tasuki user`: people, their roles, grants and passwords.

use std::io::{BufRead as _, IsTerminal as _};

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Add a person; the password is read from standard input, or made and printed once
    #[command(after_help = "Examples:
  tasuki user add hanako --role operator
  tasuki user add taro --grant mail:send:example.org
  echo \"$PASSWORD\" | tasuki user add jiro --password-stdin")]
    Add {
        /// 1 to 64 of a-z 0-9 . _ - @
        name: String,
        /// none, viewer (reads), operator (runs it), admin (everything)
        #[arg(long, default_value = "none")]
        role: String,
        /// What the person may do through the engines, for example mail:send:example.org (may be repeated)
        #[arg(long = "grant", value_name = "GRANT")]
        grants: Vec<String>,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// List people
    List(JsonFlag),
    /// Set a new password; read from standard input, or made and printed once
    Passwd {
        /// Whose
        name: String,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give a role or grants to a person, service or agent
    #[command(
        after_help = "Grants: mail:send:DOMAIN, mail:send:*, mail:send:<>, fedi:publish, tunnel:name:DOMAIN, \
                            tunnel:default, tunnel:port:FROM-TO"
    )]
    Grant {
        /// To whom
        name: String,
        /// What, for example mail:send:example.org
        grants: Vec<String>,
        /// A new role: none, viewer, operator, admin
        #[arg(long)]
        role: Option<String>,
    },
    /// Take grants away
    Revoke {
        /// From whom
        name: String,
        /// What
        #[arg(required = true)]
        grants: Vec<String>,
    },
    /// Switch a principal off: none of its passwords, tokens and keys is accepted
    Disable {
        /// Whom
        name: String,
    },
    /// Switch a principal on again, also one that the gateway locked
    #[command(visible_alias = "unlock")]
    Enable {
        /// Whom
        name: String,
    },
    /// Remove a person with all passwords and tokens
    Remove {
        /// Whom
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
            role,
            grants,
            password_stdin,
        } => {
            let password = password_stdin.then(read_password).transpose()?;
            let body = json!({"name": name, "role": role, "grants": grants, "password": password});
            let made = gateway.call(Method::POST, "/v1/users", Some(body))?;
            output::line(format!("user {name} added"));
            say_password(&made);
            Ok(())
        }
        Command::List(flag) => {
            let answer = gateway.read("/v1/users")?;
            let columns = [
                ("NAME", "name"),
                ("ROLE", "role"),
                ("GRANTS", "grants"),
                ("DISABLED", "disabled"),
                ("SINCE", "created_at"),
            ];
            output::listing(
                &answer,
                "users",
                &columns,
                flag.json,
                "no people yet: tasuki user add NAME",
            )
        }
        Command::Passwd { name, password_stdin } => {
            let password = password_stdin.then(read_password).transpose()?;
            let path = format!("/v1/users/{}/password", segment(&name));
            let made = gateway.call(Method::PUT, &path, Some(json!({"password": password})))?;
            output::line(format!("password of {name} set"));
            say_password(&made);
            Ok(())
        }
        Command::Grant { name, grants, role } => {
            if grants.is_empty() && role.is_none() {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing to give: name a grant such as mail:send:example.org, or --role",
                ));
            }
            change(&gateway, &name, json!({"add": grants, "role": role}))
        }
        Command::Revoke { name, grants } => change(&gateway, &name, json!({"remove": grants})),
        Command::Disable { name } => change(&gateway, &name, json!({"disabled": true})),
        Command::Enable { name } => change(&gateway, &name, json!({"disabled": false})),
        Command::Remove { name, yes } => {
            if !yes && !confirmed(&format!("Remove {name} with all passwords and tokens?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            gateway.call(Method::DELETE, &format!("/v1/users/{}", segment(&name)), None)?;
            output::line(format!("user {name} removed"));
            Ok(())
        }
    }
}

fn change(gateway: &super::Gateway, name: &str, body: serde_json::Value) -> Outcome {
    let path = format!("/v1/principals/{}", segment(name));
    let now = gateway.call(Method::PATCH, &path, Some(body))?;
    output::line(format!(
        "{name}: role {}, grants {}{}",
        output::cell(&now, "role"),
        output::cell(&now, "grants"),
        if now["disabled"] == true { ", disabled" } else { "" }
    ));
    Ok(())
}

fn say_password(made: &serde_json::Value) {
    if let Some(password) = made.get("password").and_then(serde_json::Value::as_str) {
        output::line(format!("password: {password}"));
        output::line("It is shown only now.");
    }
}

/// The first line of standard input.
pub(super) fn read_password() -> Outcome<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("Password (it will be visible; end with Enter):");
    }
    let mut text = String::new();
    stdin
        .lock()
        .read_line(&mut text)
        .map_err(|e| Fail::io("cannot read the password from standard input", &e))?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() {
        return Err(Fail::new(exit::USAGE, "the password on standard input is empty"));
    }
    Ok(text)
}
