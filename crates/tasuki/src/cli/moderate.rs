//! `tasuki fedi`: moderation, lists of hosts, and the question why.

use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use super::client::Gateway;
use super::{JsonFlag, output, segment};
use crate::exit::{self, Fail, Outcome};

/// A list larger than this is not one.
const MAX_LIST_BYTES: u64 = 8 << 20;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Block a host (with all below it), an account or a software: nothing from it, nothing to it
    #[command(after_help = "Examples:
  tasuki fedi block evil.example --reason spam
  tasuki fedi block --actor https://example.org/users/troll
  tasuki fedi block --software spamware

A blocked subscriber is removed and told so by a Reject; what waits from it or for it is not sent any more.")]
    Block(Who),
    /// Limit a host, an account or a software: it receives and may not publish
    Limit(Who),
    /// Keep posts from being relayed by a hashtag, by words or by a pattern
    #[command(after_help = "Examples:
  tasuki fedi silence --tag nsfw
  tasuki fedi silence --keyword 'cheap pills'
  tasuki fedi silence --regex 'b[i1]tcoin\\s+now' --reason spam")]
    Silence(What),
    /// Take a rule back
    #[command(after_help = "Examples:
  tasuki fedi lift evil.example
  tasuki fedi lift --tag nsfw")]
    Lift {
        #[command(flatten)]
        any: Any,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// List the rules of moderation
    Rules(JsonFlag),
    /// Lists of hosts as instances exchange them (CSV in Mastodon's form)
    #[command(subcommand)]
    Blocklist(List),
    /// Say why something was relayed, not relayed or refused
    #[command(after_help = "Examples:
  tasuki fedi why https://example.org/users/hanako/statuses/1
  tasuki fedi why example.org

It knows the last 5,000 requests to the inbox since the gateway's start.")]
    Why {
        /// The id of an activity, a post or an account, or a host
        about: String,
        #[command(flatten)]
        json: JsonFlag,
    },
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum List {
    /// Take over a list; hosts that have a rule here keep it
    Import {
        /// The CSV file, or `-` for standard input
        file: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Print the hosts that are blocked or limited here
    Export(JsonFlag),
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Party {
    /// The host
    host: Option<String>,
    /// The id of an account, such as https://example.org/users/name
    #[arg(long)]
    actor: Option<String>,
    /// The name of a software, as in NodeInfo
    #[arg(long)]
    software: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Who {
    #[command(flatten)]
    party: Party,
    /// Why, for the list of rules
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Content {
    /// A hashtag
    #[arg(long)]
    tag: Option<String>,
    /// Words, in any case
    #[arg(long)]
    keyword: Option<String>,
    /// A regular expression, in any case
    #[arg(long)]
    regex: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct What {
    #[command(flatten)]
    content: Content,
    /// Why, for the list of rules
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Any {
    /// The host
    host: Option<String>,
    /// The id of an account
    #[arg(long)]
    actor: Option<String>,
    /// The name of a software
    #[arg(long)]
    software: Option<String>,
    /// A hashtag
    #[arg(long)]
    tag: Option<String>,
    /// Words
    #[arg(long)]
    keyword: Option<String>,
    /// A regular expression
    #[arg(long)]
    regex: Option<String>,
}

/// The one that was given, with its kind.
fn given(all: [(&'static str, Option<String>); 6]) -> Outcome<(&'static str, String)> {
    all.into_iter()
        .find_map(|(kind, subject)| Some((kind, subject?)))
        .ok_or_else(|| Fail::new(exit::USAGE, "name a host, or one of the options; see --help"))
}

fn party(party: Party) -> Outcome<(&'static str, String)> {
    given([
        ("host", party.host),
        ("actor", party.actor),
        ("software", party.software),
        ("tag", None),
        ("keyword", None),
        ("regex", None),
    ])
}

pub(super) fn run(command: Command, gateway: &Gateway) -> Outcome {
    match command {
        Command::Block(who) => {
            let (kind, subject) = party(who.party)?;
            add(gateway, ("block", kind, &subject), &who.reason, who.json)
        }
        Command::Limit(who) => {
            let (kind, subject) = party(who.party)?;
            add(gateway, ("limit", kind, &subject), &who.reason, who.json)
        }
        Command::Silence(what) => {
            let (kind, subject) = given([
                ("tag", what.content.tag),
                ("keyword", what.content.keyword),
                ("regex", what.content.regex),
                ("host", None),
                ("actor", None),
                ("software", None),
            ])?;
            add(gateway, ("silence", kind, &subject), &what.reason, what.json)
        }
        Command::Lift { any, json: flag } => {
            let (kind, subject) = given([
                ("host", any.host),
                ("actor", any.actor),
                ("software", any.software),
                ("tag", any.tag),
                ("keyword", any.keyword),
                ("regex", any.regex),
            ])?;
            let rule = json!({"kind": kind, "subject": subject});
            gateway.call(Method::POST, "/v1/fediverse/rules/lift", Some(rule.clone()))?;
            if flag.json {
                return output::json(&json!({"lifted": rule}));
            }
            output::line(format!(
                "the rule about {subject} is taken back; a removed instance may subscribe again"
            ));
            Ok(())
        }
        Command::Rules(flag) => {
            let answer = gateway.read("/v1/fediverse/rules")?;
            let columns = [
                ("EFFECT", "effect"),
                ("KIND", "kind"),
                ("SUBJECT", "subject"),
                ("REASON", "reason"),
                ("SINCE", "since"),
            ];
            output::listing(
                &answer,
                "rules",
                &columns,
                flag.json,
                "there are no rules of moderation",
            )
        }
        Command::Blocklist(List::Export(flag)) => {
            let answer = gateway.read("/v1/fediverse/blocklist")?;
            if flag.json {
                return output::json(&answer);
            }
            output::line(answer["text"].as_str().unwrap_or_default().trim_end());
            Ok(())
        }
        Command::Blocklist(List::Import { file, dry_run, json }) => import(gateway, &file, dry_run, json),
        Command::Why { about, json } => why(gateway, &about, json),
    }
}

fn add(
    gateway: &Gateway,
    (effect, kind, subject): (&str, &str, &str),
    reason: &str,
    flag: JsonFlag,
) -> Outcome {
    let rule = json!({"effect": effect, "kind": kind, "subject": subject, "reason": reason});
    let answer = gateway.call(Method::POST, "/v1/fediverse/rules", Some(rule.clone()))?;
    if flag.json {
        return output::json(&json!({"rule": rule, "removed_subscribers": answer["removed_subscribers"]}));
    }
    output::line(format!("{effect}: {kind} {subject}"));
    for host in words(&answer["removed_subscribers"]) {
        output::line(format!(
            "{host} is no longer a subscriber; it is told by a Reject"
        ));
    }
    Ok(())
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn import(gateway: &Gateway, file: &PathBuf, dry_run: bool, flag: JsonFlag) -> Outcome {
    use std::io::Read as _;
    let failed = |e: std::io::Error| Fail::new(exit::IO, format!("cannot read {}: {e}", file.display()));
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin()
            .take(MAX_LIST_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened
            .take(MAX_LIST_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    let list = json!({"text": text, "dry_run": dry_run});
    let answer = gateway.call(Method::POST, "/v1/fediverse/blocklist", Some(list))?;
    if flag.json {
        return output::json(&answer);
    }
    for rule in answer["added"].as_array().into_iter().flatten() {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        output::line(format!("{}: {} {}", text("effect"), text("subject"), text("reason")).trim_end());
    }
    for line in answer["skipped"].as_array().into_iter().flatten() {
        output::line(format!(
            "line {} skipped: {}",
            line["line"],
            line["why"].as_str().unwrap_or_default()
        ));
    }
    for host in words(&answer["removed_subscribers"]) {
        output::line(format!("{host} is a subscriber and is removed by this"));
    }
    let added = answer["added"].as_array().map_or(0, Vec::len);
    let verb = if dry_run { "would be added" } else { "added" };
    output::line(format!(
        "{added} {verb}, {} known already, {} kept as they are here",
        answer["known"], answer["kept"]
    ));
    Ok(())
}

fn why(gateway: &Gateway, about: &str, flag: JsonFlag) -> Outcome {
    let answer = gateway.read(&format!("/v1/fediverse/why?about={}", segment(about)))?;
    if flag.json {
        return output::json(&answer);
    }
    let subscriber = &answer["subscriber"];
    if subscriber.is_object() {
        let text = |key: &str| subscriber[key].as_str().unwrap_or("-").to_owned();
        output::line(format!(
            "subscribed ({}) since {}, software {}",
            text("state"),
            text("since"),
            text("software")
        ));
        let further = answer["further"].as_array().into_iter().flatten();
        for one in std::iter::once(subscriber).chain(further) {
            let text = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
            output::line(format!("joined: {} ({})", text("joined"), text("state")));
        }
        if let Some(filter) = answer["filter"]["in_words"].as_str() {
            let by = answer["filter"]["by"].as_str().unwrap_or_default();
            output::line(format!("filter: {filter} (set by the {by})"));
        }
        output::line(format!("is sent: {} ({})", text("form"), text("form_reason")));
        output::line(format!(
            "signed for it: {} ({})",
            text("signature"),
            text("signature_reason")
        ));
        output::line(format!(
            "waiting {}, failures {}, last error: {}",
            subscriber["waiting"],
            subscriber["failures"],
            text("last_error")
        ));
    } else if !about.contains("://") {
        output::line(format!("{about} is not subscribed"));
    }
    words(&answer["verdicts"]).into_iter().for_each(output::line);
    let columns = [
        ("AT", "at"),
        ("KIND", "kind"),
        ("ID", "id"),
        ("STATUS", "status"),
        ("OUTCOME", "outcome"),
        ("REASON", "reason"),
    ];
    output::listing(
        &answer,
        "judged",
        &columns,
        false,
        "the inbox got nothing about it lately",
    )
}
