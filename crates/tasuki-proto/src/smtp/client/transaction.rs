//! One mail: MAIL, RCPT, then DATA with its dot or BDAT with its length, and a result for each recipient.

use std::time::Instant;

use bytes::Bytes;

use super::{Client, ClientFailure, Event, Expect, Job, Problem, Protocol, Stage};
use crate::smtp::{EnhancedCode, Reply, data::DotStuffer};

/// The mail under way.
pub(super) struct Transaction {
    pub(super) job: Job,
    results: Vec<Option<Result<Reply, ClientFailure>>>,
    form: Form,
}

/// How the message's octets go out.
enum Form {
    /// DATA (RFC 5321 4.1.1.4).
    Dotted(DotStuffer),
    /// One BDAT chunk (RFC 3030); octets that are still due.
    Chunk(u64),
}

impl Transaction {
    fn open(&self) -> bool {
        self.results.iter().any(Option::is_none)
    }

    /// What a refusal at this command means for this mail.
    fn refused(&self, stage: Stage, reply: Reply) -> ClientFailure {
        // RFC 8689 4.2.1: said of a mail with REQUIRETLS, 5.7.30 means that this server cannot keep to it, and another
        // one of the domain may. Of any other mail it says that our login is too weak (Microsoft 365).
        let is_promise = self.job.envelope.require_tls && reply.enhanced == Some(EnhancedCode(5, 7, 30));
        let problem = if is_promise {
            Problem::Unfit(reply)
        } else {
            Problem::Refused(reply)
        };
        ClientFailure::new(stage, problem)
    }

    /// Settles all recipients that have no result yet.
    pub(super) fn settle(&mut self, result: &Result<Reply, ClientFailure>) {
        for slot in self.results.iter_mut().filter(|r| r.is_none()) {
            *slot = Some(result.clone());
        }
    }
}

impl Client {
    /// Starts a mail. Only after [`Event::Ready`].
    pub fn start(&mut self, now: Instant, job: Job) {
        debug_assert!(
            self.transaction.is_none() && job.envelope.recipients.len() <= self.config.max_recipients
        );
        let count = job.envelope.recipients.len();
        let form = if self.capabilities.chunking {
            Form::Chunk(job.size)
        } else {
            Form::Dotted(DotStuffer::default())
        };
        let mut transaction = Transaction {
            results: vec![None; count],
            form,
            job,
        };
        if let Some(problem) = self.capabilities.cannot_take(&transaction.job, self.tls) {
            transaction.settle(&Err(ClientFailure::new(Stage::Mail, problem)));
            self.transaction = Some(transaction);
            return self.done();
        }
        if std::mem::take(&mut self.needs_rset) {
            self.send(now, Expect::Rset, "RSET\r\n");
        }
        let line = self.capabilities.mail_line(&transaction.job);
        let dotted = matches!(transaction.form, Form::Dotted(_));
        self.transaction = Some(transaction);
        self.send(now, Expect::Mail, &line);
        if self.capabilities.pipelining {
            for at in 0..count {
                self.send_rcpt(now, at);
            }
            // BDAT is followed by the message at once, so it waits until somebody is known to want it.
            if dotted {
                self.send(now, Expect::Data, "DATA\r\n");
            }
        }
    }

    /// The next piece of the message.
    pub fn handle_body(&mut self, now: Instant, piece: Bytes) {
        let Some(transaction) = self.transaction.as_mut().filter(|_| self.sending_body) else {
            return;
        };
        let wire = match &mut transaction.form {
            Form::Dotted(stuffer) => stuffer.stuff(piece),
            Form::Chunk(due) => match due.checked_sub(piece.len() as u64) {
                Some(left) => {
                    *due = left;
                    piece
                }
                // What is over the announced length would be taken for commands.
                None => return self.fail(Problem::Ours("the message is longer than it should be".into())),
            },
        };
        self.deadline = Some(now + self.config.timeouts.block);
        self.flush();
        self.events.push_back(Event::Write(wire));
    }

    /// The message is complete.
    pub fn handle_body_end(&mut self, now: Instant) {
        let Some(transaction) = self.transaction.as_mut().filter(|_| self.sending_body) else {
            return;
        };
        match &mut transaction.form {
            Form::Dotted(stuffer) => {
                let end = std::mem::take(stuffer).finish();
                self.events.push_back(Event::Write(Bytes::from_static(end)));
            }
            Form::Chunk(0) => {}
            Form::Chunk(_) => {
                return self.fail(Problem::Ours("the message is shorter than it should be".into()));
            }
        }
        self.sending_body = false;
        self.await_verdicts();
        self.deadline = Some(now + self.config.timeouts.end_of_data);
    }

