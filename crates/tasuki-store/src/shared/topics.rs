//! Topics in the log: which hosts get an entry from which actor; and the operator's lists.

use roaring::RoaringBitmap;
use tasuki_core::store::fedi::{TopicList, Via};
use tasuki_core::store::{StoreError, StoreResult};

use super::fedi::VERSION;
use super::{Conn, audit};
use crate::error::store_error;
use crate::words::{from_json, json};

/// As it stands in a row: for each topic the length of its name (2 bytes), the name, the length of the bitmap (4 bytes), the
/// bitmap; NULL for none.
pub(super) fn via_bytes(via: &Via) -> StoreResult<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    for (topic, hosts) in via.iter().filter(|(_, hosts)| !hosts.is_empty()) {
        let too_long = |_| StoreError::Damaged(format!("a topic of {} bytes", topic.len()));
        bytes.extend(u16::try_from(topic.len()).map_err(too_long)?.to_be_bytes());
        bytes.extend(topic.as_bytes());
        let size = u32::try_from(hosts.serialized_size()).map_err(too_long)?;
        bytes.extend(size.to_be_bytes());
        hosts
            .serialize_into(&mut bytes)
            .map_err(|error| StoreError::Damaged(error.to_string()))?;
    }
    Ok((!bytes.is_empty()).then_some(bytes))
}

/// From a row.
pub(super) fn via_of(bytes: Option<&[u8]>) -> StoreResult<Via> {
    let damaged = || StoreError::Damaged("the topics of an entry".to_owned());
    let mut rest = bytes.unwrap_or_default();
    let mut take = |n: usize| -> StoreResult<&[u8]> {
        let (taken, left) = rest.split_at_checked(n).ok_or_else(damaged)?;
        rest = left;
        Ok(taken)
    };
    let mut via = Via::new();
    let mut left = bytes.map_or(0, <[u8]>::len);
    while left > 0 {
        let length = take(2)?.iter().fold(0, |n, byte| (n << 8) | usize::from(*byte));
        let topic = std::str::from_utf8(take(length)?)
            .map_err(|_| damaged())?
            .to_owned();
        let size = take(4)?.iter().fold(0, |n, byte| (n << 8) | usize::from(*byte));
        let hosts = RoaringBitmap::deserialize_from(take(size)?).map_err(|_| damaged())?;
        via.push((topic, hosts));
        left = left.saturating_sub(6 + length + size);
    }
    Ok(via)
}

/// Adds to `via` what `more` says of these hosts.
pub(super) fn add_via(via: &mut Via, more: &Via, of: &RoaringBitmap) {
    for (topic, hosts) in more {
        let hosts = hosts & of;
        if hosts.is_empty() {
            continue;
        }
        match via.iter_mut().find(|(known, _)| known == topic) {
            Some((_, known)) => *known |= hosts,
            None => via.push((topic.clone(), hosts)),
        }
    }
}

pub(super) async fn lists(conn: &mut Conn) -> StoreResult<Vec<TopicList>> {
    let texts: Vec<String> = sqlx::query_scalar("SELECT list FROM topic_lists ORDER BY name")
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    texts.iter().map(|text| from_json(text.as_bytes())).collect()
}

pub(super) async fn put_list(conn: &mut Conn, list: &TopicList) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO topic_lists (name, list) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET list = excluded.list",
    )
    .bind(&list.name)
    .bind(json(list)?)
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    audit::bump(conn, VERSION).await
}

pub(super) async fn remove_list(conn: &mut Conn, name: &str) -> StoreResult<()> {
    let gone = sqlx::query("DELETE FROM topic_lists WHERE name = $1")
        .bind(name)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    if gone.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("a list {name}")));
    }
    audit::bump(conn, VERSION).await
}
