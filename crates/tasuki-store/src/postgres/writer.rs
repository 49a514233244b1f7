//! The one task that writes what comes often: new mail, outcomes, entries of the fediverse's log.
//!
//! It has a connection of its own and is fed by a bounded channel. It commits at once when idle; what arrives while a
//! commit is under way shares the next one (group commit). Outcomes without follow-ups wait a moment for somebody
//! else's commit. Every commit waits for the server's disk: the gateway forgets what it was told is done, so an outcome
//! that a crash of the server took back would be a mail that is sent again by the gateway's next life, whenever that is.
//!
//! A transaction that met another gateway's (deadlock, serialization) is tried again. One that a caller's own fault
//! broke is done again request by request, so that this caller fails alone. When the server is away everybody is told
//! so, and the next request connects anew.
//!
//! **Invariant:** nobody is answered before the commit that holds his change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::store::fedi::{Appended, NewEntry};
use tasuki_core::store::mail::{Outcome, Settled};
use tasuki_core::store::{StoreError, StoreResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::conn::{DEADLINE, RETRIES, retry_pause, silent};
use super::mail::{self, MailRow};
use super::{Conn, log, totals};
use crate::error::{is_collision, is_own_fault, share, store_error};

/// Requests that may wait in the channel.
const QUEUE: usize = 1024;
/// Requests in one commit.
const BATCH: usize = 512;
/// Bytes of rows in one commit.
const BATCH_BYTES: usize = 8 << 20;
/// How long outcomes wait for somebody else's commit.
const RIDE: Duration = Duration::from_millis(10);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

type Reply<T> = oneshot::Sender<StoreResult<T>>;

/// New mails of one caller.
pub(super) struct Enqueue {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
    pub(super) rows: Vec<MailRow>,
    reply: Reply<()>,
}

/// Outcomes of one caller, with the mails that each causes.
pub(super) struct Settle {
    pub(super) node: NodeId,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) follow_ups: Vec<Vec<MailRow>>,
    reply: Reply<Vec<Settled>>,
}

/// An entry for the log.
struct Append {
    entry: NewEntry,
    reply: Reply<Appended>,
}

enum Request {
    Enqueue(Enqueue),
    Settle(Settle),
    Append(Box<Append>),
    Close(oneshot::Sender<()>),
}

/// The callers' end; clones share the task.
#[derive(Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

impl Writer {
    /// Starts the task; it connects with `options` when there is something to write.
    pub(super) fn start(options: PgConnectOptions, commits: Arc<AtomicU64>) -> Self {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let task = Task {
            options,
            conn: None,
            inbox,
            commits,
        };
        tokio::spawn(task.run());
        Self { requests }
    }

    /// Requests that wait for their commit.
    pub(super) fn waiting(&self) -> usize {
        self.requests.max_capacity() - self.requests.capacity()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Stores mails of one caller; returns after the commit.
    pub(super) async fn enqueue(&self, node: NodeId, epoch: Epoch, rows: Vec<MailRow>) -> StoreResult<()> {
        self.ask(|reply| {
            Request::Enqueue(Enqueue {
                node,
                epoch,
                rows,
                reply,
            })
        })
        .await
    }

    /// Stores outcomes and what they cause; returns after the commit.
    pub(super) async fn settle(
        &self,
        node: NodeId,
        outcomes: Vec<Outcome>,
        follow_ups: Vec<Vec<MailRow>>,
    ) -> StoreResult<Vec<Settled>> {
        self.ask(|reply| {
            Request::Settle(Settle {
                node,
                outcomes,
                follow_ups,
                reply,
            })
        })
        .await
    }

    /// Appends an entry to the log; returns after the commit.
    pub(super) async fn append(&self, entry: NewEntry) -> StoreResult<Appended> {
        self.ask(|reply| Request::Append(Box::new(Append { entry, reply })))
            .await
    }

    /// Commits what waits and closes the connection. Later requests are refused.
    pub(super) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Close(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

/// What one transaction takes.
#[derive(Default)]
struct Batch {
    enqueues: Vec<Enqueue>,
    settles: Vec<Settle>,
    appends: Vec<Append>,
    close: Option<oneshot::Sender<()>>,
    bytes: usize,
    is_urgent: bool,
}

impl Batch {
    fn len(&self) -> usize {
        self.enqueues.len() + self.settles.len() + self.appends.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= BATCH || self.bytes >= BATCH_BYTES || self.close.is_some()
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Enqueue(enqueue) => {
                self.bytes += enqueue.rows.iter().map(MailRow::size).sum::<usize>();
                self.enqueues.push(enqueue);
                self.is_urgent = true;
            }
            Request::Settle(settle) => {
                self.is_urgent |= !settle.follow_ups.iter().all(Vec::is_empty);
                self.settles.push(settle);
            }
            Request::Append(append) => {
                self.bytes += append.entry.body.len();
                self.appends.push(*append);
                self.is_urgent = true;
            }
            Request::Close(reply) => {
                self.close = Some(reply);
                self.is_urgent = true;
            }
        }
    }

    fn work(&self) -> Work<'_> {
        Work {
            enqueues: &self.enqueues,
            settles: &self.settles,
            appends: &self.appends,
        }
    }

    fn answer(self, result: StoreResult<Done>) {
        match result {
            Ok(done) => {
                reply_all(self.enqueues.into_iter().map(|e| e.reply), done.enqueued);
                reply_all(self.settles.into_iter().map(|s| s.reply), done.settled);
                reply_all(self.appends.into_iter().map(|a| a.reply), done.appended);
            }
            Err(error) => {
                refuse_all(self.enqueues.into_iter().map(|e| e.reply), &error);
                refuse_all(self.settles.into_iter().map(|s| s.reply), &error);
                refuse_all(self.appends.into_iter().map(|a| a.reply), &error);
            }
        }
        if let Some(close) = self.close {
            let _ = close.send(());
        }
    }
}

fn reply_all<T>(replies: impl Iterator<Item = Reply<T>>, results: Vec<StoreResult<T>>) {
    for (reply, result) in replies.zip(results) {
        let _ = reply.send(result);
    }
}

fn refuse_all<T>(replies: impl Iterator<Item = Reply<T>>, error: &StoreError) {
    for reply in replies {
        let _ = reply.send(Err(share(error)));
    }
}

/// The requests of one transaction, or of one savepoint in it.
#[derive(Clone, Copy)]
struct Work<'a> {
    enqueues: &'a [Enqueue],
    settles: &'a [Settle],
    appends: &'a [Append],
}

