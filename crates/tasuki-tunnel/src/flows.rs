//! What each end keeps of every visitor's flow, so that it goes on in another session after a loss.
//!
//! A [`Flow`] outlives the streams that carry it. What its socket has taken is told to the other side in words on a
//! stream of their own, for all flows of a session together; a word releases what the other side kept.
//!
//! Invariant: what is kept is bounded for each flow, for each agent and for all together; at a bound, sockets are not
//! read.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tasuki_proto::tunnel::{
    BadKept, BadOffset, FlowNumber, Kept, Next, Retained, TELL_AFTER, TELL_EVERY, Taken,
};
use tokio::sync::Notify;

use crate::pool::BUFFER_BYTES;

/// What all flows of one agent may keep.
pub(crate) const MAX_OF_AGENT: u64 = 32 << 20;
/// How often a flow that waits for room among the others looks again.
const ROOM_RETRY: Duration = Duration::from_millis(20);

/// Bytes that may be kept, by one agent's flows or by all.
#[derive(Debug)]
pub(crate) struct Room {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Room {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
        })
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn try_add(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        self.used
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// All flows with one other side, and the words about them.
#[derive(Debug)]
pub(crate) struct Book {
    by_number: Mutex<HashMap<FlowNumber, Arc<Flow>>>,
    /// Flows whose sockets have taken more than was told.
    to_tell: Mutex<Vec<Arc<Flow>>>,
    soon: Notify,
    now: Notify,
    own: Arc<Room>,
    all: Arc<Room>,
}

/// One visitor's flow.
#[derive(Debug)]
pub(crate) struct Flow {
    number: FlowNumber,
    /// The other side says what it has taken, and can go on with the flow in another session.
    keeps: bool,
    retained: Mutex<Retained>,
    /// Something was released.
    released: Notify,
    taken: AtomicU64,
    told: AtomicU64,
    fin_taken: AtomicBool,
    is_waiting: AtomicBool,
    book: Arc<Book>,
}

/// A flow as another process gets it.
#[derive(Debug)]
pub(crate) struct FlowState {
    pub(crate) number: FlowNumber,
    /// What the local socket has taken, and whether its end too.
    pub(crate) taken: u64,
    pub(crate) has_end: bool,
    pub(crate) kept: Kept,
}

/// A flow that is in the book; leaves it when dropped.
pub(crate) struct Begun(Arc<Flow>);

impl Deref for Begun {
    type Target = Arc<Flow>;

    fn deref(&self) -> &Arc<Flow> {
        &self.0
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        lock(&self.0.book.by_number).remove(&self.0.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    pub(crate) fn new(all: Arc<Room>) -> Arc<Self> {
        Arc::new(Self {
            by_number: Mutex::default(),
            to_tell: Mutex::default(),
            soon: Notify::new(),
            now: Notify::new(),
            own: Room::new(MAX_OF_AGENT),
            all,
        })
    }

    /// A flow that another process began: nothing of it is under way.
    ///
    /// # Errors
    /// Its offsets cannot be.
    pub(crate) fn go_on(self: &Arc<Self>, state: FlowState) -> Result<Begun, BadKept> {
        let FlowState {
            number,
            taken,
            has_end,
            kept,
        } = state;
        let bytes = kept.bytes.len() as u64;
        let retained = Retained::go_on(kept)?;
        // It had its room already.
        self.own.used.fetch_add(bytes, Ordering::AcqRel);
        self.all.used.fetch_add(bytes, Ordering::AcqRel);
        let flow = Arc::new(Flow {
            number,
            keeps: true,
            retained: Mutex::new(retained),
            released: Notify::new(),
            taken: AtomicU64::new(taken),
            // The first word on the next stream says it.
            told: AtomicU64::new(taken),
            fin_taken: AtomicBool::new(has_end),
            is_waiting: AtomicBool::new(false),
            book: Arc::clone(self),
        });
        lock(&self.by_number).insert(number, Arc::clone(&flow));
        Ok(Begun(flow))
    }

    /// A new flow. Without a number the other side knows nothing of flows, and nothing is kept.
    pub(crate) fn begin(self: &Arc<Self>, number: Option<FlowNumber>) -> Begun {
        let flow = Arc::new(Flow {
            number: number.unwrap_or(FlowNumber(0)),
            keeps: number.is_some(),
            retained: Mutex::default(),
            released: Notify::new(),
            taken: AtomicU64::new(0),
            told: AtomicU64::new(0),
            fin_taken: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            book: Arc::clone(self),
        });
        if let Some(number) = number {
            lock(&self.by_number).insert(number, Arc::clone(&flow));
        }
        Begun(flow)
    }

    /// Tells the other side what was taken, until the session ends.
    pub(crate) async fn tell(&self, connection: &Connection, mut words: SendStream) {
        // Words release memory and let others go on.
        let _ = words.set_priority(5);
        if !lock(&self.to_tell).is_empty() {
            self.soon.notify_one();
        }
        let mut out = Vec::new();
        loop {
            // First of all the loss: a call that is for the next session must reach it.
            tokio::select! {
                biased;
                _ = connection.closed() => return,
                () = self.soon.notified() => {}
            }
            let _ = tokio::time::timeout(TELL_AFTER, self.now.notified()).await;
            if connection.close_reason().is_some() {
                // These words are for the next session.
                self.soon.notify_one();
                return;
            }
            out.clear();
            for flow in std::mem::take(&mut *lock(&self.to_tell)) {
                // A swap, not a store: what the flow takes after this is seen here, or put into the list again.
                flow.is_waiting.swap(false, Ordering::AcqRel);
                let taken = flow.taken.load(Ordering::Acquire);
                flow.told.store(taken, Ordering::Relaxed);
                let word = Taken {
                    flow: flow.number,
                    taken,
                };
                word.encode(&mut out);
            }
            if words.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    /// Hears what the other side has taken, until the session ends.
    ///
    /// # Errors
    /// It took what it was never sent.
    pub(crate) async fn hear(&self, mut words: RecvStream) -> Result<(), BadOffset> {
        let mut input = BytesMut::new();
        while let Ok(Some(chunk)) = words.read_chunk(16 * 1024, true).await {
            input.extend_from_slice(&chunk.bytes);
            while let Some(word) = Taken::decode(&mut input) {
                // A flow that is over needs no words any more.
                let flow = lock(&self.by_number).get(&word.flow).cloned();
                if let Some(flow) = flow {
                    flow.release(word.taken)?;
                }
            }
        }
        Ok(())
    }

    fn try_add(&self, bytes: u64) -> bool {
        if !self.own.try_add(bytes) {
            return false;
        }
        let fits = self.all.try_add(bytes);
        if !fits {
            self.own.sub(bytes);
        }
        fits
    }

    fn sub(&self, bytes: u64) {
        self.own.sub(bytes);
        self.all.sub(bytes);
    }
}

impl Flow {
    pub(crate) fn number(&self) -> FlowNumber {
        self.number
    }

    /// Everything that another process needs to go on. Nobody may carry the flow any more.
    pub(crate) fn state(&self) -> FlowState {
        FlowState {
            number: self.number,
            taken: self.taken(),
            has_end: self.has_end(),
            kept: lock(&self.retained).keep(),
        }
    }

    pub(crate) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Room for one read buffer, if there is some now.
    pub(crate) fn try_room(&self) -> Option<Reserved<'_>> {
        let bytes = if self.keeps { BUFFER_BYTES as u64 } else { 0 };
        let fits = !self.keeps || (lock(&self.retained).room() >= bytes && self.book.try_add(bytes));
        // Made only if it fits: one that is dropped gives back what it has.
        fits.then(|| Reserved { flow: self, bytes })
    }

    /// Waits for room for one read buffer.
    pub(crate) async fn room(&self) -> Reserved<'_> {
        loop {
            let released = self.released.notified();
            if let Some(room) = self.try_room() {
                return room;
            }
            let _ = tokio::time::timeout(ROOM_RETRY, released).await;
        }
    }

    /// Appends what was sent already on the first stream: a visitor's first bytes.
    pub(crate) fn push_sent(&self, bytes: Bytes) {
        let mut retained = lock(&self.retained);
        if self.keeps && !bytes.is_empty() {
            // A few bytes of a bounded handshake: taken without asking.
            self.book.own.used.fetch_add(bytes.len() as u64, Ordering::AcqRel);
            self.book.all.used.fetch_add(bytes.len() as u64, Ordering::AcqRel);
            retained.push(bytes);
            retained.take();
        }
    }

    pub(crate) fn finish(&self) {
        lock(&self.retained).finish();
    }

    /// What is to be sent next on this stream.
    pub(crate) fn next(&self) -> Option<Next> {
        let mut retained = lock(&self.retained);
        let next = retained.take();
        if !self.keeps {
            retained.forget_sent();
        }
        next
    }

    /// The local socket's direction has ended.
    pub(crate) fn is_finished(&self) -> bool {
        lock(&self.retained).is_finished()
    }

    /// Waits until the far side's socket has taken the end too.
    pub(crate) async fn done(&self) {
        loop {
            let released = self.released.notified();
            if !self.keeps || lock(&self.retained).is_done() {
                return;
            }
            released.await;
        }
    }

    /// Both directions are at their ends, as far as can be seen from here.
    pub(crate) fn is_over(&self) -> bool {
        self.is_finished() && self.has_end()
    }

    /// What the local socket has taken, for a new stream.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// The far side's end was given to the local socket.
    pub(crate) fn has_end(&self) -> bool {
        self.fin_taken.load(Ordering::Acquire)
    }

    /// A new stream begins where the far side's socket stands.
    pub(crate) fn rewind(&self, taken: u64) -> Result<(), BadOffset> {
        let freed = lock(&self.retained).rewind(taken)?;
        self.book.sub(freed);
        self.released.notify_one();
        Ok(())
    }

    fn release(&self, taken: u64) -> Result<(), BadOffset> {
        let freed = lock(&self.retained).taken(taken)?;
        self.book.sub(freed);
        self.released.notify_one();
        Ok(())
    }

    /// The local socket has taken bytes.
    pub(crate) fn took(self: &Arc<Self>, bytes: usize) {
        if self.keeps {
            let taken = self.taken.fetch_add(bytes as u64, Ordering::AcqRel) + bytes as u64;
            self.tell(taken.saturating_sub(self.told.load(Ordering::Relaxed)) >= TELL_EVERY);
        }
    }

    /// The local socket has taken the end.
    pub(crate) fn took_end(self: &Arc<Self>) {
        self.fin_taken.store(true, Ordering::Release);
        if self.keeps {
            self.taken.fetch_add(1, Ordering::AcqRel);
            self.tell(true);
        }
    }

    fn tell(self: &Arc<Self>, is_urgent: bool) {
        if !self.is_waiting.swap(true, Ordering::AcqRel) {
            lock(&self.book.to_tell).push(Arc::clone(self));
            self.book.soon.notify_one();
        }
        if is_urgent {
            self.book.now.notify_one();
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.keeps {
            let left = self
                .retained
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .len();
            self.book.sub(left);
        }
    }
}

/// Room for one read; what is not used of it is given back.
pub(crate) struct Reserved<'a> {
    flow: &'a Flow,
    bytes: u64,
}

impl Reserved<'_> {
    /// Keeps what was read. More than one buffer is never read at once.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.bytes = self.bytes.saturating_sub(bytes.len() as u64);
        lock(&self.flow.retained).push(bytes);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.flow.book.sub(self.bytes);
        }
    }
}
