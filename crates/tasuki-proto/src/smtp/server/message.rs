//! The octets of a message, from the go-ahead to its end.

use std::time::Instant;

use bytes::BytesMut;

use super::{BODY_PIECE, Event, Message, Session, State, Waiting, Why, replies};

impl Session {
    pub(super) fn data(&mut self, now: Instant, input: &mut BytesMut) {
        let State::Data(receiver) = &mut self.state else {
            return;
        };
        let handed_out = receiver.size() - receiver.pending() as u64;
        let ended = receiver.receive(input);
        if let Some(error) = receiver.failure() {
            if !std::mem::replace(&mut self.discarded, true) {
                self.events.push_back(Event::Discard(error));
            }
            if ended {
                self.end_of_data();
                self.envelope = None;
                self.reply(now, error.reply());
                self.after_message();
            }
            return;
        }
        let header = receiver.header().filter(|_| handed_out == 0);
        if ended || (receiver.header().is_some() && receiver.pending() >= BODY_PIECE) {
            let piece = receiver.take();
            if header.is_some() || !piece.is_empty() {
                self.events.push_back(Event::Body { piece, header });
            }
        }
        if ended {
            let (size, eight_bit) = (receiver.size(), receiver.is_eight_bit());
            self.end_of_data();
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
        let State::Data(receiver) = &self.state else {
            return;
        };
        let elapsed = now.saturating_duration_since(self.data_since).as_secs();
        if receiver.size() < elapsed.saturating_mul(self.config.timers.min_rate) {
            return self.goodbye(replies::TOO_SLOW, Why::TooSlow);
        }
        self.rate_due = Some(now + self.config.timers.rate_after);
    }
}
