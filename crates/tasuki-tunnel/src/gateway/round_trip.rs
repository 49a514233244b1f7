//! How far a TCP peer is, as the kernel measured it: asked for by the connection's addresses over netlink (`sock_diag(7)`,
//! what `ss -ti` shows), since the socket option that tells it has no safe call.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `linux/netlink.h`: the head of a message, and a message that asks.
const HEAD: usize = 16;
const NLM_F_REQUEST: u16 = 1;
/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/inet_diag.h`: the length of `struct inet_diag_req_v2` and of `struct inet_diag_msg`, and which attribute is a
/// `struct tcp_info`.
const ASKED: usize = 56;
const ANSWERED: usize = 72;
const INET_DIAG_INFO: u16 = 2;
/// Where `tcpi_rtt` stands in `struct tcp_info` of `linux/tcp.h`, in microseconds.
const TCPI_RTT: usize = 68;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The kernel answers while it is asked; one that does not, never will.
const PATIENCE: Duration = Duration::from_millis(200);

/// Asks the kernel. Where it may not be asked, nothing is known, and it is not asked again.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    socket: Option<OwnedFd>,
    failed: bool,
    last: u32,
}

impl Kernel {
    /// The smoothed round trip of a connection of this host, in microseconds.
    pub(super) fn rtt_us(&mut self, local: SocketAddr, peer: SocketAddr) -> Option<u32> {
        if self.failed {
            return None;
        }
        let answer = self.ask(local, peer);
        self.failed = answer.is_err();
        answer.ok().flatten()
    }

    fn ask(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<u32>> {
        self.last = self.last.wrapping_add(1);
        let Some(question) = question(self.last, local, peer) else {
            return Ok(None);
        };
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open()?),
        };
        rustix::net::send(socket, &question, SendFlags::empty())?;
        let mut buffer = [0; 4096];
        loop {
            let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
            // An answer to an earlier question came late.
            if let Some(rtt) = answer(&buffer[..length], self.last) {
                return Ok(rtt);
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

/// The question for one connection; `None` for addresses of two families.
fn question(number: u32, local: SocketAddr, peer: SocketAddr) -> Option<Vec<u8>> {
    let family = match (local, peer) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => AF_INET,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => AF_INET6,
        _ => return None,
    };
    let mut out = Vec::with_capacity(HEAD + ASKED);
    out.extend(((HEAD + ASKED) as u32).to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    out.extend(number.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    // One bit for each attribute, from 1 on; then all states.
    out.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    out.extend(u32::MAX.to_ne_bytes());
    out.extend(local.port().to_be_bytes());
    out.extend(peer.port().to_be_bytes());
    for address in [local, peer] {
        let mut sixteen = [0; 16];
        match address.ip() {
            IpAddr::V4(ip) => sixteen[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => sixteen = ip.octets(),
        }
        out.extend(sixteen);
    }
    // By any interface.
    out.extend(0_u32.to_ne_bytes());
    // No cookie: there is one connection of these addresses.
    out.extend([0xff; 8]);
    Some(out)
}

/// What is said to question `number`: the round trip, or that it is not known. `None` if this answers another.
fn answer(message: &[u8], number: u32) -> Option<Option<u32>> {
    if u32_at(message, 8)? != number {
        return None;
    }
    Some(rtt_in(message))
}

/// `None` also for an error: the connection is over.
fn rtt_in(message: &[u8]) -> Option<u32> {
    if u16_at(message, 4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut attributes = message.get(HEAD + ANSWERED..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let body = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == INET_DIAG_INFO {
            // Nothing was measured yet.
            return u32_at(body, TCPI_RTT).filter(|us| *us > 0);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection over which a byte went each way.
    fn connection(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect((connect, port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (client, server)
    }

    fn canonical(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    #[test]
    fn the_kernel_says_how_far_a_peer_is_and_nothing_of_one_that_is_gone() {
        let mut kernel = Kernel::default();
        // Also at a listener of both families.
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
        ] {
            let (client, server) = connection(listen, connect);
            let (local, peer) = (
                canonical(server.local_addr().unwrap()),
                canonical(server.peer_addr().unwrap()),
            );
            let rtt = kernel.rtt_us(local, peer);
            assert!(rtt.is_some_and(|us| us < 5_000_000), "{listen}: {rtt:?}");
            let nobody = SocketAddr::new(peer.ip(), 1);
            assert_eq!(kernel.rtt_us(local, nobody), None);
            drop((client, server));
        }
        let v6 = "[::1]:2".parse().unwrap();
        assert_eq!(kernel.rtt_us("127.0.0.1:1".parse().unwrap(), v6), None);
        assert!(!kernel.failed);
    }

    #[test]
    fn answers_that_are_cut_short_or_of_another_question_say_nothing() {
        let mut message = vec![0; HEAD + ANSWERED];
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        // An attribute of one byte with three of padding, then the one that counts.
        message.extend([5_u16.to_ne_bytes(), 8_u16.to_ne_bytes()].concat());
        message.extend([1, 0, 0, 0]);
        let info = (4 + TCPI_RTT + 4) as u16;
        message.extend([info.to_ne_bytes(), INET_DIAG_INFO.to_ne_bytes()].concat());
        message.extend([0; TCPI_RTT]);
        message.extend(1234_u32.to_ne_bytes());
        assert_eq!(answer(&message, 7), Some(Some(1234)));
        assert_eq!(answer(&message, 8), None);
        for end in 12..message.len() {
            assert_eq!(answer(&message[..end], 7), Some(None), "{end} bytes");
        }
        // An attribute that says it is shorter than its own head.
        message[HEAD + ANSWERED..][..2].copy_from_slice(&0_u16.to_ne_bytes());
        assert_eq!(answer(&message, 7), Some(None));
    }
}
