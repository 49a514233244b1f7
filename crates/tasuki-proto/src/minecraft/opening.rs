//! What a client says first, read from the bytes so far.

use super::legacy::{LegacyPing, read_1_6};
use super::varint::{BadField, Fields, frame, read_varint, write_string, write_varint};

/// How much a client may say before anyone believes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpeningLimits {
    /// Bytes of the handshake frame without its length. A name of 255 characters needs 1,050.
    pub handshake_bytes: usize,
    /// Bytes of the Login Start frame without its length. The signed keys of 1.19 need about 850.
    pub login_start_bytes: usize,
    /// Characters of the address. 255 for players; proxies in front of us (BungeeCord's forwarding) need 32,767.
    pub address_chars: usize,
}

impl Default for OpeningLimits {
    fn default() -> Self {
        Self {
            handshake_bytes: 1050,
            login_start_bytes: 1050,
            address_chars: 255,
        }
    }
}

impl OpeningLimits {
    /// For a proxy that the operator trusts: it puts the player's profile into the address.
    pub fn trusted() -> Self {
        Self {
            handshake_bytes: 32 * 1024,
            address_chars: 32_767,
            ..Self::default()
        }
    }

    /// The most bytes that [`read_opening`] ever needs to see.
    pub fn buffer_bytes(&self) -> usize {
        self.handshake_bytes + self.login_start_bytes + 6
    }
}

/// What the client wants after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextState {
    /// 1: the server list.
    Status,
    /// 2: joining.
    Login,
    /// 3: joining, sent here by another server (1.20.5 and later); goes on like a login.
    Transfer,
}

/// The handshake packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Protocol number of the client.
    pub protocol: i32,
    /// The address as sent, with all decorations.
    pub address: String,
    /// The port that was typed or found by SRV.
    pub port: u16,
    /// What comes next.
    pub next: NextState,
}

impl Handshake {
    /// The handshake as a frame, with `address` in the place of the one that was sent.
    pub fn encode_with(&self, address: &str) -> Vec<u8> {
        let mut body = vec![0x00];
        write_varint(&mut body, self.protocol);
        write_string(&mut body, address);
        body.extend_from_slice(&self.port.to_be_bytes());
        write_varint(
            &mut body,
            match self.next {
                NextState::Status => 1,
                NextState::Login => 2,
                NextState::Transfer => 3,
            },
        );
        frame(&body)
    }
}

/// The part of Login Start that all versions share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginStart {
    /// The name the client claims. Nobody has proved it yet. Control characters are taken out.
    pub name: String,
}

/// How far the bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// More bytes must come.
    Incomplete,
    /// A legacy ping, if nothing follows within about a second; else perhaps the start of a long handshake.
    MaybeLegacy(LegacyPing),
    /// A legacy ping.
    Legacy(LegacyPing),
    /// A server list request.
    Status {
        /// The handshake.
        handshake: Handshake,
        /// Bytes it took; what follows belongs to the status talk.
        used: usize,
    },
    /// A player who wants in.
    Login {
        /// The handshake.
        handshake: Handshake,
        /// Bytes the handshake took; Login Start follows there.
        handshake_used: usize,
        /// The claimed name.
        login: LoginStart,
    },
}

/// Why this is not a Minecraft client that we can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// Another protocol, or noise.
    #[error("the first packet is not a Minecraft handshake")]
    NotMinecraft,
    /// The length prefix promises more than allowed.
    #[error("a packet of {length} bytes before the login; at most {max} are allowed")]
    TooLong {
        /// What was promised.
        length: usize,
        /// What is allowed.
        max: usize,
    },
    /// A field of the handshake is broken.
    #[error("the handshake is malformed")]
    BadHandshake,
    /// The state is none of 1, 2, 3.
    #[error("the handshake asks for the unknown state {0}")]
    UnknownState(i32),
    /// Login Start is broken.
    #[error("the login packet is malformed")]
    BadLoginStart,
}

