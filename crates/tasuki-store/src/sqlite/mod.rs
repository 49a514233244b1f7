//! SQLite: one file, one process, one writer.
//!
//! The [`writer`] owns the only connection that writes and shares each commit among all who wait. Reads use a small
//! pool, one statement or a few at a time, and hold no transaction over an await. Bodies above 16 KiB are in
//! [`segments`].

pub(crate) mod check;
mod commit;
mod holds;
mod mail;
mod segments;
mod snapshot;
mod space;
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

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use tasuki_core::clock::Clock;
use tasuki_core::ids::{Epoch, LaneId, NodeId};
use tasuki_core::store::fedi::{Appended, NewEntry};
use tasuki_core::store::mail::{BodyPlace, Lane, StoredBody};
use tasuki_core::store::{NodeStore, Sharing, Store, StoreError, StoreResult, StoreStats};
use tokio::task::JoinHandle;

use self::holds::Holds;
use self::segments::{Place, Segments};
use self::space::Space;
use self::writer::{Counters, Writer};
use crate::OpenError;
use crate::error::store_error;
use crate::migrate;
use crate::news::News;

/// The connection type that the shared texts are compiled against.
pub(crate) type Conn = SqliteConnection;
/// Its rows.
pub(crate) type DbRow = sqlx::sqlite::SqliteRow;
/// What a finished mail leaves behind.
type Freed = Place;

/// One writer needs no row locks.
const FOR_UPDATE: &str = "";
const FOR_UPDATE_SKIP_LOCKED: &str = "";
const BODY_COLUMNS: &str = "body_len, segment, place, checksum, body";
const FREED_COLUMNS: &str = "body_len, segment, place";

/// The mode of the database's files.
const PRIVATE: u32 = 0o600;
/// Connections for reading.
const READERS: u32 = 3;

/// The SQLite store.
pub(crate) struct Db {
    pool: SqlitePool,
    writer: Writer,
    counters: Arc<Counters>,
    holds: Arc<Holds>,
    segments: Arc<Segments>,
    space: Arc<Space>,
    news: News,
    reads: AtomicU64,
    database: PathBuf,
    janitor: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// Opens or makes the database `file`, with segments in `data_dir`.
    pub(crate) async fn open(file: &Path, data_dir: &Path, newer: migrate::Newer) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Only another process can hold the lock, a backup for example. Whoever comes waits for the transaction that
            // waits, and for its own: peers give up after ten seconds, so they are told to come again before that.
            .busy_timeout(Duration::from_secs(2))
            .foreign_keys(false)
            .statement_cache_capacity(256)
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", "67108864")
            .pragma("cache_size", "-16000")
            .disable_statement_logging();
        let refused = |source| OpenError::connect(&file.display().to_string(), source);
        keep_private(file).map_err(|error| refused(error.into()))?;
        let mut conn = SqliteConnection::connect_with(&options).await.map_err(refused)?;
        migrate::sqlite(&mut conn, newer).await?;
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options.pragma("query_only", "1").pragma("cache_size", "-4000"))
            .await
            .map_err(refused)?;
        let opening = |what| move |source| OpenError::Recover { what, source };
        let space = Arc::new(Space::new(data_dir, Clock::system()));
        let segments = segments::recover(&mut conn, &data_dir.join("segments"), Arc::clone(&space))
            .await
            .map_err(opening("the mail bodies in segments/"))?;
        let segments = Arc::new(segments);
        let counters = Arc::new(
            writer::count(&mut conn)
                .await
                .map_err(opening("the mail queue"))?,
        );
        let holds = Arc::new(Holds::default());
        let writer = Writer::start(
            conn,
            Arc::clone(&counters),
            Arc::clone(&segments),
            Arc::clone(&space),
        )
        .map_err(|error| refused(error.into()))?;
        let janitor = segments::janitor(Arc::clone(&segments), writer.clone());
        Ok(Self {
            pool,
            writer,
            counters,
            holds,
            segments,
            space,
            news: News::default(),
            reads: AtomicU64::new(0),
            database: file.to_owned(),
            janitor: std::sync::Mutex::new(Some(tokio::spawn(janitor))),
        })
    }

    /// `Full` when what is free on the disk is kept for the work at hand.
    fn require_space(&self) -> StoreResult<()> {
        self.space.require()
    }

    /// Appends an entry to the log.
    async fn append_entry(&self, entry: NewEntry) -> StoreResult<Appended> {
        self.space.require()?;
        let news = self.news.clone();
        self.writer
            .change(
                move |conn| Box::pin(async move { log::append(conn, &entry).await }),
                move |_| news.tell_log(),
            )
            .await
    }

    /// Returns when what rides is committed, so that a reader sees it; people may also look while nothing can be written.
    async fn land(&self) -> StoreResult<()> {
        let _ = self.writer.land().await;
        Ok(())
    }

    /// Reads with a connection.
    async fn read<T, F>(&self, f: F) -> StoreResult<T>
    where
        F: AsyncFnOnce(&mut Conn) -> StoreResult<T>,
    {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut conn = self.pool.acquire().await.map_err(store_error)?;
        f(&mut conn).await
    }

    /// Runs `f` in the writer's next transaction, apart from the others in it; returns after the commit.
    async fn change<T, F>(&self, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        self.writer.change(f, |_| ()).await
    }

    /// Like [`Db::change`]; the commit is told to those who follow the fediverse, even if its caller is gone by then.
    async fn change_fedi<T, F>(&self, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        let news = self.news.clone();
        self.writer.change(f, move |_| news.tell_all()).await
    }

    /// Like [`Db::change`], but returns at once; the change rides in a later commit.
    async fn ride<F>(&self, f: F) -> StoreResult<()>
    where
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, StoreResult<()>> + Send + 'static,
    {
        self.writer.ride(f).await
    }
}

