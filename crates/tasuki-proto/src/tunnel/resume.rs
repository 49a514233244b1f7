//! What carries a visitor's bytes over the loss of a session.
//!
//! Each direction of a flow is a row of bytes counted from 0; its end (FIN) counts as one more. The sending side keeps
//! what the far side's socket has not **taken** yet ([`Retained`]); how far that is comes back on a stream of its own
//! ([`Taken`]). After a loss the gateway opens a new stream with a [`Resume`], both sides say what they have taken, and
//! each goes on from there. Nothing is sent twice to a socket, and nothing is left out.
//!
//! A reset carries no bytes and is never repeated: a flow that one side does not know any more is reset at the other.
//!
//! Invariant: at most [`MAX_RETAINED`] bytes wait in one direction, whatever the far side says or does.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::stream::{HeaderError, RESUME, STREAM_VERSION};

/// What one direction of a flow may keep.
pub const MAX_RETAINED: u64 = 4 << 20;
/// The far side is told at least each time its bytes up to here were taken,
pub const TELL_EVERY: u64 = 64 << 10;
/// and after this time.
pub const TELL_AFTER: Duration = Duration::from_millis(50);
/// How long a flow waits for a session to go on in.
pub const RESUME_WITHIN: Duration = Duration::from_secs(12);

/// The first byte of the stream of words, which the agent opens once it is accepted.
pub const WORDS: u8 = 1;

/// Room for chunks that an idle flow may hold on to.
const IDLE_CHUNKS: usize = 16;

/// The gateway's number for a flow, never used twice for one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowNumber(pub u64);

/// What comes next on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Bytes.
    Bytes(Bytes),
    /// The end of the direction.
    Fin,
}

/// The far side says that it took what it was never sent, or goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the far side took {taken}, but {from} to {to} is under way")]
pub struct BadOffset {
    taken: u64,
    from: u64,
    to: u64,
}

/// The sending side of one direction.
#[derive(Debug, Default)]
pub struct Retained {
    pub(super) chunks: VecDeque<Bytes>,
    /// The offset of the first byte in `chunks`: all before it was taken.
    pub(super) start: u64,
    /// The offset behind the last byte.
    pub(super) end: u64,
    /// How many of `chunks` were sent on this stream, and the offset behind them.
    pub(super) sent: usize,
    pub(super) sent_to: u64,
    /// The furthest offset that was ever sent.
    pub(super) furthest: u64,
    pub(super) fin: bool,
    pub(super) fin_sent: bool,
    pub(super) fin_taken: bool,
}

