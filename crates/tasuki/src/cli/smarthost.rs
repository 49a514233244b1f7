//! `tasuki mail smarthost`: our logins at the servers that carry our mail on.

use http::Method;
use serde_json::json;

use super::{Context, JsonFlag, output, people, segment};
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
    }
}
