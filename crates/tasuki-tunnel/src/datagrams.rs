//! The way of datagrams into a session, the same at both ends: a short queue in which flows take turns, and the task
//! that empties it as fast as QUIC allows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use quinn::{Connection, SendDatagramError};
use tasuki_proto::tunnel::{Datagram, DatagramQueue, FlowId, QueueLimits};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What waits in one direction of one session. A voice packet older than this is worth nothing.
const LIMITS: QueueLimits = QueueLimits {
    flow_bytes: 64 << 10,
    total_bytes: 256 << 10,
    max_age: Duration::from_millis(50),
};

/// The largest UDP payload read. Larger ones do not fit into a packet on any path that we send on.
pub(crate) const MAX_PAYLOAD: usize = 2048;

/// The queue, and who wakes the task behind it.
#[derive(Debug)]
pub(crate) struct Datagrams {
    queue: Mutex<DatagramQueue>,
    wake: Notify,
    dropped: Counter,
}

impl Datagrams {
    /// An empty queue; `dropped` counts what is not sent.
    pub(crate) fn new(dropped: Counter) -> Self {
        Self {
            queue: Mutex::new(DatagramQueue::new(LIMITS)),
            wake: Notify::new(),
            dropped,
        }
    }

    /// Sends a datagram of this flow soon, or drops it.
    pub(crate) fn send(&self, flow: FlowId, datagram: &Datagram) {
        let now = Instant::now().into_std();
        let dropped = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(flow, datagram.encode(), now);
            queue.take_dropped()
        };
        self.dropped.inc_by(dropped);
        self.wake.notify_one();
    }

    fn next(&self) -> Option<Bytes> {
        let now = Instant::now().into_std();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = queue.pop(now);
        self.dropped.inc_by(queue.take_dropped());
        next
    }

    /// Sends what is queued until the session ends.
    pub(crate) async fn pump(&self, connection: &Connection) {
        loop {
            let Some(datagram) = self.next() else {
                self.wake.notified().await;
                continue;
            };
            match connection.send_datagram_wait(datagram).await {
                Ok(()) => {}
                // The path's packets are smaller: programs that use UDP find that out by themselves.
                Err(SendDatagramError::TooLarge) => {
                    self.dropped.inc();
                }
                Err(_) => return,
            }
        }
    }
}
