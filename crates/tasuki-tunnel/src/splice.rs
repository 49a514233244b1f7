//! Joins a TCP socket with a flow: bytes, half-close and resets, both ways, over one QUIC stream after another.
//!
//! Both directions run to their own end. The end of one (FIN or finish) is carried over and the other goes on. A reset
//! of either side ends both, and both sides see a reset: a cut connection never looks like a finished one.
//!
//! When the session is lost, the socket waits for a stream in the next one, and goes on where the far side's socket stands
//! ([`crate::flows`]).
//!
//! Invariant: an idle flow holds no buffer; a blocked one holds what it read last and nothing more, and on the gateway
//! only within the process's byte budget; a flow that does not move for [`Patience`] is cut, in either direction, so that
//! its unread bytes cannot use up the session's window or the budget for ever.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use quinn::{Connection, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use socket2::{SockRef, TcpKeepalive};
use tasuki_core::budget::{Budget, BudgetPermit};
use tasuki_proto::tunnel::{Next, RESET_ABORTED, RESET_STALLED, RESUME_WITHIN};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::task::coop::consume_budget;

use crate::flows::Flow;
use crate::pool::{BUFFER_BYTES, Pool};

#[cfg(test)]
mod tests;

/// Reads up to this size are copied, so that a few bytes do not pin a whole buffer until they are acknowledged.
const COPY_BELOW: usize = 4 * 1024;
/// A buffer with less room than this is not worth another read.
const MIN_ROOM: usize = 16 * 1024;
/// Chunks taken from the stream at once.
const CHUNKS: usize = 32;
/// Full reads in a row that make a flow "bulk", and short reads that make it interactive again.
const BULK_AFTER: u32 = 8;

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions finished.
    Clean,
    /// The TCP side was reset or failed.
    TcpReset,
    /// The QUIC side was reset, stopped, or lost its session.
    StreamReset,
    /// The TCP side, or the far end behind the stream, took no bytes for too long.
    Stalled,
    /// The visitor is not let in any more.
    Denied,
}

/// Bytes of one flow, counted while they move.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    to_stream: AtomicU64,
    to_tcp: AtomicU64,
    totals: Option<Totals>,
}

/// The engine's counters, which every flow adds to.
#[derive(Debug, Clone)]
pub(crate) struct Totals {
    pub(crate) to_stream: Counter,
    pub(crate) to_tcp: Counter,
}

impl Meter {
    pub(crate) fn new(totals: Option<Totals>) -> Self {
        Self {
            totals,
            ..Self::default()
        }
    }

    /// From the TCP side into the stream.
    pub(crate) fn to_stream(&self) -> u64 {
        self.to_stream.load(Ordering::Relaxed)
    }

    /// From the stream to the TCP side.
    pub(crate) fn to_tcp(&self) -> u64 {
        self.to_tcp.load(Ordering::Relaxed)
    }

    pub(crate) fn add_to_stream(&self, bytes: usize) {
        self.to_stream.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(totals) = &self.totals {
            totals.to_stream.inc_by(bytes as u64);
        }
    }

    pub(crate) fn add_to_tcp(&self, bytes: usize) {
        self.to_tcp.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(totals) = &self.totals {
            totals.to_tcp.inc_by(bytes as u64);
        }
    }
}

/// How long a flow may be blocked. Blocked flows keep a part of the session's window each; when they could hold half of
/// it, the patience with all of them becomes short, so that the moving ones keep theirs.
#[derive(Debug)]
pub(crate) struct Patience {
    blocked: AtomicU32,
    many: u32,
    usual: Duration,
}

/// Patience with a blocked flow while many are.
const CROWDED: Duration = Duration::from_secs(2);

impl Patience {
    /// `stream_window` and `session_window` as the receiving side grants them.
    pub(crate) fn new(usual: Duration, stream_window: u32, session_window: u32) -> Self {
        Self {
            blocked: AtomicU32::new(0),
            many: session_window / stream_window / 2,
            usual,
        }
    }

    /// Waits until `socket` takes bytes; false if the patience ended. It is short, too, for a flow whose `held` bytes do
    /// not fit into the budget.
    async fn writable(&self, socket: &TcpStream, held: usize, budget: Option<&Budget>) -> io::Result<bool> {
        let permit = budget.map(|budget| budget.try_take(held as u64));
        let over_budget = matches!(permit, Some(None));
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let _count = scopeguard(|| {
            self.blocked.fetch_sub(1, Ordering::Relaxed);
        });
        let mut waited = Duration::ZERO;
        loop {
            let crowded = self.blocked.load(Ordering::Relaxed) > self.many;
            let limit = if crowded || over_budget {
                CROWDED.min(self.usual)
            } else {
                self.usual
            };
            if waited >= limit {
                return Ok(false);
            }
            let step = CROWDED.min(limit - waited);
            match tokio::time::timeout(step, socket.writable()).await {
                Ok(done) => return done.map(|()| true),
                Err(_) => waited += step,
            }
        }
    }
}

