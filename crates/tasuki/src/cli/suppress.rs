//! `tasuki mail suppress`: addresses that mail is not taken for.

use std::io::Read as _;
use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use super::{Context, Gateway, JsonFlag, output, segment};
use crate::exit::{self, Fail, Outcome};

mod table;

/// Longest file that is imported, and entries sent and asked for at a time.
const MAX_FILE_BYTES: u64 = 64 << 20;
const AT_ONCE: usize = 5_000;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List suppressed addresses
    List(Chosen),
    /// Suppress addresses, or whole domains
    #[command(after_help = "Examples:
  tasuki mail suppress add anna@example.org --reason \"she asked us to\"
  tasuki mail suppress add '*@closed.example' --principal news --until 2027-01-31")]
    Add {
        /// Addresses, or *@example.org for all of a domain
        #[arg(required = true)]
        addresses: Vec<String>,
        /// Only mail of this person or service; without it, all mail of ours
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        /// For how long (30d) or until when (2027-01-31); without it, for ever
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Why; shown in the list, and told to the sender
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        flag: JsonFlag,
    },
    /// Take addresses off the list; their mail is taken again at once
    Remove {
        /// Addresses, or *@example.org for the entry of that domain
        #[arg(required = true)]
        addresses: Vec<String>,
        /// Only the entry of this person or service
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        #[command(flatten)]
        flag: JsonFlag,
    },
    /// Add what a file lists: CSV with a heading (address or email, principal, until, reason), one address a line, or a JSON
    /// object a line
    Import {
        /// The file; - is standard input
        file: PathBuf,
        /// For entries that name none: only mail of this person or service
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        #[command(flatten)]
        flag: JsonFlag,
    },
    /// Print the list as CSV, or with --json a JSON object a line
    Export {
        #[command(flatten)]
        filters: Filters,
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Chosen {
    #[command(flatten)]
    filters: Filters,
    /// How many lines
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    flag: JsonFlag,
}

#[derive(clap::Args, Debug)]
pub(super) struct Filters {
    /// Only addresses of this domain
    #[arg(long)]
    domain: Option<String>,
    /// Only entries of this person or service
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
}

impl Filters {
    fn query(&self) -> String {
        [("domain", &self.domain), ("principal", &self.principal)]
            .iter()
            .filter_map(|(key, value)| Some(format!("&{key}={}", segment(value.as_ref()?))))
            .collect()
    }
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::List(chosen) => {
            let path = format!("{PATH}?limit={}{}", chosen.limit, chosen.filters.query());
            let answer = gateway.read(&path)?;
            let columns = [
                ("ADDRESS", "address"),
                ("OF", "principal"),
                ("ORIGIN", "origin"),
                ("SINCE", "since"),
                ("UNTIL", "until"),
                ("REASON", "reason"),
            ];
            output::listing(
                &answer,
                "suppressed",
                &columns,
                chosen.flag.json,
                "no address is suppressed",
            )
        }
        Command::Add {
            addresses,
            principal,
            until,
            reason,
            flag,
        } => {
            let entry = |address| json!({"address": address, "principal": principal, "until": until, "reason": reason});
            let add: Vec<Value> = addresses.iter().map(entry).collect();
            let done = gateway.call(Method::POST, PATH, Some(json!({"add": add})))?;
            said(&done, flag)
        }
        Command::Remove {
            addresses,
            principal,
            flag,
        } => {
            let entry = |address| json!({"address": address, "principal": principal});
            let remove: Vec<Value> = addresses.iter().map(entry).collect();
            let done = gateway.call(Method::POST, PATH, Some(json!({"remove": remove})))?;
            said(&done, flag)
        }
        Command::Import {
            file,
            principal,
            flag,
        } => import(&gateway, &file, principal.as_deref(), flag),
        Command::Export { filters, json } => export(&gateway, &filters, json),
    }
}

const PATH: &str = "/v1/mail/suppressed";

fn said(done: &Value, flag: JsonFlag) -> Outcome {
    if flag.json {
        return output::json(done);
    }
    let number = |key| output::cell(done, key);
    output::line(format!(
        "{} added, {} removed",
        number("added"),
        number("removed")
    ));
    Ok(())
}

fn import(gateway: &Gateway, file: &PathBuf, principal: Option<&str>, flag: JsonFlag) -> Outcome {
    let failed = |e: std::io::Error| Fail::new(exit::IO, format!("cannot read {}: {e}", file.display()));
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin()
            .take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened
            .take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    let entries = table::read(&text, principal).map_err(|why| {
        Fail::new(
            exit::DATA,
            format!("{}: {why}; nothing was added", file.display()),
        )
    })?;
    let mut added = 0;
    for part in entries.chunks(AT_ONCE) {
        let done = gateway.call(Method::POST, PATH, Some(json!({"add": part})))?;
        added += done["added"].as_u64().unwrap_or(0);
    }
    said(&json!({"added": added, "removed": 0}), flag)
}

fn export(gateway: &Gateway, filters: &Filters, as_json: bool) -> Outcome {
    if !as_json {
        output::line(table::HEAD);
    }
    let mut after = 0;
    loop {
        let path = format!("{PATH}?limit={AT_ONCE}&after={after}{}", filters.query());
        let page = gateway.read(&path)?;
        for entry in page["suppressed"].as_array().into_iter().flatten() {
            output::line(if as_json {
                entry.to_string()
            } else {
                table::line(entry)
            });
        }
        let Some(next) = page["next"].as_i64() else {
            return Ok(());
        };
        after = next;
    }
}
