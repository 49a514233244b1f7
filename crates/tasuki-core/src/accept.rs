//! The accept loop that every TCP listener uses: a permit before accept, survival of EMFILE.
//!
//! **Invariant:** [`Acceptor::accept`] never fails and never spins. While all permits are taken, peers wait in the
//! kernel's backlog; while the process has no file descriptors left, it backs off, and after about a second of that it
//! closes waiting peers with a spare descriptor, so that they learn of it instead of hanging.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::net::unmapped;
use crate::sockets::{Noted, Purpose, Sockets, Wire};

/// Connections the kernel keeps for us while all permits are taken.
const BACKLOG: i32 = 1024;
/// First and longest pause after the system refused us a descriptor or memory.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(640));
/// Silence before the first keep-alive probe, and between probes.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(8));
/// How many waiting peers one round of shedding closes at most.
const SHED_AT_ONCE: usize = 64;

/// A bound listener that admits a bounded number of connections.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    local: SocketAddr,
    permits: Arc<Semaphore>,
    max_connections: usize,
    /// Given up for a moment when no other descriptor is left.
    spare: Mutex<Option<OwnedFd>>,
    /// Whether the lack of descriptors has been logged and is not over yet.
    starved: AtomicBool,
    _noted: Option<Noted>,
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
    /// Binds `addr` (port 0 takes a free one) for at most `max_connections` at once. `[::]` also takes IPv4; see
    /// [`Acceptor::bind_all`] for both families apart. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(addr: SocketAddr, max_connections: usize) -> io::Result<Self> {
        Self::bind_as(&Sockets::default(), "", addr, max_connections)
    }

    /// The same by `name` in `sockets`: takes the listener that an earlier process gave for it, and can be handed over
    /// itself.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind_as(
        sockets: &Sockets,
        name: &str,
        addr: SocketAddr,
        max_connections: usize,
    ) -> io::Result<Self> {
        let max_connections = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(max_connections));
        Self::bind_sharing(sockets, (name, addr), false, permits, max_connections)
    }

    /// Binds all of `addrs`, which share `max_connections`. Where both families are given, IPv6 listeners take IPv6
    /// only, so that `0.0.0.0:25` and `[::]:25` stand side by side. Each has a name in `sockets`; see
    /// [`Acceptor::bind_as`].
    ///
    /// # Errors
    /// The operating system's, with the address at fault.
    pub fn bind_all(
        sockets: &Sockets,
        addrs: &[(&str, SocketAddr)],
        max_connections: usize,
    ) -> Result<Vec<Self>, (SocketAddr, io::Error)> {
        let max_connections = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(max_connections));
        let v6_only = addrs.iter().any(|(_, addr)| addr.is_ipv4());
        addrs
            .iter()
            .map(|named| {
                Self::bind_sharing(sockets, *named, v6_only, Arc::clone(&permits), max_connections)
                    .map_err(|error| (named.1, error))
            })
            .collect()
    }

    fn bind_sharing(
        sockets: &Sockets,
        (name, addr): (&str, SocketAddr),
        v6_only: bool,
        permits: Arc<Semaphore>,
        max_connections: usize,
    ) -> io::Result<Self> {
        let purpose = Purpose::new(name, Wire::Tcp, addr);
        let listener = match sockets.claim_listener(&purpose, v6_only) {
            Some(fd) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                listener
            }
            None => listen(addr, v6_only)?,
        };
        let listener = TcpListener::from_std(listener)?;
        Ok(Self {
            local: listener.local_addr()?,
            _noted: sockets.note(purpose, &listener),
            listener,
            permits,
            max_connections,
            spare: Mutex::new(open_spare()),
            starved: AtomicBool::new(false),
        })
    }

    /// A permit for a connection that another process admitted; `None` if all are taken.
    #[must_use]
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections admitted now (on all listeners that share the permits).
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.max_connections
            .saturating_sub(self.permits.available_permits())
    }

    /// The next connection: waits for a permit first, then accepts; backs off on EMFILE and the like instead of
    /// failing. Cancel-safe.
    pub async fn accept(&self) -> Accepted {
        let mut pause = BACK_OFF.0;
        loop {
            let permit = Arc::clone(&self.permits)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if self.starved.swap(false, Ordering::Relaxed) {
                        tracing::info!(listener.addr = %self.local, "listener accepts again");
                    }
                    prepare(&stream);
                    let peer = SocketAddr::new(unmapped(peer.ip()), peer.port());
                    return Accepted { stream, peer, permit };
                }
                // The peer left while it waited (accept(2): such errors are to be retried).
                Err(error) if is_peers_fault(&error) => {
                    tracing::debug!(listener.addr = %self.local, %error, "peer left before it was accepted");
                }
                Err(error) => {
                    drop(permit);
                    if !self.starved.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            listener.addr = %self.local,
                            %error,
                            "listener cannot accept for now; raise the limit of open files (LimitNOFILE) or lower max_connections"
                        );
                    }
                    if pause >= BACK_OFF.1 && is_out_of_descriptors(&error) {
                        self.shed();
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    /// Closes peers that wait, by giving up the spare descriptor for a moment.
    fn shed(&self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.take().is_some() {
            for _ in 0..SHED_AT_ONCE {
                match self.listener.accept().now_or_never() {
                    Some(Ok(closed)) => drop(closed),
                    Some(Err(_)) | None => break,
                }
            }
        }
        *spare = open_spare();
    }
}

fn listen(addr: SocketAddr, v6_only: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the earlier life that are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Raises the soft limit of open files to the hard one; returns the limit in force. Called once at start.
///
/// # Errors
/// The operating system's.
pub fn raise_open_files_limit() -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(current.unwrap_or(u64::MAX));
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Small writes go out at once, and a peer that vanished is noticed. Failing to set these is no reason to refuse.
pub fn prepare(stream: &TcpStream) {
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE.0)
        .with_interval(KEEP_ALIVE.1);
    let nodelay = stream.set_nodelay(true);
    let keep = SockRef::from(stream).set_tcp_keepalive(&keep_alive);
    if let Err(error) = nodelay.and(keep) {
        tracing::debug!(%error, "socket options could not be set");
    }
}

fn open_spare() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

fn is_peers_fault(error: &io::Error) -> bool {
    // accept(2) on Linux hands over errors that were pending on the new socket.
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
    )
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
