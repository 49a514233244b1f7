//! From the stream into the socket.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream, VarInt};
use socket2::SockRef;
use tasuki_proto::tunnel::RESET_STALLED;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::{Broken, End, Shared};
use crate::flows::Flow;

/// Chunks taken from the stream at once.
const CHUNKS: usize = 32;

pub(super) async fn stream_to_socket(
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
            Ok(Some(count)) => {
                let bytes = chunks[..count].iter().map(Bytes::len).sum();
                write_chunks(socket, flow, &mut chunks[..count], shared).await?;
                if let Some(shaping) = shared.shaping {
                    let wait = shaping.to_socket.charge(bytes, Instant::now());
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                }
            }
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
