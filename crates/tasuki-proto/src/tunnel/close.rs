//! Why a session or a stream ended, as numbers on the wire.

/// Application close code of a session. The reason text beside it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The side that closes has nothing more to do.
    Done,
    /// The other side broke the protocol.
    Protocol,
    /// No common version.
    Version,
    /// The enrolment code is none of ours, was used, or is too old. One answer for the three: whoever guesses codes
    /// learns nothing.
    BadCode,
    /// The key is not enrolled and no code came with it.
    UnknownKey,
    /// The agent was revoked.
    Revoked,
    /// A newer session of the same agent took over.
    Replaced,
    /// The gateway stops; try again soon.
    GoingAway,
    /// Too many attempts from this address; wait longer.
    Slow,
    /// The access rules of the gateway do not allow this address or agent.
    Denied,
    /// The gateway cannot decide now, through a fault of its own.
    Unavailable,
    /// Another process of the gateway takes over, with everybody who visits: come back at once.
    HandedOver,
}

impl CloseCode {
    const ALL: [Self; 12] = [
        Self::Done,
        Self::Protocol,
        Self::Version,
        Self::BadCode,
        Self::UnknownKey,
        Self::Revoked,
        Self::Replaced,
        Self::GoingAway,
        Self::Slow,
        Self::Denied,
        Self::Unavailable,
        Self::HandedOver,
    ];

    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Reads a number; `None` is a code of a newer version.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| u64::from(known.code()) == code)
    }

    /// True if trying again with the same key and settings cannot help: a person must act.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Version | Self::BadCode | Self::UnknownKey | Self::Revoked | Self::Replaced
        )
    }
}

/// Stream reset: the TCP connection behind it was reset, or the session is torn down.
pub const RESET_ABORTED: u32 = 1;
/// Stream reset: the endpoint is not served here.
pub const RESET_REFUSED: u32 = 2;
/// Stream reset: the far end took no bytes for too long.
pub const RESET_STALLED: u32 = 3;
