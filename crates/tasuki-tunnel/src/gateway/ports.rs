//! Open TCP and UDP ports. Agents that are one owner share a port: its listener stays while one of them has it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use tasuki_core::accept::Acceptor;
use tasuki_core::store::tunnel::EndpointKind;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::grants::Wire;
use super::handover::PORT;
use super::{Inner, tcp, udp};

/// A port that is listened on; the last one to drop it closes it.
pub(crate) struct Listening {
    _open: DropGuard,
}

/// The ports that are open, or were.
#[derive(Default)]
pub(crate) struct Ports(Mutex<HashMap<EndpointKind, Entry>>);

struct Entry {
    listening: Weak<Listening>,
    /// Ends when the port is free again.
    task: TaskTracker,
}

impl Ports {
    /// Opens a port, or shares the listener that another session has. The caller has decided that it may.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub(crate) async fn open(
        &self,
        inner: &Arc<Inner>,
        (wire, port): (Wire, u16),
    ) -> io::Result<Arc<Listening>> {
        let kind = wire.kind(port);
        // Held over the wait for a listener that is closing, so that of two who want the port one binds it and one shares.
        let mut ports = self.0.lock().await;
        if let Some(entry) = ports.get(&kind) {
            if let Some(listening) = entry.listening.upgrade() {
                return Ok(listening);
            }
            entry.task.wait().await;
        }
        ports.retain(|_, entry| entry.listening.strong_count() > 0 || !entry.task.is_empty());
        let config = inner.config();
        let addr = SocketAddr::new(config.tcp.bind, port);
        let task = TaskTracker::new();
        let guard = match wire {
            Wire::Tcp => {
                let acceptor =
                    Acceptor::bind_as(&inner.deps.sockets, PORT, addr, config.tcp.max_connections)?;
                let token = inner.closing.child_token();
                let guard = token.clone().drop_guard();
                task.spawn(tcp::serve(Arc::clone(inner), acceptor, kind.clone(), token));
                guard
            }
            Wire::Udp => {
                let (socket, noted) = udp::bind(&inner.deps.sockets, addr)?;
                // A stopping gateway takes no new visitors, but those who are there stay as long as the session does.
                let token = CancellationToken::new();
                let guard = token.clone().drop_guard();
                let serving = udp::serve(Arc::clone(inner), Arc::new(socket), kind.clone(), token);
                task.spawn(async move {
                    serving.await;
                    drop(noted);
                });
                guard
            }
        };
        task.close();
        let listening = Arc::new(Listening { _open: guard });
        let entry = Entry {
            listening: Arc::downgrade(&listening),
            task,
        };
        ports.insert(kind, entry);
        Ok(listening)
    }

    /// Waits until what nobody has any more is closed.
    pub(crate) async fn closed(&self) {
        let ports = self.0.lock().await;
        let closing = ports.values().filter(|entry| entry.listening.strong_count() == 0);
        for entry in closing {
            entry.task.wait().await;
        }
    }
}
