//! PostgreSQL: any number of gateways.
//!
//! Each change is one short transaction; none is open while the network is slow. What comes often shares transactions,
//! see [`writer`]. A transaction that met another gateway's is tried again; one that the server does not answer is given
//! up, see [`conn`]. When the server is away every verb says `Unavailable` until it is back. Holds end by the
//! database's clock. Bodies above 16 KiB are chunk rows, see [`bodies`].

mod bodies;
mod conn;
mod mail;
mod writer;

#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/accounts.rs"]
mod accounts;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/audit.rs"]
mod audit;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/bans.rs"]
mod bans;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/fedi.rs"]
mod fedi;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/filters.rs"]
mod filters;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/joins.rs"]
mod joins;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/log.rs"]
mod log;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/moderation.rs"]
mod moderation;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/nodes.rs"]
mod nodes;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/orders.rs"]
mod orders;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/progress.rs"]
mod progress;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/queue.rs"]
mod queue;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/recipients.rs"]
mod recipients;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/secrets.rs"]
mod secrets;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/sent.rs"]
mod sent;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/settle.rs"]
mod settle;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/suppress.rs"]
mod suppress;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/tls.rs"]
mod tls;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/topics.rs"]
mod topics;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/totals.rs"]
mod totals;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/trail.rs"]
mod trail;
#[expect(
    clippy::duplicate_mod,
    reason = "one text for both databases, compiled against each"
)]
#[path = "../shared/tunnel.rs"]
mod tunnel;

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions as _, Row as _};
use tasuki_core::ids::{Epoch, LaneId, NodeId};
use tasuki_core::store::fedi::{Appended, NewEntry};
use tasuki_core::store::mail::{BodyPlace, Lane, StoredBody};
use tasuki_core::store::{NodeStore, Sharing, Store, StoreResult, StoreStats};
use tokio::task::JoinHandle;

use self::conn::{ask, transact, without_sync};
use self::writer::Writer;
use crate::OpenError;
use crate::error::store_error;
use crate::migrate;
use crate::news::News;

/// The connection type that the shared texts are compiled against.
pub(crate) type Conn = PgConnection;
/// Its rows.
pub(crate) type DbRow = PgRow;
/// What a finished mail leaves behind: the id of its chunks. They are deleted with its row.
type Freed = i64;

const FOR_UPDATE: &str = " FOR UPDATE";
const FOR_UPDATE_SKIP_LOCKED: &str = " FOR UPDATE SKIP LOCKED";
const BODY_COLUMNS: &str = "body_len, chunks, body";
const FREED_COLUMNS: &str = "chunks";

/// Connections of one gateway, beside the writer's.
const CONNECTIONS: u32 = 15;
/// How long a verb waits for one of them.
const ACQUIRE: Duration = Duration::from_secs(10);
/// How often abandoned bodies are looked for.
const SWEEP: Duration = Duration::from_secs(300);
/// The lock that makes places in the log grow in the order of their commits.
const LOG_LOCK: i64 = 0x7461_7375_6b69;

