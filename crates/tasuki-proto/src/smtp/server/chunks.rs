//! A message in chunks: BDAT (RFC 3030).
//!
//! **Invariant:** the octets of a chunk are taken whatever is thought of them, so that they are never read as commands;
//! where a chunk's length cannot be told, the session ends.

use std::time::Instant;

use bytes::{Buf as _, BytesMut};

use super::{Event, Question, Session, State, Waiting, Why, message::piece, replies};
use crate::smtp::{
    Reply,
    data::{DataError, DataReceiver},
};

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    size: u64,
    left: u64,
    last: bool,
}

/// A message that comes in chunks.
pub(super) enum Chunked {
    /// So far so good.
    Taking(Box<DataReceiver>),
    /// Refused: each further chunk of it gets this reply.
    Refused(Reply),
}

impl Chunk {
    /// `octets [LAST]`; RFC 3030 2 has no limit of digits, a length that does not fit is none.
    fn parse(args: &str) -> Option<Self> {
        let mut words = args.split_ascii_whitespace();
        let digits = words.next()?;
        if digits.len() > 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let size = digits.parse().ok()?;
        let last = match (words.next(), words.next()) {
            (None, _) => false,
            (Some(word), None) if word.eq_ignore_ascii_case("LAST") => true,
            _ => return None,
        };
        Some(Self {
            size,
            left: size,
            last,
        })
    }

    /// Octets of it that have come.
    pub(super) fn came(&self) -> u64 {
        self.size - self.left
    }
}

impl Session {
    pub(super) fn bdat(&mut self, now: Instant, args: &str) {
        let Some(chunk) = Chunk::parse(args) else {
            return self.goodbye(replies::BAD_CHUNK, Why::Unsynchronised);
        };
        let max_size = self.config.data.max_size;
        match &self.chunked {
            Some(Chunked::Taking(receiver)) if receiver.size().saturating_add(chunk.size) > max_size => {
                self.refuse_chunks(DataError::TooBig);
            }
            Some(_) => {}
            None => {
                let refusal = match &self.envelope {
                    None => Some(replies::MAIL_FIRST),
                    Some(envelope) if envelope.recipients.is_empty() => Some(replies::NO_RECIPIENTS),
                    Some(_) if chunk.size > max_size => Some(DataError::TooBig.reply()),
                    Some(_) => None,
                };
                match refusal {
                    Some(reply) => self.chunked = Some(Chunked::Refused(reply)),
                    None => return self.ask_and_wait(Waiting::Chunk(chunk), Question::Data),
                }
            }
        }
        self.begin_chunk(now, chunk);
    }

    /// The answer to [`Question::Data`] is there.
    pub(super) fn first_chunk(&mut self, now: Instant, chunk: Chunk, reply: Reply) {
        if reply.code == 421 {
            return self.reply(now, reply);
        }
        self.chunked = Some(if reply.is_positive() {
            Chunked::Taking(Box::new(DataReceiver::chunked(self.config.data)))
        } else {
            Chunked::Refused(reply)
        });
        self.begin_chunk(now, chunk);
    }

    fn begin_chunk(&mut self, now: Instant, chunk: Chunk) {
        self.state = State::Chunk(chunk);
        self.data_since = now;
        self.rate_due = Some(now + self.config.timers.rate_after);
        if chunk.left == 0 {
            self.end_of_chunk(now, chunk);
        }
    }

    /// Takes what there is of the chunk.
    pub(super) fn chunk(&mut self, now: Instant, input: &mut BytesMut) {
        let State::Chunk(chunk) = &mut self.state else {
            return;
        };
        let here = usize::try_from(chunk.left).map_or(input.len(), |left| left.min(input.len()));
        chunk.left -= here as u64;
        let chunk = *chunk;
        if let Some(Chunked::Taking(receiver)) = &mut self.chunked {
            receiver.receive_chunk(&input[..here]);
            match receiver.failure() {
                Some(error) => self.refuse_chunks(error),
                None => self.events.extend(piece(receiver, false)),
            }
        }
        input.advance(here);
        if chunk.left == 0 {
            self.end_of_chunk(now, chunk);
        }
    }

    fn refuse_chunks(&mut self, error: DataError) {
        self.chunked = Some(Chunked::Refused(error.reply()));
        self.events.push_back(Event::Discard(Some(error)));
    }

    fn end_of_chunk(&mut self, now: Instant, chunk: Chunk) {
        self.end_of_data();
        if chunk.last
            && let Some(Chunked::Taking(receiver)) = &mut self.chunked
        {
            receiver.finish();
            if let Some(error) = receiver.failure() {
                self.refuse_chunks(error);
            }
        }
        match self.chunked.take() {
            Some(Chunked::Taking(mut receiver)) if chunk.last => {
                self.events.extend(piece(&mut receiver, true));
                self.message_end(receiver.size(), receiver.is_eight_bit());
            }
            Some(Chunked::Taking(receiver)) => {
                let text = format!("{} octets taken", chunk.size);
                self.chunked = Some(Chunked::Taking(receiver));
                self.reply(now, Reply::with_text(250, (2, 0, 0), text));
            }
            Some(Chunked::Refused(reply)) => {
                if chunk.last {
                    self.envelope = None;
                } else {
                    self.chunked = Some(Chunked::Refused(reply.clone()));
                }
                self.reply(now, reply);
                if chunk.last {
                    self.after_message();
                }
            }
            None => {}
        }
    }
}
