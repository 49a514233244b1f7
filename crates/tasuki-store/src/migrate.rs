//! Migrations: only forward, run at the start, one transaction each.

use sqlx::{Connection as _, PgConnection, SqliteConnection};

use crate::OpenError;

struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

macro_rules! migrations {
    ($dialect:literal: $($version:literal $name:literal),+ $(,)?) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../migrations/", $dialect, "/", $name, ".sql")),
        }),+]
    };
}

const SQLITE: &[Migration] = migrations!("sqlite":
    1 "0001_gateway",
    2 "0002_mail",
    3 "0003_fediverse",
    4 "0004_credential_scope",
    5 "0005_sent",
    6 "0006_queue",
    7 "0007_delivery_form",
    8 "0008_log_sizes",
    10 "0010_recipients",
    11 "0011_moderation",
    12 "0012_orders",
    13 "0013_brake",
    14 "0014_lives",
    15 "0015_tls",
    16 "0016_trail",
    17 "0017_tls_reports",
    18 "0018_topics",
    19 "0019_filters",
    20 "0020_locks",
    21 "0021_sharing",
    22 "0022_suppressed",
    40 "0040_signatures",
);

const POSTGRES: &[Migration] = migrations!("postgres":
    1 "0001_gateway",
    2 "0002_mail",
    3 "0003_fediverse",
    4 "0004_credential_scope",
    5 "0005_sent",
    6 "0006_queue",
    7 "0007_delivery_form",
    8 "0008_log_sizes",
    10 "0010_recipients",
    11 "0011_moderation",
    12 "0012_orders",
    13 "0013_brake",
    14 "0014_lives",
    15 "0015_tls",
    16 "0016_trail",
    17 "0017_tls_reports",
    18 "0018_topics",
    19 "0019_filters",
    20 "0020_locks",
    21 "0021_sharing",
    22 "0022_suppressed",
    40 "0040_signatures",
);

const TABLE: &str = "CREATE TABLE IF NOT EXISTS migrations (version BIGINT PRIMARY KEY, name TEXT NOT NULL)";

/// What becomes of a database that a newer version has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newer {
    Refused,
    /// Migrations expand before they contract, so the version just before works with it.
    Taken,
}

/// What is still to be done, or a refusal to touch a newer database.
fn pending(
    all: &'static [Migration],
    done: &[i64],
    newer: Newer,
) -> Result<Vec<&'static Migration>, OpenError> {
    let newest = all.last().map_or(0, |m| m.version);
    let beyond = done.iter().find(|version| **version > newest);
    if let (Some(beyond), Newer::Refused) = (beyond, newer) {
        return Err(OpenError::Newer {
            found: *beyond,
            known: newest,
        });
    }
    Ok(all.iter().filter(|m| !done.contains(&m.version)).collect())
}

/// The newest migration that this program knows.
pub(crate) fn newest() -> i64 {
    SQLITE.last().map_or(0, |m| m.version)
}

/// Brings a SQLite database up to date.
pub(crate) async fn sqlite(conn: &mut SqliteConnection, newer: Newer) -> Result<(), OpenError> {
    let failed = |name: &'static str| move |source| OpenError::Migration { name, source };
    sqlx::query(TABLE)
        .execute(&mut *conn)
        .await
        .map_err(failed("the table of migrations"))?;
    let done: Vec<i64> = sqlx::query_scalar("SELECT version FROM migrations")
        .fetch_all(&mut *conn)
        .await
        .map_err(failed("the table of migrations"))?;
    for migration in pending(SQLITE, &done, newer)? {
        let failed = failed(migration.name);
        let mut transaction = conn.begin().await.map_err(failed)?;
        sqlx::raw_sql(migration.sql)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query("INSERT INTO migrations (version, name) VALUES ($1, $2)")
            .bind(migration.version)
            .bind(migration.name)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
    Ok(())
}

/// Brings a PostgreSQL database up to date; gateways that start together wait for each other.
pub(crate) async fn postgres(conn: &mut PgConnection, newer: Newer) -> Result<(), OpenError> {
    let failed = |name: &'static str| move |source| OpenError::Migration { name, source };
    let table = failed("the table of migrations");
    let mut transaction = conn.begin().await.map_err(table)?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('tasuki migrations'))")
        .execute(&mut *transaction)
        .await
        .map_err(table)?;
    sqlx::query(TABLE)
        .execute(&mut *transaction)
        .await
        .map_err(table)?;
    let done: Vec<i64> = sqlx::query_scalar("SELECT version FROM migrations")
        .fetch_all(&mut *transaction)
        .await
        .map_err(table)?;
    for migration in pending(POSTGRES, &done, newer)? {
        let failed = failed(migration.name);
        sqlx::raw_sql(migration.sql)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query("INSERT INTO migrations (version, name) VALUES ($1, $2)")
            .bind(migration.version)
            .bind(migration.name)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(table)
}
