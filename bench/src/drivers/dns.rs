//! A name server for one zone: every name under `sink.test` has an MX, at 127.77.0.25.
//!
//! It knows MX and A, answers everything else under the zone with "no such record", and never recurses.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub(crate) struct Dns {
    #[arg(long)]
    listen: SocketAddr,
}

const TYPE_A: u16 = 1;
const TYPE_MX: u16 = 15;

/// Serves until it is ended; prints its port.
pub(crate) fn run(dns: &Dns) -> Result<()> {
    let socket = UdpSocket::bind(dns.listen)?;
    println!("{}", socket.local_addr()?.port());
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = answer(&buffer[..length]) {
            socket.send_to(&answer, from)?;
        }
    }
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += usize::from(*query.get(at)?) + 1;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    let data = match kind {
        TYPE_A => Some(Ipv4Addr::new(127, 77, 0, 25).octets().to_vec()),
        // Preference 10, then `mx` before the question's own name, which is compressed (RFC 1035 4.1.4).
        TYPE_MX => Some([&[0, 10, 2][..], b"mx", &[0xc0, 12]].concat()),
        _ => None,
    };
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(query.get(..2)?);
    // An authoritative answer without error; recursion is offered, because stub resolvers insist.
    out.extend_from_slice(&[0x85, 0x80, 0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(data) = data {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 14, 16]);
        out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}
