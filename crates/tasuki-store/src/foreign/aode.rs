//! Reading the database of aode-relay (`ap-relay` 0.3): a directory of sled 0.34.
//!
//! sled has had no release of that format since 2021, and this is all it is used for: nobody writes the format any other way.
//! It changes a database by opening it, so a copy is opened.

use std::path::Path;

use serde::Deserialize;
use tasuki_core::store::fedi::{
    ForeignRelay, ForeignSubscriber, ModerationEffect, ModerationKind, SubscriptionStyle,
};

use super::ForeignError;

/// What is read of a known actor (JSON under its id).
#[derive(Deserialize)]
struct Actor {
    id: String,
    inbox: String,
}

/// Reads what aode-relay knew; its directory is not changed. Its list of allowed domains is not a rule here, and is left.
///
/// # Errors
/// [`ForeignError::Directory`].
pub fn read_aode(directory: &Path) -> Result<ForeignRelay, ForeignError> {
    let failed = |why: String| ForeignError::Directory {
        path: directory.display().to_string(),
        why,
    };
    let copy = copy_of(directory).map_err(|error| failed(error.to_string()))?;
    read(copy.path()).map_err(|error| failed(error.to_string()))
}

/// The files of a sled database lie in its directory and in `blobs` below it.
fn copy_of(directory: &Path) -> std::io::Result<tempfile::TempDir> {
    if !directory.join("db").is_file() || !directory.join("conf").is_file() {
        return Err(std::io::Error::other("there is no sled database in it"));
    }
    let copy = tempfile::tempdir()?;
    for part in ["", "blobs"] {
        let from = directory.join(part);
        if !from.is_dir() {
            continue;
        }
        let to = copy.path().join(part);
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
    }
    Ok(copy)
}

fn read(directory: &Path) -> Result<ForeignRelay, sled::Error> {
    let db = sled::Config::new().path(directory).open()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (actors, followed) = (
        db.open_tree("actor-id-actor")?,
        db.open_tree("outbound-follow-ids")?,
    );
    // Follows are known by their ids alone: whose they are, their hosts say.
    let mut follow_ids = Vec::new();
    for key in db.open_tree("follow-ids")?.iter().keys() {
        follow_ids.push(text(&key?));
    }
    let mut relay = ForeignRelay {
        key_pem: db
            .open_tree("settings")?
            .get("private-key")?
            .map(|key| text(&key)),
        ..ForeignRelay::default()
    };
    for id in db.open_tree("connected-actor-ids")?.iter().keys() {
        let id = id?;
        let actor: Option<Actor> = actors
            .get(&id)?
            .and_then(|actor| serde_json::from_slice(&actor).ok());
        // It follows back who followed its actor, which is LitePub's way.
        let style = match followed.contains_key(&id)? {
            true => SubscriptionStyle::LitePub,
            false => SubscriptionStyle::Mastodon,
        };
        let id = text(&id);
        let mut theirs = follow_ids.iter().filter(|follow| origin(follow) == origin(&id));
        let follow_id = match (theirs.next(), theirs.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        };
        relay.subscribers.push(ForeignSubscriber {
            actor: actor.as_ref().map_or(id, |actor| actor.id.clone()),
            inbox: actor.map(|actor| actor.inbox).unwrap_or_default(),
            style: Some(style),
            follow_id,
            is_pending: false,
        });
    }
    for domain in db.open_tree("blocked-actor-ids")?.iter().values() {
        let domain = text(&domain?);
        relay.rules.push((
            ModerationEffect::Block,
            ModerationKind::Host,
            domain,
            String::new(),
        ));
    }
    Ok(relay)
}

/// `https://HOST` of an id.
fn origin(id: &str) -> Option<&str> {
    let host = id.find("://")? + 3;
    Some(match id[host..].find('/') {
        Some(end) => &id[..host + end],
        None => id,
    })
}
