//! `tasuki fedi opt-out`: domains that do not want to be relayed.

use http::Method;
use serde_json::{Value, json};

use super::client::Gateway;
use super::{JsonFlag, output};
use crate::exit::Outcome;

const KIND: &str = "opt_out";

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki fedi opt-out
  tasuki fedi opt-out example.org --reason 'asked by mail'
  tasuki fedi opt-out example.org --clear

Nothing of such a domain and of names below it is relayed, whoever brings it, and what waits is taken out; Deletes go on.
It need not be a subscriber, and one that is receives as before. An instance says the same itself at https://HOST/filter
(fediverse.self_service).")]
pub(super) struct OptOut {
    /// The domain; without it, those that are out are listed
    host: Option<String>,
    /// Why, for the list
    #[arg(long, default_value = "", requires = "host")]
    reason: String,
    /// Relay it again
    #[arg(long, requires = "host")]
    clear: bool,
    #[command(flatten)]
    json: JsonFlag,
}

pub(super) fn run(order: OptOut, gateway: &Gateway) -> Outcome {
    match (&order.host, order.clear) {
        (Some(host), false) => {
            let rule = json!({"effect": KIND, "kind": KIND, "subject": host, "reason": order.reason});
            gateway.call(Method::POST, "/v1/fediverse/rules", Some(rule))?;
        }
        (Some(host), true) => {
            let rule = json!({"kind": KIND, "subject": host});
            gateway.call(Method::POST, "/v1/fediverse/rules/lift", Some(rule))?;
        }
        (None, _) => {}
    }
    let answer = gateway.read("/v1/fediverse/rules")?;
    let rules = answer["rules"].as_array().into_iter().flatten();
    let out: Vec<&Value> = rules.filter(|rule| rule["kind"] == KIND).collect();
    let columns = [("DOMAIN", "subject"), ("REASON", "reason"), ("SINCE", "since")];
    let answer = json!({"opted_out": out});
    output::listing(
        &answer,
        "opted_out",
        &columns,
        order.json.json,
        "no domain opted out",
    )
}