fn scopeguard(on_drop: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(on_drop)
}

/// What flows share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) patience: &'a Patience,
    pub(crate) meter: &'a Meter,
    /// The process's byte budget, on the gateway: one visitor is nothing, all of them together are bounded by it.
    pub(crate) budget: Option<&'a Budget>,
}

/// How often a flow that waits for room in the budget looks again.
const BUDGET_RETRY: Duration = Duration::from_millis(20);

impl Shared<'_> {
    /// Room in the budget for one read buffer. While there is none, the flow's socket is not read.
    async fn room(&self) -> Option<BudgetPermit> {
        let budget = self.budget?;
        loop {
            if let Some(permit) = budget.try_take(BUFFER_BYTES as u64) {
                return Some(permit);
            }
            tokio::time::sleep(BUDGET_RETRY).await;
        }
    }
}

/// The sending half of a stream. Dropping it unfinished resets the stream: quinn alone would finish it, and a cut
/// connection would look complete.
pub(crate) struct Outgoing {
    stream: SendStream,
    finished: bool,
}

impl Outgoing {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stream.write_all(bytes).await
    }

    pub(crate) fn finish(&mut self) {
        // Fails only if it was finished or reset before, which the far side knows then.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Ends the stream so that the far side sees why. A finished stream is left to deliver what it has.
    pub(crate) fn reset(&mut self, code: u32) {
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(code));
            self.finished = true;
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reset(RESET_ABORTED);
    }
}

/// Options of every socket that carries a visitor or reaches a local server.
pub(crate) fn prepare_socket(socket: &TcpStream) {
    // A peer that vanished is noticed within about a minute; unacknowledged bytes are given up after 20 s. A socket
    // that refuses an option still works, so failures are not worth a word.
    let _ = socket.set_nodelay(true);
    let raw = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    let _ = raw.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = raw.set_tcp_user_timeout(Some(Duration::from_secs(30)));
}

/// Closes `socket` with a reset.
pub(crate) fn reset_socket(socket: TcpStream) {
    let _ = socket.set_zero_linger();
    drop(socket);
}

/// The two halves of a stream that carries a flow.
pub(crate) struct Link {
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: RecvStream,
    /// What it is lost with.
    pub(crate) session: Connection,
}

/// Finds a stream in another session.
pub(crate) trait Relink {
    /// Waits for a stream on which both sides have said what they have taken, and the flow was rewound. `None` if there
    /// will be none.
    fn relink(&mut self, flow: &Flow) -> impl Future<Output = Option<Link>> + Send;
}

/// Why a stream does not carry the flow any more.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// With its session; the flow can go on in another.
    Lost,
    /// With the flow.
    Ended(End),
}

impl From<End> for Broken {
    fn from(end: End) -> Self {
        Self::Ended(end)
    }
}

/// Runs both directions to their ends, or until `cut` says how it ends. `before_down` runs first in the direction from the
/// first stream to the socket; its failure ends the flow.
pub(crate) async fn splice<F>(
    mut socket: TcpStream,
    flow: &Arc<Flow>,
    mut link: Link,
    before_down: F,
    mut relink: impl Relink,
    cut: impl Future<Output = End>,
    shared: Shared<'_>,
) -> End
where
    F: AsyncFnOnce(&mut RecvStream) -> Result<(), End>,
{
    let mut cut = pin!(cut);
    let mut before_down = Some(before_down);
    let end = loop {
        let carried = tokio::select! {
            carried = carry(&mut socket, flow, &mut link, before_down.take(), shared) => carried,
            end = &mut cut => Err(end.into()),
        };
        match carried {
            Ok(()) => break Ok(()),
            Err(Broken::Ended(end)) => break Err(end),
            Err(Broken::Lost) if !flow.keeps() => break Err(End::StreamReset),
            Err(Broken::Lost) => {}
        }
        let next = tokio::select! {
            next = tokio::time::timeout(RESUME_WITHIN, relink.relink(flow)) => next,
            end = &mut cut => break Err(end),
        };
        match next {
            Ok(Some(next)) => link = next,
            // What is missing is only the far side's last word.
            Ok(None) | Err(_) if flow.is_over() => break Ok(()),
            Ok(None) | Err(_) => break Err(End::StreamReset),
        }
    };
    match end {
        Ok(()) => End::Clean,
        Err(end) => {
            let code = if end == End::Stalled {
                RESET_STALLED
            } else {
                RESET_ABORTED
            };
            link.outgoing.reset(code);
            let _ = link.incoming.stop(VarInt::from_u32(code));
            reset_socket(socket);
            end
        }
    }
}