    /// RFC 2033 4.2: over LMTP every recipient that was taken gets a reply of its own, in order.
    fn await_verdicts(&mut self) {
        let Some(transaction) = &self.transaction else {
            return;
        };
        match self.config.protocol {
            Protocol::Smtp => self.expected.push_back(Expect::EndOfData(None)),
            Protocol::Lmtp => {
                let open = transaction.results.iter().enumerate();
                let open = open.filter(|(_, result)| result.is_none());
                self.expected
                    .extend(open.map(|(at, _)| Expect::EndOfData(Some(at))));
            }
        }
    }

    /// The message cannot be brought (our own fault). The connection must end without the final dot, or the next hop
    /// would take a part for the whole.
    pub fn abort_body(&mut self, what: String) {
        self.fail(Problem::Ours(what));
    }

    fn send_rcpt(&mut self, now: Instant, at: usize) {
        let Some(transaction) = &self.transaction else {
            return;
        };
        let line = self
            .capabilities
            .rcpt_line(&transaction.job.envelope.recipients[at]);
        self.send(now, Expect::Rcpt(at), &line);
    }

    /// The last recipient is answered, and DATA was not sent ahead.
    fn after_recipients(&mut self, now: Instant) {
        let Some(transaction) = &self.transaction else {
            return;
        };
        if !transaction.open() {
            self.needs_rset = true;
            return self.done();
        }
        match transaction.form {
            Form::Dotted(_) => self.send(now, Expect::Data, "DATA\r\n"),
            Form::Chunk(size) => {
                let line = format!("BDAT {size} LAST\r\n");
                self.out.extend_from_slice(line.as_bytes());
                self.sending_body = true;
                self.deadline = Some(now + self.config.timeouts.block);
            }
        }
    }

    pub(super) fn mail_reply(&mut self, now: Instant, reply: Reply) {
        let piped = self.capabilities.pipelining;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if !reply.is_positive() {
            let failure = transaction.refused(Stage::Mail, reply);
            transaction.settle(&Err(failure));
            self.needs_rset = true;
            // With pipelining the replies to RCPT and DATA are still to come.
            if !piped {
                self.done();
            }
        } else if !piped {
            self.send_rcpt(now, 0);
        }
    }

    pub(super) fn rcpt_reply(&mut self, now: Instant, at: usize, reply: Reply) {
        let piped = self.capabilities.pipelining;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if !reply.is_positive() && transaction.results[at].is_none() {
            let failure = transaction.refused(Stage::Recipient, reply);
            transaction.results[at] = Some(Err(failure));
        }
        let last = at + 1 == transaction.results.len();
        match (piped, last) {
            (false, false) => self.send_rcpt(now, at + 1),
            (true, true) if matches!(transaction.form, Form::Dotted(_)) => {}
            (_, true) => self.after_recipients(now),
            (true, false) => {}
        }
    }

    pub(super) fn data_reply(&mut self, now: Instant, reply: Reply) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if reply.code == 354 {
            if transaction.open() {
                self.sending_body = true;
                self.deadline = Some(now + self.config.timeouts.block);
            } else {
                // RFC 2920 3.1: DATA was accepted although every recipient was refused; an empty message ends it.
                self.send(now, Expect::EndOfData(None), ".\r\n");
            }
            return;
        }
        let failure = transaction.refused(Stage::Data, reply);
        transaction.settle(&Err(failure));
        self.needs_rset = true;
        self.done();
    }

    pub(super) fn end_of_data_reply(&mut self, at: Option<usize>, reply: Reply) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let result = if reply.is_positive() {
            Ok(reply)
        } else {
            Err(transaction.refused(Stage::EndOfData, reply))
        };
        match at {
            None => {
                self.needs_rset = result.is_err();
                transaction.settle(&result);
            }
            Some(at) => {
                transaction.results[at] = Some(result);
                if transaction.open() {
                    return;
                }
            }
        }
        self.done();
    }

    pub(super) fn done(&mut self) {
        self.deadline = None;
        self.sending_body = false;
        if let Some(transaction) = self.transaction.take() {
            // Every path here has settled all recipients; what it forgot would be retried.
            let lost = || Err(ClientFailure::new(Stage::Data, Problem::Closed));
            let results = transaction
                .results
                .into_iter()
                .map(|r| r.unwrap_or_else(lost))
                .collect();
            self.events.push_back(Event::Done(results));
        }
        if !self.closed {
            self.events.push_back(Event::Ready);
        }
    }
}
