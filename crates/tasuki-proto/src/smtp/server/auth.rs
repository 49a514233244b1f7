//! AUTH PLAIN (RFC 4616) and LOGIN (old copiers), up to the credentials. Whether they are good is the shell's to say.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::smtp::Reply;

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
}

/// What follows a line of the client.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this challenge, stay in the exchange.
    Challenge(Exchange, &'static str),
    /// Ask about these.
    Credentials(Credentials),
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
            Self::Mechanism => Reply::new(504, (5, 5, 4), "mechanism not supported, use PLAIN or LOGIN"),
            Self::Cancelled => Reply::new(501, (5, 7, 0), "authentication cancelled"),
            Self::Malformed => Reply::new(501, (5, 5, 2), "malformed authentication data"),
        }
    }
}

impl Exchange {
    pub(super) fn start(mechanism: &str, initial: Option<&str>) -> Result<Step, AuthError> {
        let exchange = if mechanism.eq_ignore_ascii_case("PLAIN") {
            Self::Plain
        } else if mechanism.eq_ignore_ascii_case("LOGIN") {
            Self::LoginName
        } else {
            return Err(AuthError::Mechanism);
        };
        match initial {
            // RFC 4954 4: "=" is an initial response of length zero.
            Some("=") => exchange.take(String::new()),
            Some(text) => exchange.answer(text),
            None => Ok(match exchange {
                Self::Plain => Step::Challenge(exchange, ""),
                _ => Step::Challenge(exchange, "VXNlcm5hbWU6"),
            }),
        }
    }

    pub(super) fn answer(self, line: &str) -> Result<Step, AuthError> {
        if line == "*" {
            return Err(AuthError::Cancelled);
        }
        let text = STANDARD.decode(line).map_err(|_| AuthError::Malformed)?;
        self.take(String::from_utf8(text).map_err(|_| AuthError::Malformed)?)
    }

    fn take(self, text: String) -> Result<Step, AuthError> {
        match self {
            Self::Plain => plain(&text),
            Self::LoginName => Ok(Step::Challenge(Self::LoginPassword(text), "UGFzc3dvcmQ6")),
            Self::LoginPassword(login) => Ok(credentials(login, text)),
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
