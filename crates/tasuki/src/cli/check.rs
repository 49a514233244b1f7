//! `tasuki check`: whether the configuration can be used.

use super::{Context, output};
use crate::exit::Outcome;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki check
  tasuki check --config /etc/tasuki/tasuki.toml

Exit code 64 if there is a mistake; the message names file, line and key.")]
pub(super) struct Args {}

pub(super) fn run(Args {}: Args, context: &Context) -> Outcome {
    let loaded = context.load()?;
    match &loaded.file {
        Some(file) => output::line(format!("{}: no mistakes", file.display())),
        None => output::line("no configuration file: all defaults hold, every listener is on loopback"),
    }
    for warning in loaded.warnings().into_iter().chain(loaded.unreadable_files()) {
        output::line(format!("note: {warning}"));
    }
    Ok(())
}
