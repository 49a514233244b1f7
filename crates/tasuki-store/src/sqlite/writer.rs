//! The one task that writes.
//!
//! It owns the write connection and is fed by a bounded channel, so a caller that goes away takes nothing with it. It
//! commits at once when idle; what arrives while a commit is under way shares the next one (group commit). Settlements
//! and notes ride: they wait for somebody else's commit, at most [`RIDE`].
//!
//! **Invariant:** nobody is answered `Ok` before the commit that holds his change, except those who ride. A riding
//! settlement is kept and tried again until a commit took it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Connection as _, SqliteConnection};
use tasuki_core::ids::NodeId;
use tasuki_core::store::mail::{Outcome, Settled};
use tasuki_core::store::{StoreError, StoreResult};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::commit::{Work, transact};
use super::mail::MailRow;
use super::segments::Segments;
use super::settle::Applied;
use super::space::Space;
use super::totals;
use crate::error::share;

/// Requests that may wait in the channel.
const QUEUE: usize = 1024;
/// How long riders wait for somebody else's commit.
const RIDE: Duration = Duration::from_millis(100);
/// How long a commit waits for the others, when many share commits; and how many are too few to wait for.
const GATHER: Duration = Duration::from_micros(400);
const FEW: usize = 2;
/// Requests in one commit.
const BATCH: usize = 512;
/// Row bytes in one commit.
const BATCH_BYTES: usize = 8 << 20;
/// Outcomes in memory that no commit took yet, those of the commit under way among them. Who brings more waits for room.
const MAX_RIDERS: u32 = 20_000;

/// The figures' row: one process needs no parts of its own.
pub(super) const ALL_NODES: i64 = 0;

/// Figures that are kept because counting rows would read the whole queue: in the database, and in memory for who asks.
#[derive(Debug, Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    mails: AtomicI64,
    deferred: AtomicI64,
}

