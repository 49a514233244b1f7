//! What a service may want to know of a request beside what is in it.

use std::convert::Infallible;
use std::net::SocketAddr;

use tokio::sync::mpsc;

/// How a request came in.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The gateway's address that the client's connection came to.
    pub door: SocketAddr,
    /// By TLS, here or at a trusted proxy in front.
    pub secure: bool,
    /// For a service that goes on with the connection after its answer (RFC 9110 7.8).
    pub hold: Hold,
}

/// While it lives, the connection counts as open.
#[derive(Clone, Debug)]
pub struct Hold(#[expect(dead_code, reason = "it is held, not used")] mpsc::Sender<Infallible>);

/// Waits for the holds of one connection.
pub(super) struct Held(mpsc::Receiver<Infallible>);

pub(super) fn hold() -> (Hold, Held) {
    let (sender, receiver) = mpsc::channel(1);
    (Hold(sender), Held(receiver))
}

impl Held {
    /// Resolves when no hold is left.
    pub(super) async fn released(mut self) {
        self.0.recv().await;
    }
}
