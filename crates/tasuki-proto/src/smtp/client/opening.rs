//! From the banner to the first mail: EHLO, STARTTLS, login.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;

use super::{Capabilities, Client, Event, Expect, Login, Problem, Proof, Protocol, Security, Stage};
use crate::smtp::Reply;

/// Where a login stands: what the server's next reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginStep {
    /// AUTH LOGIN, or the user name's prompt.
    Name,
    /// The user name.
    Password,
    /// All that we have to say.
    Verdict,
    /// An access token; a 334 explains the refusal that follows an empty line.
    Token,
}

impl Client {
    pub(super) fn say_ehlo(&mut self, now: Instant, expect: Expect) {
        self.parser.keep_lines();
        let verb = match self.config.protocol {
            Protocol::Smtp => "EHLO",
            Protocol::Lmtp => "LHLO",
        };
        let line = format!("{verb} {}\r\n", self.config.helo);
        self.send(now, expect, &line);
    }

    pub(super) fn ehlo_reply(&mut self, now: Instant, expect: Expect, reply: Reply) {
        let lines = self.parser.take_lines();
        if reply.is_positive() {
            if expect != Expect::Helo {
                self.capabilities = Capabilities::parse(&lines);
            }
            return self.after_ehlo(now, expect);
        }
        // RFC 5321 3.2: a server that does not know EHLO gets HELO, unless TLS or a login needs EHLO.
        if expect == Expect::Ehlo && reply.is_permanent() && self.may_be_plain() {
            let line = format!("HELO {}\r\n", self.config.helo);
            return self.send(now, Expect::Helo, &line);
        }
        self.fail_at(Stage::Ehlo, Problem::Refused(reply));
    }

    fn may_be_plain(&self) -> bool {
        matches!(self.config.security, Security::Plain | Security::Opportunistic)
            && self.config.login.is_none()
            && self.config.protocol == Protocol::Smtp
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

    pub(super) fn starttls_reply(&mut self, now: Instant, reply: Reply, input: &mut BytesMut) {
        if reply.code == 220 {
            // RFC 3207 6: what came in the clear behind this reply was not sent by the server we will verify.
            input.clear();
            self.deadline = Some(now + self.config.timeouts.command);
            self.shaking_hands = true;
            self.events.push_back(Event::StartTls);
        } else if self.config.security == Security::Opportunistic {
            self.ready_or_login(now);
        } else {
            self.fail_at(Stage::StartTls, Problem::Refused(reply));
        }
    }

    fn ready_or_login(&mut self, now: Instant) {
        let Some(Login { username, proof }) = self.config.login.clone() else {
            return self.ready();
        };
        if self.tls != Some(true) {
            return self.fail_at(Stage::Auth, Problem::UnverifiedTls);
        }
        let offers = &self.capabilities;
        let (line, step) = match &proof {
            Proof::AccessToken(token) if offers.auth_xoauth2 => {
                let text = format!("user={username}\x01auth=Bearer {}\x01\x01", token.reveal());
                let line = format!("AUTH XOAUTH2 {}\r\n", STANDARD.encode(text));
                (line, LoginStep::Token)
            }
            Proof::Password(password) if offers.auth_plain => {
                let text = STANDARD.encode(format!("\0{username}\0{}", password.reveal()));
                (format!("AUTH PLAIN {text}\r\n"), LoginStep::Verdict)
            }
            Proof::Password(_) if offers.auth_login => ("AUTH LOGIN\r\n".to_owned(), LoginStep::Name),
            _ => return self.fail_at(Stage::Auth, Problem::NoMechanism),
        };
        self.send(now, Expect::Auth(step), &line);
    }

    pub(super) fn auth_reply(&mut self, now: Instant, step: LoginStep, reply: Reply) {
        let Some(Login { username, proof }) = self.config.login.clone() else {
            return self.fail_at(Stage::Auth, Problem::Refused(reply));
        };
        let (next, step) = match (step, reply.code, &proof) {
            (LoginStep::Verdict | LoginStep::Token, 235, _) => return self.ready(),
            (LoginStep::Name, 334, _) => (STANDARD.encode(username), LoginStep::Password),
            (LoginStep::Password, 334, Proof::Password(password)) => {
                (STANDARD.encode(password.reveal()), LoginStep::Verdict)
            }
            // An empty line asks for the refusal itself.
            (LoginStep::Token, 334, _) => (String::new(), LoginStep::Verdict),
            _ => return self.fail_at(Stage::Auth, Problem::Refused(reply)),
        };
        self.send(now, Expect::Auth(step), &format!("{next}\r\n"));
    }

    fn ready(&mut self) {
        self.deadline = None;
        self.events.push_back(Event::Ready);
    }
}
