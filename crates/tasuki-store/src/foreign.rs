//! Reading the databases of other relay programs: here ActivityRelay (barkshark), version 20240625 of its schema, on SQLite.

mod aode;

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tasuki_core::store::fedi::{
    ForeignRelay, ForeignSubscriber, ModerationEffect, ModerationKind, SubscriptionStyle,
};

pub use aode::read_aode;

/// Software that joins relays in LitePub's way.
const LITEPUB: [&str; 2] = ["pleroma", "akkoma"];

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// Not a database, or not that of ActivityRelay.
    #[error("{path} is not a database of ActivityRelay 0.3 (SQLite)")]
    Database {
        /// The file.
        path: String,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// Not a directory of aode-relay.
    #[error("{path} is not the directory of aode-relay's database (SLED_PATH): {why}")]
    Directory {
        /// The directory.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An inbox, the actor, the Follow's id, the software, and whether it was accepted.
type Inbox = (
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<bool>,
);

/// Reads what ActivityRelay knew; its file is not changed.
///
/// # Errors
/// [`ForeignError`].
pub async fn read_activityrelay(file: &Path) -> Result<ForeignRelay, ForeignError> {
    let failed = |source| ForeignError::Database {
        path: file.display().to_string(),
        source,
    };
    let mut conn = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .connect()
        .await
        .map_err(failed)?;
    let read = read(&mut conn).await.map_err(failed);
    let _ = conn.close().await;
    read
}

async fn read(conn: &mut SqliteConnection) -> Result<ForeignRelay, sqlx::Error> {
    let key: Option<Option<String>> =
        sqlx::query_scalar("SELECT value FROM config WHERE key = 'private-key'")
            .fetch_optional(&mut *conn)
            .await?;
    let inboxes: Vec<Inbox> =
        sqlx::query_as("SELECT inbox, actor, followid, software, accepted FROM inboxes ORDER BY domain")
            .fetch_all(&mut *conn)
            .await?;
    let hosts: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT domain, reason FROM domain_bans ORDER BY domain")
            .fetch_all(&mut *conn)
            .await?;
    let software: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT name, reason FROM software_bans ORDER BY name")
            .fetch_all(&mut *conn)
            .await?;
    let subscribers = inboxes
        .into_iter()
        .filter_map(|(inbox, actor, follow_id, software, accepted)| {
            let actor = actor?;
            let is_litepub =
                actor.ends_with("/relay") || software.is_some_and(|name| LITEPUB.contains(&name.as_str()));
            Some(ForeignSubscriber {
                actor,
                inbox,
                style: Some(if is_litepub {
                    SubscriptionStyle::LitePub
                } else {
                    SubscriptionStyle::Mastodon
                }),
                follow_id,
                is_pending: accepted == Some(false),
            })
        });
    let rules = |list: Vec<(String, Option<String>)>, kind| {
        list.into_iter().map(move |(subject, reason)| {
            (ModerationEffect::Block, kind, subject, reason.unwrap_or_default())
        })
    };
    Ok(ForeignRelay {
        key_pem: key.flatten(),
        subscribers: subscribers.collect(),
        rules: rules(hosts, ModerationKind::Host)
            .chain(rules(software, ModerationKind::Software))
            .collect(),
    })
}