/// Carries the flow on one stream.
async fn carry<F>(
    socket: &mut TcpStream,
    flow: &Arc<Flow>,
    link: &mut Link,
    before_down: Option<F>,
    shared: Shared<'_>,
) -> Result<(), Broken>
where
    F: AsyncFnOnce(&mut RecvStream) -> Result<(), End>,
{
    let Link {
        outgoing,
        incoming,
        session,
    } = link;
    let (mut read_half, write_half) = socket.split();
    let socket: &TcpStream = write_half.as_ref();
    let stopped = outgoing.stream.stopped();
    let mut up = pin!(socket_to_stream(&mut read_half, flow, outgoing, shared));
    let mut down = pin!(async {
        if let Some(before_down) = before_down {
            before_down(incoming).await?;
        }
        stream_to_socket(incoming, flow, socket, shared).await
    });
    // Neither copy is ever dropped half-way, except when the stream or the flow as a whole is broken. While one direction
    // has finished and the other is idle, only these last two waits can notice that the far side is gone.
    tokio::select! {
        // Both may wait for other things than the stream: for room, and for a socket that takes nothing meanwhile.
        _ = session.closed() => Err(Broken::Lost),
        done = &mut up => match done {
            Ok(()) => tokio::select! {
                _ = session.closed() => Err(Broken::Lost),
                done = &mut down => done,
                () = broken(socket) => Err(End::TcpReset.into()),
            },
            Err(end) => Err(end),
        },
        done = &mut down => match done {
            Ok(()) => tokio::select! {
                _ = session.closed() => Err(Broken::Lost),
                done = &mut up => done,
                end = far_side_stopped(stopped) => Err(end),
            },
            Err(end) => Err(end),
        },
    }
}

/// Resolves when the far side stops the stream or loses it; never when it has read the stream to its end.
async fn far_side_stopped(stopped: impl Future<Output = Result<Option<VarInt>, StoppedError>>) -> Broken {
    match stopped.await {
        Ok(Some(_)) => End::StreamReset.into(),
        Err(_) => Broken::Lost,
        Ok(None) => std::future::pending().await,
    }
}

/// Resolves when the socket has failed although nobody reads it.
async fn broken(socket: &TcpStream) {
    // An error here means that the reactor is gone, and with it everything else.
    let _ = socket.ready(Interest::ERROR).await;
}

async fn socket_to_stream(
    socket: &mut ReadHalf<'_>,
    flow: &Flow,
    outgoing: &mut Outgoing,
    shared: Shared<'_>,
) -> Result<(), Broken> {
    let mut pace = Pace::default();
    // What was kept for another stream goes first.
    send_next(flow, outgoing, shared).await?;
    while !flow.is_finished() {
        // A task whose budget is spent is told "nothing there" by every read until it yields, while `readable` goes on
        // saying that there is something: without this, the two would keep the thread to themselves for ever.
        consume_budget().await;
        socket.readable().await.map_err(|_| End::TcpReset)?;
        let _permit = shared.room().await;
        let mut buffer = shared.pool.take();
        loop {
            let mut room = match flow.try_room() {
                Some(room) => room,
                None => match tokio::time::timeout(shared.patience.usual, flow.room()).await {
                    Ok(room) => room,
                    Err(_) => return Err(End::Stalled.into()),
                },
            };
            let capacity = buffer.capacity();
            let read = match read_now(socket, &mut buffer).await {
                Some(Ok(0)) => {
                    shared.pool.put(buffer);
                    flow.finish();
                    return send_end(flow, outgoing, shared).await;
                }
                Some(Ok(read)) => read,
                None => break,
                Some(Err(_)) => return Err(End::TcpReset.into()),
            };
            pace.note(read, &outgoing.stream);
            if read <= COPY_BELOW {
                room.push(Bytes::copy_from_slice(&buffer));
                buffer.clear();
            } else {
                room.push(buffer.split().freeze());
            }
            drop(room);
            shared.meter.add_to_stream(read);
            send_next(flow, outgoing, shared).await?;
            // The socket gave less than it could have: it is empty, and asking again would cost a call for nothing.
            if read < capacity {
                break;
            }
            if buffer.capacity() < MIN_ROOM {
                buffer = shared.pool.take();
            }
        }
        shared.pool.put(buffer);
    }
    send_end(flow, outgoing, shared).await
}