impl Counters {
    /// Mails were removed outside the writer's own statements.
    pub(super) fn removed(&self, mails: i64) {
        self.mails.fetch_sub(mails, Ordering::Relaxed);
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) fn mails(&self) -> u64 {
        u64::try_from(self.mails.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(super) fn deferred(&self) -> u64 {
        u64::try_from(self.deferred.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// As they stand at the start.
pub(super) async fn count(conn: &mut SqliteConnection) -> StoreResult<Counters> {
    let (mails, deferred) = totals::sum(conn).await?;
    Ok(Counters {
        commits: AtomicU64::new(0),
        mails: AtomicI64::new(mails),
        deferred: AtomicI64::new(deferred),
    })
}

/// New mails of one caller.
pub(super) struct Enqueue {
    pub(super) rows: Vec<MailRow>,
    reply: oneshot::Sender<StoreResult<()>>,
}

/// Outcomes of one caller that ride.
pub(super) struct Riders {
    pub(super) node: NodeId,
    pub(super) outcomes: Vec<Outcome>,
}

/// Outcomes of one caller with what they cause.
pub(super) struct SettleNow {
    pub(super) node: NodeId,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) follow_ups: Vec<Vec<MailRow>>,
    reply: oneshot::Sender<StoreResult<Vec<Settled>>>,
}

impl Riders {
    /// How much of [`MAX_RIDERS`] they take. A call with more outcomes than that has it all to itself.
    fn room(&self) -> u32 {
        u32::try_from(self.outcomes.len()).map_or(MAX_RIDERS, |n| n.min(MAX_RIDERS))
    }
}

/// Outcomes that ride: how many calls brought some, how many of them have arrived, and what waits for the next commit.
/// The writer takes them when it commits, puts them back if it fails, and is not woken for each.
struct Rides {
    sent: AtomicU64,
    done: AtomicU64,
    waiting: Mutex<Vec<Riders>>,
    /// What is left of [`MAX_RIDERS`]: taken before boarding, given back by the commit that took them.
    room: Semaphore,
}

impl Default for Rides {
    fn default() -> Self {
        Self {
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            waiting: Mutex::default(),
            room: Semaphore::new(MAX_RIDERS as usize),
        }
    }
}

impl Rides {
    /// Whether they are the first that wait: the writer must be told of those.
    fn board(&self, riders: Riders) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(riders);
        waiting.len() == 1
    }

    fn take(&self) -> Vec<Riders> {
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those whom no commit took wait again, before those who came meanwhile. Whether anybody waits.
    fn put_back(&self, mut riders: Vec<Riders>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        riders.append(&mut waiting);
        *waiting = riders;
        !waiting.is_empty()
    }

    /// A commit took them.
    fn arrived(&self, riders: &[Riders]) {
        self.done.fetch_add(riders.len() as u64, Ordering::Release);
        self.room
            .add_permits(riders.iter().map(|riders| riders.room() as usize).sum());
    }

    fn is_empty(&self) -> bool {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

/// A change of any other kind.
pub(super) trait Change: Send {
    fn apply<'c>(&'c mut self, conn: &'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<()>>;
    /// After the commit, or instead of it with why it failed.
    fn finish(self: Box<Self>, commit: StoreResult<()>);
}

enum Request {
    Enqueue(Enqueue),
    /// Outcomes wait in [`Rides`].
    Boarded,
    SettleNow(SettleNow),
    Change(Box<dyn Change>),
    RideChange(Box<dyn Change>),
    Close(oneshot::Sender<()>),
}

/// The callers' end; clones share the task.
#[derive(Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
    rides: Arc<Rides>,
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

impl Writer {
    /// Starts the task on `conn`, on a thread of its own: it is woken for each statement, and to wake a thread that only
    /// waits costs a third of waking one of a runtime with sockets.
    pub(super) fn start(
        conn: SqliteConnection,
        counters: Arc<Counters>,
        segments: Arc<Segments>,
        space: Arc<Space>,
    ) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let rides = Arc::new(Rides::default());
        let task = Task {
            conn,
            inbox,
            counters,
            rides: Arc::clone(&rides),
            segments,
            space,
            ride_until: None,
            last_enqueues: 0,
            is_cramped: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || runtime.block_on(task.run()))?;
        Ok(Self { requests, rides })
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> u64 {
        (self.requests.max_capacity() - self.requests.capacity()) as u64
    }

    async fn send(&self, request: Request) -> StoreResult<()> {
        self.requests.send(request).await.map_err(|_| closed())
    }

    /// Inserts mails; returns after the commit.
    pub(super) async fn enqueue(&self, rows: Vec<MailRow>) -> StoreResult<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Enqueue(Enqueue { rows, reply })).await?;
        answer.await.map_err(|_| closed())?
    }

    /// Stores outcomes with a later commit. While too many wait because commits fail, waits for one that succeeds.
    pub(super) async fn settle(&self, node: NodeId, outcomes: Vec<Outcome>) -> StoreResult<()> {
        let riders = Riders { node, outcomes };
        let room = self.rides.room.acquire_many(riders.room()).await;
        let room = room.map_err(|_| closed())?;
        // Before they board: a caller that goes away must not leave them where nobody knows of them.
        let permit = self.requests.reserve().await.map_err(|_| closed())?;
        room.forget();
        self.rides.sent.fetch_add(1, Ordering::AcqRel);
        if self.rides.board(riders) {
            permit.send(Request::Boarded);
        }
        Ok(())
    }

    /// Stores outcomes and the mails they cause, all or nothing; returns after the commit.
    pub(super) async fn settle_now(
        &self,
        node: NodeId,
        outcomes: Vec<Outcome>,
        follow_ups: Vec<Vec<MailRow>>,
    ) -> StoreResult<Vec<Settled>> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::SettleNow(SettleNow {
            node,
            outcomes,
            follow_ups,
            reply,
        }))
        .await?;
        answer.await.map_err(|_| closed())?
    }

    /// Runs `f` apart from the others in the next transaction; after its commit runs `then`, then answers.
    pub(super) async fn change<T, F, N>(&self, f: F, then: N) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
        N: FnOnce(&T) + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Change(Box::new(Act {
            f: Some(f),
            then: Some(then),
            done: None,
            reply: Some(reply),
        })))
        .await?;
        answer.await.map_err(|_| closed())?
    }