impl Retained {
    /// Appends what the local socket gave. Nothing may follow the end.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(!self.fin, "nothing follows the end");
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.chunks.push_back(bytes);
        }
    }

    /// The local socket gives nothing more.
    pub fn finish(&mut self) {
        self.fin = true;
    }

    /// What is to be sent next on this stream, once.
    pub fn take(&mut self) -> Option<Next> {
        if let Some(bytes) = self.chunks.get(self.sent) {
            self.sent += 1;
            self.sent_to += bytes.len() as u64;
            self.furthest = self.furthest.max(self.sent_to);
            return Some(Next::Bytes(bytes.clone()));
        }
        if self.fin && !self.fin_sent {
            self.fin_sent = true;
            self.furthest = self.end + 1;
            return Some(Next::Fin);
        }
        None
    }

    /// The far side's socket took all before `taken`; how many bytes are free by that. An old word changes nothing. One of
    /// what was sent on an earlier stream may come before the next stream does.
    ///
    /// # Errors
    /// More than was ever sent.
    pub fn taken(&mut self, taken: u64) -> Result<u64, BadOffset> {
        if taken > self.furthest {
            return Err(self.bad(taken, self.furthest));
        }
        let freed = self.release(taken);
        self.sent_to = self.sent_to.max(self.start);
        Ok(freed)
    }

    /// A new stream begins where the far side's socket stands; how many bytes are free by that.
    ///
    /// # Errors
    /// The offset is outside of what is kept.
    pub fn rewind(&mut self, taken: u64) -> Result<u64, BadOffset> {
        let from = self.start + u64::from(self.fin_taken);
        if taken < from || taken > self.furthest {
            return Err(self.bad(taken, self.furthest));
        }
        // Released in the order of the row, as if all were sent; what is left was not.
        (self.sent, self.sent_to) = (self.chunks.len(), self.end);
        let freed = self.release(taken);
        (self.sent, self.sent_to, self.fin_sent) = (0, self.start, self.fin_taken);
        Ok(freed)
    }

    /// Gives up what was sent, as if it were taken: for a far side that never says so.
    pub fn forget_sent(&mut self) {
        self.release(self.sent_to + u64::from(self.fin_sent));
    }

    /// Bytes kept.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes may still be pushed.
    pub fn room(&self) -> u64 {
        MAX_RETAINED.saturating_sub(self.len())
    }

    /// The local socket gave its end.
    pub fn is_finished(&self) -> bool {
        self.fin
    }

    /// The far side's socket has taken everything, the end too.
    pub fn is_done(&self) -> bool {
        self.fin_taken
    }

    fn bad(&self, taken: u64, to: u64) -> BadOffset {
        BadOffset {
            taken,
            from: self.start,
            to,
        }
    }

    fn release(&mut self, taken: u64) -> u64 {
        if self.fin && taken > self.end {
            self.fin_taken = true;
        }
        let goal = taken.min(self.end);
        let before = self.start;
        while self.start < goal {
            let Some(first) = self.chunks.front_mut() else {
                break;
            };
            let left = goal - self.start;
            if first.len() as u64 <= left {
                self.start += first.len() as u64;
                self.chunks.pop_front();
                self.sent = self.sent.saturating_sub(1);
            } else {
                // Fits: it is less than the chunk's length.
                first.advance(left as usize);
                self.start = goal;
            }
        }
        if self.chunks.is_empty() && self.chunks.capacity() > IDLE_CHUNKS {
            // An idle flow holds next to nothing.
            self.chunks = VecDeque::new();
        }
        self.start - before
    }
}

/// One word about what a socket has taken: `u64 flow | u64 taken`, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Of which flow.
    pub flow: FlowNumber,
    /// The offset behind the last byte, or one more with the end.
    pub taken: u64,
}

impl Taken {
    /// Its length on the wire.
    pub const LENGTH: usize = 16;

    /// Appends it to what is sent.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.flow.0.to_be_bytes());
        out.extend_from_slice(&self.taken.to_be_bytes());
    }

    /// Takes one from the start of what came.
    pub fn decode(input: &mut BytesMut) -> Option<Self> {
        if input.len() < Self::LENGTH {
            return None;
        }
        Some(Self {
            flow: FlowNumber(input.get_u64()),
            taken: input.get_u64(),
        })
    }
}

/// What the gateway says on a new stream of a flow that is there already. It stands in the place of a
/// [`super::StreamHeader`]: `u8 version (1) | u8 length of the rest | u8 kind (3) | u64 flow | u64 taken`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Which flow.
    pub flow: FlowNumber,
    /// What the visitor's socket has taken.
    pub taken: u64,
}

impl Resume {
    /// The bytes of the agent's answer: [`super::OpenReply`], then what its local server's socket has taken.
    pub const REPLY_LENGTH: usize = 9;

    /// The stream's first bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut out = vec![STREAM_VERSION, 17, RESUME];
        out.extend_from_slice(&self.flow.0.to_be_bytes());
        out.extend_from_slice(&self.taken.to_be_bytes());
        out
    }

    /// Reads what stands behind version and length; `None` if it is a header of a new visitor.
    ///
    /// # Errors
    /// Fields do not fit.
    pub fn decode_rest(rest: &[u8]) -> Option<Result<Self, HeaderError>> {
        let (_, rest) = rest.split_first().filter(|(kind, _)| **kind == RESUME)?;
        let read = rest.split_first_chunk::<8>().and_then(|(flow, rest)| {
            let (taken, _) = rest.split_first_chunk::<8>()?;
            Some(Self {
                flow: FlowNumber(u64::from_be_bytes(*flow)),
                taken: u64::from_be_bytes(*taken),
            })
        });
        Some(read.ok_or(HeaderError::Malformed))
    }
}
