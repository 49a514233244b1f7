//! Storage behind the traits of `tasuki_core::store`; the only crate that knows SQL.
//!
//! [`open`] chooses by URL: `sqlite:PATH` is one file with one writer, for one gateway process; `postgres://...` serves
//! any number of gateways. Migrations run at the start. Both databases keep the same contracts; one test suite runs on
//! both.

mod bodies;
mod error;
mod foreign;
mod head;
mod migrate;
mod news;
mod postgres;
mod sqlite;
mod words;

pub use foreign::{ForeignError, read_activityrelay, read_aode};
pub use sqlite::check::{Bodies, Checked, SegmentFiles, check};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tasuki_core::store::backup::Snapshot;
use tasuki_core::store::{Store, StoreError, StoreResult};

use crate::migrate::Newer;

/// Where data lives if nothing is said: this file in the data directory.
pub const DEFAULT_URL: &str = "sqlite:tasuki.db";

/// Why a store could not be opened. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not one of ours.
    #[error("store.url: {0}")]
    Url(String),
    /// The database cannot be opened or reached.
    #[error("the database {database} cannot be opened")]
    Connect {
        /// The file, or host and database name.
        database: String,
        /// The driver's answer.
        #[source]
        source: sqlx::Error,
    },
    /// The database was written by a newer version of the program.
    #[error(
        "the database has migration {found}, this program knows {known} at most; it was written by a newer version: install that one"
    )]
    Newer {
        /// Found in the database.
        found: i64,
        /// The newest this program has.
        known: i64,
    },
    /// A migration did not run. It changed nothing.
    #[error("the migration {name} failed")]
    Migration {
        /// Its file name.
        name: &'static str,
        /// The driver's answer.
        #[source]
        source: sqlx::Error,
    },
    /// What an earlier life left behind could not be read.
    #[error("{what} cannot be read")]
    Recover {
        /// The part.
        what: &'static str,
        /// The cause.
        #[source]
        source: StoreError,
    },
}

impl OpenError {
    fn connect(database: &str, source: sqlx::Error) -> Self {
        Self::Connect {
            database: database.into(),
            source,
        }
    }
}

/// Opens the store that `url` names, and brings it up to date. A relative SQLite path lies in `data_dir`, as do the
/// segments with large mail bodies.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(url: &str, data_dir: &Path) -> Result<Arc<dyn Store>, OpenError> {
    open_if(url, data_dir, Newer::Refused).await
}

/// Opens a store that this program had open just now. A newer version that was to take over may have run its migrations
/// meanwhile; they leave it usable for this one.
///
/// # Errors
/// See [`OpenError`].
pub async fn reopen(url: &str, data_dir: &Path) -> Result<Arc<dyn Store>, OpenError> {
    open_if(url, data_dir, Newer::Taken).await
}

async fn open_if(url: &str, data_dir: &Path, newer: Newer) -> Result<Arc<dyn Store>, OpenError> {
    if let Some(file) = sqlite_file(url)? {
        return Ok(Arc::new(
            sqlite::Db::open(&data_dir.join(file), data_dir, newer).await?,
        ));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Arc::new(postgres::Db::open(url, newer).await?));
    }
    Err(OpenError::Url(format!(
        "a store is sqlite:PATH or postgres://USER@HOST/DATABASE, not {:?}",
        url.split(':').next().unwrap_or_default()
    )))
}

/// The embedded database that `url` names, in `data_dir` unless it says otherwise; `None` for a database server.
///
/// # Errors
/// `Url`.
pub fn database_file(url: &str, data_dir: &Path) -> Result<Option<PathBuf>, OpenError> {
    Ok(sqlite_file(url)?.map(|file| data_dir.join(file)))
}

/// Copies the embedded database `database` to `file` as [`BackupStore`](tasuki_core::store::BackupStore) does, without
/// opening a store on it: no migration runs. The caller makes sure that no gateway is at work there.
///
/// # Errors
/// See [`BackupStore::snapshot`](tasuki_core::store::BackupStore::snapshot).
pub async fn snapshot_at_rest(
    database: &Path,
    data_dir: &Path,
    file: &Path,
) -> StoreResult<Box<dyn Snapshot>> {
    sqlite::snapshot_at_rest(database, data_dir, file).await
}

/// The name of a segment's file in `segments/`.
#[must_use]
pub fn segment_file(segment: u64) -> String {
    sqlite::segment_file(segment)
}

/// The segment that a file's name says; `None` if it is none.
#[must_use]
pub fn segment_of_file(name: &str) -> Option<u64> {
    sqlite::segment_of_file(name).filter(|segment| sqlite::segment_file(*segment) == name)
}

/// The statements that run again and again while nothing happens, for the test that reads their plans.
#[doc(hidden)]
#[must_use]
pub fn periodic_statements(url: &str) -> Vec<&'static str> {
    if url.starts_with("sqlite:") {
        sqlite::periodic()
    } else {
        postgres::periodic()
    }
}

fn sqlite_file(url: &str) -> Result<Option<PathBuf>, OpenError> {
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Ok(None);
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() || path.contains('?') || path == ":memory:" {
        return Err(OpenError::Url(
            "sqlite: needs the path of a file, for example sqlite:tasuki.db".into(),
        ));
    }
    Ok(Some(path.into()))
}
