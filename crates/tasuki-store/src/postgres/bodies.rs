//! Bodies above 16 KiB: rows of 256 KiB, written while they arrive, live with the commit of their mail.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use sqlx::postgres::PgPool;
use tasuki_core::store::mail::{BodyPlace, BodySink, BodySource, StoredBody};
use tasuki_core::store::{StoreError, StoreResult};

use super::conn::{ask, transact, without_sync};
use super::{Conn, store_now};
use crate::bodies::{INLINE, PIECE};
use crate::error::store_error;

/// A body that has not grown for this long and belongs to no mail is abandoned.
const ABANDONED: Duration = Duration::from_secs(3600);

fn piece() -> usize {
    usize::try_from(PIECE).unwrap_or(usize::MAX)
}

/// A body on its way in. What is dropped unfinished is swept up after [`ABANDONED`].
pub(super) struct Sink {
    pool: PgPool,
    buffer: BytesMut,
    len: u64,
    body: Option<i64>,
    chunks: i64,
}

impl Sink {
    pub(super) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            buffer: BytesMut::new(),
            len: 0,
            body: None,
            chunks: 0,
        }
    }

    async fn store(&mut self, bytes: Bytes) -> StoreResult<()> {
        let (known, n) = (self.body, self.chunks);
        // These rows need no sync of their own: the mail's commit comes after them in the same log.
        let body = transact(&self.pool, move |conn| {
            Box::pin(async move {
                without_sync(conn).await?;
                append(conn, known, n, &bytes).await
            })
        })
        .await?;
        self.body = Some(body);
        self.chunks += 1;
        Ok(())
    }
}

async fn append(conn: &mut Conn, known: Option<i64>, n: i64, bytes: &[u8]) -> StoreResult<i64> {
    let now = store_now(conn).await?;
    let body = match known {
        Some(body) => {
            sqlx::query("UPDATE bodies SET touched_at = $2 WHERE id = $1")
                .bind(body)
                .bind(now)
                .execute(&mut *conn)
                .await
                .map_err(store_error)?;
            body
        }
        None => {
            sqlx::query_scalar("INSERT INTO bodies (is_live, touched_at) VALUES (FALSE, $1) RETURNING id")
                .bind(now)
                .fetch_one(&mut *conn)
                .await
                .map_err(store_error)?
        }
    };
    sqlx::query("INSERT INTO chunks (body, n, data) VALUES ($1, $2, $3)")
        .bind(body)
        .bind(n)
        .bind(bytes)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(body)
}

#[async_trait]
impl BodySink for Sink {
    async fn write(&mut self, chunk: Bytes) -> StoreResult<()> {
        self.len += chunk.len() as u64;
        self.buffer.extend_from_slice(&chunk);
        while self.buffer.len() >= piece() {
            let bytes = self.buffer.split_to(piece()).freeze();
            self.store(bytes).await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<StoredBody> {
        let rest = self.buffer.split().freeze();
        if self.body.is_none() && rest.len() <= INLINE {
            return Ok(StoredBody {
                len: self.len,
                place: BodyPlace::Inline(rest),
            });
        }
        if !rest.is_empty() {
            self.store(rest).await?;
        }
        let body = self
            .body
            .ok_or_else(|| StoreError::Damaged("a body without a place".into()))?;
        Ok(StoredBody {
            len: self.len,
            place: BodyPlace::Chunks { body },
        })
    }
}

/// A body on its way out.
pub(super) struct Source {
    pub(super) pool: PgPool,
    pub(super) body: i64,
    pub(super) n: i64,
    pub(super) left: u64,
}

#[async_trait]
impl BodySource for Source {
    async fn next(&mut self) -> StoreResult<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let (body, n) = (self.body, self.n);
        let data: Option<Vec<u8>> = ask(&self.pool, async |conn| {
            sqlx::query_scalar("SELECT data FROM chunks WHERE body = $1 AND n = $2")
                .bind(body)
                .bind(n)
                .fetch_optional(conn)
                .await
                .map_err(store_error)
        })
        .await?;
        let data = data.ok_or_else(|| StoreError::NotFound(format!("a part of body {}", self.body)))?;
        self.n += 1;
        self.left = self.left.saturating_sub(data.len() as u64);
        Ok(Some(data.into()))
    }
}

/// Makes bodies live, in the transaction that stores their mails; returns those that are there.
pub(super) async fn make_live(conn: &mut Conn, bodies: &[i64]) -> StoreResult<HashSet<i64>> {
    if bodies.is_empty() {
        return Ok(HashSet::new());
    }
    let live: Vec<i64> =
        sqlx::query_scalar("UPDATE bodies SET is_live = TRUE WHERE id = ANY($1) RETURNING id")
            .bind(bodies)
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
    Ok(live.into_iter().collect())
}

/// Removes the bodies of finished mails.
pub(super) async fn remove(conn: &mut Conn, bodies: &[i64]) -> StoreResult<()> {
    if bodies.is_empty() {
        return Ok(());
    }
    for sql in [
        "DELETE FROM chunks WHERE body = ANY($1)",
        "DELETE FROM bodies WHERE id = ANY($1)",
    ] {
        sqlx::query(sql)
            .bind(bodies)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}

/// Removes what no mail made live.
pub(super) async fn remove_abandoned(conn: &mut Conn) -> StoreResult<()> {
    let before = store_now(conn).await? - i64::try_from(ABANDONED.as_millis()).unwrap_or(i64::MAX);
    let bodies: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM bodies WHERE NOT is_live AND touched_at < $1 LIMIT 1000 FOR UPDATE SKIP LOCKED",
    )
    .bind(before)
    .fetch_all(&mut *conn)
    .await
    .map_err(store_error)?;
    remove(conn, &bodies).await
}
