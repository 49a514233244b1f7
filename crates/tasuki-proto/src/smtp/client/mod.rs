//! The client side of one SMTP connection, as a value.
//!
//! Calling order: [`Client::handle_input`] with what was read, then [`Client::poll_event`] until it is empty. After
//! [`Event::Ready`] the shell calls [`Client::start`] with a mail, or [`Client::quit`]. While [`Client::wants_body`] it
//! brings the message by [`Client::handle_body`] and [`Client::handle_body_end`]. [`Event::Done`] has a result for each
//! recipient; then `Ready` comes again, or [`Event::Closed`].
//!
//! The machine says of every failure which command it answered and whether it judges the message. Only replies to MAIL,
//! RCPT and DATA do; a refused banner, EHLO, STARTTLS or login is the route's failure, and must never bounce a mail.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};

use super::{Envelope, Reply, ReplyParser, data::DotStuffer};
use crate::smtp::server::Password;

mod capabilities;
mod failure;
#[cfg(test)]
mod tests;

pub use capabilities::Capabilities;
pub use failure::{ClientFailure, Problem, Stage};

/// How the connection is to be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// No TLS, even if offered.
    Plain,
    /// STARTTLS where offered, else plain (RFC 7435).
    Opportunistic,
    /// STARTTLS or nothing.
    Required,
    /// The shell has done the handshake before the banner (RFC 8314).
    Implicit,
}

/// A login at the next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Its proof.
    pub password: Password,
}

/// How to talk to a next hop.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Our name in EHLO.
    pub helo: String,
    /// TLS.
    pub security: Security,
    /// Credentials; they are sent over verified TLS only.
    pub login: Option<Login>,
    /// Most recipients in one transaction.
    pub max_recipients: usize,
    /// Waits.
    pub timeouts: Timeouts,
}

/// RFC 5321 4.5.3.2.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the banner.
    pub greeting: Duration,
    /// For any command not named here.
    pub command: Duration,
    /// For 354.
    pub data: Duration,
    /// For the socket to take a block of the message.
    pub block: Duration,
    /// For the reply to the final dot. Long, since giving up early makes duplicates.
    pub end_of_data: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(300),
            command: Duration::from_secs(300),
            data: Duration::from_secs(120),
            block: Duration::from_secs(180),
            end_of_data: Duration::from_secs(600),
        }
    }
}

/// One mail to send: its envelope, and what its octets need.
#[derive(Debug, Clone)]
pub struct Job {
    /// At most [`ClientConfig::max_recipients`] recipients.
    pub envelope: Envelope,
    /// Octets.
    pub size: u64,
    /// Whether there are octets over 127.
    pub eight_bit: bool,
}

/// What the shell has to do, in order.
#[derive(Debug)]
pub enum Event {
    /// Write these octets.
    Write(Bytes),
    /// Write what was given so far, drop everything read, do the TLS handshake, then [`Client::handle_tls`].
    StartTls,
    /// A mail may start.
    Ready,
    /// The mail is over: one result for each recipient, in order.
    Done(Vec<Result<Reply, ClientFailure>>),
    /// The connection is over; if a mail was under way its recipients' results came before. `None` after QUIT.
    Closed(Option<ClientFailure>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Banner,
    Ehlo,
    Helo,
    StartTls,
    Ehlo2,
    Auth(usize),
    Rset,
    Mail,
    Rcpt(usize),
    Data,
    EndOfData,
    Quit,
}

impl Expect {
    fn stage(self) -> Stage {
        match self {
            Self::Banner => Stage::Banner,
            Self::Ehlo | Self::Helo | Self::Ehlo2 => Stage::Ehlo,
            Self::StartTls => Stage::StartTls,
            Self::Auth(_) => Stage::Auth,
            Self::Rset => Stage::Rset,
            Self::Mail => Stage::Mail,
            Self::Rcpt(_) => Stage::Recipient,
            Self::Data => Stage::Data,
            Self::EndOfData => Stage::EndOfData,
            Self::Quit => Stage::Quit,
        }
    }
}

/// The mail under way.
struct Transaction {
    job: Job,
    results: Vec<Option<Result<Reply, ClientFailure>>>,
    stuffer: DotStuffer,
    /// DATA was sent, so its reply decides how to go on.
    data_sent: bool,
    mail_refused: bool,
}

impl Transaction {
    fn open(&self) -> bool {
        self.results.iter().any(Option::is_none)
    }

