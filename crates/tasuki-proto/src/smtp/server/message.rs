//! The octets of a message, from the go-ahead to its end.

use std::time::Instant;

use bytes::BytesMut;

use super::{BODY_PIECE, Event, Message, Session, State, Waiting, Why, replies};
use crate::smtp::data::DataReceiver;

impl Session {
    pub(super) fn data(&mut self, now: Instant, input: &mut BytesMut) {
        let State::Data(receiver) = &mut self.state else {
            return;
        };
        let ended = receiver.receive(input);
        if let Some(error) = receiver.failure() {
            if !std::mem::replace(&mut self.discarded, true) {
                self.events.push_back(Event::Discard(Some(error)));
            }
            if ended {
                self.end_of_data();
                self.envelope = None;
                self.reply(now, error.reply());
                self.after_message();
            }
            return;
        }
        let piece = piece(receiver, ended);
        self.events.extend(piece);
        if ended {
            let (size, eight_bit) = (receiver.size(), receiver.is_eight_bit());
            self.end_of_data();
            self.message_end(size, eight_bit);
        }
    }

    /// Asks for the final reply.
    pub(super) fn message_end(&mut self, size: u64, eight_bit: bool) {
        let Some(envelope) = self.envelope.take() else {
            return;
        };
        let ticket = self.ticket();
        self.waiting = Some((ticket, Waiting::Message));
        self.events.push_back(Event::MessageEnd(
            ticket,
            Message {
                envelope,
                size,
                eight_bit,
            },
        ));
    }

    pub(super) fn end_of_data(&mut self) {
        self.state = State::Command;
        self.rate_due = None;
    }

    pub(super) fn after_message(&mut self) {
        if self.draining && !matches!(self.state, State::Closed) {
            self.goodbye(replies::DRAINING, Why::Draining);
        }
    }

    pub(super) fn check_rate(&mut self, now: Instant) {
        let came = match &self.state {
            State::Data(receiver) => receiver.size(),
            State::Chunk(chunk) => chunk.came(),
            _ => return,
        };
        let elapsed_ms = now.saturating_duration_since(self.data_since).as_millis();
        let due = elapsed_ms.saturating_mul(u128::from(self.config.timers.min_rate)) / 1000;
        if u128::from(came) < due {
            return self.goodbye(replies::TOO_SLOW, Why::TooSlow);
        }
        self.rate_due = Some(now + self.config.timers.rate_after);
    }
}

/// The next piece to hand out: when there is enough of it, or at the end; the first one with the whole header section.
pub(super) fn piece(receiver: &mut DataReceiver, ended: bool) -> Option<Event> {
    let header = receiver.header()?;
    let first = receiver.size() == receiver.pending() as u64;
    let due = ended && (first || receiver.pending() > 0) || receiver.pending() >= BODY_PIECE;
    due.then(|| Event::Body {
        piece: receiver.take(),
        header: first.then_some(header),
    })
}
