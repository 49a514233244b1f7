//! QUIC packets inside of TLS connections, for networks that let no UDP out.
//!
//! A **way** is a few TLS connections between one agent and the gateway that carry the packets of one session together.
//! Each connection begins with a [`Preface`] that says which way it belongs to; then come packets, either direction:
//!
//! ```text
//! preface: u8 version (1) | 16 bytes of the way's number
//! packet:  u16 length, big-endian | the packet
//! ```
//! A packet may take any of the connections, and may be lost with one: QUIC sorts, repeats and decides who comes first, so
//! a connection that stalls holds up only what it has in hand.
//!
//! Invariant: nothing longer than [`MAX_CARRIED`] is ever waited for.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest packet: with its length it fits into one TLS record (RFC 8446 5.1).
pub const MAX_CARRIED: usize = 16_000;
const VERSION: u8 = 1;
const LENGTH: usize = 2;

/// Tells the connections of one way from those of others: random, and worth nothing without the agent's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WayId(pub [u8; 16]);

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// Which way it belongs to.
    pub way: WayId,
}

/// The other side does not speak as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CarriedError {
    /// A version that we do not know.
    #[error("a way of unknown version {0}")]
    Version(u8),
    /// A packet that is empty or too long.
    #[error("a packet of {0} bytes in a way")]
    Length(usize),
}

impl Preface {
    /// Its length in bytes.
    pub const LENGTH: usize = 17;

    /// The bytes.
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [VERSION; Self::LENGTH];
        bytes[1..].copy_from_slice(&self.way.0);
        bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// A version that we do not know.
    pub fn decode(bytes: [u8; Self::LENGTH]) -> Result<Self, CarriedError> {
        let [version, way @ ..] = bytes;
        if version != VERSION {
            return Err(CarriedError::Version(version));
        }
        Ok(Self { way: WayId(way) })
    }
}

/// Appends a packet to what is sent. One that is empty or too long is left out: UDP would have lost it, too.
pub fn put_packet(out: &mut BytesMut, packet: &[u8]) {
    if let 1..=MAX_CARRIED = packet.len() {
        out.reserve(LENGTH + packet.len());
        out.put_u16(packet.len() as u16);
        out.put_slice(packet);
    }
}

/// How many bytes from the start of `out` are whole packets that together are at most `limit` long; at least one packet
/// if there is one.
pub fn whole_packets(out: &[u8], limit: usize) -> usize {
    let mut end = 0;
    while let Some(head) = out.get(end..).and_then(|rest| rest.first_chunk::<LENGTH>()) {
        let next = end + LENGTH + usize::from(u16::from_be_bytes(*head));
        if next > out.len() || (end > 0 && next > limit) {
            break;
        }
        end = next;
    }
    end
}

/// Takes one whole packet from the start of what came.
///
/// # Errors
/// It is empty or too long, and nothing after it can be understood.
pub fn take_packet(input: &mut BytesMut) -> Result<Option<Bytes>, CarriedError> {
    let Some(head) = input.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*head));
    if !(1..=MAX_CARRIED).contains(&length) {
        return Err(CarriedError::Length(length));
    }
    if input.len() < LENGTH + length {
        return Ok(None);
    }
    input.advance(LENGTH);
    Ok(Some(input.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_however_the_bytes_arrive() {
        let packets = [vec![7; 1], vec![8; MAX_CARRIED], vec![9; 300]];
        let mut out = BytesMut::new();
        for packet in &packets {
            put_packet(&mut out, packet);
        }
        for step in [1, 2, 3, 1000, out.len()] {
            let (mut input, mut came) = (BytesMut::new(), Vec::new());
            for part in out.chunks(step) {
                input.extend_from_slice(part);
                while let Some(packet) = take_packet(&mut input).unwrap() {
                    came.push(packet.to_vec());
                }
            }
            assert!(came == packets, "in steps of {step}");
        }
    }

    #[test]
    fn a_packet_without_bytes_or_with_too_many_ends_the_connection() {
        for length in [0, MAX_CARRIED as u16 + 1, u16::MAX] {
            let mut input = BytesMut::from(&length.to_be_bytes()[..]);
            assert_eq!(
                take_packet(&mut input),
                Err(CarriedError::Length(usize::from(length)))
            );
        }
        let mut out = BytesMut::new();
        put_packet(&mut out, &[]);
        put_packet(&mut out, &[0; MAX_CARRIED + 1]);
        assert!(out.is_empty(), "we send none of these either");
    }

    #[test]
    fn a_part_that_is_sent_ends_between_packets() {
        let mut out = BytesMut::new();
        for length in [100, 200, 300] {
            put_packet(&mut out, &vec![1; length]);
        }
        assert_eq!(whole_packets(&out, 1), 102, "at least one");
        assert_eq!(whole_packets(&out, 304), 304);
        assert_eq!(whole_packets(&out, 605), 304);
        assert_eq!(whole_packets(&out, 10_000), 606);
        assert_eq!(whole_packets(&out[..606 - 1], 10_000), 304);
        assert_eq!(whole_packets(&[], 10), 0);
    }

    #[test]
    fn a_preface_names_its_way() {
        let preface = Preface { way: WayId([3; 16]) };
        let mut bytes = preface.encode();
        assert_eq!(Preface::decode(bytes), Ok(preface));
        bytes[0] = 9;
        assert_eq!(Preface::decode(bytes), Err(CarriedError::Version(9)));
    }
}
