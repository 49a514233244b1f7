//! The two ends that are joined: a socket and its options, a stream and how it is found again.

use std::future::Future;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt, WriteError};
use socket2::{SockRef, TcpKeepalive};
use tasuki_proto::tunnel::RESET_ABORTED;
use tokio::net::TcpStream;

use crate::flows::Flow;

/// The sending half of a stream. Dropping it unfinished resets the stream: quinn alone would finish it, and a cut
/// connection would look complete.
pub(crate) struct Outgoing {
    pub(super) stream: SendStream,
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