impl<'a> Work<'a> {
    /// Each request as work of its own, in the order of [`Done`].
    fn singles(self) -> impl Iterator<Item = Work<'a>> {
        let none = Work {
            enqueues: &[],
            settles: &[],
            appends: &[],
        };
        let settles = self
            .settles
            .chunks(1)
            .map(move |settles| Work { settles, ..none });
        let enqueues = self
            .enqueues
            .chunks(1)
            .map(move |enqueues| Work { enqueues, ..none });
        let appends = self
            .appends
            .chunks(1)
            .map(move |appends| Work { appends, ..none });
        settles.chain(enqueues).chain(appends)
    }
}

/// Each one's own result, in order.
#[derive(Default)]
struct Done {
    settled: Vec<StoreResult<Vec<Settled>>>,
    enqueued: Vec<StoreResult<()>>,
    appended: Vec<StoreResult<Appended>>,
}

struct Task {
    options: PgConnectOptions,
    conn: Option<PgConnection>,
    inbox: mpsc::Receiver<Request>,
    commits: Arc<AtomicU64>,
}

impl Task {
    async fn run(mut self) {
        while let Some(batch) = self.collect().await {
            let result = self.commit(&batch).await;
            let is_last = batch.close.is_some();
            if is_last {
                self.inbox.close();
                if let Some(conn) = self.conn.take() {
                    let _ = timeout(CONNECT, conn.close()).await;
                }
            }
            batch.answer(result);
            if is_last {
                return;
            }
        }
    }

    /// Waits until there is something to commit; `None` when all callers are gone.
    async fn collect(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        batch.take(self.inbox.recv().await?);
        let ride_until = Instant::now() + RIDE;
        loop {
            // Those who were answered by the last commit come back together: let them get on this one.
            tokio::task::yield_now().await;
            while !batch.is_full()
                && let Ok(request) = self.inbox.try_recv()
            {
                batch.take(request);
            }
            if batch.is_urgent || batch.is_full() {
                return Some(batch);
            }
            match tokio::time::timeout_at(ride_until, self.inbox.recv()).await {
                Ok(Some(request)) => batch.take(request),
                Ok(None) | Err(_) => return Some(batch),
            }
        }
    }

