//! Typed numbers, so that a mail id is never passed where a lane is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Timestamp};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(/// A gateway process's place in the store's `nodes` table.
    NodeId(i32));
number!(/// Counts the owners of a lane, or the lives of a node; a stale one is refused at settlement.
    Epoch(i64));
number!(/// A principal in the store.
    PrincipalId(i64));
number!(/// A credential (app password, token, code) in the store.
    CredentialId(i64));
number!(/// A lane (one destination or host) in the store.
    LaneId(i64));
number!(/// The n-th delivery of a mail: one for each lane it goes to.
    DeliverySeq(u16));
number!(/// A place in the fediverse log; grows by acceptance.
    LogSeq(i64));
number!(/// A fediverse host's stable number, its bit in audience bitmaps.
    HostNo(u32));
number!(/// A tunnel endpoint in the store.
    EndpointId(i64));
number!(/// An added access rule in the store.
    RuleId(i64));
number!(/// A ban in the store.
    BanId(i64));

/// A mail's id: unique on all gateways of a store, ordered by time; shown in base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MailId(pub i64);

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl fmt::Display for MailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'0'; 13];
        let mut rest = self.0.cast_unsigned();
        for place in text.iter_mut().rev() {
            *place = BASE32[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(std::str::from_utf8(&text).expect("base 32 digits are ASCII"))
    }
}

/// The text is not a mail id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a mail id: 13 characters of 0-9 and a-z without i, l, o, u are expected")]
pub struct BadMailId(pub String);

impl FromStr for MailId {
    type Err = BadMailId;
    fn from_str(text: &str) -> Result<Self, BadMailId> {
        let bad = || BadMailId(text.chars().take(40).collect());
        if text.len() != 13 {
            return Err(bad());
        }
        let mut value: u64 = 0;
        for (place, byte) in text.bytes().enumerate() {
            let digit = BASE32
                .iter()
                .position(|b| *b == byte.to_ascii_lowercase())
                .ok_or_else(bad)?;
            if place == 0 && digit > 15 {
                return Err(bad());
            }
            value = (value << 5) | digit as u64;
        }
        Ok(Self(value.cast_signed()))
    }
}

impl From<MailId> for String {
    fn from(id: MailId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for MailId {
    type Error = BadMailId;
    fn try_from(text: String) -> Result<Self, BadMailId> {
        text.parse()
    }
}

/// Makes mail ids: 41 bits of milliseconds since 2025, 10 bits of node, 12 bits of count.
#[derive(Debug)]
pub struct MailIds {
    node: NodeId,
    clock: Clock,
    last: AtomicI64,
}

/// 2025-01-01T00:00:00Z.
const ID_EPOCH: Timestamp = Timestamp(1_735_689_600_000);

impl MailIds {
    /// Ids for mail taken by `node`, whose number must be below 1,024 to stay unique among gateways.
    #[must_use]
    pub fn new(node: NodeId, clock: Clock) -> Self {
        Self {
            node,
            clock,
            last: AtomicI64::new(0),
        }
    }

    /// The next id. More than 4,096 in one millisecond borrow from the next one.
    #[must_use]
    pub fn next(&self) -> MailId {
        let now = (self.clock.wall().0 - ID_EPOCH.0).max(0) << 12;
        let slot = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |last| {
                Some(now.max(last + 1))
            })
            .map_or(now, |last| now.max(last + 1));
        let (millis, count) = (slot >> 12, slot & 0xfff);
        MailId((millis << 22) | (i64::from(self.node.0 & 0x3ff) << 12) | count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{MailId, MailIds, NodeId};
    use crate::clock::Clock;

    #[test]
    fn mail_ids_are_unique_ordered_and_survive_their_text_form() {
        let ids = MailIds::new(NodeId(7), Clock::system());
        let made: Vec<MailId> = (0..20_000).map(|_| ids.next()).collect();
        assert!(made.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
        assert!(made.iter().all(|id| id.to_string().parse() == Ok(*id)));
    }

    #[test]
    fn a_text_that_is_no_id_is_refused() {
        for text in ["", "0", "zzzzzzzzzzzzz", "000000000000i", "00000000000000"] {
            assert!(text.parse::<MailId>().is_err(), "{text}");
        }
    }
}
