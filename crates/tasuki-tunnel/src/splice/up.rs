//! From the socket into the stream.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{SendStream, WriteError};
use tasuki_proto::tunnel::Next;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::{Broken, End, Outgoing, Shared};
use crate::flows::Flow;
use crate::pool::BUFFER_BYTES;

/// Reads up to this size are copied, so that a few bytes do not pin a whole buffer until they are acknowledged.
const COPY_BELOW: usize = 4 * 1024;
/// A buffer with less room than this is not worth another read.
const MIN_ROOM: usize = 16 * 1024;
/// Full reads in a row that make a flow "bulk", and short reads that make it interactive again.
const BULK_AFTER: u32 = 8;

pub(super) async fn socket_to_stream(
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
        let permit = shared.room().await;
        let mut buffer = shared.pool.take();
        let mut wait = Duration::ZERO;
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
            if let Some(shaping) = shared.shaping {
                wait = shaping.to_stream.charge(read, Instant::now());
            }
            // The socket gave less than it could have: it is empty, and asking again would cost a call for nothing.
            if read < capacity || !wait.is_zero() {
                break;
            }
            if buffer.capacity() < MIN_ROOM {
                buffer = shared.pool.take();
            }
        }
        shared.pool.put(buffer);
        if !wait.is_zero() {
            // Nothing is held meanwhile.
            drop(permit);
            tokio::time::sleep(wait).await;
        }
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
