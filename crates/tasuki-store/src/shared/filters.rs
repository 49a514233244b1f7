//! What hosts leave out of what they are sent.

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::KeptFilter;
use tasuki_core::store::{StoreError, StoreResult};

use super::fedi::VERSION;
use super::{Conn, audit};
use crate::error::store_error;
use crate::words::{from_json, from_word, json, word};

pub(super) async fn all(conn: &mut Conn) -> StoreResult<Vec<KeptFilter>> {
    let rows = sqlx::query("SELECT host, filter, set_by, at FROM host_filters ORDER BY host")
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    let kept = rows.iter().map(|row| {
        let text = |column| row.try_get::<String, _>(column).map_err(store_error);
        Ok(KeptFilter {
            host: text("host")?,
            filter: from_json(text("filter")?.as_bytes())?,
            by: from_word(&text("set_by")?)?,
            at: Timestamp(row.try_get("at").map_err(store_error)?),
        })
    });
    kept.collect()
}

pub(super) async fn set(conn: &mut Conn, host: &str, kept: Option<&KeptFilter>) -> StoreResult<()> {
    match kept {
        Some(kept) => {
            sqlx::query(
                "INSERT INTO host_filters (host, filter, set_by, at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (host) DO UPDATE SET filter = excluded.filter, set_by = excluded.set_by, at = excluded.at",
            )
            .bind(host)
            .bind(json(&kept.filter)?)
            .bind(word(&kept.by))
            .bind(kept.at.0)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
        }
        None => {
            let gone = sqlx::query("DELETE FROM host_filters WHERE host = $1")
                .bind(host)
                .execute(&mut *conn)
                .await
                .map_err(store_error)?;
            if gone.rows_affected() == 0 {
                return Err(StoreError::NotFound(format!("a filter of {host}")));
            }
        }
    }
    audit::bump(conn, VERSION).await
}
