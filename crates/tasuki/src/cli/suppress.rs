//! `tasuki mail suppress`: addresses that mail is not taken for.

use std::io::Read as _;
use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use super::{Context, Gateway, JsonFlag, output, segment};
use crate::exit::{self, Fail, Outcome};

mod table;

/// Longest file that is imported.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Entries asked for at a time.
const PAGE: usize = 5_000;
/// Entries sent at a time: each part is a transaction, and mail that comes in meanwhile waits for it.
const AT_ONCE: usize = 250;

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
    /// object a line; what has ended is left out
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
            let mut done = Done::default();
            done.send(&gateway, "add", &add, false)
                .map_err(|fail| done.before(fail))?;
            done.said(flag)
        }
        Command::Remove {
            addresses,
            principal,
            flag,
        } => {
            let entry = |address| json!({"address": address, "principal": principal});
            let remove: Vec<Value> = addresses.iter().map(entry).collect();
            let mut done = Done::default();
            done.send(&gateway, "remove", &remove, false)
                .map_err(|fail| done.before(fail))?;
            done.said(flag)
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

/// What came of a change.
#[derive(Default, serde::Serialize)]
struct Done {
    added: u64,
    removed: u64,
    /// Of an import: left out, since their time is over.
    ended: u64,
}

impl Done {
    /// Sends entries, a part after the other.
    fn send(&mut self, gateway: &Gateway, key: &str, entries: &[Value], skip_ended: bool) -> Outcome {
        for part in entries.chunks(AT_ONCE) {
            let change = json!({key: part, "skip_ended": skip_ended});
            let done = gateway.call(Method::POST, PATH, Some(change))?;
            let number = |key: &str| done[key].as_u64().unwrap_or(0);
            self.added += number("added");
            self.removed += number("removed");
            self.ended += number("ended");
        }
        Ok(())
    }

    /// A failure that came after a part was done.
    fn before(&self, fail: Fail) -> Fail {
        match (self.added, self.removed) {
            (0, 0) => fail,
            (added, removed) => Fail::new(
                fail.code,
                format!("{}; {added} added, {removed} removed before that", fail.message),
            ),
        }
    }

    fn said(&self, flag: JsonFlag) -> Outcome {
        if flag.json {
            return output::json(&json!(self));
        }
        let ended = match self.ended {
            0 => String::new(),
            ended => format!(", {ended} left out, since their time is over"),
        };
        output::line(format!("{} added, {} removed{ended}", self.added, self.removed));
        Ok(())
    }
}

/// The text of a file that is not longer than is read.
fn whole(file: &PathBuf) -> Outcome<String> {
    let failed = |e: std::io::Error| Fail::new(exit::IO, format!("cannot read {}: {e}", file.display()));
    let unfit = |why: &str| {
        Fail::new(
            exit::DATA,
            format!("{}: {why}; nothing was added", file.display()),
        )
    };
    let mut bytes = Vec::new();
    // One byte more: what is cut would lose addresses, and nobody would know.
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let most = MAX_FILE_BYTES >> 20;
        return Err(unfit(&format!("longer than {most} MiB, import it in parts")));
    }
    String::from_utf8(bytes).map_err(|_| unfit("not UTF-8"))
}

fn import(gateway: &Gateway, file: &PathBuf, principal: Option<&str>, flag: JsonFlag) -> Outcome {
    let of_file = |fail: Fail| Fail::new(fail.code, format!("{}: {}", file.display(), fail.message));
    let entries = table::read(&whole(file)?, principal)
        .map_err(|why| of_file(Fail::new(exit::DATA, format!("{why}; nothing was added"))))?;
    let mut done = Done::default();
    done.send(gateway, "add", &entries, true)
        .map_err(|fail| of_file(done.before(fail)))?;
    done.said(flag)
}

fn export(gateway: &Gateway, filters: &Filters, as_json: bool) -> Outcome {
    if !as_json {
        output::line(table::HEAD);
    }
    let mut after = 0;
    loop {
        let path = format!("{PATH}?limit={PAGE}&after={after}{}", filters.query());
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
