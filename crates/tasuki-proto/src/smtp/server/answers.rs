//! Answers to questions, and replies in the order of the commands.

use std::time::Instant;

use super::{Event, Question, Session, Slot, State, Ticket, Waiting, Why, replies};
use crate::smtp::{Reply, data::DataReceiver};

impl Session {
    pub(super) fn waited(&mut self, now: Instant, waiting: Waiting, reply: Reply) {
        let accepted = reply.is_positive();
        match waiting {
            Waiting::Auth if accepted => {
                self.authenticated = true;
                self.auth_failures = 0;
                self.reply(now, reply);
            }
            Waiting::Auth | Waiting::Scram(_) => self.auth_refused(now, reply),
            Waiting::Mail => {
                if !accepted {
                    self.envelope = None;
                }
                self.reply(now, reply);
            }
            Waiting::Data if accepted => {
                self.out
                    .extend_from_slice(b"354 send the message, end it with <CRLF>.<CRLF>\r\n");
                self.state = State::Data(Box::new(DataReceiver::new(self.config.data)));
                self.discarded = false;
                self.data_since = now;
                self.rate_due = Some(now + self.config.timers.rate_after);
            }
            Waiting::Data => self.reply(now, reply),
            Waiting::Chunk(chunk) => self.first_chunk(now, chunk, reply),
            Waiting::Message => {
                self.reply(now, reply);
                self.after_message();
            }
        }
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        Ticket(self.next_ticket)
    }

    pub(super) fn ask_and_wait(&mut self, waiting: Waiting, question: Question) {
        let ticket = self.ticket();
        self.waiting = Some((ticket, waiting));
        self.events.push_back(Event::Ask(ticket, question));
    }

    /// Gives a reply now, or behind the RCPTs that are still open.
    pub(super) fn reply(&mut self, now: Instant, reply: Reply) {
        if self.slots.is_empty() {
            self.write(now, &reply);
        } else {
            self.slots.push_back(Slot {
                ticket: None,
                recipient: None,
                reply: Some(reply),
            });
        }
    }

    pub(super) fn flush_slots(&mut self, now: Instant) {
        while self.slots.front().is_some_and(|s| s.reply.is_some()) {
            let Some(Slot {
                recipient,
                reply: Some(reply),
                ..
            }) = self.slots.pop_front()
            else {
                return;
            };
            if let (Some(recipient), Some(envelope), true) =
                (recipient, &mut self.envelope, reply.is_positive())
            {
                envelope.recipients.push(recipient);
            }
            self.write(now, &reply);
        }
    }

    /// Writes a reply and counts it if it is an error.
    pub(super) fn write(&mut self, now: Instant, reply: &Reply) {
        if matches!(self.state, State::Closed) {
            return;
        }
        reply.write(&mut self.out);
        if reply.code == 421 {
            return self.close(Why::Refused);
        }
        // X.3 is the state of our own system (RFC 3463 3.4): a full disk is not the peer's error.
        let ours = reply.code < 500 && reply.enhanced.is_some_and(|enhanced| enhanced.1 == 3);
        if reply.code < 400 || ours {
            return;
        }
        self.errors += 1;
        if self.errors >= self.config.max_errors {
            self.goodbye(replies::TOO_MANY_ERRORS, Why::TooManyErrors);
        } else if self.errors >= self.config.soft_errors {
            self.hold_until = Some(now + self.config.timers.error_delay);
        }
    }

    pub(super) fn goodbye(&mut self, reply: Reply, why: Why) {
        if !matches!(self.state, State::Closed) {
            reply.write(&mut self.out);
            self.close(why);
        }
    }

    pub(super) fn close(&mut self, why: Why) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.state = State::Closed;
        self.waiting = None;
        self.slots.clear();
        self.envelope = None;
        self.chunked = None;
        self.hold_until = None;
        self.rate_due = None;
        self.events.push_back(Event::Close(why));
    }
}
