//! `tasuki serve`: the gateway in the foreground.

use super::Context;
use crate::app::{self, Predecessor};
use crate::exit::Outcome;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Without a configuration file everything is made in ./data and every listener is on loopback.
With one, the data directory must be there: `tasuki init` makes it.

Signals: SIGTERM and Ctrl-C finish what is under way and stop (a second one stops at once); SIGHUP reads the
configuration file again. `tasuki upgrade` goes on in a new process without losing anybody."
)]
pub(super) struct Args {}

pub(super) fn run(Args {}: Args, context: &Context) -> Outcome {
    let loaded = context.load();
    if let (Err(fail), Some(predecessor)) = (&loaded, Predecessor::find()) {
        // The gateway that started this process tells who ordered it.
        predecessor.failed(fail);
    }
    app::serve(loaded?)
}
