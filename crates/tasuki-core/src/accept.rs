//! The accept loop that every TCP listener uses: a permit before accept, survival of EMFILE.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// A bound listener that admits a bounded number of connections.
#[derive(Debug)]
pub struct Acceptor {
    _todo: (),
}

/// One admitted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, with TCP_NODELAY and keep-alive set.
    pub stream: TcpStream,
    /// The peer's address, IPv4-mapped forms unmapped.
    pub peer: SocketAddr,
    /// Hold it as long as the connection lives.
    pub permit: OwnedSemaphorePermit,
}

impl Acceptor {
    /// Binds `addr` (port 0 takes a free one) for at most `max_connections` at once.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(addr: SocketAddr, max_connections: usize) -> io::Result<Self> {
        let _ = (addr, max_connections);
        todo!("core2")
    }

    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        todo!("core2")
    }

    /// The next connection: waits for a permit first, then accepts; backs off on EMFILE and the like instead of
    /// failing. Cancel-safe.
    pub async fn accept(&self) -> Accepted {
        todo!("core2")
    }
}
