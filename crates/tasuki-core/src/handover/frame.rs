//! The bytes on the link: `"TSKH" | u8 version | u8 kind | u16 descriptors | u32 length of JSON | u32 length of bytes`,
//! all big-endian, then JSON, then bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Item, Word};

/// The version of this format. Two processes hand over only within one version.
pub const VERSION: u8 = 1;
/// Descriptors in one message; Linux takes 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 250;
/// JSON in one message.
pub const MAX_JSON: usize = 1 << 20;
/// Bytes in one message, and of one item.
pub const MAX_BYTES: usize = 12 << 20;
/// Items in one message.
const MAX_ITEMS: usize = 250;
/// A message is sent when it has so many bytes, though there is room.
const ENOUGH_BYTES: usize = 1 << 20;
/// The same for JSON.
const ENOUGH_JSON: usize = 256 << 10;

const MAGIC: [u8; 4] = *b"TSKH";
pub(super) const HEAD: usize = 16;

/// Why a message cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Not this protocol.
    #[error("what came is no message of a gateway")]
    Magic,
    /// Another version.
    #[error("the other process speaks version {0} of the handover, this one {VERSION}")]
    Version(u8),
    /// A kind that is not known.
    #[error("a message of the unknown kind {0}")]
    Kind(u8),
    /// Too long.
    #[error("a message of {0} is longer than it may be")]
    TooLong(&'static str),
    /// What is inside does not fit what the head says.
    #[error("a message does not hold what it says: {0}")]
    Shape(&'static str),
    /// The JSON cannot be read.
    #[error("a message cannot be read")]
    Json(#[from] serde_json::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word = 1,
    Items = 2,
}

/// What stands before every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) fds: usize,
    pub(super) json: usize,
    pub(super) bytes: usize,
}

/// One message, its descriptors apart.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) head: Head,
    pub(super) json: Vec<u8>,
    pub(super) bytes: Vec<Bytes>,
}

/// An item as its message describes it.
#[derive(Serialize, Deserialize)]
struct Described {
    what: String,
    state: Value,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    fd: bool,
}

impl Head {
    pub(super) fn encode(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = VERSION;
        head[5] = self.kind as u8;
        // All three were checked against bounds that fit.
        head[6..8].copy_from_slice(&u16::try_from(self.fds).unwrap_or(u16::MAX).to_be_bytes());
        head[8..12].copy_from_slice(&u32::try_from(self.json).unwrap_or(u32::MAX).to_be_bytes());
        head[12..].copy_from_slice(&u32::try_from(self.bytes).unwrap_or(u32::MAX).to_be_bytes());
        head
    }

    pub(super) fn decode(head: &[u8; HEAD]) -> Result<Self, BadFrame> {
        let [
            m0,
            m1,
            m2,
            m3,
            version,
            kind,
            f0,
            f1,
            j0,
            j1,
            j2,
            j3,
            b0,
            b1,
            b2,
            b3,
        ] = *head;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(BadFrame::Magic);
        }
        if version != VERSION {
            return Err(BadFrame::Version(version));
        }
        let kind = match kind {
            1 => Kind::Word,
            2 => Kind::Items,
            other => return Err(BadFrame::Kind(other)),
        };
        let head = Self {
            kind,
            fds: usize::from(u16::from_be_bytes([f0, f1])),
            json: u32::from_be_bytes([j0, j1, j2, j3]) as usize,
            bytes: u32::from_be_bytes([b0, b1, b2, b3]) as usize,
        };
        head.check()?;
        Ok(head)
    }

    fn check(&self) -> Result<(), BadFrame> {
        for (value, max, what) in [
            (self.fds, MAX_FDS, "descriptors"),
            (self.json, MAX_JSON, "JSON"),
            (self.bytes, MAX_BYTES, "bytes"),
        ] {
            if value > max {
                return Err(BadFrame::TooLong(what));
            }
        }
        Ok(())
    }
}

pub(super) fn of_word(word: &Word) -> Result<Frame, BadFrame> {
    let json = serde_json::to_vec(word)?;
    let head = Head {
        kind: Kind::Word,
        fds: 0,
        json: json.len(),
        bytes: 0,
    };
    head.check()?;
    Ok(Frame {
        head,
        json,
        bytes: Vec::new(),
    })
}

/// A message of the first of `items`, and how many those are.
pub(super) fn of_items(items: &[Item]) -> Result<(Frame, usize), BadFrame> {
    let (mut json, mut bytes) = (vec![b'['], Vec::new());
    let (mut fds, mut sum, mut count) = (0, 0, 0);
    for item in items.iter().take(MAX_ITEMS) {
        let more = item.bytes.len();
        let is_full = sum >= ENOUGH_BYTES || json.len() >= ENOUGH_JSON || sum + more > MAX_BYTES;
        if count > 0 && is_full {
            break;
        }
        let described = Described {
            what: item.what.clone(),
            state: item.state.clone(),
            bytes: more,
            fd: item.fd.is_some(),
        };
        if count > 0 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, &described)?;
        fds += usize::from(described.fd);
        sum += more;
        bytes.push(item.bytes.clone());
        count += 1;
    }
    json.push(b']');
    let head = Head {
        kind: Kind::Items,
        fds,
        json: json.len(),
        bytes: sum,
    };
    head.check()?;
    Ok((Frame { head, json, bytes }, count))
}

pub(super) fn to_word(json: &[u8]) -> Result<Word, BadFrame> {
    Ok(serde_json::from_slice(json)?)
}

/// Takes a message of items apart. `fds` are those that came with it.
pub(super) fn to_items(
    json: &[u8],
    mut bytes: Bytes,
    fds: Vec<std::os::fd::OwnedFd>,
) -> Result<Vec<Item>, BadFrame> {
    let described: Vec<Described> = serde_json::from_slice(json)?;
    if described.len() > MAX_ITEMS {
        return Err(BadFrame::TooLong("items"));
    }
    let mut fds = fds.into_iter();
    let mut items = Vec::with_capacity(described.len());
    for one in described {
        if one.bytes > bytes.len() {
            return Err(BadFrame::Shape("bytes are missing"));
        }
        let fd = match one.fd {
            true => Some(fds.next().ok_or(BadFrame::Shape("a descriptor is missing"))?),
            false => None,
        };
        items.push(Item {
            what: one.what,
            state: one.state,
            bytes: bytes.split_to(one.bytes),
            fd,
        });
    }
    if !bytes.is_empty() || fds.next().is_some() {
        return Err(BadFrame::Shape("something is left over"));
    }
    Ok(items)
}