/// Makes the database the owner's alone, whatever the umask is or was when it was made. What SQLite puts beside it, and
/// finds there, has the same mode.
fn keep_private(file: &Path) -> std::io::Result<()> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(PRIVATE)
        .open(file)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(suffix);
        match std::fs::set_permissions(&path, Permissions::from_mode(PRIVATE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// The store's clock: this machine's.
async fn store_now(_conn: &mut Conn) -> StoreResult<i64> {
    Ok(Clock::system().wall().0)
}

/// One writer appends in order without a lock.
async fn lock_log(_conn: &mut Conn) -> StoreResult<()> {
    Ok(())
}

/// Renews the holds that still are.
async fn renew_lanes(
    conn: &mut Conn,
    node: NodeId,
    until: i64,
    lanes: &[(LaneId, Epoch)],
) -> StoreResult<Vec<Lane>> {
    let mut renewed = Vec::with_capacity(lanes.len());
    for (lane, epoch) in lanes {
        let row = sqlx::query(
            "UPDATE lanes SET hold_until = $4 WHERE id = $1 AND epoch = $2 AND owner = $3
             RETURNING id, name, epoch, next_due",
        )
        .bind(lane.0)
        .bind(epoch.0)
        .bind(i64::from(node.0))
        .bind(until)
        .fetch_optional(&mut *conn)
        .await
        .map_err(store_error)?;
        renewed.extend(row.as_ref().map(queue::lane_of).transpose()?);
    }
    Ok(renewed)
}

fn place_of(row: &DbRow) -> StoreResult<Option<Place>> {
    let segment: Option<i64> = row.try_get("segment").map_err(store_error)?;
    let Some(segment) = segment else { return Ok(None) };
    let number = |column| -> StoreResult<u64> {
        let value: i64 = row.try_get(column).map_err(store_error)?;
        u64::try_from(value).map_err(|_| StoreError::Damaged(format!("{column} {value}")))
    };
    Ok(Some(Place {
        segment: u64::try_from(segment).map_err(|_| StoreError::Damaged(format!("segment {segment}")))?,
        offset: number("place")?,
        len: number("body_len")?,
    }))
}

fn freed_of(row: &DbRow) -> StoreResult<Option<Freed>> {
    place_of(row)
}

fn body_of(row: &DbRow) -> StoreResult<StoredBody> {
    let len: i64 = row.try_get("body_len").map_err(store_error)?;
    let place = match place_of(row)? {
        Some(place) => BodyPlace::Segment {
            segment: place.segment,
            offset: place.offset,
            checksum: u32::try_from(row.try_get::<i64, _>("checksum").map_err(store_error)?)
                .map_err(|_| StoreError::Damaged("checksum".into()))?,
        },
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

/// Copies a database that nobody has open; see [`crate::snapshot_at_rest`].
pub(crate) async fn snapshot_at_rest(
    database: &Path,
    data_dir: &Path,
    file: &Path,
) -> StoreResult<Box<dyn tasuki_core::store::backup::Snapshot>> {
    snapshot::take(database, &data_dir.join("segments"), file, None).await
}

/// See [`crate::segment_file`].
pub(crate) use self::segments::file::{name as segment_file, number as segment_of_file};

/// See [`crate::periodic_statements`].
pub(crate) fn periodic() -> Vec<&'static str> {
    let mut all = queue::periodic();
    all.push(log::TOTAL_BYTES);
    all.extend(segments::STATEMENTS);
    all
}

impl Store for Db {}

impl Sharing for Db {
    /// The file is this process's alone.
    fn is_shared(&self) -> bool {
        false
    }
}

#[async_trait]
impl NodeStore for Db {
    async fn join(&self, name: &str) -> StoreResult<(NodeId, Epoch)> {
        let name = name.to_owned();
        let holds = Arc::clone(&self.holds);
        self.writer
            .change(
                move |conn| Box::pin(async move { nodes::join(conn, &name).await }),
                move |(node, epoch)| holds.begin_life(*node, *epoch),
            )
            .await
    }

    async fn heartbeat(&self, node: NodeId, epoch: Epoch, dead_after: Duration) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move { nodes::heartbeat(conn, node, epoch, dead_after).await })
        })
        .await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.read(async |conn| sqlx::query("SELECT 1").execute(conn).await.map_err(store_error))
            .await?;
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        let file = |suffix: &str| {
            let mut path = self.database.clone().into_os_string();
            path.push(suffix);
            std::fs::metadata(path).map_or(0, |m| m.len())
        };
        let commits = self.counters.commits();
        StoreStats {
            reads: self.reads.load(Ordering::Relaxed),
            commits,
            syncs: commits + self.segments.syncs(),
            waiting: self.writer.waiting(),
            size_bytes: file("") + file("-wal") + self.segments.size_bytes(),
        }
    }

    async fn close(&self) {
        self.writer.close().await;
        let janitor = self.janitor.lock().ok().and_then(|mut j| j.take());
        if let Some(janitor) = janitor {
            janitor.abort();
            let _ = janitor.await;
        }
        self.pool.close().await;
    }
}
