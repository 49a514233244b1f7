//! Lines of the client: one command, or one answer within AUTH.

use std::time::Instant;

use bytes::{Buf as _, BytesMut};

use super::{
    Event, Question, Session, Slot, State, Waiting, Why,
    auth::{Exchange, Step},
    command::{self, Command, LineError},
    replies::{self, Offers},
};
use crate::smtp::{ParamError, Reply, data::DataError, parse_mail, parse_rcpt};

impl Session {
    /// Takes one line off the input; false if there is none, or none that may be used yet.
    pub(super) fn line(&mut self, now: Instant, input: &mut BytesMut) -> bool {
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

    pub(super) fn command_line(&mut self, now: Instant, line: &[u8], more: bool) {
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
            Command::Bdat(args) => self.bdat(now, args),
            Command::Rset => {
                self.reset();
                self.reply(now, replies::OK);
            }
            Command::Noop => self.reply(now, replies::OK),
            Command::Vrfy | Command::Expn => self.reply(now, replies::VRFY),
            Command::Help => self.reply(now, replies::HELP),
            Command::Quit => self.goodbye(replies::BYE, Why::Quit),
        }
    }

    pub(super) fn hello(&mut self, now: Instant, name: &str, esmtp: bool) {
        if !command::is_helo_name(name) {
            return self.reply(now, replies::BAD_HELO);
        }
        self.helo = Some(name.to_owned());
        self.esmtp = esmtp;
        // RFC 5321 4.1.4: EHLO also resets.
        self.reset();
        if esmtp {
            let offers = Offers {
                starttls: self.config.starttls && !self.tls,
                auth: self.config.auth && self.tls && !self.authenticated,
                scram: self.config.scram,
                plus: !self.bindings.is_empty(),
                external: self.external,
                require_tls: self.config.require_tls && self.tls,
            };
            replies::write_ehlo(&self.config, offers, &mut self.out);
        } else {
            self.out.extend_from_slice(b"250 ");
            self.out.extend_from_slice(self.config.host.as_str().as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn start_tls(&mut self, now: Instant) {
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

    pub(super) fn mail(&mut self, now: Instant, args: &str) {
        if self.helo.is_none() {
            return self.reply(now, replies::HELO_FIRST);
        }
        if self.envelope.is_some() {
            return self.reply(now, replies::NESTED_MAIL);
        }
        let envelope = match parse_mail(args, &self.config.legacy_domains) {
            Ok(envelope) => envelope,
            Err(error) => return self.reply(now, error.reply(true)),
        };
        if envelope.size.is_some_and(|size| size > self.config.data.max_size) {
            return self.reply(now, DataError::TooBig.reply());
        }
        // RFC 8689 4.1: a parameter of an extension that this session does not offer.
        if envelope.require_tls && !(self.config.require_tls && self.tls) {
            return self.reply(now, ParamError::UnknownParameter.reply(true));
        }
        self.reset();
        self.envelope = Some(envelope);
        self.ask_and_wait(Waiting::Mail, Question::Mail);
    }

    pub(super) fn rcpt(&mut self, now: Instant, args: &str) {
        let Some(envelope) = &self.envelope else {
            return self.reply(now, replies::MAIL_FIRST);
        };
        if self.chunked.is_some() {
            return self.reply(now, replies::CHUNKS_UNDER_WAY);
        }
        let recipient = match parse_rcpt(
            args,
            envelope.smtputf8,
            &self.config.host,
            &self.config.legacy_domains,
        ) {
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

    pub(super) fn data_command(&mut self, now: Instant) {
        match &self.envelope {
            None => self.reply(now, replies::MAIL_FIRST),
            // RFC 3030 2: DATA and BDAT do not mix.
            Some(_) if self.chunked.is_some() => self.reply(now, replies::CHUNKS_UNDER_WAY),
            Some(envelope) if envelope.recipients.is_empty() => self.reply(now, replies::NO_RECIPIENTS),
            Some(_) => self.ask_and_wait(Waiting::Data, Question::Data),
        }
    }

    pub(super) fn auth(&mut self, now: Instant, mechanism: &str, initial: Option<&str>) {
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
        let bindings = self.config.scram.then_some(self.bindings.as_slice());
        match Exchange::start(mechanism, initial, bindings, self.external) {
            Ok(step) => self.auth_step(now, step),
            Err(error) => self.reply(now, error.reply()),
        }
    }

    pub(super) fn auth_line(&mut self, now: Instant, line: &[u8]) {
        let State::Auth(exchange) = std::mem::replace(&mut self.state, State::Command) else {
            return;
        };
        match command::auth_answer(line)
            .and_then(|text| exchange.answer(text, &self.bindings).map_err(LineError::Auth))
        {
            Ok(step) => self.auth_step(now, step),
            Err(error) => self.reply(now, error.reply()),
        }
    }

    pub(super) fn auth_step(&mut self, now: Instant, step: Step) {
        match step {
            Step::Challenge(exchange, challenge) => self.challenge(exchange, &challenge),
            Step::ScramKeys(first) => {
                let login = first.login.clone();
                self.ask_and_wait(Waiting::Scram(first), Question::ScramKeys(login));
            }
            Step::ScramProved(which) => self.ask_and_wait(Waiting::Auth, Question::ScramProved(which)),
            Step::ScramRefused => self.ask_and_wait(Waiting::Auth, Question::ScramRefused),
            Step::Credentials(credentials) => {
                self.ask_and_wait(Waiting::Auth, Question::Auth(credentials));
            }
            Step::External(name) => self.ask_and_wait(Waiting::Auth, Question::External(name)),
            Step::Refused => self.auth_refused(now, replies::AUTH_FAILED),
        }
    }

    pub(super) fn challenge(&mut self, exchange: Exchange, base64: &str) {
        self.out.extend_from_slice(b"334 ");
        self.out.extend_from_slice(base64.as_bytes());
        self.out.extend_from_slice(b"\r\n");
        self.state = State::Auth(exchange);
    }

    pub(super) fn auth_refused(&mut self, now: Instant, reply: Reply) {
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