/// Reads the opening of a connection from everything received so far.
pub fn read_opening(input: &[u8], limits: &OpeningLimits) -> Result<Opening, OpeningError> {
    // `FE 01` is also how a frame of 254 bytes begins; the third byte decides.
    match input {
        [] => return Ok(Opening::Incomplete),
        [0xfe] => return Ok(Opening::MaybeLegacy(LegacyPing::Beta)),
        [0xfe, 0x01] => return Ok(Opening::MaybeLegacy(LegacyPing::V1_4)),
        // Server lists on the web, and mcstatus, send no more than this of the third form.
        [0xfe, 0x01, 0xfa] => return Ok(Opening::MaybeLegacy(LegacyPing::hostless())),
        [0xfe, 0x01, 0xfa, ..] => {
            return Ok(match read_1_6(input, limits.handshake_bytes) {
                Some((ping, _)) => Opening::Legacy(ping),
                None => Opening::Incomplete,
            });
        }
        _ => {}
    }
    let Some((body, used)) = take_frame(input, limits.handshake_bytes)? else {
        return Ok(Opening::Incomplete);
    };
    let handshake = read_handshake(body, limits)?;
    if handshake.next == NextState::Status {
        return Ok(Opening::Status { handshake, used });
    }
    let Some((body, _)) = take_frame(&input[used..], limits.login_start_bytes)? else {
        return Ok(Opening::Incomplete);
    };
    let login = read_login_start(body).map_err(|BadField| OpeningError::BadLoginStart)?;
    Ok(Opening::Login {
        handshake,
        handshake_used: used,
        login,
    })
}

/// What the bytes mean when a second went by and nothing followed.
pub fn settle_legacy(input: &[u8]) -> Option<LegacyPing> {
    match input {
        [0xfe] => Some(LegacyPing::Beta),
        [0xfe, 0x01] => Some(LegacyPing::V1_4),
        [0xfe, 0x01, 0xfa, ..] => Some(LegacyPing::hostless()),
        _ => None,
    }
}

/// The body of the first frame and the bytes it took with its length.
fn take_frame(input: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, OpeningError> {
    let Some((length, prefix)) = read_varint(input, 3).map_err(|_| OpeningError::NotMinecraft)? else {
        return Ok(None);
    };
    // Three bytes carry no sign, so this cannot fail.
    let length = usize::try_from(length).map_err(|_| OpeningError::NotMinecraft)?;
    if length == 0 {
        return Err(OpeningError::NotMinecraft);
    }
    // Both packets before the login have the id 0; noise is told by that before its length is believed.
    if input.get(prefix).is_some_and(|id| *id != 0) {
        return Err(OpeningError::NotMinecraft);
    }
    if length > max {
        return Err(OpeningError::TooLong { length, max });
    }
    Ok(input
        .get(prefix..prefix + length)
        .map(|body| (body, prefix + length)))
}

fn read_handshake(body: &[u8], limits: &OpeningLimits) -> Result<Handshake, OpeningError> {
    let bad = |BadField| OpeningError::BadHandshake;
    let mut fields = Fields::new(body);
    fields.varint().map_err(bad)?;
    let protocol = fields.varint().map_err(bad)?;
    let address = fields.string(limits.address_chars).map_err(bad)?.to_owned();
    let port = fields.u16().map_err(bad)?;
    let next = match fields.varint().map_err(bad)? {
        1 => NextState::Status,
        2 => NextState::Login,
        3 => NextState::Transfer,
        other => return Err(OpeningError::UnknownState(other)),
    };
    if fields.is_empty() {
        Ok(Handshake {
            protocol,
            address,
            port,
            next,
        })
    } else {
        Err(OpeningError::BadHandshake)
    }
}

fn read_login_start(body: &[u8]) -> Result<LoginStart, BadField> {
    let mut fields = Fields::new(body);
    fields.varint()?;
    // What follows the name (signed key in 1.19, UUID later) differs by version and is not ours to judge.
    let name = fields.string(16)?.chars().filter(|c| !c.is_control()).collect();
    Ok(LoginStart { name })
}
