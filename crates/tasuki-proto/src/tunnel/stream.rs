//! The short binary header of a visitor's stream, and the one byte that answers it.
//!
//! ```text
//! u8 version (1) | u8 length of the rest | u8 kind | u32 endpoint | address of the visitor | address of the door | player | u64 flow
//! address: u8 family (4, 6) | 4 or 16 bytes | u16 port
//! player: u8 length, 0 for none | the name that the player claims, UTF-8
//! ```
//! All numbers big-endian. A reader skips what stands behind the fields it knows, and does without those that are
//! missing, so that versions can be mixed.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::resume::FlowNumber;

/// The longest name of a player in bytes: 16 UTF-16 units.
pub const MAX_PLAYER: usize = 48;
/// The most bytes that a header can have.
pub const MAX_STREAM_HEADER: usize = 2 + 255;
pub(super) const STREAM_VERSION: u8 = 1;
/// The kind in the place of which a [`super::Resume`] stands.
pub(super) const RESUME: u8 = 3;

/// An agent's number for one of its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub u32);

/// What the bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// A visitor of a TCP port.
    Tcp,
    /// A Minecraft client, beginning with its handshake.
    Minecraft,
    /// A visitor of a UDP port: only in front of datagrams, never on a stream.
    Udp,
}

/// What the gateway says before a visitor's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHeader {
    /// What follows.
    pub kind: StreamKind,
    /// Which of the agent's endpoints.
    pub endpoint: EndpointId,
    /// Where the visitor came from.
    pub visitor: SocketAddr,
    /// The gateway's address that the visitor came to.
    pub door: SocketAddr,
    /// Who a Minecraft client says that it is, if it joins: a claim until the server has authenticated it.
    pub player: Option<String>,
    /// The flow's number, if it can go on in another session.
    pub flow: Option<FlowNumber>,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A version that we do not know.
    #[error("stream header of unknown version {0}")]
    Version(u8),
    /// A kind that we do not know.
    #[error("stream of unknown kind {0}")]
    Kind(u8),
    /// Fields do not fit their length.
    #[error("malformed stream header")]
    Malformed,
}

impl StreamHeader {
    /// The header as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        out.extend_from_slice(&[STREAM_VERSION, 0]);
        out.push(match self.kind {
            StreamKind::Tcp => 0,
            StreamKind::Minecraft => 1,
            StreamKind::Udp => 2,
        });
        out.extend_from_slice(&self.endpoint.0.to_be_bytes());
        write_address(&mut out, self.visitor);
        write_address(&mut out, self.door);
        // A longer name is none that a server takes, and one byte tells the length.
        let player = self.player.as_deref().filter(|name| name.len() <= MAX_PLAYER);
        let player = player.unwrap_or_default();
        out.push(player.len() as u8);
        out.extend_from_slice(player.as_bytes());
        if let Some(flow) = self.flow {
            out.extend_from_slice(&flow.0.to_be_bytes());
        }
        out[1] = (out.len() - 2) as u8;
        out
    }

    /// How many more bytes to read after the first two, which tell version and length.
    pub fn rest_length(head: [u8; 2]) -> Result<usize, HeaderError> {
        if head[0] == STREAM_VERSION {
            Ok(usize::from(head[1]))
        } else {
            Err(HeaderError::Version(head[0]))
        }
    }

    /// Reads the rest.
    pub fn decode_rest(rest: &[u8]) -> Result<Self, HeaderError> {
        let (kind, rest) = rest.split_first().ok_or(HeaderError::Malformed)?;
        let kind = match kind {
            0 => StreamKind::Tcp,
            1 => StreamKind::Minecraft,
            2 => StreamKind::Udp,
            other => return Err(HeaderError::Kind(*other)),
        };
        let (endpoint, rest) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
        let (visitor, rest) = read_address(rest)?;
        let (door, rest) = read_address(rest)?;
        let (player, rest) = read_player(rest)?;
        let flow = rest.first_chunk::<8>();
        Ok(Self {
            kind,
            endpoint: EndpointId(u32::from_be_bytes(*endpoint)),
            visitor,
            door,
            player,
            flow: flow.map(|flow| FlowNumber(u64::from_be_bytes(*flow))),
        })
    }
}

fn read_player(rest: &[u8]) -> Result<(Option<String>, &[u8]), HeaderError> {
    let Some((length, rest)) = rest.split_first() else {
        return Ok((None, rest));
    };
    let (name, rest) = rest
        .split_at_checked(usize::from(*length))
        .ok_or(HeaderError::Malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| HeaderError::Malformed)?;
    Ok(((!name.is_empty()).then(|| name.to_owned()), rest))
}

fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(6);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8]) -> Result<(SocketAddr, &[u8]), HeaderError> {
    let (family, rest) = bytes.split_first().ok_or(HeaderError::Malformed)?;
    let (ip, rest): (IpAddr, _) = match family {
        4 => rest
            .split_first_chunk::<4>()
            .map(|(ip, rest)| ((*ip).into(), rest)),
        6 => rest
            .split_first_chunk::<16>()
            .map(|(ip, rest)| ((*ip).into(), rest)),
        _ => None,
    }
    .ok_or(HeaderError::Malformed)?;
    let (port, rest) = rest.split_first_chunk::<2>().ok_or(HeaderError::Malformed)?;
    Ok((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

/// The agent's one byte before the server's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenReply {
    /// The local server took the connection.
    Connected,
    /// The local server refused the connection.
    Refused,
    /// The local server did not answer in time.
    Silent,
    /// The agent did not declare this endpoint.
    NotDeclared,
    /// The agent has as many connections as it may have.
    Busy,
    /// Another local fault.
    Failed,
    /// The home host's own rules keep this visitor out.
    Denied,
    /// The local server is being started. For a player who joins, the last word is still to come, if the gateway can wait
    /// ([`super::Accepted::holds`]); for anybody else this is it.
    Starting,
    /// The local server sleeps, and is not started for this visitor.
    Sleeping,
}

impl OpenReply {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Reads the byte; one of a newer version is a failure.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Connected,
            1 => Self::Refused,
            2 => Self::Silent,
            3 => Self::NotDeclared,
            4 => Self::Busy,
            6 => Self::Denied,
            7 => Self::Starting,
            8 => Self::Sleeping,
            _ => Self::Failed,
        }
    }
}
