//! Making and changing principals and their credentials. A secret that is made here is returned once and never again.

use std::time::Duration;

use super::{Accounts, Grant, PrincipalKind, Role, Scope, scram, secrets};
use crate::failure::BoxError;
use crate::ids::CredentialId;
use crate::seal::Secret;
use crate::store::accounts::{Credential, CredentialKind, NewCredential, NewPrincipal, Principal};
use crate::store::{Actor, StoreError};

/// A principal with a secret that is shown once.
#[derive(Clone, Debug)]
pub struct Made {
    /// Whose it is.
    pub principal: Principal,
    /// Show it now; it is stored only as a hash.
    pub secret: Secret,
}

/// On which terms a secret is generated. By default it is good for everything, for ever.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The operator's name for it; control characters and what is longer than 100 characters are left out.
    pub label: String,
    /// What it may be used for.
    pub scope: Scope,
    /// For how long.
    pub valid_for: Option<Duration>,
}

impl Terms {
    /// The default terms under this label.
    #[must_use]
    pub fn labelled(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }
}

/// Why something was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The name cannot be used.
    #[error("{0:?} cannot be a name: 1 to 64 of a-z, 0-9, . _ - and @ are expected")]
    BadName(String),
    /// The password cannot be used; says why.
    #[error("this password cannot be used: {0}")]
    WeakPassword(&'static str),
    /// The certificate cannot be used; says why.
    #[error("this certificate cannot be used: {0}")]
    BadCertificate(String),
    /// The principal is of another kind.
    #[error("{name} is no {wanted}")]
    WrongKind {
        /// The principal.
        name: String,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// The password could not be hashed now.
    #[error("the password cannot be hashed now")]
    Unavailable(#[source] BoxError),
    /// The store: `Conflict` if the name is taken, `NotFound` if it is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The name in its stored form (lower case), if it can be one.
///
/// # Errors
/// [`MakeError::BadName`].
pub fn check_name(name: &str) -> Result<String, MakeError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-@".contains(&b);
    let lower = name.to_ascii_lowercase();
    if (1..=64).contains(&lower.len()) && lower.bytes().all(allowed) {
        Ok(lower)
    } else {
        Err(MakeError::BadName(name.chars().take(80).collect()))
    }
}

/// Whether a person may have this password.
///
/// # Errors
/// [`MakeError::WeakPassword`] with the reason.
pub fn check_password(name: &str, password: &str) -> Result<(), MakeError> {
    let mut distinct: Vec<char> = password.chars().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let problem = if password.chars().count() < 10 {
        "it has fewer than 10 characters, and shorter ones are guessed"
    } else if password.len() > 256 {
        "it has more than 256 bytes"
    } else if distinct.len() < 4 {
        "it repeats the same few characters"
    } else if password.eq_ignore_ascii_case(name) {
        "it is the name"
    } else if secrets::kind_of(password).is_some() {
        "it begins like a generated secret (tsk_, tsp_, tsc_), which is checked in another way"
    } else if password.chars().any(char::is_control) {
        "it contains a control character"
    } else {
        return Ok(());
    };
    Err(MakeError::WeakPassword(problem))
}

impl Accounts {
    /// Makes a person with a password.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn create_person(
        &self,
        name: &str,
        password: &Secret,
        role: Role,
        grants: Vec<Grant>,
        actor: &Actor,
    ) -> Result<Principal, MakeError> {
        let name = check_name(name)?;
        let credential = self.password(&name, password).await?;
        let kind = PrincipalKind::Person;
        self.create(name, kind, role, grants, vec![credential], actor, "user.add")
            .await
    }

    /// Makes a service (an app or network that sends mail) with its first app password.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn create_service(
        &self,
        name: &str,
        role: Role,
        grants: Vec<Grant>,
        actor: &Actor,
    ) -> Result<Made, MakeError> {
        self.create_service_with(name, role, grants, Terms::labelled("first"), actor)
            .await
    }

    /// As [`Accounts::create_service`], with the terms of its first app password.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn create_service_with(
        &self,
        name: &str,
        role: Role,
        grants: Vec<Grant>,
        terms: Terms,
        actor: &Actor,
    ) -> Result<Made, MakeError> {
        let name = check_name(name)?;
        let (secret, credential) = self.generated(CredentialKind::AppPassword, terms);
        let verifier = scram::verifier_of(&name, secret.expose(), &credential);
        let credentials = vec![credential, verifier];
        let kind = PrincipalKind::Service;
        let principal = self
            .create(name, kind, role, grants, credentials, actor, "service.add")
            .await?;
        Ok(Made { principal, secret })
    }

    /// A one-time code for the agent of this name, valid for `valid_for`; makes the agent with `grants` if it is not
    /// there. The grants of one that is there are kept, with new ones added.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn create_agent_code(
        &self,
        name: &str,
        grants: Vec<Grant>,
        valid_for: Duration,
        actor: &Actor,
    ) -> Result<Made, MakeError> {
        let name = check_name(name)?;
        let terms = Terms {
            valid_for: Some(valid_for),
            ..Terms::labelled("enrolment")
        };
        let (secret, credential) = self.generated(CredentialKind::EnrolCode, terms);
        let Some(mut principal) = self.inner.store.principal_by_name(&name).await? else {
            let kind = PrincipalKind::Agent;
            let principal = self
                .create(
                    name,
                    kind,
                    Role::None,
                    grants,
                    vec![credential],
                    actor,
                    "agent.add",
                )
                .await?;
            return Ok(Made { principal, secret });
        };
        if principal.kind != PrincipalKind::Agent {
            return Err(MakeError::WrongKind {
                name,
                wanted: "agent",
            });
        }
        let before = principal.grants.len();
        for grant in grants {
            if !principal.grants.contains(&grant) {
                principal.grants.push(grant);
            }
        }
        if principal.grants.len() > before {
            self.update(principal.clone(), actor, "agent.grant").await?;
        }
        self.add(&principal, credential, actor, "agent.code").await?;
        Ok(Made { principal, secret })
    }

    /// Gives a person a new password in place of the old one.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn set_password(&self, name: &str, password: &Secret, actor: &Actor) -> Result<(), MakeError> {
        let principal = self.there(name).await?;
        if principal.kind != PrincipalKind::Person {
            return Err(MakeError::WrongKind {
                name: principal.name,
                wanted: "person: services have app passwords, agents have keys",
            });
        }
        let credential = self.password(&principal.name, password).await?;
        self.add(&principal, credential, actor, "user.password").await?;
        Ok(())
    }

    /// A generated password for one program, which can log in to the engines but not use the API.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn new_app_password(
        &self,
        name: &str,
        terms: Terms,
        actor: &Actor,
    ) -> Result<(Credential, Secret), MakeError> {
        self.new_generated(CredentialKind::AppPassword, name, terms, actor)
            .await
    }

    /// An API token with the role and the grants of its principal, within its scope.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn new_token(
        &self,
        name: &str,
        terms: Terms,
        actor: &Actor,
    ) -> Result<(Credential, Secret), MakeError> {
        self.new_generated(CredentialKind::Token, name, terms, actor)
            .await
    }

    /// All principals, by name.
    ///
    /// # Errors
    /// The store's.
    pub async fn principals(&self) -> Result<Vec<Principal>, StoreError> {
        self.inner.store.principals().await
    }

    /// The credentials of this principal; their hashes are not serialised.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn credentials(&self, name: &str) -> Result<Vec<Credential>, MakeError> {
        let principal = self.there(name).await?;
        Ok(self.inner.store.credentials(principal.id).await?)
    }

    /// Removes a credential; `detail` says in the audit what it was and whose.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_credential(
        &self,
        id: CredentialId,
        detail: &str,
        actor: &Actor,
    ) -> Result<(), StoreError> {
        let now = self.inner.clock.wall();
        let audit = actor.entry(now, "credential.remove", id.to_string(), detail);
        self.inner.store.remove_credential(id, audit).await?;
        self.changed();
        Ok(())
    }

    /// Replaces the role of this principal.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn set_role(&self, name: &str, role: Role, actor: &Actor) -> Result<Principal, MakeError> {
        let mut principal = self.there(name).await?;
        principal.role = role;
        self.update(principal, actor, "user.role").await
    }

    /// Replaces the grants of this principal.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn set_grants(
        &self,
        name: &str,
        grants: Vec<Grant>,
        actor: &Actor,
    ) -> Result<Principal, MakeError> {
        let mut principal = self.there(name).await?;
        principal.grants = grants;
        self.update(principal, actor, "user.grants").await
    }

    /// Switches this principal off or on; while off, no credential of it is accepted.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn set_disabled(
        &self,
        name: &str,
        disabled: bool,
        actor: &Actor,
    ) -> Result<Principal, MakeError> {
        let mut principal = self.there(name).await?;
        principal.disabled = disabled;
        let action = if disabled { "user.disable" } else { "user.enable" };
        self.update(principal, actor, action).await
    }

    /// Removes this principal with its credentials.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub async fn delete(&self, name: &str, actor: &Actor) -> Result<(), MakeError> {
        let principal = self.there(name).await?;
        let audit = actor.entry(self.inner.clock.wall(), "user.remove", principal.name, "");
        self.inner.store.delete_principal(principal.id, audit).await?;
        self.changed();
        Ok(())
    }

    pub(super) async fn there(&self, name: &str) -> Result<Principal, MakeError> {
        let name = check_name(name)?;
        let found = self.inner.store.principal_by_name(&name).await?;
        Ok(found.ok_or(StoreError::NotFound(name))?)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a principal, used in this module only"
    )]
    async fn create(
        &self,
        name: String,
        kind: PrincipalKind,
        role: Role,
        grants: Vec<Grant>,
        credentials: Vec<NewCredential>,
        actor: &Actor,
        action: &str,
    ) -> Result<Principal, MakeError> {
        let now = self.inner.clock.wall();
        let mut detail = describe(role, &grants);
        if let Some(end) = credentials.iter().find_map(|c| c.expires_at) {
            detail.push_str(&format!(", secret until {end}"));
        }
        let new = NewPrincipal {
            name: name.clone(),
            kind,
            role,
            grants,
            credentials,
            created_at: now,
        };
        let audit = actor.entry(now, action, name, detail);
        let principal = self.inner.store.create_principal(new, audit).await?;
        self.changed();
        Ok(principal)
    }

    async fn update(
        &self,
        principal: Principal,
        actor: &Actor,
        action: &str,
    ) -> Result<Principal, MakeError> {
        let detail = describe(principal.role, &principal.grants);
        let audit = actor.entry(self.inner.clock.wall(), action, principal.name.as_str(), detail);
        self.inner
            .store
            .update_principal(principal.clone(), audit)
            .await?;
        self.changed();
        Ok(principal)
    }

    pub(super) async fn add(
        &self,
        of: &Principal,
        credential: NewCredential,
        actor: &Actor,
        action: &str,
    ) -> Result<Credential, StoreError> {
        let audit = actor.entry(
            self.inner.clock.wall(),
            action,
            of.name.as_str(),
            terms_in_words(&credential),
        );
        let added = self.inner.store.add_credential(of.id, credential, audit).await?;
        self.changed();
        Ok(added)
    }

    async fn new_generated(
        &self,
        kind: CredentialKind,
        name: &str,
        terms: Terms,
        actor: &Actor,
    ) -> Result<(Credential, Secret), MakeError> {
        let principal = self.there(name).await?;
        let action = if kind == CredentialKind::Token {
            "token.add"
        } else {
            "app-password.add"
        };
        let (secret, credential) = self.generated(kind, terms);
        let verifier = scram::verifier_of(&principal.name, secret.expose(), &credential);
        let added = self.add(&principal, credential, actor, action).await?;
        if kind == CredentialKind::AppPassword {
            let keys = "app-password.key";
            self.add(&principal, verifier, actor, keys).await?;
        }
        Ok((added, secret))
    }

    fn generated(&self, kind: CredentialKind, terms: Terms) -> (Secret, NewCredential) {
        let secret = secrets::generate(kind);
        let now = self.inner.clock.wall();
        let credential = NewCredential {
            kind,
            hash: secrets::hash_generated(secret.expose()),
            label: terms
                .label
                .chars()
                .filter(|c| !c.is_control())
                .take(100)
                .collect(),
            scope: terms.scope,
            created_at: now,
            expires_at: terms.valid_for.map(|d| now.plus(d)),
        };
        (secret, credential)
    }

    async fn password(&self, name: &str, password: &Secret) -> Result<NewCredential, MakeError> {
        check_password(name, password.expose())?;
        let secret = password.clone();
        let hash = self
            .inner
            .pool
            .run(move || secrets::hash_password(secret.expose()))
            .await
            .map_err(|error| MakeError::Unavailable(error.into()))?
            .map_err(|error| MakeError::Unavailable(error.to_string().into()))?;
        Ok(NewCredential {
            kind: CredentialKind::Password,
            hash,
            label: "password".to_owned(),
            scope: Scope::FULL,
            created_at: self.inner.clock.wall(),
            expires_at: None,
        })
    }
}

/// Label, scope and end of a credential in words, for the audit.
fn terms_in_words(credential: &NewCredential) -> String {
    let scope = credential.scope.to_string();
    let scope = if scope.is_empty() {
        scope
    } else {
        format!("scope {scope}")
    };
    let until = credential
        .expires_at
        .map_or_else(String::new, |end| format!("until {end}"));
    let parts = [credential.label.clone(), scope, until];
    let said: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    said.join(", ")
}

/// Role and grants in words, for the audit.
fn describe(role: Role, grants: &[Grant]) -> String {
    let grants: Vec<String> = grants.iter().map(ToString::to_string).collect();
    let grants = if grants.is_empty() {
        "none".to_owned()
    } else {
        grants.join(", ")
    };
    format!("role {role}, grants {grants}")
}