    /// Settles all recipients that have no result yet.
    fn settle(&mut self, result: &Result<Reply, ClientFailure>) {
        for slot in self.results.iter_mut().filter(|r| r.is_none()) {
            *slot = Some(result.clone());
        }
    }
}

/// One connection. See the module for the calling order.
pub struct Client {
    config: ClientConfig,
    capabilities: Capabilities,
    parser: ReplyParser,
    expected: VecDeque<Expect>,
    tls: Option<bool>,
    transaction: Option<Transaction>,
    sending_body: bool,
    /// STARTTLS was agreed to and the handshake is not done.
    shaking_hands: bool,
    needs_rset: bool,
    events: VecDeque<Event>,
    out: BytesMut,
    deadline: Option<Instant>,
    closed: bool,
}

impl Client {
    /// A connection just made. For [`Security::Implicit`], `tls_verified` says whether the certificate was.
    pub fn new(config: ClientConfig, tls_verified: Option<bool>, now: Instant) -> Self {
        let deadline = Some(now + config.timeouts.greeting);
        Self {
            config,
            capabilities: Capabilities::default(),
            parser: ReplyParser::default(),
            expected: VecDeque::from([Expect::Banner]),
            tls: tls_verified,
            transaction: None,
            sending_body: false,
            shaking_hands: false,
            needs_rset: false,
            events: VecDeque::new(),
            out: BytesMut::new(),
            deadline,
            closed: false,
        }
    }

    /// What the next hop offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether TLS is on, and if so, whether the peer's certificate was verified.
    pub fn tls(&self) -> Option<bool> {
        self.tls
    }

    /// Whether the message's octets are wanted now.
    pub fn wants_body(&self) -> bool {
        self.sending_body && !self.closed
    }

    /// Takes whole replies off `input` and leaves the rest.
    pub fn handle_input(&mut self, now: Instant, input: &mut BytesMut) {
        while !self.closed {
            match self.parser.parse(input) {
                Ok(Some(reply)) => self.reply(now, reply, input),
                Ok(None) => break,
                Err(error) => self.fail(Problem::Garbage(error)),
            }
        }
    }

    /// The server closed.
    pub fn handle_eof(&mut self, _now: Instant) {
        self.fail(Problem::Closed);
    }

    /// Reading or writing failed, or the TLS handshake; `what` is for people.
    pub fn handle_error(&mut self, _now: Instant, what: String) {
        self.fail(Problem::Io(what));
    }

