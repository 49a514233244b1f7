//! The server side of one SMTP connection, as a value.
//!
//! Calling order: [`Session::handle_input`] with what was read, then [`Session::poll_event`] until it is empty, answering
//! each [`Event::Ask`] and [`Event::MessageEnd`] (now or later) by [`Session::handle_answer`]; after an answer or a
//! timeout, `handle_input` again with what was left. The shell reads only while [`Session::wants_input`].
//!
//! The machine knows the protocol and its limits. It does not know who may do what: it asks, and the answer is the reply
//! that the client gets. Replies leave in command order, together, once all input at hand is used up (RFC 2920). A message
//! gets its final reply only from the answer to its `MessageEnd`, which the shell gives after the store's commit.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Envelope, Recipient, Reply,
    data::{DataError, DataReceiver, HeaderEnd},
    parse_mail, parse_rcpt,
};
use crate::names::Mailbox;

mod auth;
mod command;
mod config;
mod replies;
#[cfg(test)]
mod tests;

pub use auth::{Credentials, Password};
pub use config::{ServerConfig, Timers};

use auth::{Exchange, Step};
use command::{Command, LineError};

/// Most questions of one session that may be open at a time; the next RCPT waits.
const MAX_OPEN_QUESTIONS: usize = 16;
/// A body piece is handed out when it has this many octets, and at the end.
const BODY_PIECE: usize = 64 * 1024;

/// Names a question, so that its answer finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u32);

/// What the machine cannot decide by itself. The answer is the reply to the client: 2xx accepts, 421 also closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Are these credentials good? 235 or 535 (454 if it cannot be told now).
    Auth(Credentials),
    /// May this client start a mail with [`Session::envelope`]'s sender and parameters?
    Mail,
    /// May the mail go to this recipient?
    Recipient(Mailbox),
    /// May the data come (memory, disk)? Any positive answer becomes 354.
    Data,
}

/// What the shell has to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Write these octets.
    Reply(Bytes),
    /// Answer this.
    Ask(Ticket, Question),
    /// The next piece of the message; the first one starts with the whole header section, which `header` measures.
    Body {
        /// Octets, unstuffed.
        piece: Bytes,
        /// On the first piece only.
        header: Option<HeaderEnd>,
    },
    /// The message is refused; drop its pieces. (The client hears of it at the end of the data.)
    Discard(DataError),
    /// The message is complete. Answer after the commit, 250 or why not.
    MessageEnd(Ticket, Message),
    /// Write what was given so far, drop everything read, do the TLS handshake, then call [`Session::handle_tls`].
    StartTls,
    /// Write what was given so far and close.
    Close(Why),
}

/// A received message without its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// With the recipients that were accepted.
    pub envelope: Envelope,
    /// Octets, as handed out by [`Event::Body`].
    pub size: u64,
    /// Whether there are octets over 127, whatever the client declared.
    pub eight_bit: bool,
}

/// Why the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// QUIT.
    Quit,
    /// The client closed.
    PeerClosed,
    /// Nothing came for too long.
    Idle,
    /// The session as a whole lasted too long.
    TooLong,
    /// Message data came too slowly.
    TooSlow,
    /// Too many errors.
    TooManyErrors,
    /// Too many refused logins.
    TooManyAuthFailures,
    /// The gateway stops.
    Draining,
    /// Talked before the banner.
    EarlyTalker,
    /// Sent on where the protocol says to wait.
    Unsynchronised,
    /// Speaks another protocol.
    WrongProtocol,
    /// An answer said 421.
    Refused,
}

enum State {
    /// The banner is not out yet; whoever talks now is no mail server.
    GreetPause,
    Command,
    Auth(Exchange),
    Data(Box<DataReceiver>),
    /// `StartTls` is out, the shell shakes hands.
    Tls,
    Closed,
}

/// A question whose answer everything else waits for.
enum Waiting {
    Auth,
    Mail,
    Data,
    Message,
}

/// A RCPT, or a reply that must stay behind one.
struct Slot {
    ticket: Option<Ticket>,
    recipient: Option<Recipient>,
    reply: Option<Reply>,
}