/// The PostgreSQL store.
pub(crate) struct Db {
    pool: PgPool,
    writer: Writer,
    commits: Arc<AtomicU64>,
    waiting: AtomicI64,
    size_bytes: Arc<AtomicU64>,
    news: News,
    reads: AtomicU64,
    sweeper: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// Connects and brings the database up to date.
    pub(crate) async fn open(url: &str, newer: migrate::Newer) -> Result<Self, OpenError> {
        // The driver's message may quote the URL, so it is not passed on.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| OpenError::Url("this is not a postgres:// URL that can be read".into()))?
            .application_name("tasuki")
            .options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "60s"),
            ])
            .disable_statement_logging();
        let name = format!(
            "{} on {}",
            options.get_database().unwrap_or("(default)"),
            options.get_socket().map_or_else(
                || options.get_host().to_owned(),
                |path| path.display().to_string()
            )
        );
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.clone())
            .await
            .map_err(|e| OpenError::connect(&name, e))?;
        let mut conn = pool.acquire().await.map_err(|e| OpenError::connect(&name, e))?;
        migrate::postgres(&mut conn, newer).await?;
        drop(conn);
        let size_bytes = Arc::new(AtomicU64::new(0));
        let sweeper = tokio::spawn(sweep(pool.clone(), Arc::clone(&size_bytes)));
        let commits = Arc::new(AtomicU64::new(0));
        Ok(Self {
            pool,
            writer: Writer::start(options, Arc::clone(&commits)),
            commits,
            waiting: AtomicI64::new(0),
            size_bytes,
            news: News::default(),
            reads: AtomicU64::new(0),
            sweeper: std::sync::Mutex::new(Some(sweeper)),
        })
    }

    /// Whether there is room for new work: the server's disk is its own affair, and its refusals tell.
    fn require_space(&self) -> StoreResult<()> {
        Ok(())
    }

    /// Appends an entry to the log.
    async fn append_entry(&self, entry: NewEntry) -> StoreResult<Appended> {
        let appended = self.writer.append(entry).await?;
        self.news.tell_log();
        Ok(appended)
    }

    /// Settlements are committed when they are answered: a reader sees them.
    async fn land(&self) -> StoreResult<()> {
        Ok(())
    }

    /// Reads with a connection, as long as [`conn::ANSWER`] at the most.
    async fn read<T, F>(&self, f: F) -> StoreResult<T>
    where
        F: AsyncFnOnce(&mut Conn) -> StoreResult<T>,
    {
        self.reads.fetch_add(1, Ordering::Relaxed);
        ask(&self.pool, f).await
    }

    /// Runs `f` in a transaction of its own; if the caller goes away before the commit, nothing of it happened.
    async fn change<T, F>(&self, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = transact(&self.pool, f).await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if result.is_ok() {
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Like [`Db::change`]; the commit is told to those who follow the fediverse.
    async fn change_fedi<T, F>(&self, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        let done = self.change(f).await?;
        self.news.tell_all();
        Ok(done)
    }

    /// A change whose loss in a crash does no harm: it does not wait for the disk.
    async fn ride<F>(&self, f: F) -> StoreResult<()>
    where
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<()>> + Clone + Send + 'static,
    {
        self.change(move |conn| {
            Box::pin(async move {
                without_sync(conn).await?;
                f(conn).await
            })
        })
        .await
    }
}

/// Removes bodies that no mail made live, and takes the database's size; until it is aborted.
async fn sweep(pool: PgPool, size_bytes: Arc<AtomicU64>) {
    loop {
        if let Err(error) = sweep_once(&pool, &size_bytes).await {
            tracing::warn!(error = %error, "abandoned bodies could not be removed; trying again later");
        }
        tokio::time::sleep(SWEEP).await;
    }
}

async fn sweep_once(pool: &PgPool, size_bytes: &AtomicU64) -> StoreResult<()> {
    let size: i64 = ask(pool, async |conn| {
        sqlx::query_scalar("SELECT pg_database_size(current_database())")
            .fetch_one(conn)
            .await
            .map_err(store_error)
    })
    .await?;
    size_bytes.store(u64::try_from(size).unwrap_or(0), Ordering::Relaxed);
    transact(pool, |conn| Box::pin(bodies::remove_abandoned(conn))).await
}

/// The store's clock: the database's.
async fn store_now(conn: &mut Conn) -> StoreResult<i64> {
    sqlx::query_scalar("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)")
        .fetch_one(conn)
        .await
        .map_err(store_error)
}

/// Places in the log are given in the order of commits: a reader that saw one will not find an earlier one after it.
async fn lock_log(conn: &mut Conn) -> StoreResult<()> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOG_LOCK)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Renews the holds that still are.
async fn renew_lanes(
    conn: &mut Conn,
    node: NodeId,
    until: i64,
    lanes: &[(LaneId, Epoch)],
) -> StoreResult<Vec<Lane>> {
    let (ids, epochs): (Vec<i64>, Vec<i64>) = lanes.iter().map(|(lane, epoch)| (lane.0, epoch.0)).unzip();
    sqlx::query(
        "UPDATE lanes SET hold_until = $4
         FROM unnest($1::BIGINT[], $2::BIGINT[]) AS held (held_id, held_epoch)
         WHERE id = held_id AND epoch = held_epoch AND owner = $3
         RETURNING id, name, epoch, next_due",
    )
    .bind(ids)
    .bind(epochs)
    .bind(i64::from(node.0))
    .bind(until)
    .fetch_all(conn)
    .await
    .map_err(store_error)?
    .iter()
    .map(queue::lane_of)
    .collect()
}

fn freed_of(row: &DbRow) -> StoreResult<Option<Freed>> {
    row.try_get("chunks").map_err(store_error)
}

fn body_of(row: &DbRow) -> StoreResult<StoredBody> {
    let len: i64 = row.try_get("body_len").map_err(store_error)?;
    let place = match freed_of(row)? {
        Some(body) => BodyPlace::Chunks { body },
        None => BodyPlace::Inline(Bytes::from(
            row.try_get::<Option<Vec<u8>>, _>("body")
                .map_err(store_error)?
                .unwrap_or_default(),
        )),
    };
    Ok(StoredBody {
        len: u64::try_from(len).unwrap_or(0),
        place,
    })
}

/// See [`crate::periodic_statements`].
pub(crate) fn periodic() -> Vec<&'static str> {
    queue::periodic()
}

impl Store for Db {}

/// `pg_dump` does it, and knows how.
#[async_trait]
impl tasuki_core::store::BackupStore for Db {
    async fn snapshot(
        &self,
        _file: &std::path::Path,
    ) -> StoreResult<Option<Box<dyn tasuki_core::store::backup::Snapshot>>> {
        Ok(None)
    }
}

impl Sharing for Db {
    fn is_shared(&self) -> bool {
        true
    }
}

#[async_trait]
impl NodeStore for Db {
    async fn join(&self, name: &str) -> StoreResult<(NodeId, Epoch)> {
        let name = name.to_owned();
        self.change(move |conn| {
            Box::pin(async move {
                // Two new nodes at once would choose the same number.
                sqlx::query("LOCK TABLE nodes IN SHARE ROW EXCLUSIVE MODE")
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                nodes::join(conn, &name).await
            })
        })
        .await
    }

    async fn heartbeat(&self, node: NodeId, epoch: Epoch, dead_after: Duration) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move { nodes::heartbeat(conn, node, epoch, dead_after).await })
        })
        .await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.read(async |conn| {
            sqlx::query("SELECT 1").execute(conn).await.map_err(store_error)?;
            Ok(())
        })
        .await
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            reads: self.reads.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            syncs: 0,
            waiting: u64::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(0)
                + self.writer.waiting() as u64,
            size_bytes: self.size_bytes.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) {
        let sweeper = self.sweeper.lock().ok().and_then(|mut s| s.take());
        if let Some(sweeper) = sweeper {
            sweeper.abort();
            let _ = sweeper.await;
        }
        self.writer.close().await;
        self.pool.close().await;
    }
}
