//! The sockets that the gateway listens on, by what they are for, so that they outlive the process that bound them.
//!
//! Whoever listens asks here first ([`Sockets::claim`]): a socket that an earlier process handed over is taken, and no
//! client is refused meanwhile, since connections wait in the kernel. Whoever binds says so ([`Sockets::note`]), so that
//! the next process can have it.
//!
//! Invariant: a socket is closed when its holder drops it, handed over or not yet claimed ones apart; nothing here keeps a
//! listener open that nobody serves, but for what [`Sockets::close_unclaimed`] leaves.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

/// The kind of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// A TCP listener.
    Tcp,
    /// A bound UDP socket.
    Udp,
    /// A listener at a path.
    Unix,
}

/// What a socket is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// The configuration key, or another name: `mail.relay.listen`.
    pub name: String,
    /// Its kind.
    pub wire: Wire,
    /// The address as it was asked for, which is not the bound one where the port was 0; a path for [`Wire::Unix`].
    pub asked: String,
}

/// A socket that can be given to another process.
#[derive(Debug)]
pub struct Bound {
    /// What it is for.
    pub purpose: Purpose,
    /// The socket.
    pub fd: OwnedFd,
}

/// The table; clones share it.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    open: BTreeMap<u64, Bound>,
    /// From another process, and not claimed yet.
    waiting: Vec<Bound>,
}

/// While it lives, the socket is in the table.
#[derive(Debug)]
pub struct Noted {
    sockets: Sockets,
    number: u64,
}

impl Purpose {
    /// Of a socket with an address.
    #[must_use]
    pub fn new(name: &str, wire: Wire, asked: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            wire,
            asked: asked.to_string(),
        }
    }

    /// Whether `bound` serves: it was made for the same, or it is bound where this one would be.
    fn is_served_by(&self, bound: &Bound, exactly: bool, v6_only: Option<bool>) -> bool {
        if bound.purpose.wire != self.wire {
            return false;
        }
        // ipv6(7): a bound socket takes IPv4 or does not, and cannot be told otherwise any more.
        let is_v6 = |fd| SockRef::from(fd).local_addr().is_ok_and(|local| local.is_ipv6());
        if let Some(v6_only) = v6_only
            && is_v6(&bound.fd)
            && SockRef::from(&bound.fd).only_v6().ok() != Some(v6_only)
        {
            return false;
        }
        if exactly {
            return bound.purpose == *self;
        }
        let Ok(asked) = self.asked.parse::<SocketAddr>() else {
            return false;
        };
        let local = SockRef::from(&bound.fd).local_addr();
        asked.port() != 0 && local.ok().and_then(|local| local.as_socket()) == Some(asked)
    }
}

impl Sockets {
    /// With what another process gave.
    #[must_use]
    pub fn inherited(waiting: Vec<Bound>) -> Self {
        Self(Arc::new(Mutex::new(Table {
            waiting,
            ..Table::default()
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a socket that another process gave for this purpose, or at this address.
    #[must_use]
    pub fn claim(&self, purpose: &Purpose) -> Option<OwnedFd> {
        self.claim_if(purpose, None)
    }

    /// The same for a listener that takes IPv4 too, or IPv6 only: one of the other kind is left where it is.
    #[must_use]
    pub fn claim_listener(&self, purpose: &Purpose, v6_only: bool) -> Option<OwnedFd> {
        self.claim_if(purpose, Some(v6_only))
    }

    fn claim_if(&self, purpose: &Purpose, v6_only: Option<bool>) -> Option<OwnedFd> {
        let waiting = &mut self.lock().waiting;
        let place = [true, false].into_iter().find_map(|exactly| {
            waiting
                .iter()
                .position(|bound| purpose.is_served_by(bound, exactly, v6_only))
        })?;
        Some(waiting.remove(place).fd)
    }

    /// Notes a socket that somebody listens on now. One that cannot be copied, for want of descriptors, is not noted: it
    /// works, and cannot be handed over.
    pub fn note(&self, purpose: Purpose, socket: &impl AsFd) -> Option<Noted> {
        let fd = match socket.as_fd().try_clone_to_owned() {
            Ok(fd) => fd,
            Err(error) => {
                tracing::warn!(listener = purpose.name, %error, "a listener could not be noted for an upgrade");
                return None;
            }
        };
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.open.insert(number, Bound { purpose, fd });
        Some(Noted {
            sockets: self.clone(),
            number,
        })
    }

    /// Everything that is open, for another process. From here on the sockets stay open whatever their holders do, as long
    /// as these copies live.
    #[must_use]
    pub fn hand_over(&self) -> Vec<Bound> {
        let mut table = self.lock();
        let open = std::mem::take(&mut table.open);
        let mut all: Vec<Bound> = open.into_values().collect();
        all.append(&mut table.waiting);
        all
    }

    /// Closes what nobody has claimed, unless `keep` says that somebody may come for it.
    pub fn close_unclaimed(&self, keep: impl Fn(&Purpose) -> bool) {
        self.lock().waiting.retain(|bound| keep(&bound.purpose));
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.sockets.lock().open.remove(&self.number);
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.lock();
        f.debug_struct("Sockets")
            .field("open", &table.open.len())
            .field("waiting", &table.waiting.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn purpose(name: &str, asked: &str) -> Purpose {
        Purpose::new(name, Wire::Tcp, asked.parse().unwrap())
    }

    fn listen(sockets: &Sockets, name: &str) -> (TcpListener, Option<Noted>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let noted = sockets.note(purpose(name, "127.0.0.1:0"), &listener);
        (listener, noted)
    }

    #[test]
    fn a_listener_that_was_handed_over_goes_on_without_a_refused_connection() {
        let before = Sockets::default();
        let (listener, _noted) = listen(&before, "mail");
        let address = listener.local_addr().unwrap();
        let given = before.hand_over();
        drop(listener);
        let waits = TcpStream::connect(address).unwrap();
        let after = Sockets::inherited(given);
        assert!(
            after.claim(&purpose("web", "127.0.0.1:0")).is_none(),
            "made for another"
        );
        let fd = after.claim(&purpose("mail", "127.0.0.1:0")).unwrap();
        let (_, peer) = TcpListener::from(fd).accept().unwrap();
        assert_eq!(peer, waits.local_addr().unwrap());
        assert!(
            after.claim(&purpose("mail", "127.0.0.1:0")).is_none(),
            "given once"
        );
    }

    #[test]
    fn a_listener_serves_another_purpose_at_its_address() {
        let before = Sockets::default();
        let (listener, _noted) = listen(&before, "mail.relay.listen");
        let address = listener.local_addr().unwrap().to_string();
        let after = Sockets::inherited(before.hand_over());
        assert!(
            after
                .claim(&purpose("mail.submission.listen", &address))
                .is_some()
        );
    }

    #[test]
    fn what_its_holder_dropped_or_nobody_claimed_is_closed() {
        let before = Sockets::default();
        let (dropped, noted) = listen(&before, "dropped");
        let gone = dropped.local_addr().unwrap();
        drop((dropped, noted));
        TcpStream::connect(gone).unwrap_err();
        let (listener, _noted) = listen(&before, "unclaimed");
        let address = listener.local_addr().unwrap();
        let after = Sockets::inherited(before.hand_over());
        drop(listener);
        after.close_unclaimed(|purpose| purpose.name == "unclaimed");
        TcpStream::connect(address).unwrap();
        after.close_unclaimed(|_| false);
        TcpStream::connect(address).unwrap_err();
    }
}
