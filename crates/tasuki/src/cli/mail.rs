//! `tasuki mail`: the queue, destinations, a mail's story.

use http::Method;
use serde_json::{Value, json};

use super::{
    Context, Gateway, JsonFlag, confirmed, dkim, dns, explain, output, recipients, segment, smarthost,
    suppress, tls_report,
};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// What waits for delivery: list it, hold it, try it again, return it
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:
  tasuki mail queue                                     what waits, oldest first
  tasuki mail queue list --to example.com --state held
  tasuki mail queue show 3j8k2m
  tasuki mail queue hold --sender news@shop.example     asks first; --yes does not ask
  tasuki mail queue reroute office --to example.com
  tasuki mail queue delete --all --yes"
    )]
    Queue {
        #[command(subcommand)]
        command: Option<Box<QueueCommand>>,
        #[command(flatten)]
        listing: Box<Listing>,
    },
    /// The story of a mail in plain words, while it waits and when it is gone
    #[command(after_help = "Examples:
  tasuki mail trace 3j8k2m
  tasuki mail trace hanako@example.com                  her last 20
  tasuki mail trace '<20261124.7f3a@shop.example>'      by Message-ID")]
    Trace {
        /// The id that the sender was told (`queued as ...`), a recipient, or a Message-ID
        #[arg(value_name = "ID|RECIPIENT|MESSAGE-ID")]
        what: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What would become of a mail: grant, changes, route, TLS, signature, limits. Nothing is sent
    #[command(after_help = "Examples:
  tasuki mail explain --from me@example.com --to hanako@example.org --client me
  tasuki mail explain --from '<>' --to hanako@example.com --client 203.0.113.9")]
    Explain(explain::Asked),
    /// The DNS records that mail from here needs, whether they are published, and what to do
    #[command(after_help = "Examples:
  tasuki mail dns                                       every domain that sends through here
  tasuki mail dns shop.example --zone bind              records for a zone file
  tasuki mail dns shop.example --zone text              the same for a provider's web page
  tasuki mail dns --address 203.0.113.5 --check         for cron and monitoring: exit code 65 if one is missing")]
    Dns(dns::Args),
    /// How the TLS of a day's sessions with other mail servers ended
    TlsReport(tls_report::Args),
    /// Destinations with something to do, and paused ones
    Lanes(JsonFlag),
    /// Why mail for a destination is slow
    Why {
        /// A domain, or via:SMARTHOST
        destination: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send nothing to a destination until it is resumed; its mail waits, and expires as always
    Pause {
        /// A domain, via:SMARTHOST, or '*' for all
        destination: String,
        /// Why; shown in listings
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a pause and send what waits
    Resume {
        /// A domain, via:SMARTHOST, or '*' for all
        destination: String,
    },
    /// The keys that sign our domains' mail
    #[command(subcommand)]
    Dkim(dkim::Command),
    /// Servers that carry our mail on, and our logins there
    #[command(subcommand)]
    Smarthost(smarthost::Command),
    /// Addresses of domains whose recipients are kept in the store
    #[command(subcommand)]
    Recipients(recipients::Command),
    /// Addresses that mail is not taken for: there is no such mailbox, or you say so
    #[command(subcommand)]
    Suppress(suppress::Command),
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum QueueCommand {
    /// List what waits, oldest first
    List(Listing),
    /// One mail with its attempts, in the words of those who refused it
    Show {
        /// The mail's id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Try it no more until it is released; it expires all the same
    Hold(Chosen),
    /// Try held mail again, now
    Release(Chosen),
    /// Try waiting mail now
    Retry(Chosen),
    /// Send it another way from now on
    Reroute {
        /// The name of a smarthost, or a domain whose mail servers take it
        via: String,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Return it to its senders
    Bounce(Chosen),
    /// Drop it; nobody is told
    Delete(Chosen),
}

/// Which part of the queue.
#[derive(clap::Args, Debug, Default)]
pub(super) struct Filters {
    /// Only senders that contain this text
    #[arg(long, value_name = "TEXT")]
    sender: Option<String>,
    /// Only recipients in this domain
    #[arg(long, value_name = "DOMAIN")]
    to: Option<String>,
    /// Only recipients that contain this text
    #[arg(long, value_name = "TEXT")]
    recipient: Option<String>,
    /// Only this mail
    #[arg(long, value_name = "ID")]
    mail: Option<String>,
    /// Only this state: fresh, deferred, held or ending
    #[arg(long)]
    state: Option<String>,
    /// Only mail that waits for longer, for example 2h or 1d
    #[arg(long, value_name = "TIME")]
    older_than: Option<String>,
    /// Only mail that this person or service handed in
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Only what goes this way: a domain, or via:SMARTHOST
    #[arg(long, value_name = "DOMAIN|via:NAME")]
    destination: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Listing {
    #[command(flatten)]
    filters: Filters,
    /// How many lines
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print the gateway's JSON in place of a table
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct Chosen {
    #[command(flatten)]
    filters: Filters,
    /// The whole queue
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Filters {
    fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [
            ("sender", &self.sender),
            ("to", &self.to),
            ("recipient", &self.recipient),
            ("mail", &self.mail),
            ("state", &self.state),
            ("older_than", &self.older_than),
            ("principal", &self.principal),
            ("destination", &self.destination),
        ];
        all.into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    fn query(&self) -> String {
        self.named()
            .map(|(key, value)| format!("&{key}={}", segment(value)))
            .collect()
    }

    fn body(&self) -> Value {
        self.named()
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect()
    }
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Queue {
            command: None,
            listing,
        } => list(&gateway, &listing),
        Command::Queue {
            command: Some(command),
            ..
        } => queue(&gateway, *command),
        Command::Dkim(command) => dkim::run(command, context),
        Command::Smarthost(command) => smarthost::run(command, context),
        Command::Recipients(command) => recipients::run(command, context),
        Command::Suppress(command) => suppress::run(command, context),
        Command::Trace { what, json } => trace(&gateway, &what, json),
        Command::Explain(asked) => explain::run(&gateway, &asked),
        Command::Dns(args) => dns::run(&gateway, &args),
        Command::TlsReport(args) => tls_report::run(&gateway, &args),
        Command::Lanes(flag) => lanes(&gateway, flag),
        Command::Why { destination, json } => {
            let answer = gateway.read(&format!("/v1/mail/lanes/{}", segment(&destination)))?;
            if json {
                return output::json(&answer);
            }
            output::line(format!("{}:", output::cell(&answer, "lane")));
            say_all(&answer["text"]);
            Ok(())
        }
        Command::Pause { destination, reason } => {
            let path = format!("/v1/mail/lanes/{}/pause", segment(&destination));
            let done = gateway.call(Method::POST, &path, Some(json!({"reason": reason})))?;
            let lane = output::cell(&done, "lane");
            output::line(match destination.as_str() {
                "*" => "nothing is sent until: tasuki mail resume '*'".to_owned(),
                _ => format!("nothing is sent to {lane} until: tasuki mail resume {destination}"),
            });
            Ok(())
        }
        Command::Resume { destination } => {
            let path = format!("/v1/mail/lanes/{}/resume", segment(&destination));
            let done = gateway.call(Method::POST, &path, None)?;
            output::line(format!(
                "{} is resumed, {} deliveries are tried now",
                output::cell(&done, "lane"),
                output::cell(&done, "deliveries")
            ));
            Ok(())
        }
    }
}

fn say_all(lines: &Value) {
    for line in lines.as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::line(format!("  {line}"));
    }
}

fn list(gateway: &Gateway, listing: &Listing) -> Outcome {
    let path = format!(
        "/v1/mail/queue?limit={}{}",
        listing.limit,
        listing.filters.query()
    );
    let answer = gateway.read(&path)?;
    let columns = [
        ("MAIL", "mail"),
        ("STATE", "state"),
        ("FROM", "reverse_path"),
        ("TO", "recipients"),
        ("BYTES", "size_bytes"),
        ("SINCE", "accepted_at"),
        ("TRIES", "attempts"),
        ("NEXT", "next_try"),
        ("LAST ERROR", "last_error"),
    ];
    let empty = if listing.filters.named().next().is_some() {
        "nothing in the queue matches"
    } else {
        "the queue is empty"
    };
    output::listing(&answer, "queue", &columns, listing.json, empty)
}

fn queue(gateway: &Gateway, command: QueueCommand) -> Outcome {
    match command {
        QueueCommand::List(listing) => list(gateway, &listing),
        QueueCommand::Show { id, json } => trace(gateway, &id, json),
        QueueCommand::Hold(chosen) => order(gateway, "hold", None, &chosen),
        QueueCommand::Release(chosen) => order(gateway, "release", None, &chosen),
        QueueCommand::Retry(chosen) => order(gateway, "retry", None, &chosen),
        QueueCommand::Reroute { via, chosen } => order(gateway, "reroute", Some(&via), &chosen),
        QueueCommand::Bounce(chosen) => order(gateway, "bounce", None, &chosen),
        QueueCommand::Delete(chosen) => order(gateway, "delete", None, &chosen),
    }
}

/// Counts, asks, orders.
fn order(gateway: &Gateway, verb: &str, via: Option<&str>, chosen: &Chosen) -> Outcome {
    let is_filtered = chosen.filters.named().next().is_some();
    if is_filtered == chosen.all {
        return Err(Fail::new(
            exit::USAGE,
            "say which mail: by --to, --sender, --mail and their kin, or --all for the whole queue",
        ));
    }
    let count = gateway.read(&format!(
        "/v1/mail/queue/count?{}",
        chosen.filters.query().trim_start_matches('&')
    ))?;
    let number = |key: &str| count[key].as_u64().unwrap_or(0);
    let found = format!(
        "{} deliveries of {} mails match",
        number("deliveries"),
        number("mails")
    );
    if number("deliveries") > 0 && !chosen.yes && !confirmed(&format!("{found}. Do you want to {verb} them?"))
    {
        return Err(Fail::new(
            exit::USAGE,
            format!("{found}; nothing done: say --yes to {verb} them without being asked"),
        ));
    }
    let body = json!({"order": verb, "via": via, "filter": chosen.filters.body()});
    let done = gateway.call(Method::POST, "/v1/mail/queue/order", Some(body))?;
    if chosen.json {
        return output::json(&json!({"matched": count, "deliveries": done["deliveries"]}));
    }
    output::line(format!(
        "{found}; {verb}: {} deliveries",
        output::cell(&done, "deliveries")
    ));
    let left = number("deliveries").saturating_sub(done["deliveries"].as_u64().unwrap_or(0));
    if left > 0 {
        output::line(format!(
            "{left} were left as they are: under way at this moment, or in a state that this does not concern"
        ));
    }
    Ok(())
}

fn trace(gateway: &Gateway, what: &str, json: bool) -> Outcome {
    let answer = gateway.read(&format!("/v1/mail/trace?what={}", segment(what)))?;
    if json {
        return output::json(&answer);
    }
    for story in answer["stories"].as_array().into_iter().flatten() {
        output::line(output::cell(story, "mail"));
        say_all(&story["text"]);
    }
    for entry in answer["suppressed"].as_array().into_iter().flatten() {
        let of = entry["principal"].as_str().unwrap_or("everybody");
        output::line(format!(
            "mail of {of} for {} is refused since {}: {} ({}); tasuki mail suppress remove '{}'",
            output::cell(entry, "address"),
            output::cell(entry, "since"),
            output::cell(entry, "reason"),
            output::cell(entry, "origin"),
            output::cell(entry, "address"),
        ));
    }
    Ok(())
}

fn lanes(gateway: &Gateway, flag: JsonFlag) -> Outcome {
    let answer = gateway.read("/v1/mail/lanes")?;
    let columns = [
        ("DESTINATION", "lane"),
        ("PAUSED", "paused"),
        ("QUEUED", "queued"),
        ("CONNECTIONS", "workers"),
        ("ALLOWED", "allowed"),
        ("SLOWED", "slowed"),
        ("RULE", "provider"),
        ("FAILURES", "failures"),
        ("RESTS (s)", "rests_s"),
        ("LAST ERROR", "last_error"),
    ];
    output::listing(
        &answer,
        "lanes",
        &columns,
        flag.json,
        "no destination has anything to do",
    )
}
