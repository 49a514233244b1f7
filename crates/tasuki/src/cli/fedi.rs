//! `tasuki fedi`: the fediverse engine.

use http::Method;

use super::{Context, JsonFlag, brake, confirmed, import, moderate, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    #[command(flatten)]
    Moderate(moderate::Command),
    #[command(flatten)]
    Brake(brake::Command),
    /// Take over another relay: its key, its subscribers, its blocks
    Import(import::Import),
    /// List the instances that subscribed
    Subscribers(JsonFlag),
    /// List the instances that wait for approval (fediverse.mode = "approval")
    Pending(JsonFlag),
    /// Let an instance in that waits for approval (fediverse.mode = "approval")
    Approve {
        /// The instance's host
        host: String,
    },
    /// Choose the form in which an instance is sent other people's posts
    #[command(
        long_about = "Choose the form in which an instance is sent other people's posts.\n\n\
        forward: the author's own bytes, which the instance believes by the signature in them (Mastodon, Misskey).\n\
        announce: a boost by the relay, whose object the instance fetches from the author's server.\n\
        auto: what its software takes, and what its answers taught; this also forgets what was learnt.\n\n\
        `tasuki fedi subscribers` shows the form, and as JSON the reason for it."
    )]
    Form {
        /// The instance's host
        host: String,
        /// The form
        form: Form,
    },
    /// Remove an instance, or turn one away that waits; it is told by a Reject, so that its own list shows it
    #[command(visible_alias = "reject")]
    Remove {
        /// The instance's host
        host: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(super) enum Form {
    /// As its software and its answers ask for
    Auto,
    /// The authors' own bytes
    Forward,
    /// Announces by the relay
    Announce,
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
                ("FORM", "form"),
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
        Command::Pending(flag) => {
            let mut answer = gateway.read("/v1/fediverse/subscribers")?;
            if let Some(all) = answer["subscribers"].as_array_mut() {
                all.retain(|one| one["state"] == "pending");
            }
            let columns = [
                ("HOST", "host"),
                ("SOFTWARE", "software"),
                ("STYLE", "style"),
                ("ACTOR", "actor"),
                ("SINCE", "since"),
            ];
            output::listing(
                &answer,
                "subscribers",
                &columns,
                flag.json,
                "no instance waits for approval",
            )
        }
        Command::Moderate(command) => moderate::run(command, &gateway),
        Command::Brake(command) => brake::run(command, &gateway),
        Command::Import(order) => import::run(order, &gateway),
        Command::Approve { host } => {
            let path = format!("/v1/fediverse/subscribers/{}/approve", segment(&host));
            gateway.call(Method::POST, &path, None)?;
            output::line(format!("{host} may receive and publish from now on"));
            Ok(())
        }
        Command::Form { host, form } => {
            let path = format!("/v1/fediverse/subscribers/{}/form", segment(&host));
            let chosen = match form {
                Form::Auto => None,
                Form::Forward => Some("forward"),
                Form::Announce => Some("announce"),
            };
            gateway.call(Method::PUT, &path, Some(serde_json::json!({"form": chosen})))?;
            output::line(match form {
                Form::Auto => format!("{host} gets the form that its software and its answers ask for"),
                Form::Forward => format!("{host} is sent the authors' own bytes"),
                Form::Announce => format!("{host} is sent Announces"),
            });
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
