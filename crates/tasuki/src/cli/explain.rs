//! `tasuki mail explain`.

use serde_json::Value;

use super::{Gateway, output, segment};
use crate::exit::Outcome;

#[derive(clap::Args, Debug)]
pub(super) struct Asked {
    /// The sender: MAIL FROM, and From; '<>' for none
    #[arg(long, value_name = "ADDRESS")]
    from: String,
    /// The recipient
    #[arg(long, value_name = "ADDRESS")]
    to: String,
    /// Who hands it in: an address, or the person or service that logs in
    #[arg(long, value_name = "IP|USER")]
    client: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(gateway: &Gateway, asked: &Asked) -> Outcome {
    let told = gateway.read(&format!(
        "/v1/mail/explain?from={}&to={}&client={}",
        segment(&asked.from),
        segment(&asked.to),
        segment(&asked.client)
    ))?;
    if asked.json {
        return output::json(&told);
    }
    let verdict = if told["accepted"] == true {
        "taken"
    } else {
        "refused"
    };
    output::line(format!("{verdict}: {}", output::cell(&told, "reply")));
    section("grant", &told["grant"]);
    section("rewrite", &told["rewrite"]);
    section("header", &told["header"]);
    for route in told["routes"].as_array().into_iter().flatten() {
        let (to, lane) = (output::cell(route, "recipient"), output::cell(route, "lane"));
        output::line(format!("route of {to}: {lane}"));
        say(&route["servers"]);
        section("TLS", &route["tls"]);
        section("pace", &route["pace"]);
        section("held up", &route["held_up"]);
    }
    section("signature", &told["signature"]);
    section("limits", &told["limits"]);
    Ok(())
}

fn section(name: &str, lines: &Value) {
    if lines.as_array().is_some_and(|lines| !lines.is_empty()) {
        output::line(format!("{name}:"));
        say(lines);
    }
}

fn say(lines: &Value) {
    for line in lines.as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::line(format!("  {line}"));
    }
}
