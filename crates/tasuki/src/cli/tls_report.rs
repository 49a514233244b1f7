//! `tasuki mail tls-report`: how the TLS of a day's sessions with other mail servers ended.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Gateway, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki mail tls-report                                  today, all domains
  tasuki mail tls-report example.com --day 2026-01-31
  tasuki mail tls-report example.com --output report.json.gz")]
pub(super) struct Args {
    /// The recipients' domain; all if not given
    domain: Option<String>,
    /// Which day (UTC), as 2026-01-31; today if not given
    #[arg(long)]
    day: Option<String>,
    /// Write the domain's report (RFC 8460, JSON with gzip) to this file, as it is sent to domains that ask for it
    #[arg(long, value_name = "FILE", requires = "domain")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(gateway: &Gateway, args: &Args) -> Outcome {
    let day = args.day.as_ref().map(|day| format!("day={}", segment(day)));
    if let (Some(path), Some(domain)) = (&args.output, &args.domain) {
        return write(gateway, domain, day.as_deref(), path, args.json);
    }
    let domain = args
        .domain
        .as_ref()
        .map(|domain| format!("domain={}", segment(domain)));
    let query: Vec<String> = day.into_iter().chain(domain).collect();
    let answer = gateway.read(&format!("/v1/mail/tls-report?{}", query.join("&")))?;
    if args.json {
        return output::json(&answer);
    }
    let mut rows = Vec::new();
    for domain in items(&answer["domains"]) {
        for result in items(&domain["policies"]) {
            rows.extend(lines(&output::cell(domain, "domain"), result));
        }
    }
    if rows.is_empty() {
        output::line(format!(
            "no sessions were counted on {}",
            output::cell(&answer, "day")
        ));
        return Ok(());
    }
    let head = [
        "DOMAIN", "POLICY", "RESULT", "SESSIONS", "SERVER", "ADDRESS", "REASON",
    ];
    output::table(head.map(str::to_owned).to_vec(), rows);
    for domain in items(&answer["domains"]) {
        for report in items(&domain["report"]).iter().filter_map(Value::as_str) {
            output::line(format!("report for {}: {report}", output::cell(domain, "domain")));
        }
    }
    Ok(())
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What became of the sessions under one policy.
fn lines(domain: &str, result: &Value) -> Vec<Vec<String>> {
    let policy = output::cell(result, "policy/policy-type");
    let mut rows = Vec::new();
    if result["summary"]["total-successful-session-count"].as_u64() > Some(0) {
        let count = output::cell(result, "summary/total-successful-session-count");
        let row = [domain, &policy, "success", &count, "", "", ""];
        rows.push(row.map(str::to_owned).to_vec());
    }
    for detail in items(&result["failure-details"]) {
        let of = |key: &str| {
            if detail[key].is_null() {
                String::new()
            } else {
                output::cell(detail, key)
            }
        };
        rows.push(vec![
            domain.to_owned(),
            policy.clone(),
            of("result-type"),
            of("failed-session-count"),
            of("receiving-mx-hostname"),
            of("receiving-ip"),
            of("failure-reason-code"),
        ]);
    }
    rows
}

fn write(gateway: &Gateway, domain: &str, day: Option<&str>, path: &PathBuf, json: bool) -> Outcome {
    let answer = gateway.read(&format!(
        "/v1/mail/tls-report/{}?{}",
        segment(domain),
        day.unwrap_or_default()
    ))?;
    let gzip = answer["gzip"]
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok());
    let gzip = gzip.ok_or_else(|| Fail::new(exit::SOFTWARE, "the gateway's answer has no report"))?;
    std::fs::write(path, gzip)
        .map_err(|error| Fail::new(exit::CANT_CREATE, format!("{}: {error}", path.display())))?;
    if json {
        return output::json(&answer);
    }
    output::line(format!("written: {}", path.display()));
    Ok(())
}
