//! What went wrong at a next hop, and whose judgement it is.

use crate::smtp::{EnhancedCode, Reply, ReplyError};

/// Which command's answer it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Name lookup and connecting; never by the machine, for shells that report in the same form.
    Connect,
    /// The greeting.
    Banner,
    /// EHLO or HELO.
    Ehlo,
    /// STARTTLS or the handshake.
    StartTls,
    /// The login.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA.
    Data,
    /// The final dot, or the message itself.
    EndOfData,
    /// RSET.
    Rset,
    /// No command at all.
    Idle,
    /// QUIT.
    Quit,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The server said no.
    #[error("{0}")]
    Refused(Reply),
    /// What it said is no reply.
    #[error(transparent)]
    Garbage(ReplyError),
    /// It closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// It did not answer in time.
    #[error("the server did not answer in time")]
    TimedOut,
    /// Reading, writing or the handshake failed.
    #[error("{0}")]
    Io(String),
    /// STARTTLS is required and not offered.
    #[error("TLS is required and the server does not offer it")]
    NoTls,
    /// A login over TLS that was not verified would show the password to anyone in between.
    #[error("the login needs verified TLS")]
    UnverifiedTls,
    /// Neither PLAIN nor LOGIN is offered.
    #[error("the server offers no login mechanism that we have")]
    NoMechanism,
    /// The connection is not as safe as it must be for this mail; never by the machine, for shells that ask for more.
    #[error("{0}")]
    TlsPolicy(Reply),
    /// The message cannot go to this server as it is: (what our notice says).
    #[error("{0}")]
    Unfit(Reply),
    /// We could not bring the message.
    #[error("{0}")]
    Ours(String),
}

/// A failure at a next hop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ClientFailure {
    /// At which command.
    pub stage: Stage,
    /// What happened.
    pub problem: Problem,
}

impl ClientFailure {
    /// A failure at a stage.
    pub fn new(stage: Stage, problem: Problem) -> Self {
        Self { stage, problem }
    }

    /// The reply, where there was one, or the one we would give.
    pub fn reply(&self) -> Option<&Reply> {
        match &self.problem {
            Problem::Refused(reply) | Problem::Unfit(reply) | Problem::TlsPolicy(reply) => Some(reply),
            _ => None,
        }
    }

    /// Whether this says something about the message or recipient, and not about the route to the next hop. Only then
    /// may a permanent failure bounce it.
    pub fn judges_message(&self) -> bool {
        match &self.problem {
            Problem::Unfit(_) => true,
            Problem::Refused(reply) => {
                let about_mail = matches!(
                    self.stage,
                    Stage::Mail | Stage::Recipient | Stage::Data | Stage::EndOfData
                );
                about_mail && !is_about_route(reply)
            }
            _ => false,
        }
    }

    /// Whether there was no answer to the connection at all.
    pub fn is_silence(&self) -> bool {
        self.stage == Stage::Connect && self.problem == Problem::TimedOut
    }

    /// Whether it judges the message, for good.
    pub fn is_permanent(&self) -> bool {
        self.judges_message() && self.reply().is_some_and(Reply::is_permanent)
    }
}

/// Replies that mean "you, not this mail", whatever they answer: closing (421), a login missing, wrong, expired or too
/// weak (530, 534, 535, 538, 5.7.30), TLS not to be had (454). A 5.7.30 to a mail with REQUIRETLS does not come here: it
/// is [`Problem::Unfit`].
fn is_about_route(reply: &Reply) -> bool {
    matches!(reply.code, 421 | 454 | 530 | 534 | 535 | 538) || reply.enhanced == Some(EnhancedCode(5, 7, 30))
}
