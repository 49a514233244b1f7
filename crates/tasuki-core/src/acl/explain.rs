//! What would be decided and why, in words, without doing anything.

use std::fmt;

use super::{Acl, Action, Answer, Effect, Origin, Question};
use crate::bans::{Bans, Standing};
use crate::engine::EngineKind;
use crate::store::accounts::Principal;

/// One decision with everything that bears on it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The engine that would ask; rules about the admin API ask for none.
    pub engine: Option<EngineKind>,
    /// What is wanted.
    pub action: Action,
    /// The rules' answer.
    pub answer: Answer,
    /// What is held against the address, if one was named.
    pub standing: Option<Standing>,
    /// What holds when no rule matches, for this principal.
    otherwise: String,
}

impl Explanation {
    /// Whether the address is banned there, whatever the rules say.
    #[must_use]
    pub const fn is_banned(&self) -> bool {
        matches!(self.standing, Some(Standing::Banned(_)))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Answer::Rule {
                effect,
                origin,
                reason,
            } => {
                let done = match effect {
                    Effect::Allow => "allowed",
                    Effect::Deny => "denied",
                };
                let why = if reason.is_empty() {
                    "no reason given"
                } else {
                    reason
                };
                write!(f, "{done} by {origin} ({why})")?;
            }
            Answer::Default => write!(f, "no rule matches; {}", self.otherwise)?,
        }
        match &self.standing {
            Some(Standing::Banned(reason)) => write!(
                f,
                ". But the address is banned there: {reason} (see `tasuki ban list`)"
            ),
            Some(Standing::Slowed(by)) => write!(
                f,
                ". It offended lately, so its logins there take {} s longer",
                by.as_secs_f32()
            ),
            Some(Standing::Clear) | None => Ok(()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(n) => write!(f, "rule {n} of the configuration file"),
            Self::Store(id) => write!(f, "added rule {id}"),
        }
    }
}

impl Acl {
    /// Which rule would decide, from where, and why; and whether a ban stands in the way all the same.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>, bans: &Bans) -> Explanation {
        let engine = (question.action != Action::Admin).then_some(question.engine);
        Explanation {
            engine,
            action: question.action,
            answer: self.decide(question),
            // Bans keep peers from engines; the admin API is not one.
            standing: engine
                .zip(question.from)
                .map(|(engine, from)| bans.standing(engine, from)),
            otherwise: otherwise(question.action, question.principal),
        }
    }
}

/// What holds for an action without a rule, in words; the same as the documentation of [`Action`].
fn otherwise(action: Action, principal: Option<&Principal>) -> String {
    let general = match action {
        Action::Connect => "by default everybody may connect",
        Action::Relay => "by default only what the sender's grants say (mail:send:...)",
        Action::Subscribe => "by default what fediverse.mode says",
        Action::Publish => "by default only subscribed instances, and those with the grant fedi:publish",
        Action::Expose => "by default only what the agent's grants say (tunnel:...)",
        Action::Visit => "by default everybody may visit",
        Action::Admin => "by default what the caller's role says",
    };
    match principal.and_then(|principal| held(action, principal)) {
        Some(held) => format!("{general}; {held}"),
        None => general.to_owned(),
    }
}

/// What the principal has that bears on the action.
fn held(action: Action, principal: &Principal) -> Option<String> {
    let name = &principal.name;
    let part = match action {
        Action::Relay => "mail:send:",
        Action::Publish => "fedi:publish",
        Action::Expose => "tunnel:",
        Action::Admin => return Some(format!("{name} has the role {}", principal.role)),
        Action::Connect | Action::Subscribe | Action::Visit => return None,
    };
    if principal.disabled {
        return Some(format!("{name} is switched off and may do nothing"));
    }
    let grants: Vec<String> = principal
        .grants
        .iter()
        .map(ToString::to_string)
        .filter(|grant| grant.starts_with(part))
        .collect();
    Some(if grants.is_empty() {
        format!("{name} holds none")
    } else {
        format!("{name} holds {}", grants.join(", "))
    })
}
