//! `tasuki fedi list`: topic relays of several hashtags, instances and languages.

use http::Method;
use serde_json::{Value, json};

use super::client::Gateway;
use super::{JsonFlag, output, segment};
use crate::exit::Outcome;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make a list, or change the one of that name
    #[command(after_help = "Examples:
  tasuki fedi list add nihon --language ja --tag fediverse --title 'Japanese posts'
  tasuki fedi list add friends --instance a.example --instance b.example

A post belongs to the list when any of it fits. An admin joins by pasting the inbox that is printed.")]
    Add {
        /// The list's name: small letters, digits, - and _
        name: String,
        /// A hashtag; may be repeated
        #[arg(long = "tag")]
        tags: Vec<String>,
        /// An instance's host; may be repeated
        #[arg(long = "instance")]
        instances: Vec<String>,
        /// A language, such as ja; may be repeated
        #[arg(long = "language")]
        languages: Vec<String>,
        /// What it is, for people
        #[arg(long, default_value = "")]
        title: String,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Remove a list; who joined it is told by a Reject
    Remove {
        /// The list's name
        name: String,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// List them
    Show(JsonFlag),
}

pub(super) fn run(command: Command, gateway: &Gateway) -> Outcome {
    match command {
        Command::Add {
            name,
            tags,
            instances,
            languages,
            title,
            json: flag,
        } => {
            let list = json!({"name": name, "title": title, "tags": tags, "instances": instances, "languages": languages});
            let made = gateway.call(Method::PUT, "/v1/fediverse/lists", Some(list))?;
            if flag.json {
                return output::json(&made);
            }
            output::line(match made["inbox"].as_str() {
                Some(inbox) => format!("list {name}: an instance joins it by pasting {inbox}"),
                None => format!("list {name} is kept; it can be joined when server.host is set"),
            });
            Ok(())
        }
        Command::Remove { name, json: flag } => {
            let path = format!("/v1/fediverse/lists/{}", segment(&name));
            let answer = gateway.call(Method::DELETE, &path, None)?;
            if flag.json {
                return output::json(
                    &json!({"removed": name, "removed_subscribers": answer["removed_subscribers"]}),
                );
            }
            output::line(format!("list {name} removed"));
            for host in answer["removed_subscribers"].as_array().into_iter().flatten() {
                let host = host.as_str().unwrap_or_default();
                output::line(format!("{host} gets it no more; it is told by a Reject"));
            }
            Ok(())
        }
        Command::Show(flag) => {
            let mut answer = gateway.read("/v1/fediverse/lists")?;
            if !flag.json {
                for list in answer["lists"].as_array_mut().into_iter().flatten() {
                    let parts = ["tags", "instances", "languages"].map(|key| words(&list[key]));
                    list["of"] = json!(parts.concat().join(" "));
                }
            }
            let columns = [
                ("NAME", "name"),
                ("TITLE", "title"),
                ("OF", "of"),
                ("SUBSCRIBERS", "subscribers"),
                ("INBOX", "inbox"),
            ];
            output::listing(&answer, "lists", &columns, flag.json, "there are no lists")
        }
    }
}

fn words(list: &Value) -> Vec<String> {
    let words = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.map(str::to_owned).collect()
}
