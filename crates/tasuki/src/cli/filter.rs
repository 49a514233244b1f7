//! `tasuki fedi filter`: what instances leave out of what they are sent.

use http::Method;
use serde_json::json;

use super::client::Gateway;
use super::{JsonFlag, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki fedi filter
  tasuki fedi filter example.org --language ja --language und --no-bots
  tasuki fedi filter example.org --no-tag ads --per-minute 60
  tasuki fedi filter example.org --clear

Without options it shows; with them it sets, in place of what was set before. An instance may set its own at https://HOST/filter
(fediverse.self_service), but does not change what is set here. Deletes always go out.")]
pub(super) struct Filter {
    /// The instance's host
    host: Option<String>,
    /// Only this language, such as ja; `und` for posts that do not say theirs. May be repeated
    #[arg(long = "language", requires = "host")]
    languages: Vec<String>,
    /// Only with this hashtag; may be repeated
    #[arg(long = "tag", requires = "host")]
    tags_in: Vec<String>,
    /// Not with this hashtag; may be repeated
    #[arg(long = "no-tag", requires = "host")]
    tags_out: Vec<String>,
    /// No posts of bots
    #[arg(long, requires = "host")]
    no_bots: bool,
    /// No answers
    #[arg(long, requires = "host")]
    no_replies: bool,
    /// Only with pictures, sound or film
    #[arg(long, requires = "host")]
    media_only: bool,
    /// Nothing that is marked as sensitive
    #[arg(long, requires = "host")]
    no_sensitive: bool,
    /// At most so many posts a minute, shared fairly between authors
    #[arg(long, requires = "host")]
    per_minute: Option<u32>,
    /// Take the filter away
    #[arg(long, requires = "host")]
    clear: bool,
    #[command(flatten)]
    json: JsonFlag,
}

pub(super) fn run(order: Filter, gateway: &Gateway) -> Outcome {
    let lists = [&order.languages, &order.tags_in, &order.tags_out];
    let sets = lists.iter().any(|list| !list.is_empty())
        || order.no_bots
        || order.no_replies
        || order.media_only
        || order.no_sensitive
        || order.per_minute.is_some();
    let path = |host: &str| format!("/v1/fediverse/filters/{}", segment(host));
    let answer = match (&order.host, order.clear, sets) {
        (Some(_), true, true) => {
            return Err(Fail::new(
                exit::USAGE,
                "--clear takes the filter away: say it alone",
            ));
        }
        (Some(host), true, false) => {
            gateway.call(Method::DELETE, &path(host), None)?;
            if order.json.json {
                return output::json(&json!({"filters": []}));
            }
            output::line(format!("{host} is sent everything again"));
            return Ok(());
        }
        (Some(host), false, true) => {
            let filter = json!({
                "languages": order.languages,
                "tags_in": order.tags_in,
                "tags_out": order.tags_out,
                "no_bots": order.no_bots,
                "no_replies": order.no_replies,
                "media_only": order.media_only,
                "no_sensitive": order.no_sensitive,
                "per_minute": order.per_minute.unwrap_or_default(),
            });
            gateway.call(Method::PUT, &path(host), Some(filter))?
        }
        (Some(host), false, false) => {
            gateway.read(&format!("/v1/fediverse/filters?host={}", segment(host)))?
        }
        (None, ..) => gateway.read("/v1/fediverse/filters")?,
    };
    let columns = [
        ("HOST", "host"),
        ("FILTER", "in_words"),
        ("BY", "by"),
        ("SINCE", "since"),
    ];
    output::listing(
        &answer,
        "filters",
        &columns,
        order.json.json,
        "there is no filter",
    )
}
