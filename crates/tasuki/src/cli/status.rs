//! `tasuki status` and `tasuki reload`: how the running gateway is doing, and what it should do from now on.

use http::Method;
use serde_json::Value;

use super::{Context, output};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki status
  tasuki status --check || mail -s \"gateway\" root     for cron and monitoring: exit code 69 and one line per reason")]
pub(super) struct Args {
    /// Say only what is wrong, one line each; exit code 69 if anything is
    #[arg(long)]
    check: bool,
    /// Print the gateway's JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let answer = context.gateway()?.read("/v1/status")?;
    let reasons: Vec<String> = strings(&answer["reasons"]);
    if args.json {
        output::json(&answer)?;
    } else if args.check {
        reasons.iter().for_each(output::line);
    } else {
        show(&answer, &reasons);
    }
    if args.check && !reasons.is_empty() {
        let n = reasons.len();
        return Err(Fail::new(
            exit::UNAVAILABLE,
            if n == 1 {
                "one thing is wrong".to_owned()
            } else {
                format!("{n} things are wrong")
            },
        ));
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|items| {
            items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

fn show(answer: &Value, reasons: &[String]) {
    let field = |name: &str, path: &str| output::line(format!("{name:<12}{}", output::cell(answer, path)));
    field("version", "version");
    field("process", "pid");
    field("host", "host");
    field("since", "started_at");
    field("data", "data");
    field("store", "store/kind");
    if let Some(listeners) = answer["listeners"].as_object() {
        for (name, addr) in listeners {
            output::line(format!(
                "{:<12}{name:<22}{}",
                "listening",
                addr.as_str().unwrap_or_default()
            ));
        }
    }
    if let Some(engines) = answer["engines"].as_object() {
        for (name, figures) in engines {
            output::line(format!("{name:<12}{}", output::cell(figures, "")));
        }
    }
    for warning in strings(&answer["warnings"]) {
        output::line(format!("note        {warning}"));
    }
    if reasons.is_empty() {
        output::line("healthy     yes");
    }
    for reason in reasons {
        output::line(format!("wrong       {reason}"));
    }
}

#[derive(clap::Args, Debug)]
pub(super) struct ReloadArgs {
    /// Print the gateway's JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn reload(args: ReloadArgs, context: &Context) -> Outcome {
    let answer = context.gateway()?.call(Method::POST, "/v1/reload", None)?;
    if args.json {
        return output::json(&answer);
    }
    let changed = strings(&answer["changed"]);
    let restart = strings(&answer["needs_restart"]);
    if changed.is_empty() && restart.is_empty() {
        output::line("reloaded: nothing has changed");
    }
    for key in changed {
        output::line(format!("changed: {key}"));
    }
    for key in restart {
        output::line(format!("needs a restart: {key}"));
    }
    Ok(())
}
