//! AUTH PLAIN (RFC 4616) and LOGIN (old copiers), up to the credentials, whether they are good is the shell's to say;
//! SCRAM-SHA-256 (RFC 7677), whose keys the shell brings; and EXTERNAL (RFC 4422 A), which points at the client's
//! certificate.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    scram::{self, Binding, ClientFirst, ScramError},
    smtp::Reply,
};

/// A password on its way to be checked; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Hides `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// What a client claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The login name, as sent.
    pub login: String,
    /// The proof.
    pub password: Password,
}

/// Where an exchange stands: what the client's next line is.
#[derive(Debug)]
pub(super) enum Exchange {
    Plain,
    LoginName,
    LoginPassword(String),
    /// The client's first message comes; with channel binding, and whether that was offered.
    Scram {
        plus: bool,
        offered: bool,
    },
    /// The client's proof comes.
    ScramProof(Box<scram::Exchange>),
    /// Our own proof is out; the client, having checked it, sends an empty line (RFC 4954 4).
    ScramEnd(usize),
    /// The client says as whom it wants to act; what proves it is outside.
    External,
}

/// What follows a line of the client.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this challenge, stay in the exchange.
    Challenge(Exchange, String),
    /// Ask about these.
    Credentials(Credentials),
    /// Ask for the keys of this login.
    ScramKeys(Box<ClientFirst>),
    /// The proof fitted this of the keys.
    ScramProved(usize),
    /// The proof fitted none.
    ScramRefused,
    /// The certificate shall say who it is; empty, or the name that it must be.
    External(String),
    /// Well-formed, and nobody's.
    Refused,
}

/// Why an exchange ends without credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthError {
    Mechanism,
    Cancelled,
    Malformed,
}

impl AuthError {
    pub(super) fn reply(self) -> Reply {
        match self {
            Self::Mechanism => Reply::new(
                504,
                (5, 5, 4),
                "mechanism not supported here, EHLO names those that are",
            ),
            Self::Cancelled => Reply::new(501, (5, 7, 0), "authentication cancelled"),
            Self::Malformed => Reply::new(501, (5, 5, 2), "malformed authentication data"),
        }
    }
}

impl Exchange {
    /// `bindings` are what a login may be bound to; `None` where SCRAM is not offered. `external`: whether EXTERNAL is.
    pub(super) fn start(
        mechanism: &str,
        initial: Option<&str>,
        bindings: Option<&[Binding]>,
        external: bool,
    ) -> Result<Step, AuthError> {
        let is = |name: &str| mechanism.eq_ignore_ascii_case(name);
        let offered = bindings.is_some_and(|bindings| !bindings.is_empty());
        let exchange = if is("PLAIN") {
            Self::Plain
        } else if is("LOGIN") {
            Self::LoginName
        } else if is("SCRAM-SHA-256") && bindings.is_some() {
            Self::Scram { plus: false, offered }
        } else if is("SCRAM-SHA-256-PLUS") && offered {
            Self::Scram { plus: true, offered }
        } else if is("EXTERNAL") && external {
            Self::External
        } else {
            return Err(AuthError::Mechanism);
        };
        match initial {
            // RFC 4954 4: "=" is an initial response of length zero.
            Some("=") => exchange.take(String::new(), &[]),
            Some(text) => exchange.answer(text, &[]),
            None => Ok(match exchange {
                Self::LoginName => Step::Challenge(exchange, "VXNlcm5hbWU6".to_owned()),
                _ => Step::Challenge(exchange, String::new()),
            }),
        }
    }

    pub(super) fn answer(self, line: &str, bindings: &[Binding]) -> Result<Step, AuthError> {
        if line == "*" {
            return Err(AuthError::Cancelled);
        }
        let text = STANDARD.decode(line).map_err(|_| AuthError::Malformed)?;
        let text = String::from_utf8(text).map_err(|_| AuthError::Malformed)?;
        self.take(text, bindings)
    }

    fn take(self, text: String, bindings: &[Binding]) -> Result<Step, AuthError> {
        match self {
            Self::Plain => plain(&text),
            Self::LoginName => Ok(Step::Challenge(
                Self::LoginPassword(text),
                "UGFzc3dvcmQ6".to_owned(),
            )),
            Self::LoginPassword(login) => Ok(credentials(login, text)),
            Self::Scram { plus, offered } => match ClientFirst::parse(&text, plus, offered) {
                Ok(first) => Ok(Step::ScramKeys(Box::new(first))),
                Err(ScramError::Binding | ScramError::Proof) => Ok(Step::Refused),
                Err(_) => Err(AuthError::Malformed),
            },
            Self::ScramProof(exchange) => match exchange.verify(&text, bindings) {
                Ok(proved) => Ok(Step::Challenge(
                    Self::ScramEnd(proved.which),
                    STANDARD.encode(proved.server_final),
                )),
                Err(ScramError::Binding | ScramError::Proof) => Ok(Step::ScramRefused),
                Err(_) => Err(AuthError::Malformed),
            },
            Self::ScramEnd(which) if text.is_empty() => Ok(Step::ScramProved(which)),
            Self::ScramEnd(_) => Err(AuthError::Malformed),
            Self::External => Ok(Step::External(text)),
        }
    }
}

fn plain(text: &str) -> Result<Step, AuthError> {
    let mut parts = text.split('\0');
    let (Some(authzid), Some(login), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(AuthError::Malformed);
    };
    // Acting for somebody else is not offered.
    if !authzid.is_empty() && authzid != login {
        return Ok(Step::Refused);
    }
    Ok(credentials(login.to_owned(), password.to_owned()))
}

fn credentials(login: String, password: String) -> Step {
    if login.is_empty() || password.is_empty() {
        return Step::Refused;
    }
    Step::Credentials(Credentials {
        login,
        password: Password(password),
    })
}
