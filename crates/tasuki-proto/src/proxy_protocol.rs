//! The PROXY protocol header that tells a local server who the visitor is (HAProxy's `proxy-protocol.txt`, versions 1
//! and 2). Writing only.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Both addresses as one family, which is all that the header can say.
enum Pair {
    V4([u8; 4], [u8; 4]),
    V6(Ipv6Addr, Ipv6Addr),
}

/// A visitor over IPv6 and a door on IPv4 (or the other way round) both become IPv6, mapped, so that the visitor's
/// address is never lost. Mapped addresses of a dual-stack socket become plain IPv4 first.
fn pair(source: IpAddr, destination: IpAddr) -> Pair {
    let mapped = |address| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    match (source.to_canonical(), destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Pair::V4(source.octets(), destination.octets()),
        (source, destination) => Pair::V6(mapped(source), mapped(destination)),
    }
}

/// The version 2 header for a TCP connection from `source` (the visitor) to `destination` (the door it came in by).
pub fn encode_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    encode(source, destination, 0x01)
}

/// The version 2 header in front of a datagram.
pub fn encode_v2_udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    encode(source, destination, 0x02)
}

/// `transport` is 1 for a stream, 2 for datagrams.
fn encode(source: SocketAddr, destination: SocketAddr, transport: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(52);
    out.extend_from_slice(&SIGNATURE);
    out.push(0x21);
    match pair(source.ip(), destination.ip()) {
        Pair::V4(from, to) => {
            out.extend_from_slice(&[0x10 | transport, 0, 12]);
            out.extend_from_slice(&from);
            out.extend_from_slice(&to);
        }
        Pair::V6(from, to) => {
            out.extend_from_slice(&[0x20 | transport, 0, 36]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out
}

/// The version 2 header of a connection that we make for ourselves, such as a health check.
pub fn encode_v2_local() -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&[0x20, 0x00, 0, 0]);
    out
}

/// The version 1 line, for servers that know only that.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut line = String::with_capacity(107);
    let (from, to) = (source.port(), destination.port());
    // Writing to a String cannot fail.
    let _ = match pair(source.ip(), destination.ip()) {
        Pair::V4(a, b) => write!(
            line,
            "PROXY TCP4 {} {} {from} {to}\r\n",
            IpAddr::from(a),
            IpAddr::from(b)
        ),
        Pair::V6(a, b) => write!(line, "PROXY TCP6 {a} {b} {from} {to}\r\n"),
    };
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_example_of_the_specification_is_written_byte_for_byte() {
        let header = encode_v2(at("192.0.2.1:56324"), at("198.51.100.1:25565"));
        let expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x63\xdd";
        assert_eq!(header, expected);
        let line = encode_v1(at("192.0.2.1:56324"), at("198.51.100.1:25565"));
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25565\r\n");
        assert_eq!(encode_v2_local().len(), 16);
        let datagram = encode_v2_udp(at("192.0.2.1:56324"), at("198.51.100.1:25565"));
        assert_eq!(datagram[13], 0x12);
        assert_eq!(
            (&datagram[..13], &datagram[14..]),
            (&expected[..13], &expected[14..])
        );
        assert_eq!(
            encode_v2_udp(at("[2001:db8::1]:1"), at("[2001:db8::2]:2"))[13],
            0x22
        );
    }

    #[test]
    fn a_mix_of_families_keeps_the_visitor() {
        let header = encode_v2(at("[2001:db8::7]:1"), at("198.51.100.1:2"));
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(
            header[16..32],
            "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(
            header[32..48],
            "::ffff:198.51.100.1".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(header.len(), 52);
        // A dual-stack socket reports IPv4 visitors as mapped addresses; servers want the plain form.
        let header = encode_v2(at("[::ffff:192.0.2.1]:1"), at("[::ffff:198.51.100.1]:2"));
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12]);
        let line = encode_v1(at("[2001:db8::7]:1"), at("198.51.100.1:2"));
        assert_eq!(line, b"PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 1 2\r\n");
    }
}
