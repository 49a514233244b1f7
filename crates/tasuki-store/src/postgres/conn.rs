//! Connections of the pool, lent for one question or one transaction, and how long either may take.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{Connection as _, Postgres};
use tasuki_core::store::{StoreError, StoreResult};
use tokio::time::timeout;

use super::Conn;
use crate::error::{is_collision, store_error};

/// How long the answer to a question may take. The server's own limit ends a statement, but does not reach us over a
/// network that carries nothing any more.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long a transaction may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// How often a transaction that met another one is tried again.
pub(super) const RETRIES: u32 = 8;

/// Asks with a connection of the pool.
pub(super) async fn ask<T, F>(pool: &PgPool, f: F) -> StoreResult<T>
where
    F: AsyncFnOnce(&mut Conn) -> StoreResult<T>,
{
    let mut lent = Lent::take(pool).await?;
    let answer = timeout(ANSWER, f(lent.conn()?)).await.map_err(|_| silent())?;
    lent.give_back();
    answer
}

/// Runs `f` in a transaction; again, if it met another one.
pub(super) async fn transact<T, F>(pool: &PgPool, f: F) -> StoreResult<T>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
{
    let mut tries = 0;
    loop {
        match transact_once(pool, f.clone()).await {
            Err(error) if is_collision(&error) && tries < RETRIES => {
                tries += 1;
                tokio::time::sleep(retry_pause(tries)).await;
            }
            result => return result,
        }
    }
}

async fn transact_once<T, F>(pool: &PgPool, f: F) -> StoreResult<T>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
{
    let mut lent = Lent::take(pool).await?;
    let conn = lent.conn()?;
    let tried = timeout(DEADLINE, async {
        let mut transaction = conn.begin().await.map_err(store_error)?;
        // Dropped unfinished, a transaction rolls back.
        let done = f(&mut transaction).await?;
        transaction.commit().await.map_err(store_error)?;
        Ok(done)
    })
    .await
    .map_err(|_| silent())?;
    lent.give_back();
    tried
}

pub(super) fn silent() -> StoreError {
    StoreError::Unavailable("the database did not answer in time".into())
}

/// A connection of the pool. One that is left in the middle of a question, by a deadline or because its caller went away,
/// is closed: the pool would ask it whether it is well before it lends it again, and wait for the answer without end.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    async fn take(pool: &PgPool) -> StoreResult<Self> {
        Ok(Self(Some(pool.acquire().await.map_err(store_error)?)))
    }

    fn conn(&mut self) -> StoreResult<&mut Conn> {
        self.0.as_deref_mut().ok_or_else(silent)
    }

    fn give_back(mut self) {
        self.0 = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            drop(conn.detach());
        }
    }
}

/// How long to wait before try `tries`, so that those who met do not meet again.
pub(super) fn retry_pause(tries: u32) -> Duration {
    // Two gateways that wait equally long would meet again; their process numbers differ.
    let own = u64::from(std::process::id() % 7);
    Duration::from_millis(u64::from(tries) * (3 + own))
}

/// Lets this transaction's commit return before it is on the disk; its order among the others stays.
pub(super) async fn without_sync(conn: &mut Conn) -> StoreResult<()> {
    sqlx::query("SET LOCAL synchronous_commit = off")
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}
