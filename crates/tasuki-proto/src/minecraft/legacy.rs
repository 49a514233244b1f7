//! The server list pings of Minecraft before 1.7, which every vanilla client still falls back to.

/// Which of the three forms was sent, and what it told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacyPing {
    /// `FE`: beta 1.8 to 1.3.
    Beta,
    /// `FE 01`: 1.4 and 1.5.
    V1_4,
    /// `FE 01 FA ... MC|PingHost`: 1.6, with the client's protocol number and the host that was typed.
    V1_6 {
        /// Protocol number of the client, 73 to 78.
        protocol: u8,
        /// The typed host, empty if the rest was malformed.
        host: String,
    },
}

impl LegacyPing {
    /// The third form without what should follow.
    pub(super) fn hostless() -> Self {
        Self::V1_6 {
            protocol: 78,
            host: String::new(),
        }
    }
}

const CHANNEL: &str = "MC|PingHost";

/// Reads what follows `FE 01 FA`: `None` while more bytes must come. `max_bytes` bounds the whole ping.
pub(super) fn read_1_6(input: &[u8], max_bytes: usize) -> Option<(LegacyPing, usize)> {
    let head = 3 + 2 + CHANNEL.len() * 2;
    let expected = CHANNEL.encode_utf16().flat_map(u16::to_be_bytes);
    let channel_is_right = || {
        let sent = input.get(3..head.min(input.len())).unwrap_or(&[]);
        let wanted = [0, CHANNEL.len() as u8].into_iter().chain(expected);
        sent.iter().zip(wanted).all(|(sent, wanted)| *sent == wanted)
    };
    // Some scanners send only `FE 01 FA` with rubbish behind: still a ping, so answer it as one without a host.
    if !channel_is_right() {
        return Some((LegacyPing::hostless(), input.len()));
    }
    let length = usize::from(u16::from_be_bytes([*input.get(head)?, *input.get(head + 1)?]));
    let end = head + 2 + length;
    if length < 7 || end > max_bytes {
        return Some((LegacyPing::hostless(), input.len()));
    }
    let body = input.get(head + 2..end)?;
    let host_units = usize::from(u16::from_be_bytes([body[1], body[2]]));
    let host = match body.get(3..3 + host_units * 2) {
        Some(bytes) => char::decode_utf16(
            bytes
                .chunks_exact(2)
                .map(|two| u16::from_be_bytes([two[0], two[1]])),
        )
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect(),
        None => String::new(),
    };
    Some((
        LegacyPing::V1_6 {
            protocol: body[0],
            host,
        },
        end,
    ))
}

/// The kick packet that a legacy client shows as the server's line in its list.
/// `motd` is cut to its first line, because these clients have only one.
pub fn encode_legacy_reply(ping: &LegacyPing, version: &str, motd: &str, online: u32, max: u32) -> Vec<u8> {
    let line = motd.lines().next().unwrap_or("");
    let text = match ping {
        // The section sign separates the fields here, so it cannot be in the text.
        LegacyPing::Beta => format!("{}§{online}§{max}", line.replace('§', "")),
        // 127 belongs to no version: the client shows `version` in red instead of the player count.
        LegacyPing::V1_4 | LegacyPing::V1_6 { .. } => {
            let clean = |text: &str| text.replace('\0', "");
            format!("§1\0127\0{}\0{}\0{online}\0{max}", clean(version), clean(line))
        }
    };
    let units: Vec<u16> = text.encode_utf16().take(256).collect();
    let mut out = vec![0xff];
    out.extend_from_slice(&(units.len() as u16).to_be_bytes());
    out.extend(units.into_iter().flat_map(u16::to_be_bytes));
    out
}
