//! `tasuki key`: the gateway's own keys.

use http::Method;

use super::{Context, confirmed, output};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Print the relay's private key (PEM), to move the relay to another program; the audit notes it
    Export {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let Command::Export { yes } = command;
    let question = "Whoever has this key can speak for the relay to every instance. Print it?";
    if !yes && !confirmed(question) {
        return Err(Fail::new(
            exit::USAGE,
            "nothing printed: say --yes to print the key without being asked",
        ));
    }
    let answer = context
        .gateway()?
        .call(Method::POST, "/v1/keys/relay/export", None)?;
    output::line(answer["pem"].as_str().unwrap_or_default().trim_end());
    Ok(())
}