    /// Runs `f` with a later commit; nobody waits for it.
    pub(super) async fn ride<F>(&self, f: F) -> StoreResult<()>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<()>> + Send + 'static,
    {
        self.send(Request::RideChange(Box::new(Act {
            f: Some(f),
            then: Some(|(): &()| ()),
            done: None,
            reply: None,
        })))
        .await
    }

    /// Returns when all outcomes that were sent before are committed, so that a reader sees them.
    pub(super) async fn land(&self) -> StoreResult<()> {
        if self.rides.sent.load(Ordering::Acquire) == self.rides.done.load(Ordering::Acquire) {
            return Ok(());
        }
        self.change(|_| Box::pin(async { Ok(()) }), |()| ()).await
    }

    /// Commits what waits, checkpoints, closes the connection. Later requests are refused.
    pub(super) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Request::Close(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

struct Act<T, F, N> {
    f: Option<F>,
    then: Option<N>,
    done: Option<T>,
    reply: Option<oneshot::Sender<StoreResult<T>>>,
}

impl<T, F, N> Change for Act<T, F, N>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    N: FnOnce(&T) + Send + 'static,
{
    fn apply<'c>(&'c mut self, conn: &'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<()>> {
        Box::pin(async move {
            let f = self.f.take().ok_or_else(closed)?;
            self.done = Some(f(conn).await?);
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>, commit: StoreResult<()>) {
        let result = commit.and_then(|()| self.done.take().ok_or_else(closed));
        if let (Ok(done), Some(then)) = (&result, self.then.take()) {
            then(done);
        }
        match (self.reply.take(), result) {
            (Some(reply), result) => drop(reply.send(result)),
            (None, Err(error)) => tracing::warn!(error = %error, "a note was not stored"),
            (None, Ok(_)) => {}
        }
    }
}

#[derive(Default)]
struct Batch {
    enqueues: Vec<Enqueue>,
    settles: Vec<SettleNow>,
    changes: Vec<Box<dyn Change>>,
    close: Option<oneshot::Sender<()>>,
    len: usize,
    bytes: usize,
    is_urgent: bool,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.len >= BATCH || self.bytes >= BATCH_BYTES || self.close.is_some()
    }
}

struct Task {
    conn: SqliteConnection,
    inbox: mpsc::Receiver<Request>,
    counters: Arc<Counters>,
    rides: Arc<Rides>,
    segments: Arc<Segments>,
    space: Arc<Space>,
    ride_until: Option<Instant>,
    /// New mails in the last commit, by caller.
    last_enqueues: usize,
    /// The last commit found no room: what can be done without is left out of the next one.
    is_cramped: bool,
}

/// The end of the task, whatever ended it: nobody waits for room any longer.
struct End(Arc<Rides>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.room.close();
    }
}

impl Task {
    async fn run(mut self) {
        let _end = End(Arc::clone(&self.rides));
        let mut batch = Batch::default();
        loop {
            if !self.collect(&mut batch).await {
                break;
            }
            let taken = std::mem::take(&mut batch);
            let close = self.commit(taken).await;
            if let Some(reply) = close {
                self.inbox.close();
                let _ = self.conn.close().await;
                let _ = reply.send(());
                return;
            }
        }
        let _ = self.conn.close().await;
    }

    /// Waits until there is something to commit. False when all callers are gone and nothing waits.
    async fn collect(&mut self, batch: &mut Batch) -> bool {
        loop {
            let next = match self.ride_until {
                None => self.inbox.recv().await,
                Some(until) => match tokio::time::timeout_at(until, self.inbox.recv()).await {
                    Ok(next) => next,
                    Err(_) => return true,
                },
            };
            let Some(request) = next else {
                return self.ride_until.is_some();
            };
            self.take(request, batch);
            if batch.is_urgent {
                self.gather(batch);
            }
            while !batch.is_full()
                && let Ok(request) = self.inbox.try_recv()
            {
                self.take(request, batch);
            }
            if batch.is_urgent {
                return true;
            }
        }
    }