    async fn commit(&mut self, batch: &Batch) -> StoreResult<Done> {
        if batch.len() == 0 {
            return Ok(Done::default());
        }
        let mut tries = 0;
        let mut mode = Mode::Together;
        loop {
            let error = match self.attempt(batch.work(), mode).await {
                Ok(done) => {
                    self.commits.fetch_add(1, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) => error,
            };
            if is_collision(&error) && tries < RETRIES {
                tries += 1;
                tokio::time::sleep(retry_pause(tries)).await;
            } else if fails_alone(&error) && mode == Mode::Together {
                mode = Mode::OneByOne {
                    keeps_trail: !matches!(error, StoreError::Full),
                };
            } else {
                tracing::warn!(error = %error, "a commit failed");
                return Err(error);
            }
        }
    }

    /// One try. A connection that failed, or was left in the middle, is given up.
    async fn attempt(&mut self, work: Work<'_>, mode: Mode) -> StoreResult<Done> {
        let mut conn = self.begin().await?;
        let tried = timeout(DEADLINE, async {
            let done = mode.apply(&mut conn, work).await?;
            run(&mut conn, "COMMIT").await?;
            Ok(done)
        })
        .await;
        match tried {
            Ok(Ok(done)) => {
                self.conn = Some(conn);
                Ok(done)
            }
            Ok(Err(error)) => {
                if let Ok(Ok(())) = timeout(CONNECT, run(&mut conn, "ROLLBACK")).await {
                    self.conn = Some(conn);
                }
                Err(error)
            }
            Err(_) => Err(silent()),
        }
    }

    /// A connection with an open transaction. One from before may have died since: then a new one is made.
    async fn begin(&mut self) -> StoreResult<PgConnection> {
        if let Some(mut conn) = self.conn.take()
            && let Ok(Ok(())) = timeout(CONNECT, run(&mut conn, "BEGIN")).await
        {
            return Ok(conn);
        }
        let fresh = async {
            let mut conn = self.options.connect().await.map_err(store_error)?;
            run(&mut conn, "BEGIN").await?;
            Ok(conn)
        };
        timeout(CONNECT, fresh)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable("the database cannot be reached".into())))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Together,
    /// A full disk has no room for the trail: what it tells is missed less than what it would keep from being settled.
    OneByOne {
        keeps_trail: bool,
    },
}

impl Mode {
    fn apply<'c>(self, conn: &'c mut Conn, work: Work<'c>) -> BoxFuture<'c, StoreResult<Done>> {
        match self {
            Self::Together => together(conn, work, true).boxed(),
            Self::OneByOne { keeps_trail } => one_by_one(conn, work, keeps_trail).boxed(),
        }
    }
}

/// All requests in as few statements as possible.
async fn together(conn: &mut Conn, work: Work<'_>, keeps_trail: bool) -> StoreResult<Done> {
    let mut done = Done::default();
    let mut totals: BTreeMap<i64, totals::Change> = BTreeMap::new();
    for settle in work.settles {
        let applied = mail::settle_all(conn, settle, keeps_trail).await?;
        let node = totals.entry(i64::from(settle.node.0)).or_default();
        node.mails += applied.change.mails;
        node.deferred += applied.change.deferred;
        node.trail_bytes += applied.change.trail_bytes;
        done.settled.push(Ok(applied.results));
    }
    done.enqueued = mail::enqueue_all(conn, work.enqueues).await?;
    for (enqueue, result) in work.enqueues.iter().zip(&done.enqueued) {
        if result.is_ok() {
            let node = totals.entry(i64::from(enqueue.node.0)).or_default();
            node.mails += i64::try_from(enqueue.rows.len()).unwrap_or(i64::MAX);
        }
    }
    for append in work.appends {
        done.appended.push(Ok(log::append(conn, &append.entry).await?));
    }
    for (node, change) in totals {
        totals::add(conn, node, change).await?;
    }
    Ok(done)
}

/// On a full disk too: an outcome makes room where new mail finds none.
fn fails_alone(error: &StoreError) -> bool {
    is_own_fault(error) || matches!(error, StoreError::Full)
}

/// Each request apart, so that one that is refused fails alone.
async fn one_by_one(conn: &mut Conn, work: Work<'_>, keeps_trail: bool) -> StoreResult<Done> {
    let mut done = Done::default();
    for single in work.singles() {
        run(conn, "SAVEPOINT one").await?;
        match together(conn, single, keeps_trail).await {
            Ok(mut own) => {
                done.settled.append(&mut own.settled);
                done.enqueued.append(&mut own.enqueued);
                done.appended.append(&mut own.appended);
            }
            Err(error) if fails_alone(&error) => {
                run(conn, "ROLLBACK TO one").await?;
                if !single.settles.is_empty() {
                    done.settled.push(Err(error));
                } else if !single.enqueues.is_empty() {
                    done.enqueued.push(Err(error));
                } else {
                    done.appended.push(Err(error));
                }
            }
            Err(error) => return Err(error),
        }
        run(conn, "RELEASE one").await?;
    }
    Ok(done)
}

async fn run(conn: &mut Conn, sql: &'static str) -> StoreResult<()> {
    sqlx::raw_sql(sql).execute(conn).await.map_err(store_error)?;
    Ok(())
}