    /// The deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|at| at <= now) {
            self.fail(Problem::TimedOut);
        }
    }

    /// The handshake asked for by [`Event::StartTls`] is done.
    pub fn handle_tls(&mut self, now: Instant, verified: bool) {
        self.tls = Some(verified);
        self.shaking_hands = false;
        self.parser = ReplyParser::default();
        self.capabilities = Capabilities::default();
        self.say_ehlo(now, Expect::Ehlo2);
    }

    /// Starts a mail. Only after [`Event::Ready`].
    pub fn start(&mut self, now: Instant, job: Job) {
        debug_assert!(
            self.transaction.is_none() && job.envelope.recipients.len() <= self.config.max_recipients
        );
        let count = job.envelope.recipients.len();
        let mut transaction = Transaction {
            results: vec![None; count],
            stuffer: DotStuffer::default(),
            data_sent: false,
            mail_refused: false,
            job,
        };
        if let Some(problem) = self.capabilities.cannot_take(&transaction.job) {
            transaction.settle(&Err(ClientFailure::new(Stage::Mail, problem)));
            self.transaction = Some(transaction);
            return self.done();
        }
        if std::mem::take(&mut self.needs_rset) {
            self.send(now, Expect::Rset, "RSET\r\n");
        }
        let line = self.capabilities.mail_line(&transaction.job);
        self.transaction = Some(transaction);
        self.send(now, Expect::Mail, &line);
        if self.capabilities.pipelining {
            for at in 0..count {
                self.send_rcpt(now, at);
            }
            self.send_data(now);
        }
    }

    /// The next piece of the message.
    pub fn handle_body(&mut self, now: Instant, piece: Bytes) {
        let Some(transaction) = self.transaction.as_mut().filter(|_| self.sending_body) else {
            return;
        };
        let wire = transaction.stuffer.stuff(piece);
        self.deadline = Some(now + self.config.timeouts.block);
        self.flush();
        self.events.push_back(Event::Write(wire));
    }

    /// The message is complete.
    pub fn handle_body_end(&mut self, now: Instant) {
        let Some(transaction) = self.transaction.as_mut().filter(|_| self.sending_body) else {
            return;
        };
        let end = std::mem::take(&mut transaction.stuffer).finish();
        self.sending_body = false;
        self.events.push_back(Event::Write(Bytes::from_static(end)));
        self.expected.push_back(Expect::EndOfData);
        self.deadline = Some(now + self.config.timeouts.end_of_data);
    }

    /// The message cannot be brought (our own fault). The connection must end without the final dot, or the next hop
    /// would take a part for the whole.
    pub fn abort_body(&mut self, what: String) {
        self.fail(Problem::Ours(what));
    }

    /// Ends the connection in order. Only when no mail is under way.
    pub fn quit(&mut self, now: Instant) {
        if !self.closed {
            self.send(now, Expect::Quit, "QUIT\r\n");
        }
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        let flush = !matches!(self.events.front(), Some(Event::Write(_)));
        if flush && !self.out.is_empty() && !self.closed {
            return Some(Event::Write(self.out.split().freeze()));
        }
        self.events.pop_front()
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.closed)
    }

    fn flush(&mut self) {
        if !self.out.is_empty() {
            let out = self.out.split().freeze();
            self.events.push_back(Event::Write(out));
        }
    }

    fn send(&mut self, now: Instant, expect: Expect, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.expected.push_back(expect);
        if self.expected.len() == 1 {
            self.arm(now);
        }
    }

    /// Sets the deadline for the reply that is next.
    fn arm(&mut self, now: Instant) {
        let timeouts = &self.config.timeouts;
        self.deadline = self.expected.front().map(|expect| {
            now + match expect {
                Expect::Banner => timeouts.greeting,
                Expect::Data => timeouts.data,
                Expect::EndOfData => timeouts.end_of_data,
                Expect::Quit => timeouts.command.min(Duration::from_secs(5)),
                _ => timeouts.command,
            }
        });
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

    fn send_data(&mut self, now: Instant) {
        if let Some(transaction) = &mut self.transaction {
            transaction.data_sent = true;
            self.send(now, Expect::Data, "DATA\r\n");
        }
    }

    fn say_ehlo(&mut self, now: Instant, expect: Expect) {
        self.parser.keep_lines();
        let line = format!("EHLO {}\r\n", self.config.helo);
        self.send(now, expect, &line);
    }

    fn reply(&mut self, now: Instant, reply: Reply, input: &mut BytesMut) {
        let Some(expect) = self.expected.pop_front() else {
            // Nothing was asked. A 421 that a closing server sends on its own is the usual case.
            return self.fail(Problem::Refused(reply));
        };
        self.arm(now);
        if reply.code == 421 {
            return self.fail_at(expect.stage(), Problem::Refused(reply));
        }
        match expect {
            Expect::Banner if reply.code == 220 => self.say_ehlo(now, Expect::Ehlo),
            Expect::Ehlo | Expect::Ehlo2 | Expect::Helo if reply.is_positive() => {
                let lines = self.parser.take_lines();
                if expect != Expect::Helo {
                    self.capabilities = Capabilities::parse(&lines);
                }
                self.after_ehlo(now, expect);
            }
            // RFC 5321 3.2: a server that does not know EHLO gets HELO, unless TLS or a login needs EHLO.
            Expect::Ehlo if reply.is_permanent() && self.may_be_plain() => {
                self.parser.take_lines();
                let line = format!("HELO {}\r\n", self.config.helo);
                self.send(now, Expect::Helo, &line);
            }
            Expect::StartTls if reply.code == 220 => {
                // RFC 3207 6: what came in the clear behind this reply was not sent by the server we will verify.
                input.clear();
                self.deadline = Some(now + self.config.timeouts.command);
                self.shaking_hands = true;
                self.events.push_back(Event::StartTls);
            }
            Expect::StartTls if self.config.security == Security::Opportunistic => self.ready_or_login(now),
            Expect::Auth(step) => self.auth_reply(now, step, reply),
            Expect::Rset => {
                if !reply.is_positive() {
                    self.fail_at(Stage::Rset, Problem::Refused(reply));
                }
            }
            Expect::Mail => self.mail_reply(now, reply),
            Expect::Rcpt(at) => self.rcpt_reply(now, at, reply),
            Expect::Data => self.data_reply(now, reply),
            Expect::EndOfData => {
                let result = if reply.is_positive() {
                    Ok(reply)
                } else {
                    Err(ClientFailure::new(Stage::EndOfData, Problem::Refused(reply)))
                };
                self.needs_rset = result.is_err();
                if let Some(transaction) = &mut self.transaction {
                    transaction.settle(&result);
                }
                self.done();
            }
            Expect::Quit => self.close(None),
            _ => self.fail_at(expect.stage(), Problem::Refused(reply)),
        }
    }

    fn may_be_plain(&self) -> bool {
        matches!(self.config.security, Security::Plain | Security::Opportunistic)
            && self.config.login.is_none()
    }

    fn after_ehlo(&mut self, now: Instant, expect: Expect) {
        let offered = self.capabilities.starttls && expect == Expect::Ehlo;
        match self.config.security {
            Security::Opportunistic | Security::Required if self.tls.is_none() && offered => {
                self.send(now, Expect::StartTls, "STARTTLS\r\n");
            }
            Security::Required if self.tls.is_none() => {
                self.fail_at(Stage::StartTls, Problem::NoTls);
            }
            _ => self.ready_or_login(now),
        }
    }

    fn ready_or_login(&mut self, now: Instant) {
        let Some(login) = &self.config.login else {
            return self.ready();
        };
        if self.tls != Some(true) {
            return self.fail_at(Stage::Auth, Problem::UnverifiedTls);
        }
        if self.capabilities.auth_plain {
            let text = STANDARD.encode(format!("\0{}\0{}", login.username, login.password.reveal()));
            self.send(now, Expect::Auth(2), &format!("AUTH PLAIN {text}\r\n"));
        } else if self.capabilities.auth_login {
            self.send(now, Expect::Auth(0), "AUTH LOGIN\r\n");
        } else {
            self.fail_at(Stage::Auth, Problem::NoMechanism);
        }
    }

    fn auth_reply(&mut self, now: Instant, step: usize, reply: Reply) {
        let next = match (&self.config.login, step) {
            (Some(login), 0) if reply.code == 334 => STANDARD.encode(&login.username),
            (Some(login), 1) if reply.code == 334 => STANDARD.encode(login.password.reveal()),
            (Some(_), 2) if reply.code == 235 => return self.ready(),
            _ => return self.fail_at(Stage::Auth, Problem::Refused(reply)),
        };
        self.send(now, Expect::Auth(step + 1), &format!("{next}\r\n"));
    }

    fn mail_reply(&mut self, now: Instant, reply: Reply) {
        let piped = self.capabilities.pipelining;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if !reply.is_positive() {
            transaction.mail_refused = true;
            let failure = ClientFailure::new(Stage::Mail, Problem::Refused(reply));
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

    fn rcpt_reply(&mut self, now: Instant, at: usize, reply: Reply) {
        let piped = self.capabilities.pipelining;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if !reply.is_positive() && transaction.results[at].is_none() {
            let failure = ClientFailure::new(Stage::Recipient, Problem::Refused(reply));
            transaction.results[at] = Some(Err(failure));
        }
        if piped {
            return;
        }
        if at + 1 < transaction.results.len() {
            self.send_rcpt(now, at + 1);
        } else if transaction.open() {
            self.send_data(now);
        } else {
            self.needs_rset = true;
            self.done();
        }
    }

    fn data_reply(&mut self, now: Instant, reply: Reply) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if reply.code == 354 {
            if transaction.open() {
                self.sending_body = true;
                self.deadline = Some(now + self.config.timeouts.block);
            } else {
                // RFC 2920 3.1: DATA was accepted although every recipient was refused; an empty message ends it.
                self.send(now, Expect::EndOfData, ".\r\n");
            }
            return;
        }
        let failure = ClientFailure::new(Stage::Data, Problem::Refused(reply));
        transaction.settle(&Err(failure));
        self.needs_rset = true;
        self.done();
    }

    fn ready(&mut self) {
        self.deadline = None;
        self.events.push_back(Event::Ready);
    }

    fn done(&mut self) {
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

    /// Something broke; the reply that is next tells where.
    fn fail(&mut self, problem: Problem) {
        let stage = match self.expected.front() {
            _ if self.sending_body => Stage::EndOfData,
            _ if self.shaking_hands => Stage::StartTls,
            Some(expect) => expect.stage(),
            None => Stage::Idle,
        };
        self.fail_at(stage, problem);
    }

    fn fail_at(&mut self, stage: Stage, problem: Problem) {
        if self.closed {
            return;
        }
        // A server may hang up on QUIT without a word; the mails are through.
        if stage == Stage::Quit {
            return self.close(None);
        }
        self.close(Some(ClientFailure::new(stage, problem)));
    }

    fn close(&mut self, failure: Option<ClientFailure>) {
        self.closed = true;
        self.out.clear();
        self.expected.clear();
        if let (Some(transaction), Some(failure)) = (&mut self.transaction, &failure) {
            transaction.settle(&Err(failure.clone()));
            self.done();
        }
        self.events.push_back(Event::Closed(failure));
    }
}