/// One connection. See the module for the calling order.
pub struct Session {
    config: Arc<ServerConfig>,
    state: State,
    tls: bool,
    helo: Option<String>,
    esmtp: bool,
    authenticated: bool,
    envelope: Option<Envelope>,
    waiting: Option<(Ticket, Waiting)>,
    slots: VecDeque<Slot>,
    stalled: bool,
    skipping: bool,
    next_ticket: u32,
    events: VecDeque<Event>,
    out: BytesMut,
    errors: u32,
    auth_failures: u32,
    draining: bool,
    started: Instant,
    last_input: Instant,
    data_since: Instant,
    rate_due: Option<Instant>,
    hold_until: Option<Instant>,
    discarded: bool,
}

impl Session {
    /// A session whose client has just connected; `tls` says whether the handshake is already done (implicit TLS).
    pub fn new(config: Arc<ServerConfig>, tls: bool, now: Instant) -> Self {
        let mut session = Self {
            state: State::GreetPause,
            tls,
            helo: None,
            esmtp: false,
            authenticated: false,
            envelope: None,
            waiting: None,
            slots: VecDeque::new(),
            stalled: false,
            skipping: false,
            next_ticket: 0,
            events: VecDeque::new(),
            out: BytesMut::new(),
            errors: 0,
            auth_failures: 0,
            draining: false,
            started: now,
            last_input: now,
            data_since: now,
            rate_due: None,
            hold_until: None,
            discarded: false,
            config,
        };
        if session.config.timers.greet_pause.is_zero() {
            session.greet();
        }
        session
    }

    /// Whether TLS is on.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// What EHLO or HELO said, and whether it was EHLO.
    pub fn helo(&self) -> Option<(&str, bool)> {
        self.helo.as_deref().map(|name| (name, self.esmtp))
    }

