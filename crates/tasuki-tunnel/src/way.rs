//! A way of TLS connections that carries QUIC packets, as the socket of a QUIC endpoint.
//!
//! quinn sends and receives through a trait, [`AsyncUdpSocket`]; a [`Way`] is one more socket behind it. So everything
//! above (streams, datagrams, flow control, what is lost and sent again) is the same as over UDP, and a connection of the
//! way that stalls or breaks costs what it has in hand, not the session.
//!
//! Invariant: no more than [`WAITING`] and one packet wait for the connections of a way, and [`CAME`] packets for the
//! endpoint; then quinn, or the other side, waits.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tasuki_proto::tunnel::{MAX_CARRIED, put_packet, take_packet, whole_packets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::splice::prepare_socket;

/// Bytes that wait for the connections: more would only grow old.
const WAITING: usize = 256 << 10;
/// What one connection takes at once.
const BATCH: usize = 2 * MAX_CARRIED;
/// Packets that came and wait for the endpoint.
const CAME: usize = 64;
/// How long a connection may take nothing before it is given up.
const STALLED: Duration = Duration::from_secs(10);
/// Bytes that the kernel may hold unsent for a connection before it takes more: what lies there can no longer take another
/// connection.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 << 10;

/// The way.
#[derive(Debug)]
pub(crate) struct Way {
    local: SocketAddr,
    peer: SocketAddr,
    out: Mutex<Out>,
    /// Packets wait to be sent.
    more: Notify,
    comes: mpsc::Sender<Bytes>,
    came: Mutex<mpsc::Receiver<Bytes>>,
    lines: AtomicUsize,
    /// Changes when the connections of now are given up for new ones.
    renewed: watch::Sender<()>,
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Out {
    packets: BytesMut,
    /// Who waits for room.
    blocked: Vec<Waker>,
}

impl Way {
    /// A way to or from `peer`, without connections yet.
    pub(crate) fn new(peer: SocketAddr) -> Arc<Self> {
        let (comes, came) = mpsc::channel(CAME);
        // Only the family counts.
        let local: SocketAddr = if peer.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        Arc::new(Self {
            local,
            peer,
            out: Mutex::default(),
            more: Notify::new(),
            comes,
            came: Mutex::new(came),
            lines: AtomicUsize::new(0),
            renewed: watch::Sender::default(),
            gone: CancellationToken::new(),
        })
    }

    /// Connections that carry now.
    pub(crate) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }

    /// Gives up the connections of now.
    pub(crate) fn renew(&self) {
        self.renewed.send_replace(());
    }

    /// Ends the way and all its connections.
    pub(crate) fn end(&self) {
        self.gone.cancel();
    }

    /// Resolves when the way has ended.
    pub(crate) async fn ended(&self) {
        self.gone.cancelled().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Carries packets on a connection until it breaks, is given up, or the way ends.
    ///
    /// # Errors
    /// Why it broke.
    pub(crate) async fn carry(&self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let mut renewed = self.renewed.subscribe();
        let _line = Line::begin(&self.lines);
        let (read, write) = tokio::io::split(stream);
        let (mut read, mut write) = (Box::pin(read), Box::pin(write));
        tokio::select! {
            broken = self.receive(&mut read) => broken,
            broken = self.send(&mut write) => broken,
            _ = renewed.changed() => Ok(()),
            () = self.gone.cancelled() => {
                // The last packet says that the session ends.
                let packets = lock(&self.out).packets.split();
                let last = async {
                    write.write_all(&packets).await?;
                    write.shutdown().await
                };
                tokio::time::timeout(Duration::from_secs(1), last).await.unwrap_or(Ok(()))
            }
        }
    }

    async fn receive(&self, read: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut input = BytesMut::new();
        loop {
            input.reserve(MAX_CARRIED + 2);
            if read.read_buf(&mut input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some(packet) = take_packet(&mut input).map_err(io::Error::other)? {
                // The receiver lives as long as the way does.
                let _ = self.comes.send(packet).await;
            }
        }
    }

    async fn send(&self, write: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        loop {
            let batch = self.next_batch().await;
            let sending = async {
                write.write_all(&batch).await?;
                write.flush().await
            };
            tokio::time::timeout(STALLED, sending)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        }
    }

    async fn next_batch(&self) -> BytesMut {
        loop {
            let more = self.more.notified();
            if let Some(batch) = self.take_batch() {
                return batch;
            }
            more.await;
        }
    }

    fn take_batch(&self) -> Option<BytesMut> {
        let (batch, blocked, is_left) = {
            let mut out = lock(&self.out);
            let length = whole_packets(&out.packets, BATCH);
            let batch = out.packets.split_to(length);
            let has_room = out.packets.len() < WAITING / 2;
            let blocked = if has_room {
                std::mem::take(&mut out.blocked)
            } else {
                Vec::new()
            };
            (batch, blocked, !out.packets.is_empty())
        };
        blocked.into_iter().for_each(Waker::wake);
        if is_left {
            // Another connection may be free.
            self.more.notify_one();
        }
        (!batch.is_empty()).then_some(batch)
    }
}

/// Counts a connection while it carries.
struct Line<'a>(&'a AtomicUsize);

impl<'a> Line<'a> {
    fn begin(lines: &'a AtomicUsize) -> Self {
        lines.fetch_add(1, Ordering::Relaxed);
        Self(lines)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Options of a socket that carries packets.
pub(crate) fn prepare_line(socket: &TcpStream) {
    prepare_socket(socket);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(UNSENT);
}

impl AsyncUdpSocket for Way {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut out = lock(&self.out);
        if out.packets.len() >= WAITING {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(size) {
            put_packet(&mut out.packets, packet);
        }
        drop(out);
        self.more.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut came = lock(&self.came);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let packet = match came.poll_recv(cx) {
                Poll::Ready(Some(packet)) => packet,
                // The way holds a sender itself.
                Poll::Ready(None) | Poll::Pending => break,
            };
            // Never longer: the endpoint was told how long packets are.
            let length = packet.len().min(buf.len());
            buf[..length].copy_from_slice(&packet[..length]);
            *meta = RecvMeta {
                addr: self.peer,
                len: length,
                stride: length,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count == 0 {
            Poll::Pending
        } else {
            Poll::Ready(Ok(count))
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// Waits for room in a way.
#[derive(Debug)]
struct Room(Arc<Way>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = lock(&self.0.out);
        if out.packets.len() < WAITING {
            return Poll::Ready(Ok(()));
        }
        if !out.blocked.iter().any(|waker| waker.will_wake(cx.waker())) {
            out.blocked.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
