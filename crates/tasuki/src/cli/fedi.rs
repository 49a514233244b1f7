//! `tasuki fedi`: the fediverse engine.

use http::Method;

use super::{Context, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List the instances that subscribed
    Subscribers(JsonFlag),
    /// Let an instance in that waits for approval (fediverse.mode = "approval")
    Approve {
        /// The instance's host
        host: String,
    },
    /// Remove an instance; it is told by a Reject, so that its own list shows it
    Remove {
        /// The instance's host
        host: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Subscribers(flag) => {
            let answer = gateway.read("/v1/fediverse/subscribers")?;
            let columns = [
                ("HOST", "host"),
                ("STATE", "state"),
                ("STYLE", "style"),
                ("SOFTWARE", "software"),
                ("WAITING", "waiting"),
                ("NEXT TRY", "next_try"),
                ("LAST ERROR", "last_error"),
                ("SINCE", "since"),
            ];
            output::listing(
                &answer,
                "subscribers",
                &columns,
                flag.json,
                "no instance has subscribed yet",
            )
        }
        Command::Approve { host } => {
            let path = format!("/v1/fediverse/subscribers/{}/approve", segment(&host));
            gateway.call(Method::POST, &path, None)?;
            output::line(format!("{host} may receive and publish from now on"));
            Ok(())
        }
        Command::Remove { host, yes } => {
            if !yes && !confirmed(&format!("Remove {host} from the relay?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            gateway.call(
                Method::DELETE,
                &format!("/v1/fediverse/subscribers/{}", segment(&host)),
                None,
            )?;
            output::line(format!("{host} removed; it is told by a Reject"));
            Ok(())
        }
    }
}