    /// Whether an answer accepted this client's credentials.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// The mail that is being started or received.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_ref()
    }

    /// Whether the machine would use more input now. While not, the shell does not read.
    pub fn wants_input(&self) -> bool {
        !matches!(self.state, State::Closed | State::Tls)
            && self.waiting.is_none()
            && self.hold_until.is_none()
            && !self.stalled
            && self.open_questions() < MAX_OPEN_QUESTIONS
    }

    /// Takes what it can use off `input` and leaves the rest.
    pub fn handle_input(&mut self, now: Instant, input: &mut BytesMut) {
        self.stalled = false;
        if !input.is_empty() {
            self.last_input = now;
        }
        while self.wants_input() && !input.is_empty() {
            match self.state {
                State::GreetPause => self.early_talker(),
                State::Data(_) => self.data(now, input),
                State::Command | State::Auth(_) => {
                    if !self.line(now, input) {
                        break;
                    }
                }
                State::Tls | State::Closed => break,
            }
        }
        if matches!(self.state, State::Tls | State::Closed) {
            // RFC 3207 4.2: nothing that came before the handshake means anything after it.
            input.clear();
        }
    }

    /// The client will send no more.
    pub fn handle_eof(&mut self, _now: Instant) {
        self.close(Why::PeerClosed);
    }

    /// Some deadline of [`Session::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Closed) {
            return;
        }
        if self.hold_until.is_some_and(|at| at <= now) {
            self.hold_until = None;
            self.last_input = now;
        }
        if self.waiting.is_some() || self.hold_until.is_some() {
            return;
        }
        if matches!(self.state, State::GreetPause) && self.started + self.config.timers.greet_pause <= now {
            self.last_input = now;
            self.greet();
        }
        if self.rate_due.is_some_and(|at| at <= now) {
            self.check_rate(now);
        }
        if self.started + self.config.timers.session <= now {
            self.goodbye(replies::SESSION_TOO_LONG, Why::TooLong);
        } else if self.idle_deadline() <= now {
            self.goodbye(replies::IDLE, Why::Idle);
        }
    }

    /// The TLS handshake is done; the session starts over (RFC 3207 4.2).
    pub fn handle_tls(&mut self, now: Instant) {
        self.tls = true;
        self.helo = None;
        self.esmtp = false;
        self.envelope = None;
        self.last_input = now;
        self.state = State::Command;
    }

    /// The gateway stops: ends the session now, or after the message that is on its way.
    pub fn handle_drain(&mut self, _now: Instant) {
        self.draining = true;
        let busy =
            self.waiting.is_some() || matches!(self.state, State::Data(_) | State::Tls | State::Closed);
        if !busy {
            self.goodbye(replies::DRAINING, Why::Draining);
        }
    }

    /// The answer to a question; one for a question that is not open is ignored.
    pub fn handle_answer(&mut self, now: Instant, ticket: Ticket, reply: Reply) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.last_input = now;
        if let Some((_, waiting)) = self.waiting.take_if(|(t, _)| *t == ticket) {
            return self.waited(now, waiting, reply);
        }
        if let Some(slot) = self.slots.iter_mut().find(|s| s.ticket == Some(ticket)) {
            slot.ticket = None;
            slot.reply = Some(reply);
            self.stalled = false;
            self.flush_slots(now);
        }
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        let flush = matches!(
            self.events.front(),
            None | Some(Event::StartTls | Event::Close(_))
        );
        if flush && !self.out.is_empty() && self.hold_until.is_none() {
            return Some(Event::Reply(self.out.split().freeze()));
        }
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] is due. It may move later by itself, never earlier without a call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.state, State::Closed) {
            return None;
        }
        if self.hold_until.is_some() || self.waiting.is_some() {
            return self.hold_until;
        }
        let mut due = self
            .idle_deadline()
            .min(self.started + self.config.timers.session);
        if matches!(self.state, State::GreetPause) {
            due = due.min(self.started + self.config.timers.greet_pause);
        }
        Some(self.rate_due.map_or(due, |at| due.min(at)))
    }

    fn idle_deadline(&self) -> Instant {
        let timers = &self.config.timers;
        self.last_input
            + if matches!(self.state, State::Data(_)) {
                timers.data_idle
            } else {
                timers.command
            }
    }

    fn open_questions(&self) -> usize {
        self.slots.iter().filter(|s| s.ticket.is_some()).count()
    }

    fn greet(&mut self) {
        self.state = State::Command;
        self.out.extend_from_slice(b"220 ");
        self.out.extend_from_slice(self.config.host.as_str().as_bytes());
        self.out.extend_from_slice(b" ESMTP Tasuki\r\n");
        if self.draining {
            self.goodbye(replies::DRAINING, Why::Draining);
        }
    }

    fn early_talker(&mut self) {
        self.goodbye(replies::EARLY_TALKER, Why::EarlyTalker);
    }

    /// Takes one line off the input; false if there is none, or none that may be used yet.
    fn line(&mut self, now: Instant, input: &mut BytesMut) -> bool {
        let Some(end) = memchr::memchr(b'\n', input) else {
            if self.skipping || input.len() > command::MAX_LINE {
                self.skipping = true;
                input.clear();
            }
            return false;
        };
        if std::mem::take(&mut self.skipping) {
            input.advance(end + 1);
            self.state = State::Command;
            self.reply(now, replies::LINE_TOO_LONG);
            return true;
        }
        // Commands after RCPT wait for its answer; those before it have theirs.
        if !self.slots.is_empty() && !command::is_rcpt(&input[..end]) {
            self.stalled = true;
            return false;
        }
        let more = input.len() > end + 1;
        if let State::Auth(_) = self.state {
            self.auth_line(now, &input[..=end]);
        } else {
            self.command_line(now, &input[..=end], more);
        }
        // STARTTLS and QUIT may have ended this input; it is cleared by the caller then.
        input.advance(end + 1);
        true
    }

    fn command_line(&mut self, now: Instant, line: &[u8], more: bool) {
        if self.draining {
            return self.goodbye(replies::DRAINING, Why::Draining);
        }
        let command = match command::parse(line) {
            Ok(command) => command,
            Err(LineError::OtherProtocol) => {
                return self.goodbye(replies::WRONG_PROTOCOL, Why::WrongProtocol);
            }
            Err(error) => return self.reply(now, error.reply()),
        };
        // RFC 2920 3.1: these end a group; a client that sends on has not read what it must read first.
        let ends_group = matches!(
            command,
            Command::Ehlo(_) | Command::Helo(_) | Command::Data | Command::StartTls | Command::Auth(..)
        );
        if ends_group && more {
            return self.goodbye(replies::UNSYNCHRONISED, Why::Unsynchronised);
        }
        match command {
            Command::Ehlo(name) => self.hello(now, name, true),
            Command::Helo(name) => self.hello(now, name, false),
            Command::StartTls => self.start_tls(now),
            Command::Auth(mechanism, initial) => self.auth(now, mechanism, initial),
            Command::Mail(args) => self.mail(now, args),
            Command::Rcpt(args) => self.rcpt(now, args),
            Command::Data => self.data_command(now),
            Command::Rset => {
                self.envelope = None;
                self.reply(now, replies::OK);
            }
            Command::Noop => self.reply(now, replies::OK),
            Command::Vrfy => self.reply(now, replies::VRFY),
            Command::Expn => self.reply(now, replies::NOT_IMPLEMENTED),
            Command::Help => self.reply(now, replies::HELP),
            Command::Quit => self.goodbye(replies::BYE, Why::Quit),
        }
    }

    fn hello(&mut self, now: Instant, name: &str, esmtp: bool) {
        if !command::is_helo_name(name) {
            return self.reply(now, replies::BAD_HELO);
        }
        self.helo = Some(name.to_owned());
        self.esmtp = esmtp;
        // RFC 5321 4.1.4: EHLO also resets.
        self.envelope = None;
        if esmtp {
            let offers_tls = self.config.starttls && !self.tls;
            let offers_auth = self.config.auth && self.tls && !self.authenticated;
            replies::write_ehlo(&self.config, offers_tls, offers_auth, &mut self.out);
        } else {
            self.out.extend_from_slice(b"250 ");
            self.out.extend_from_slice(self.config.host.as_str().as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn start_tls(&mut self, now: Instant) {
        if !self.config.starttls {
            return self.reply(now, replies::NOT_IMPLEMENTED);
        }
        if self.tls || self.helo.is_none() {
            return self.reply(now, replies::BAD_SEQUENCE);
        }
        self.reply(now, replies::START_TLS);
        self.events.push_back(Event::StartTls);
        self.state = State::Tls;
    }

    fn mail(&mut self, now: Instant, args: &str) {
        if self.helo.is_none() {
            return self.reply(now, replies::HELO_FIRST);
        }
        if self.envelope.is_some() {
            return self.reply(now, replies::NESTED_MAIL);
        }
        let envelope = match parse_mail(args) {
            Ok(envelope) => envelope,
            Err(error) => return self.reply(now, error.reply(true)),
        };
        if envelope.size.is_some_and(|size| size > self.config.data.max_size) {
            return self.reply(now, DataError::TooBig.reply());
        }
        self.envelope = Some(envelope);
        self.ask_and_wait(Waiting::Mail, Question::Mail);
    }

    fn rcpt(&mut self, now: Instant, args: &str) {
        let Some(envelope) = &self.envelope else {
            return self.reply(now, replies::MAIL_FIRST);
        };
        let recipient = match parse_rcpt(args, envelope.smtputf8, &self.config.host) {
            Ok(recipient) => recipient,
            Err(error) => return self.reply(now, error.reply(false)),
        };
        if envelope.recipients.len() + self.open_questions() >= self.config.max_recipients {
            return self.reply(now, replies::TOO_MANY_RECIPIENTS);
        }
        let ticket = self.ticket();
        self.events
            .push_back(Event::Ask(ticket, Question::Recipient(recipient.mailbox.clone())));
        self.slots.push_back(Slot {
            ticket: Some(ticket),
            recipient: Some(recipient),
            reply: None,
        });
    }

    fn data_command(&mut self, now: Instant) {
        match &self.envelope {
            None => self.reply(now, replies::MAIL_FIRST),
            Some(envelope) if envelope.recipients.is_empty() => self.reply(now, replies::NO_RECIPIENTS),
            Some(_) => self.ask_and_wait(Waiting::Data, Question::Data),
        }
    }

    fn data(&mut self, now: Instant, input: &mut BytesMut) {
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

    fn end_of_data(&mut self) {
        self.state = State::Command;
        self.rate_due = None;
    }

    fn after_message(&mut self) {
        if self.draining && !matches!(self.state, State::Closed) {
            self.goodbye(replies::DRAINING, Why::Draining);
        }
    }

    fn check_rate(&mut self, now: Instant) {
        let State::Data(receiver) = &self.state else {
            return;
        };
        let elapsed = now.saturating_duration_since(self.data_since).as_secs();
        if receiver.size() < elapsed.saturating_mul(self.config.timers.min_rate) {
            return self.goodbye(replies::TOO_SLOW, Why::TooSlow);
        }
        self.rate_due = Some(now + self.config.timers.rate_after);
    }

    fn waited(&mut self, now: Instant, waiting: Waiting, reply: Reply) {
        let accepted = reply.is_positive();
        match waiting {
            Waiting::Auth if accepted => {
                self.authenticated = true;
                self.auth_failures = 0;
                self.reply(now, reply);
            }
            Waiting::Auth => self.auth_refused(now, reply),
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
            Waiting::Message => {
                self.reply(now, reply);
                self.after_message();
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        Ticket(self.next_ticket)
    }

    fn ask_and_wait(&mut self, waiting: Waiting, question: Question) {
        let ticket = self.ticket();
        self.waiting = Some((ticket, waiting));
        self.events.push_back(Event::Ask(ticket, question));
    }

    /// Gives a reply now, or behind the RCPTs that are still open.
    fn reply(&mut self, now: Instant, reply: Reply) {
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

    fn flush_slots(&mut self, now: Instant) {
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
    fn write(&mut self, now: Instant, reply: &Reply) {
        if matches!(self.state, State::Closed) {
            return;
        }
        reply.write(&mut self.out);
        if reply.code == 421 {
            return self.close(Why::Refused);
        }
        if reply.code < 400 {
            return;
        }
        self.errors += 1;
        if self.errors >= self.config.max_errors {
            self.goodbye(replies::TOO_MANY_ERRORS, Why::TooManyErrors);
        } else if self.errors >= self.config.soft_errors {
            self.hold_until = Some(now + self.config.timers.error_delay);
        }
    }

    fn goodbye(&mut self, reply: Reply, why: Why) {
        if !matches!(self.state, State::Closed) {
            reply.write(&mut self.out);
            self.close(why);
        }
    }

    fn close(&mut self, why: Why) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.state = State::Closed;
        self.waiting = None;
        self.slots.clear();
        self.envelope = None;
        self.hold_until = None;
        self.rate_due = None;
        self.events.push_back(Event::Close(why));
    }

    fn auth(&mut self, now: Instant, mechanism: &str, initial: Option<&str>) {
        if !self.config.auth {
            return self.reply(now, replies::NOT_IMPLEMENTED);
        }
        if !self.tls {
            // RFC 4954 4: the client has just shown its password in the clear, or was about to.
            return self.reply(now, replies::AUTH_NEEDS_TLS);
        }
        if self.helo.is_none() || self.authenticated || self.envelope.is_some() {
            return self.reply(now, replies::BAD_SEQUENCE);
        }
        match Exchange::start(mechanism, initial) {
            Ok(step) => self.auth_step(now, step),
            Err(error) => self.reply(now, error.reply()),
        }
    }

    fn auth_line(&mut self, now: Instant, line: &[u8]) {
        let State::Auth(exchange) = std::mem::replace(&mut self.state, State::Command) else {
            return;
        };
        match command::auth_answer(line).and_then(|text| exchange.answer(text).map_err(LineError::Auth)) {
            Ok(step) => self.auth_step(now, step),
            Err(error) => self.reply(now, error.reply()),
        }
    }

    fn auth_step(&mut self, now: Instant, step: Step) {
        match step {
            Step::Challenge(exchange, challenge) => {
                self.out.extend_from_slice(b"334 ");
                self.out.extend_from_slice(challenge.as_bytes());
                self.out.extend_from_slice(b"\r\n");
                self.state = State::Auth(exchange);
            }
            Step::Credentials(credentials) => {
                self.ask_and_wait(Waiting::Auth, Question::Auth(credentials));
            }
            Step::Refused => self.auth_refused(now, replies::AUTH_FAILED),
        }
    }

    fn auth_refused(&mut self, now: Instant, reply: Reply) {
        // 4xx is our own trouble and does not count against the client.
        if reply.is_permanent() {
            self.auth_failures += 1;
            if self.auth_failures >= self.config.max_auth_failures {
                reply.write(&mut self.out);
                return self.goodbye(replies::TOO_MANY_AUTH_FAILURES, Why::TooManyAuthFailures);
            }
        }
        self.reply(now, reply);
        if !matches!(self.state, State::Closed) {
            self.hold_until = Some(now + self.config.timers.error_delay);
        }
    }
}
