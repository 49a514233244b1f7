//! UDP datagrams as they travel between gateway and agent, each in one QUIC datagram.
//!
//! ```text
//! u8 kind | u32 flow | what the kind says
//! 0 data: the payload
//! 1 open: a stream header of kind UDP, then the payload
//! 2 unknown: nothing; the agent does not know the flow
//! 3 padding: zeros; the flow is 0. Nobody reads it, but it lets the gateway send more to an address that is new to it
//! ```
//! All numbers big-endian. The gateway sends "open" until the agent has answered on the flow, since any datagram can be
//! lost; an agent that gets "data" of a flow that it does not know says "unknown", and is told again.

use bytes::{Buf, Bytes, BytesMut};

use super::stream::{HeaderError, StreamHeader, StreamKind};

/// The gateway's number for one visitor of a UDP port, unique in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u32);

/// One datagram between gateway and agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// A payload of a flow that both sides know.
    Data {
        /// Whose.
        flow: FlowId,
        /// What the visitor or the local server sent.
        payload: Bytes,
    },
    /// A visitor's payload, with all that the agent needs to begin the flow.
    Open {
        /// Whose.
        flow: FlowId,
        /// Endpoint and addresses; of kind [`StreamKind::Udp`].
        header: StreamHeader,
        /// What the visitor sent.
        payload: Bytes,
    },
    /// The agent does not know this flow, or no longer.
    Unknown {
        /// Which.
        flow: FlowId,
    },
    /// Bytes for their own sake: until an address has proved itself, QUIC sends it three times what came from there
    /// (RFC 9000 8.1), which for a bare ping is less than the packet that would ask for the proof.
    Padding {
        /// How many zeros.
        zeros: usize,
    },
}

const DATA: u8 = 0;
const OPEN: u8 = 1;
const UNKNOWN: u8 = 2;
const PADDING: u8 = 3;

impl Datagram {
    /// The datagram as bytes.
    pub fn encode(&self) -> Bytes {
        let none = FlowId(0);
        let (kind, flow, header, payload) = match self {
            Self::Padding { zeros } => (PADDING, &none, vec![0; *zeros], &[][..]),
            Self::Data { flow, payload } => (DATA, flow, Vec::new(), &payload[..]),
            Self::Open {
                flow,
                header,
                payload,
            } => (OPEN, flow, header.encode(), &payload[..]),
            Self::Unknown { flow } => (UNKNOWN, flow, Vec::new(), &[][..]),
        };
        let mut out = BytesMut::with_capacity(5 + header.len() + payload.len());
        out.extend_from_slice(&[kind]);
        out.extend_from_slice(&flow.0.to_be_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        out.freeze()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// A kind that we do not know, or fields that do not fit.
    pub fn decode(mut bytes: Bytes) -> Result<Self, HeaderError> {
        let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<5>() else {
            return Err(HeaderError::Malformed);
        };
        let flow = FlowId(u32::from_be_bytes([a, b, c, d]));
        bytes.advance(5);
        match kind {
            DATA => Ok(Self::Data { flow, payload: bytes }),
            UNKNOWN => Ok(Self::Unknown { flow }),
            PADDING => Ok(Self::Padding { zeros: bytes.len() }),
            OPEN => {
                let head = *bytes.first_chunk::<2>().ok_or(HeaderError::Malformed)?;
                let end = 2 + StreamHeader::rest_length(head)?;
                let header = StreamHeader::decode_rest(bytes.get(2..end).ok_or(HeaderError::Malformed)?)?;
                if header.kind != StreamKind::Udp {
                    return Err(HeaderError::Malformed);
                }
                bytes.advance(end);
                Ok(Self::Open {
                    flow,
                    header,
                    payload: bytes,
                })
            }
            other => Err(HeaderError::Kind(other)),
        }
    }
}
