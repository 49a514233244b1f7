//! `tasuki fedi import`: taking over another relay.
//!
//! Redis is read from the running server, not from its dump: it is there beside the old relay, knows what came a second ago,
//! and its protocol has not changed in a decade, which cannot be said of the dump's format.

mod csv;
mod redis;

use std::path::{Path, PathBuf};

use http::Method;
use serde_json::json;
use tasuki_core::store::fedi::ForeignRelay;

use super::client::Gateway;
use super::{JsonFlag, output};
use crate::exit::{self, Fail, Outcome, chain};

/// Larger files are none of these.
const MAX_FILE_BYTES: u64 = 8 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki fedi import --from activityrelay /var/lib/activityrelay/relay.sqlite3 --dry-run
  tasuki fedi import --from activity-relay redis://127.0.0.1:6379/0 --key /etc/activity-relay/actor.pem
  tasuki fedi import --from aode /var/lib/relay/sled/db-0-34 --dry-run
  tasuki fedi import --from pub-relay redis://127.0.0.1:6379 --key actor.pem
  tasuki fedi import --from csv subscribers.csv --key actor.pem

Stop the old relay first, and give this gateway its name (server.host): actor, inbox, key id and key then stay as they are, and no
instance has to do anything. The databases of ActivityRelay and aode-relay hold the key; the others keep it in a file (PEM, PKCS#1 or PKCS#8).
A CSV begins with a line of names: actor and inbox, and if known style (mastodon or litepub) and follow_id.")]
pub(super) struct Import {
    /// The program that ran the relay
    #[arg(long)]
    from: Program,
    /// Its database: a file, a directory, redis://[:PASSWORD@]HOST[:PORT][/DATABASE], or unix:/PATH
    source: String,
    /// The file with its private key, where that is not in the database
    #[arg(long)]
    key: Option<PathBuf>,
    /// Only say what would be taken over
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Program {
    /// yukimochi's Activity-Relay (Redis)
    #[value(name = "activity-relay")]
    ActivityRelayRedis,
    /// Barkshark's ActivityRelay (SQLite)
    Activityrelay,
    /// asonix' aode-relay (sled)
    Aode,
    /// pub-relay (Redis)
    PubRelay,
    /// A list
    Csv,
}

pub(super) fn run(import: Import, gateway: &Gateway) -> Outcome {
    let mut relay = match import.from {
        Program::Activityrelay => activityrelay(Path::new(&import.source))?,
        Program::Aode => tasuki_store::read_aode(Path::new(&import.source))
            .map_err(|error| Fail::new(exit::DATA, chain(&error)))?,
        Program::ActivityRelayRedis => redis::activity_relay(&import.source)?,
        Program::PubRelay => redis::pub_relay(&import.source)?,
        Program::Csv => ForeignRelay {
            subscribers: csv::read(&text_of(Path::new(&import.source))?)?,
            ..ForeignRelay::default()
        },
    };
    if let Some(key) = &import.key {
        relay.key_pem = Some(text_of(key)?);
    }
    let order = json!({"relay": relay, "dry_run": import.dry_run});
    let answer = gateway.call(Method::POST, "/v1/fediverse/import", Some(order))?;
    if import.json.json {
        return output::json(&answer);
    }
    for one in answer["skipped"].as_array().into_iter().flatten() {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        output::line(format!("{} skipped: {}", text("what"), text("why")));
    }
    let bits = &answer["key_bits"];
    let verb = if import.dry_run { "would be" } else { "are" };
    output::line(match answer["key"].as_str() {
        Some("taken") => format!(
            "the relay's key: {bits} bits, {} taken over",
            if import.dry_run { "would be" } else { "is" }
        ),
        Some("same") => format!("the relay's key: {bits} bits, the same as here"),
        _ => "no key was given: instances refuse a relay whose key changed (--key FILE)".to_owned(),
    });
    let added = answer["added"].as_array().map_or(0, Vec::len);
    output::line(format!(
        "{added} subscribers {verb} new, {} known already, {} rules of moderation {verb} new",
        answer["known"], answer["rules"]
    ));
    output::line(format!(
        "the relay's actor here is {}: it must be the one that the instances know",
        answer["actor"].as_str().unwrap_or_default()
    ));
    Ok(())
}

fn activityrelay(file: &Path) -> Outcome<ForeignRelay> {
    crate::runtime::block_on(tasuki_store::read_activityrelay(file))?
        .map_err(|error| Fail::new(exit::DATA, chain(&error)))
}

fn text_of(file: &Path) -> Outcome<String> {
    use std::io::Read as _;
    let failed = |e: std::io::Error| Fail::new(exit::IO, format!("cannot read {}: {e}", file.display()));
    let mut text = String::new();
    std::fs::File::open(file)
        .map_err(failed)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}
