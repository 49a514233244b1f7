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

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{RecvStream, StoppedError, VarInt};
use tasuki_proto::tunnel::{RESET_ABORTED, RESET_STALLED, RESUME_WITHIN};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::flows::Flow;

mod down;
mod ends;
mod meter;
mod patience;
#[cfg(test)]
mod tests;
mod up;

pub(crate) use ends::{Link, Outgoing, Relink, prepare_socket, reset_socket};
pub(crate) use meter::{Meter, Totals};
pub(crate) use patience::{Patience, Shared};

use down::stream_to_socket;
use up::socket_to_stream;

/// How long the first word of a far side that stopped the stream is waited for.
const FIRST_WORD: Duration = Duration::from_secs(1);

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

/// What ends a flow from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Halt {
    /// It is over.
    End(End),
    /// It goes on in another process, and rests here.
    Freeze,
}

impl From<End> for Halt {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// The socket of a flow that rests: nothing is read from it or written to it any more.
pub(crate) struct Frozen(pub(crate) TcpStream);

/// Runs both directions to their ends, or until `cut` says how it ends. `before_down` runs first in the direction from the
/// first stream to the socket; its failure ends the flow.
pub(crate) async fn splice<F>(
    socket: TcpStream,
    flow: &Arc<Flow>,
    link: Link,
    before_down: F,
    relink: impl Relink,
    cut: impl Future<Output = End>,
    shared: Shared<'_>,
) -> End
where
    F: AsyncFnOnce(&mut RecvStream) -> Result<(), End>,
{
    let cut = async { Halt::End(cut.await) };
    match splice_or_freeze(socket, flow, Some(link), before_down, relink, cut, shared).await {
        Ok(end) => end,
        Err(_) => End::StreamReset,
    }
}

/// The same for a flow that may be frozen. Without a `link` it waits for one first. Sessions are closed before anything is
/// frozen: the far side would take a stream that is dropped for a reset.
pub(crate) async fn splice_or_freeze<F>(
    mut socket: TcpStream,
    flow: &Arc<Flow>,
    mut link: Option<Link>,
    before_down: F,
    mut relink: impl Relink,
    cut: impl Future<Output = Halt>,
    shared: Shared<'_>,
) -> Result<End, Frozen>
where
    F: AsyncFnOnce(&mut RecvStream) -> Result<(), End>,
{
    let mut cut = pin!(cut);
    let mut before_down = Some(before_down);
    let end = loop {
        if let Some(link) = &mut link {
            // Dropped wherever it stands, as with a session that is lost: what was read is kept, and what was taken counted.
            let carried = tokio::select! {
                carried = carry(&mut socket, flow, link, before_down.take(), shared) => carried.map_err(Into::into),
                halt = &mut cut => Err(Stop::Halted(halt)),
            };
            match carried {
                Ok(()) => break Ok(()),
                Err(Stop::Halted(halt)) => break Err(halt),
                Err(Stop::Broken(Broken::Ended(end))) => break Err(end.into()),
                Err(Stop::Broken(Broken::Lost)) if !flow.keeps() => break Err(End::StreamReset.into()),
                Err(Stop::Broken(Broken::Lost)) => {}
            }
        }
        let next = tokio::select! {
            next = tokio::time::timeout(RESUME_WITHIN, relink.relink(flow)) => next,
            halt = &mut cut => break Err(halt),
        };
        match next {
            Ok(Some(next)) => link = Some(next),
            // What is missing is only the far side's last word.
            Ok(None) | Err(_) if flow.is_over() => break Ok(()),
            Ok(None) | Err(_) => break Err(End::StreamReset.into()),
        }
    };
    match end {
        Ok(()) => Ok(End::Clean),
        Err(Halt::Freeze) if flow.keeps() => Err(Frozen(socket)),
        Err(halt) => {
            let end = match halt {
                Halt::End(end) => end,
                // The far side knows nothing of flows: there is no way to go on.
                Halt::Freeze => End::StreamReset,
            };
            let code = if end == End::Stalled {
                RESET_STALLED
            } else {
                RESET_ABORTED
            };
            if let Some(link) = &mut link {
                link.outgoing.reset(code);
                let _ = link.incoming.stop(VarInt::from_u32(code));
            }
            reset_socket(socket);
            Ok(end)
        }
    }
}

/// Why a flow is not carried any more.
enum Stop {
    Broken(Broken),
    Halted(Halt),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
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
    let has_spoken = AtomicBool::new(before_down.is_none());
    let mut down = pin!(async {
        if let Some(before_down) = before_down {
            before_down(incoming).await?;
            has_spoken.store(true, Ordering::Relaxed);
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
            // The far side takes nothing. Its first word, which is on its way then, says why.
            Err(Broken::Ended(End::StreamReset)) if !has_spoken.load(Ordering::Relaxed) => {
                let said = tokio::time::timeout(FIRST_WORD, &mut down).await;
                Err(said.ok().and_then(Result::err).unwrap_or(End::StreamReset.into()))
            }
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