/// Sends what was not sent yet on this stream.
async fn send_next(flow: &Flow, outgoing: &mut Outgoing, shared: Shared<'_>) -> Result<(), Broken> {
    while let Some(next) = flow.next() {
        let Next::Bytes(bytes) = next else {
            outgoing.finish();
            return Ok(());
        };
        match tokio::time::timeout(shared.patience.usual, outgoing.stream.write_chunk(bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(WriteError::ConnectionLost(_))) => return Err(Broken::Lost),
            Ok(Err(_)) => return Err(End::StreamReset.into()),
            Err(_) => return Err(End::Stalled.into()),
        }
    }
    Ok(())
}

/// Sends the end, and waits until the far side's socket has taken it.
async fn send_end(flow: &Flow, outgoing: &mut Outgoing, shared: Shared<'_>) -> Result<(), Broken> {
    send_next(flow, outgoing, shared).await?;
    // On a second stream the end may have been taken long ago.
    outgoing.finish();
    flow.done().await;
    Ok(())
}

/// Reads what is there; `None` instead of waiting, so that no buffer is held while nothing comes.
async fn read_now(socket: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> Option<io::Result<usize>> {
    let mut read = pin!(socket.read_buf(buffer));
    poll_fn(|context| match read.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Lets interactive flows overtake bulk ones in the session: a map download must not delay the other players' moves.
#[derive(Default)]
struct Pace {
    streak: u32,
    bulk: bool,
}

impl Pace {
    fn note(&mut self, read: usize, stream: &SendStream) {
        let large = read >= BUFFER_BYTES / 4;
        if large == self.bulk {
            self.streak = 0;
            return;
        }
        self.streak += 1;
        if self.streak >= BULK_AFTER {
            self.streak = 0;
            self.bulk = large;
            // Fails only on a closed stream, which the next write tells.
            let _ = stream.set_priority(if large { -1 } else { 0 });
        }
    }
}

async fn stream_to_socket(
    incoming: &mut RecvStream,
    flow: &Arc<Flow>,
    socket: &TcpStream,
    shared: Shared<'_>,
) -> Result<(), Broken> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    loop {
        // Neither the stream nor `try_write` yields by itself while both keep pace.
        consume_budget().await;
        match incoming.read_chunks(&mut chunks).await {
            Ok(Some(count)) => write_chunks(socket, flow, &mut chunks[..count], shared).await?,
            Ok(None) => {
                if !flow.has_end() {
                    // Fails only if the peer is gone, which the other direction tells.
                    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
                    flow.took_end();
                }
                return Ok(());
            }
            Err(ReadError::Reset(code)) if code == VarInt::from_u32(RESET_STALLED) => {
                return Err(End::Stalled.into());
            }
            Err(ReadError::ConnectionLost(_)) => return Err(Broken::Lost),
            Err(_) => return Err(End::StreamReset.into()),
        }
    }
}

async fn write_chunks(
    socket: &TcpStream,
    flow: &Arc<Flow>,
    mut chunks: &mut [Bytes],
    shared: Shared<'_>,
) -> Result<(), End> {
    while let Some(first) = chunks.first_mut() {
        if first.is_empty() {
            // Drops the packet memory behind the chunk as soon as it is written.
            *first = Bytes::new();
            chunks = &mut chunks[1..];
            continue;
        }
        match try_write(socket, chunks) {
            Ok(0) => return Err(End::TcpReset),
            Ok(mut written) => {
                shared.meter.add_to_tcp(written);
                flow.took(written);
                for chunk in chunks.iter_mut() {
                    let part = written.min(chunk.len());
                    chunk.advance(part);
                    written -= part;
                    if written == 0 {
                        break;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let held = chunks.iter().map(Bytes::len).sum();
                if !shared
                    .patience
                    .writable(socket, held, shared.budget)
                    .await
                    .map_err(|_| End::TcpReset)?
                {
                    return Err(End::Stalled);
                }
            }
            Err(_) => return Err(End::TcpReset),
        }
    }
    Ok(())
}

fn try_write(socket: &TcpStream, chunks: &[Bytes]) -> io::Result<usize> {
    if let [only] = chunks {
        return socket.try_write(only);
    }
    let mut slices = [IoSlice::new(&[]); CHUNKS];
    for (slice, chunk) in slices.iter_mut().zip(chunks) {
        *slice = IoSlice::new(chunk);
    }
    socket.try_write_vectored(&slices[..chunks.len()])
}