    /// Lets those whose mails shared the last commit come for this one: each commit costs the same, whatever it holds, and
    /// the first of many senders is always there before the others. A lone sender waits for nothing. The thread is this
    /// task's alone, so it may sleep; for whom it waits does not wake it.
    fn gather(&self, batch: &Batch) {
        let expected = self.last_enqueues / 2;
        if expected >= FEW && batch.enqueues.len() + self.inbox.len() < expected {
            std::thread::sleep(GATHER);
        }
    }

    fn take(&mut self, request: Request, batch: &mut Batch) {
        batch.len += 1;
        match request {
            Request::Enqueue(enqueue) => {
                batch.bytes += enqueue.rows.iter().map(MailRow::size).sum::<usize>();
                batch.enqueues.push(enqueue);
                batch.is_urgent = true;
            }
            Request::SettleNow(settle) => {
                batch.settles.push(settle);
                batch.is_urgent = true;
            }
            Request::Change(change) => {
                batch.changes.push(change);
                batch.is_urgent = true;
            }
            Request::Close(reply) => {
                batch.close = Some(reply);
                batch.is_urgent = true;
            }
            Request::RideChange(change) => {
                batch.changes.push(change);
                self.ride_until.get_or_insert_with(ride_until);
            }
            // A commit may have taken them meanwhile.
            Request::Boarded if self.rides.is_empty() => {}
            Request::Boarded => {
                self.ride_until.get_or_insert_with(ride_until);
            }
        }
    }

    async fn commit(&mut self, batch: Batch) -> Option<oneshot::Sender<()>> {
        let Batch {
            enqueues,
            settles,
            mut changes,
            close,
            ..
        } = batch;
        self.ride_until = None;
        self.last_enqueues = enqueues.len();
        let riders = self.rides.take();
        let work = Work {
            enqueues: &enqueues,
            settles: &settles,
            keeps_trail: !self.is_cramped && self.space.require().is_ok(),
        };
        match transact(&mut self.conn, &riders, &work, &mut changes).await {
            Ok(done) => {
                self.is_cramped = false;
                self.note_commit(&riders, &done.applied);
                for (enqueue, result) in enqueues.into_iter().zip(done.enqueued) {
                    let _ = enqueue.reply.send(result);
                }
                for (settle, result) in settles.into_iter().zip(done.settled) {
                    let _ = settle.reply.send(result);
                }
                for (change, result) in changes.into_iter().zip(done.changed) {
                    change.finish(result);
                }
            }
            Err(error) => {
                let error = self.space.explain(error);
                self.is_cramped = matches!(error, StoreError::Full);
                tracing::warn!(error = %error, "a commit failed");
                let _ = sqlx::query("ROLLBACK").execute(&mut self.conn).await;
                for enqueue in enqueues {
                    let _ = enqueue.reply.send(Err(share(&error)));
                }
                for settle in settles {
                    let _ = settle.reply.send(Err(share(&error)));
                }
                for change in changes {
                    change.finish(Err(share(&error)));
                }
                if self.rides.put_back(riders) {
                    self.ride_until = Some(ride_until());
                }
                // With so many each try is dear.
                if self.rides.room.available_permits() == 0 {
                    tokio::time::sleep(RIDE).await;
                }
            }
        }
        close
    }

    fn note_commit(&self, riders: &[Riders], applied: &Applied) {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.counters.mails.fetch_add(applied.mails, Ordering::Relaxed);
        self.counters
            .deferred
            .fetch_add(applied.deferred, Ordering::Relaxed);
        self.rides.arrived(riders);
        self.segments.free(&applied.freed);
    }
}

fn ride_until() -> Instant {
    Instant::now() + RIDE
}
