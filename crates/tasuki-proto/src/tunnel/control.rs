//! Control frames: a length of four bytes, then JSON.

use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::stream::EndpointId;

/// The largest control frame, in bytes of JSON.
pub const MAX_CONTROL_FRAME: usize = 64 * 1024;

/// A one-time enrolment code. It is a secret: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnrolCode(pub String);

impl std::fmt::Debug for EnrolCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrolCode(..)")
    }
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// First frame of every session. The agent's key is the one of its TLS certificate.
    Hello(Hello),
    /// All endpoints that the agent serves; replaces what it declared before.
    Declare {
        /// At most what [`Accepted::max_endpoints`] says.
        endpoints: Vec<Declared>,
    },
    /// The agent stops: nothing more should be sent to it.
    Goodbye,
    /// Before a Hello, or without one: how does the gateway see this connection? The answer is [`FromGateway::Seen`].
    Look,
    /// A frame of a newer version.
    #[serde(other)]
    Unknown,
}

/// The first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::VERSION`] of the agent.
    pub version: u16,
    /// Name and version of the program, for listings.
    pub software: String,
    /// Redeems a one-time code, so that this session's key is enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<EnrolCode>,
    /// The agent's flows can go on in its next session; a number that is new with each start of the program. Flows of
    /// another start are not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<u64>,
}

/// What kind of door an endpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointKind {
    /// A TCP port of the gateway.
    Tcp,
    /// A name on the gateway's shared Minecraft port; without a name, the default.
    Minecraft,
    /// A UDP port of the gateway.
    Udp,
    /// A host name on the gateway's TLS port; the TLS is the local server's own.
    Https,
    /// A host name on the gateway's web ports; the TLS is the gateway's.
    Http,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

/// One endpoint that an agent serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// Chosen by the agent, unique in its declaration; streams carry it.
    pub id: EndpointId,
    /// The agent's own name for it, stable over restarts: the gateway keeps name or port under it. 1 to 64 characters.
    pub label: String,
    /// The kind of door.
    pub kind: EndpointKind,
    /// The host name of a Minecraft, HTTPS or HTTP endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The gateway's port for a TCP or UDP endpoint; 0 lets the gateway choose one of the granted ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What the gateway says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    /// The agent is who it says; it may declare endpoints.
    Accepted(Accepted),
    /// The session will be closed with this code; the frame gives the text a better chance to arrive.
    Refused {
        /// [`super::CloseCode`] as a number.
        code: u32,
        /// For a person.
        text: String,
    },
    /// The state of every declared endpoint, after each declaration and whenever one changes.
    Endpoints {
        /// In the order of the declaration.
        endpoints: Vec<EndpointStatus>,
    },
    /// The gateway stops: it opens no new streams, running ones may end within the grace.
    GoAway {
        /// How long running streams may last, in seconds.
        grace_s: u32,
    },
    /// Answer to a Look.
    Seen {
        /// Where the packets come from.
        address: std::net::SocketAddr,
        /// The gateway's clock, in milliseconds since 1970.
        time_ms: i64,
    },
    /// How far players are from the gateway, now and then while there are some.
    RoundTrips {
        /// The flow's number, and microseconds.
        flows: Vec<(u64, u32)>,
    },
    /// A frame of a newer version.
    #[serde(other)]
    Unknown,
}

/// Answer to a Hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The agent's name at the gateway.
    pub agent: String,
    /// Name and version of the gateway program.
    pub software: String,
    /// How many endpoints one declaration may have.
    pub max_endpoints: u32,
    /// True if this session redeemed a code, so the agent's key is enrolled from now on.
    pub enrolled: bool,
    /// The gateway's flows can go on in the next session; a number that is new with each start of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<u64>,
    /// The gateway holds a player while a server is started: it waits for a second reply after [`super::OpenReply::Starting`].
    #[serde(default)]
    pub holds: bool,
}

/// How one endpoint stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// The agent's id.
    pub id: EndpointId,
    /// Open or not.
    #[serde(flatten)]
    pub state: EndpointState,
}

/// Open or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EndpointState {
    /// Visitors can come.
    Open {
        /// What to tell visitors: `HOST:PORT`.
        address: String,
        /// The port of a TCP or UDP endpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// Visitors cannot come.
    Refused {
        /// The kind of refusal.
        reason: RefusedEndpoint,
        /// For a person: what to do.
        text: String,
    },
    /// A state of a newer version.
    #[serde(other)]
    Unknown,
}

/// Why an endpoint was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedEndpoint {
    /// No grant covers the name or the port.
    NotGranted,
    /// The name or port belongs to another agent.
    Taken,
    /// The gateway cannot bind the port.
    CannotBind,
    /// The declaration itself is wrong.
    Malformed,
    /// This gateway has no door of that kind.
    NotServed,
    /// The gateway cannot decide now, through a fault of its own.
    Unavailable,
    /// A reason of a newer version.
    #[serde(other)]
    Unknown,
}

/// A control stream that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A frame promises more than [`MAX_CONTROL_FRAME`].
    #[error("a control frame of {0} bytes; at most {MAX_CONTROL_FRAME} are allowed")]
    TooLong(usize),
    /// A frame is not what the protocol says.
    #[error("a malformed control frame")]
    Malformed(#[source] serde_json::Error),
}

/// A frame ready to send. Our own frames have bounded parts, so the only error is a frame that grew too long.
pub fn encode_frame<T: Serialize>(frame: &T) -> Result<Vec<u8>, ControlError> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, frame).map_err(ControlError::Malformed)?;
    let length = out.len() - 4;
    if length > MAX_CONTROL_FRAME {
        return Err(ControlError::TooLong(length));
    }
    out[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(out)
}

/// Takes one whole frame from the start of `input`, or nothing while it is not complete.
pub fn take_frame<T: DeserializeOwned>(input: &mut BytesMut) -> Result<Option<T>, ControlError> {
    let Some(head) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if length > MAX_CONTROL_FRAME {
        return Err(ControlError::TooLong(length));
    }
    let Some(body) = input.get(4..4 + length) else {
        return Ok(None);
    };
    let frame = serde_json::from_slice(body).map_err(ControlError::Malformed)?;
    input.advance(4 + length);
    Ok(Some(frame))
}
