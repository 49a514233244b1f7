//! The server side of one SMTP connection, as a value.
//!
//! Calling order: [`Session::handle_input`] with what was read, then [`Session::poll_event`] until it is empty, answering
//! each [`Event::Ask`] and [`Event::MessageEnd`] (now or later) by [`Session::handle_answer`]; after an answer or a
//! timeout, `handle_input` again with what was left. The shell reads only while [`Session::wants_input`].
//!
//! The machine knows the protocol and its limits. It does not know who may do what: it asks, and the answer is the reply
//! that the client gets. Replies leave in command order, together, once all input at hand is used up (RFC 2920). A message
//! gets its final reply only from the answer to its `MessageEnd`, which the shell gives after the store's commit.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;

use super::{Envelope, Recipient, Reply, data::DataReceiver};
use crate::scram::{Binding, ClientFirst, Verifier};

mod answers;
mod auth;
mod chunks;
mod command;
mod config;
mod event;
mod lines;
mod message;
mod replies;

pub use auth::{Credentials, Password};
pub use config::{ServerConfig, Timers};
pub use event::{Event, Message, Question, Ticket, Why};

use auth::Exchange;
use chunks::{Chunk, Chunked};

/// Most questions of one session that may be open at a time; the next RCPT waits.
const MAX_OPEN_QUESTIONS: usize = 16;
/// A body piece is handed out when it has this many octets, and at the end.
const BODY_PIECE: usize = 64 * 1024;

enum State {
    /// The banner is not out yet; whoever talks now is no mail server.
    GreetPause,
    Command,
    Auth(Exchange),
    Data(Box<DataReceiver>),
    /// Within a chunk of BDAT.
    Chunk(Chunk),
    /// `StartTls` is out, the shell shakes hands.
    Tls,
    Closed,
}

/// A question whose answer everything else waits for.
enum Waiting {
    Auth,
    Scram(Box<ClientFirst>),
    Mail,
    Data,
    Chunk(Chunk),
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
    bindings: Vec<Binding>,
    /// Whether the client's certificate is somebody's.
    external: bool,
    helo: Option<String>,
    esmtp: bool,
    authenticated: bool,
    envelope: Option<Envelope>,
    /// The message that comes by BDAT.
    chunked: Option<Chunked>,
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
            bindings: Vec::new(),
            external: false,
            helo: None,
            esmtp: false,
            authenticated: false,
            envelope: None,
            chunked: None,
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
                State::Chunk(_) => self.chunk(now, input),
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

    /// For so long the shell did not read, because storing a piece of the message took it: our own slowness is never the
    /// client's.
    pub fn handle_held(&mut self, held: Duration) {
        self.last_input += held;
        self.data_since += held;
        self.rate_due = self.rate_due.map(|at| at + held);
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
        self.external = false;
        self.helo = None;
        self.esmtp = false;
        self.reset();
        self.last_input = now;
        self.state = State::Command;
    }

    /// What logins may be bound to, known once TLS is on (RFC 9266).
    pub fn set_bindings(&mut self, bindings: Vec<Binding>) {
        self.bindings = bindings;
    }

    /// Whether the client showed a certificate under which it may log in, known once TLS is on; then EXTERNAL is offered.
    pub fn set_external(&mut self, external: bool) {
        self.external = external;
    }

    /// The keys for a [`Question::ScramKeys`]. `seed` is fresh randomness.
    pub fn handle_scram(
        &mut self,
        now: Instant,
        ticket: Ticket,
        seed: &[u8; 18],
        salt: &[u8],
        verifiers: Vec<Verifier>,
    ) {
        let due =
            |(due, waiting): &mut (Ticket, Waiting)| *due == ticket && matches!(waiting, Waiting::Scram(_));
        if let Some((_, Waiting::Scram(first))) = self.waiting.take_if(due) {
            self.last_input = now;
            let (exchange, text) = first.challenge(seed, salt, verifiers);
            self.challenge(Exchange::ScramProof(Box::new(exchange)), &STANDARD.encode(text));
        }
    }

    /// The gateway stops: ends the session now, or after the message that is on its way.
    pub fn handle_drain(&mut self, _now: Instant) {
        self.draining = true;
        let busy = self.waiting.is_some()
            || matches!(
                self.state,
                State::Data(_) | State::Chunk(_) | State::Tls | State::Closed
            );
        if !busy {
            self.goodbye(replies::DRAINING, Why::Draining);
        }
    }

    /// The time to finish is over: also a message that is still coming gets 421 and is given up, so that its sender knows
    /// that it was not taken (RFC 5321 3.8). One that is being stored is still answered.
    pub fn handle_cut(&mut self, _now: Instant) {
        self.draining = true;
        if self.waiting.is_none() && !matches!(self.state, State::Tls | State::Closed) {
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
            + if matches!(self.state, State::Data(_) | State::Chunk(_)) {
                timers.data_idle
            } else {
                timers.command
            }
    }

    /// Forgets the mail that was started.
    fn reset(&mut self) {
        self.envelope = None;
        if let Some(Chunked::Taking(_)) = self.chunked.take() {
            self.events.push_back(Event::Discard(None));
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
}
