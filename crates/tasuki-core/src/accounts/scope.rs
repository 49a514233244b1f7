//! What one credential may be used for: never more than its principal may, perhaps less.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Role;
use crate::engine::EngineKind;

/// The narrowing of a credential. Written as words: `read`, `mail`, `fediverse`, `tunnel`, for example `read mail`; the
/// empty text narrows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Scope {
    read_only: bool,
    engine: Option<EngineKind>,
}

/// The text is not a scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope; known: read, and one of mail, fediverse, tunnel")]
pub struct BadScope(String);

impl Scope {
    /// Everything that the principal may.
    pub const FULL: Self = Self {
        read_only: false,
        engine: None,
    };

    /// Only reading, and only in `engine` if one is named.
    #[must_use]
    pub const fn new(read_only: bool, engine: Option<EngineKind>) -> Self {
        Self { read_only, engine }
    }

    /// Whether the credential does work in this engine: hands in mail, publishes. One that only reads does not.
    #[must_use]
    pub fn works_in(&self, engine: EngineKind) -> bool {
        !self.read_only && self.engine.is_none_or(|only| only == engine)
    }

    /// Whether the credential reaches the part of the admin API that belongs to `engine`, or to none of them.
    #[must_use]
    pub fn reaches(&self, engine: Option<EngineKind>) -> bool {
        self.engine.is_none() || self.engine == engine
    }

    /// The role that is left of its principal's.
    #[must_use]
    pub fn role(&self, of_principal: Role) -> Role {
        if self.read_only {
            of_principal.min(Role::Viewer)
        } else {
            of_principal
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.read_only, self.engine) {
            (false, None) => Ok(()),
            (true, None) => f.write_str("read"),
            (false, Some(engine)) => write!(f, "{engine}"),
            (true, Some(engine)) => write!(f, "read {engine}"),
        }
    }
}

impl FromStr for Scope {
    type Err = BadScope;
    fn from_str(text: &str) -> Result<Self, BadScope> {
        let bad = || BadScope(text.chars().take(80).collect());
        let mut scope = Self::FULL;
        for word in text.split_whitespace() {
            match word.parse::<EngineKind>() {
                _ if word == "read" => scope.read_only = true,
                Ok(engine) if scope.engine.is_none_or(|known| known == engine) => scope.engine = Some(engine),
                _ => return Err(bad()),
            }
        }
        Ok(scope)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl TryFrom<String> for Scope {
    type Error = BadScope;
    fn try_from(text: String) -> Result<Self, BadScope> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::Scope;
    use crate::accounts::Role;
    use crate::engine::EngineKind::{Fediverse, Mail};

    #[test]
    fn scopes_survive_their_text_form_and_nonsense_is_refused() {
        for text in ["", "read", "mail", "read tunnel"] {
            assert_eq!(text.parse::<Scope>().expect(text).to_string(), text);
        }
        for text in ["write", "mail tunnel", "read,mail"] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_scope_takes_away_and_never_gives() {
        let read_mail = Scope::new(true, Some(Mail));
        assert_eq!(read_mail.role(Role::Admin), Role::Viewer);
        assert_eq!(read_mail.role(Role::None), Role::None);
        assert!(
            read_mail.reaches(Some(Mail)) && !read_mail.reaches(Some(Fediverse)) && !read_mail.reaches(None)
        );
        assert!(!read_mail.works_in(Mail), "it only reads");
        assert!(Scope::new(false, Some(Mail)).works_in(Mail));
        assert!(!Scope::new(false, Some(Mail)).works_in(Fediverse));
        assert!(Scope::FULL.reaches(None) && Scope::FULL.works_in(Mail));
    }
}
