//! `tasuki fedi`: the fediverse engine.

use http::Method;

use super::client::Gateway;
use super::{
    Context, JsonFlag, brake, confirmed, filter, import, moderate, opt_out, output, segment, topics,
};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    #[command(flatten)]
    Moderate(moderate::Command),
    #[command(flatten)]
    Brake(brake::Command),
    /// Show or set what an instance leaves out of what it is sent: languages, hashtags, bots, replies, and how much
    Filter(filter::Filter),
    /// Show or set the domains that do not want to be relayed
    OptOut(opt_out::OptOut),
    /// Topic relays of several hashtags, instances and languages
    #[command(subcommand)]
    List(topics::Command),
    /// Take over another relay: its key, its subscribers, its blocks
    Import(import::Import),
    /// List the instances that subscribed
    Subscribers(JsonFlag),
    /// List the instances that wait for approval (fediverse.mode = "approval"), and what they say of themselves now
    Pending(JsonFlag),
    /// Let an instance in that waits for approval (fediverse.mode = "approval")
    Approve {
        /// The instance's host
        host: String,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Show or choose the form in which an instance is sent other people's posts
    #[command(
        long_about = "Show or choose the form in which an instance is sent other people's posts.\n\n\
        forward: the author's own bytes, which the instance believes by the signature in them (Mastodon, Misskey).\n\
        announce: a boost by the relay, whose object the instance fetches from the author's server.\n\
        auto: what its software takes, and what its answers taught; this also forgets what was learnt.\n\n\
        Without a form it says which one the instance gets, how what it gets is signed, and why."
    )]
    Form {
        /// The instance's host
        host: String,
        /// The form
        form: Option<Form>,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Give the relay a new key; instances learn it without a gap
    #[command(
        long_about = "Give the relay a new key; instances learn it without a gap.\n\n\
        All subscribers are told, under the old key, which signs for a week more where the new one is not known yet. \
        Its id and everything else stay as they are; no instance has to do anything."
    )]
    RotateKey {
        /// Others know the old key: drop it at once; instances find the new one when a signature does not verify
        #[arg(long)]
        compromised: bool,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Remove an instance, or turn one away that waits; it is told by a Reject, so that its own list shows it
    #[command(after_help = "Examples:
  tasuki fedi remove example.org
  tasuki fedi remove example.org --topic tag/cats")]
    #[command(visible_alias = "reject")]
    Remove {
        /// The instance's host
        host: String,
        /// Only this of what it joined: `relay`, or a topic such as tag/cats
        #[arg(long)]
        topic: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        json: JsonFlag,
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
                ("JOINED", "joined"),
                ("STATE", "state"),
                ("STYLE", "style"),
                ("SOFTWARE", "software"),
                ("FORM", "form"),
                ("SIGNATURE", "signature"),
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
            let answer = gateway.read("/v1/fediverse/pending")?;
            let columns = [
                ("HOST", "host"),
                ("JOINED", "joined"),
                ("SOFTWARE", "software"),
                ("USERS", "users"),
                ("REGISTRATIONS", "registrations"),
                ("MADE", "made"),
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
        Command::Filter(order) => filter::run(order, &gateway),
        Command::OptOut(order) => opt_out::run(order, &gateway),
        Command::List(command) => topics::run(command, &gateway),
        Command::Import(order) => import::run(order, &gateway),
        Command::Approve { host, json } => {
            let path = format!("/v1/fediverse/subscribers/{}/approve", segment(&host));
            gateway.call(Method::POST, &path, None)?;
            if json.json {
                return output::json(&serde_json::json!({"approved": host}));
            }
            output::line(format!("{host} may receive and publish from now on"));
            Ok(())
        }
        Command::Form {
            host,
            form: None,
            json,
        } => show_form(&gateway, &host, json),
        Command::Form {
            host,
            form: Some(form),
            json,
        } => {
            let path = format!("/v1/fediverse/subscribers/{}/form", segment(&host));
            let chosen = match form {
                Form::Auto => None,
                Form::Forward => Some("forward"),
                Form::Announce => Some("announce"),
            };
            gateway.call(Method::PUT, &path, Some(serde_json::json!({"form": chosen})))?;
            if json.json {
                return show_form(&gateway, &host, json);
            }
            output::line(match form {
                Form::Auto => format!("{host} gets the form that its software and its answers ask for"),
                Form::Forward => format!("{host} is sent the authors' own bytes"),
                Form::Announce => format!("{host} is sent Announces"),
            });
            Ok(())
        }
        Command::RotateKey { compromised, json } => {
            let order = serde_json::json!({"compromised": compromised});
            let answer = gateway.call(Method::POST, "/v1/fediverse/key/rotate", Some(order))?;
            if json.json {
                return output::json(&answer);
            }
            output::line(format!(
                "{} has a new key of {} bits; {} instances are told",
                answer["key_id"].as_str().unwrap_or_default(),
                answer["key_bits"],
                answer["told"]
            ));
            output::line(match answer["old_key_until"].as_str() {
                Some(until) => {
                    format!("the old key still signs for those that do not know it, until {until}")
                }
                None => "the old key signs nothing any more".to_owned(),
            });
            Ok(())
        }
        Command::Remove {
            host,
            topic,
            yes,
            json,
        } => {
            let what = topic.as_deref().unwrap_or("the relay");
            if !yes && !confirmed(&format!("Remove {host} from {what}?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            let query = topic.as_deref().map(|topic| format!("?topic={}", segment(topic)));
            let path = format!(
                "/v1/fediverse/subscribers/{}{}",
                segment(&host),
                query.unwrap_or_default()
            );
            gateway.call(Method::DELETE, &path, None)?;
            if json.json {
                return output::json(&serde_json::json!({"removed": host, "from": what}));
            }
            output::line(format!("{host} removed; it is told by a Reject"));
            Ok(())
        }
    }
}

fn show_form(gateway: &Gateway, host: &str, flag: JsonFlag) -> Outcome {
    let answer = gateway.read(&format!("/v1/fediverse/why?about={}", segment(host)))?;
    let subscriber = &answer["subscriber"];
    if !subscriber.is_object() {
        let text = format!("{host} is not subscribed; see `tasuki fedi subscribers`");
        return Err(Fail::new(exit::USAGE, text));
    }
    let names = [
        "host",
        "software",
        "form",
        "form_reason",
        "signature",
        "signature_reason",
    ];
    if flag.json {
        let shown = names.map(|name| (name.to_owned(), subscriber[name].clone()));
        return output::json(&serde_json::Value::Object(shown.into_iter().collect()));
    }
    let text = |name: &str| subscriber[name].as_str().unwrap_or("-").to_owned();
    output::line(format!("is sent: {} ({})", text("form"), text("form_reason")));
    output::line(format!(
        "signed for it: {} ({})",
        text("signature"),
        text("signature_reason")
    ));
    Ok(())
}
