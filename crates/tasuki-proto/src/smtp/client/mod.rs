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

use bytes::{Bytes, BytesMut};

use super::{Envelope, Reply, ReplyParser};
use crate::smtp::server::Password;

mod capabilities;
mod failure;
mod opening;
#[cfg(test)]
mod tests;
mod transaction;

pub use capabilities::Capabilities;
pub use failure::{ClientFailure, Problem, Stage};
use opening::LoginStep;
use transaction::Transaction;

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
    /// What shows that we are that user.
    pub proof: Proof,
}

/// What shows who we are at a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// For AUTH PLAIN and LOGIN.
    Password(Password),
    /// An OAuth 2.0 access token, for AUTH XOAUTH2.
    AccessToken(Password),
}

/// What is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    #[default]
    Smtp,
    /// RFC 2033: delivery to a mail store, with a reply for each recipient at the end.
    Lmtp,
}

/// How to talk to a next hop.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// SMTP or LMTP.
    pub protocol: Protocol,
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
    Auth(LoginStep),
    Rset,
    Mail,
    Rcpt(usize),
    Data,
    /// With LMTP: of this recipient.
    EndOfData(Option<usize>),
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
            Self::EndOfData(_) => Stage::EndOfData,
            Self::Quit => Stage::Quit,
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
                Expect::EndOfData(_) => timeouts.end_of_data,
                Expect::Quit => timeouts.command.min(Duration::from_secs(5)),
                _ => timeouts.command,
            }
        });
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
            Expect::Banner => self.fail_at(Stage::Banner, Problem::Refused(reply)),
            Expect::Ehlo | Expect::Ehlo2 | Expect::Helo => self.ehlo_reply(now, expect, reply),
            Expect::StartTls => self.starttls_reply(now, reply, input),
            Expect::Auth(step) => self.auth_reply(now, step, reply),
            Expect::Rset if reply.is_positive() => {}
            Expect::Rset => self.fail_at(Stage::Rset, Problem::Refused(reply)),
            Expect::Mail => self.mail_reply(now, reply),
            Expect::Rcpt(at) => self.rcpt_reply(now, at, reply),
            Expect::Data => self.data_reply(now, reply),
            Expect::EndOfData(at) => self.end_of_data_reply(at, reply),
            Expect::Quit => self.close(None),
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
