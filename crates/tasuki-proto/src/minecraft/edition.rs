//! Which Minecraft a visitor plays.

use serde::{Deserialize, Serialize};

/// The two families of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edition {
    /// TCP, the protocol of this module.
    Java,
    /// UDP, RakNet.
    Bedrock,
}

impl Edition {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Java => "Java",
            Self::Bedrock => "Bedrock",
        }
    }
}

/// What every message of RakNet before a connection carries.
const MAGIC: [u8; 16] = [
    0x00, 0xff, 0xff, 0x00, 0xfe, 0xfe, 0xfe, 0xfe, 0xfd, 0xfd, 0xfd, 0xfd, 0x12, 0x34, 0x56, 0x78,
];

/// Whether a client's datagram is one with which RakNet begins: a look at the server list, or the first two of a join.
/// Minecraft is not the only game that speaks it, but the only one that people put behind a relay of this kind.
pub fn begins_raknet(datagram: &[u8]) -> bool {
    let at = match datagram.first() {
        // Unconnected Ping, and the one that only servers with room answer: the time comes first.
        Some(0x01 | 0x02) => 9,
        // Open Connection Request 1 and 2.
        Some(0x05 | 0x07) => 1,
        _ => return false,
    };
    datagram.get(at..at + MAGIC.len()) == Some(&MAGIC[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_of_a_bedrock_client_are_known_and_no_others() {
        let ping = [&[0x01][..], &[0; 8], &MAGIC, &[7; 8]].concat();
        let request = [&[0x05][..], &MAGIC, &[11], &[0; 1400]].concat();
        for datagram in [&ping, &request] {
            assert!(begins_raknet(datagram), "{datagram:x?}");
            for end in 0..17 {
                assert!(!begins_raknet(&datagram[..end]), "{end} bytes");
            }
        }
        // Frames of a connection, and what looks alike.
        let shifted = [&[0x05, 0x00][..], &MAGIC].concat();
        let answer = [&[0x1c][..], &[0; 16], &MAGIC].concat();
        for datagram in [&[][..], &[0x84, 0, 0, 0], &shifted, &answer] {
            assert!(!begins_raknet(datagram), "{datagram:x?}");
        }
    }
}
