//! `tasuki mail smarthost`: our logins at the servers that carry our mail on.

use std::time::Duration;

use http::Method;
use serde_json::json;

use super::{Context, Gateway, JsonFlag, output, people, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List the smarthosts, how they are logged in to, and whether they work
    List(JsonFlag),
    /// Store the password of a smarthost that has `password_secret`; its mail is tried at once
    #[command(after_help = "Examples:
  tasuki mail smarthost password provider < password-file")]
    Password {
        /// The smarthost's name; the password is the first line of standard input
        name: String,
    },
    /// Log in to a smarthost that has `oauth`: shows an address and a code to type in there, waits, and keeps the login
    #[command(after_help = "Examples:
  tasuki mail smarthost login microsoft")]
    Login {
        /// The smarthost's name
        name: String,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::List(flag) => {
            let answer = gateway.read("/v1/mail/smarthosts")?;
            let columns = [
                ("NAME", "name"),
                ("HOST", "host"),
                ("USER", "username"),
                ("SECRET", "secret"),
                ("WORKS", "works"),
                ("LAST ERROR", "last_error"),
            ];
            let empty = "no smarthosts: see mail.smarthosts in the configuration";
            output::listing(&answer, "smarthosts", &columns, flag.json, empty)
        }
        Command::Password { name } => {
            let password = people::read_password()?;
            let path = format!("/v1/mail/smarthosts/{}/password", segment(&name));
            gateway.call(Method::PUT, &path, Some(json!({"password": password})))?;
            output::line(format!(
                "password of {name} stored; mail that waits for it is tried now"
            ));
            Ok(())
        }
        Command::Login { name } => login(&gateway, &name),
    }
}

fn login(gateway: &Gateway, name: &str) -> Outcome {
    let path = format!("/v1/mail/smarthosts/{}/login", segment(name));
    let mut answer = gateway.call(Method::POST, &path, None)?;
    if answer["state"] == "confirm" {
        output::line(format!(
            "Open {} in a browser, type in {} and log in as the smarthost's user. The code holds for {} minutes.",
            output::cell(&answer, "verification_uri"),
            output::cell(&answer, "user_code"),
            answer["expires_s"].as_u64().unwrap_or(0) / 60
        ));
    }
    while answer["state"] != "done" {
        let wait = answer["ask_again_s"].as_u64().unwrap_or(5).clamp(1, 300);
        std::thread::sleep(Duration::from_secs(wait));
        answer = gateway.call(Method::POST, &format!("{path}/poll"), None)?;
    }
    output::line(format!(
        "logged in to {name}; mail that waits for it is tried now"
    ));
    Ok(())
}
