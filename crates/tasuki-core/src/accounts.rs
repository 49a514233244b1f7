//! Identity: principals, what they may do, and how they prove who they are.
//!
//! **Invariant:** unknown, wrong, expired and disabled all look the same from outside, in words and in time. An outage of
//! the store or of the CPU pool is never the caller's offence (invariant 9). No secret reaches a log, an error or a
//! debug print.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::Semaphore;

use crate::bans::{Bans, Offence, Standing};
use crate::clock::{Clock, Timestamp};
use crate::engine::EngineKind;
use crate::events::{EventBus, What};
use crate::failure::BoxError;
use crate::ids::PrincipalId;
use crate::limits::{self, Limits, Who};
use crate::pool::CpuPool;
use crate::store::accounts::{AccountStore, Credential, CredentialKind, Principal};
use crate::store::{Actor, StoreError};

mod cache;
mod certificates;
mod grants;
mod locks;
mod making;
mod scope;
mod scram;
mod secrets;
#[cfg(test)]
mod tests;

use cache::{Follower, Queues, Versioned};
pub use grants::{BadGrant, Grant, MailClass, PrincipalKind, Role};
pub use making::{Made, MakeError, Terms, check_name, check_password};
pub use scope::{BadScope, Scope};
pub use scram::ScramLogin;

/// Why somebody was not let in. Peers see one generic text for all of these but the last two.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Unknown name, wrong secret, disabled or expired: which one is never said.
    #[error("name or secret is wrong")]
    Refused,
    /// Too many failures from this address; try later.
    #[error("too many failed logins; try again later")]
    TooMany,
    /// The store or the CPU pool could not answer; not the caller's fault.
    #[error("logins cannot be checked now")]
    Unavailable(#[source] crate::failure::BoxError),
}

/// Why an enrolment code was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Unknown, spent or expired.
    #[error("this code is wrong, was used already, or has expired; ask the gateway's operator for a new one")]
    Refused,
    /// Too many failures from this address.
    #[error("too many wrong codes from this address; try again later")]
    TooMany,
    /// The store could not answer.
    #[error("codes cannot be checked now")]
    Unavailable(#[source] StoreError),
}

/// The door where names and secrets are checked; cheap to clone.
///
/// Passwords are argon2id on the CPU pool, with a short cache of successes; generated secrets (at least 128 random
/// bits) are compared by SHA-256. Every failure is told to [`Bans`], the same wrong secret only once.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn AccountStore>,
    bans: Bans,
    pool: CpuPool,
    clock: Clock,
    events: EventBus,
    limits: Limits,
    follower: Follower,
    by_id: Versioned<PrincipalId, Arc<Principal>>,
    by_name: Versioned<Box<str>, Arc<Principal>>,
    agents_by_key: Versioned<Box<str>, Arc<Principal>>,
    certificates: Versioned<Box<str>, certificates::Listed>,
    /// Logins that succeeded, by the keyed hash of name and secret.
    successes: Versioned<[u8; 32], Success>,
    queues: Queues,
    /// How many passwords are checked at once, so that a flood of them leaves the pool to others.
    checks: Semaphore,
    /// Keys the hashes of names and secrets that are held in memory.
    salt: [u8; 32],
}

/// Who came with a token, and how far it reaches.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Whose token it is.
    pub principal: Arc<Principal>,
    /// What is left of the principal's rights.
    pub scope: Scope,
}

#[derive(Clone)]
struct Success {
    principal: Arc<Principal>,
    scope: Scope,
    expires_at: Option<Timestamp>,
    at: Instant,
}

/// Principals in each of the caches.
const PRINCIPALS: u64 = 16_384;
/// Logins in the cache of successes,
const SUCCESSES: u64 = 4_096;
/// each for this long.
const SUCCESS_HOLDS: Duration = Duration::from_secs(600);
/// Passwords that are checked at once (19 MiB each);
const CHECKS: usize = 4;
/// others wait for this long, then are told to come again.
const CHECK_WAIT: Duration = Duration::from_secs(10);
/// A longer secret is wrong without looking: RFC 4616 clients send far less.
const LONGEST_SECRET: usize = 1024;

impl Accounts {
    /// The door on top of `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn AccountStore>,
        bans: Bans,
        pool: CpuPool,
        clock: Clock,
        events: EventBus,
    ) -> Self {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).expect("the operating system gives random bytes");
        Self {
            inner: Arc::new(Inner {
                limits: Limits::with_capacity(clock.clone(), 8_192),
                store,
                bans,
                pool,
                clock,
                events,
                follower: Follower::default(),
                by_id: Versioned::new(PRINCIPALS),
                by_name: Versioned::new(PRINCIPALS),
                agents_by_key: Versioned::new(PRINCIPALS),
                certificates: Versioned::new(PRINCIPALS),
                successes: Versioned::new(SUCCESSES),
                queues: Queues::default(),
                checks: Semaphore::new(CHECKS),
                salt,
            }),
        }
    }

    /// Checks a login with a password, an app password or a token as secret, for `engine`, from `from`. A login from an
    /// address that is slowed (see [`Standing::Slowed`]) takes that much longer unless it succeeded lately.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn login(
        &self,
        engine: EngineKind,
        name: &str,
        secret: &str,
        from: IpAddr,
    ) -> Result<Arc<Principal>, AuthError> {
        let inner = &*self.inner;
        let standing = inner.bans.standing(engine, from);
        if matches!(standing, Standing::Banned(_)) {
            return Err(AuthError::TooMany);
        }
        let key = inner.keyed_hash(name, secret);
        if let Some(bearer) = inner.succeeded_lately(&key).await? {
            return inner.within_scope(engine, from, bearer);
        }
        if inner
            .limits
            .take_from(engine, "login", from, limits::LOGINS)
            .is_err()
        {
            return Err(AuthError::TooMany);
        }
        if inner.is_guessed_at(engine, name, from) {
            return Err(AuthError::TooMany);
        }
        if let Standing::Slowed(by) = standing {
            tokio::time::sleep(by).await;
        }
        let _turn = inner.queues.turn(key).await;
        if let Some(bearer) = inner.succeeded_lately(&key).await? {
            return inner.within_scope(engine, from, bearer);
        }
        let version = inner.version().await?;
        match inner.check(name, secret).await? {
            Ok((credential, principal)) => {
                let is_password = credential.kind == CredentialKind::Password;
                let bearer = inner.keep(key, version, credential, principal);
                if is_password {
                    inner.events.emit(What::PasswordUsed {
                        name: bearer.principal.name.clone(),
                    });
                }
                inner.within_scope(engine, from, bearer)
            }
            Err(refusal) => {
                inner
                    .bans
                    .offence(engine, from, inner.offence(refusal, name, &key));
                inner.tell_refused(name, from, refusal);
                Err(AuthError::Refused)
            }
        }
    }

    /// Checks an API token. Wrong ones are limited by address, not banned: they are not guessed.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn token(&self, token: &str, from: IpAddr) -> Result<Bearer, AuthError> {
        let inner = &*self.inner;
        let key = inner.keyed_hash("", token);
        if let Some(bearer) = inner.succeeded_lately(&key).await? {
            return Ok(bearer);
        }
        let version = inner.version().await?;
        let found = if secrets::kind_of(token) == Some(CredentialKind::Token) && token.len() <= LONGEST_SECRET
        {
            inner.by_hash(CredentialKind::Token, token).await?
        } else {
            Err(Refusal::WrongSecret)
        };
        match found {
            Ok((credential, principal)) => Ok(inner.keep(key, version, credential, principal)),
            Err(refusal) => {
                inner.tell_refused("", from, refusal);
                inner
                    .limits
                    .take_for_address(None, "token", from, limits::WRONG_TOKENS)
                    .map_err(|_| AuthError::TooMany)?;
                Err(AuthError::Refused)
            }
        }
    }

    /// Spends a one-time code for the agent whose key has this fingerprint (hex SHA-256 of its SPKI).
    ///
    /// # Errors
    /// See [`CodeError`].
    pub async fn redeem_code(
        &self,
        code: &str,
        fingerprint: &str,
        from: IpAddr,
    ) -> Result<Arc<Principal>, CodeError> {
        let inner = &*self.inner;
        if matches!(inner.bans.standing(EngineKind::Tunnel, from), Standing::Banned(_)) {
            return Err(CodeError::TooMany);
        }
        // Codes are read from paper and screens.
        let code = code.trim().to_ascii_lowercase();
        let wrong = |reason| {
            inner.bans.offence(EngineKind::Tunnel, from, Offence::WrongCode);
            inner.tell_refused("", from, reason);
            match inner
                .limits
                .take_from(EngineKind::Tunnel, "code", from, limits::WRONG_TOKENS)
            {
                Ok(()) => CodeError::Refused,
                Err(_) => CodeError::TooMany,
            }
        };
        if secrets::kind_of(&code) != Some(CredentialKind::EnrolCode) || code.len() > LONGEST_SECRET {
            return Err(wrong(Refusal::WrongCode));
        }
        let now = inner.clock.wall();
        let hash = secrets::hash_generated(&code);
        match inner
            .store
            .credential_by_hash(CredentialKind::EnrolCode, &hash)
            .await
        {
            Err(error) => return Err(CodeError::Unavailable(error)),
            Ok(Some((_, agent))) if agent.disabled => return Err(wrong(Refusal::Disabled)),
            Ok(_) => {}
        }
        let who = format!("key {}", fingerprint.chars().take(16).collect::<String>());
        let audit =
            Actor::principal(&who, from).entry(now, "tunnel.enroll", who.as_str(), "with a one-time code");
        match inner.store.redeem_code(&hash, fingerprint, now, audit).await {
            Ok(principal) => {
                inner.follower.forget();
                inner.bans.proved(from);
                Ok(Arc::new(principal))
            }
            Err(StoreError::NotFound(_)) => Err(wrong(Refusal::WrongCode)),
            Err(error) => Err(CodeError::Unavailable(error)),
        }
    }

    /// The enabled agent with this key fingerprint, if there is one.
    ///
    /// # Errors
    /// The store's.
    pub async fn agent_by_key(
        &self,
        fingerprint: &str,
        from: IpAddr,
    ) -> Result<Option<Arc<Principal>>, StoreError> {
        let inner = &*self.inner;
        let version = inner.version().await?;
        let key = Box::from(fingerprint);
        let found = match inner.agents_by_key.find(&key, version) {
            Some(agent) => Some(agent),
            None => inner
                .store
                .credential_by_hash(CredentialKind::AgentKey, fingerprint)
                .await?
                .filter(|(credential, _)| !inner.is_over(credential.expires_at))
                .map(|(_, agent)| {
                    let agent = Arc::new(agent);
                    inner.agents_by_key.keep(key, version, Arc::clone(&agent));
                    agent
                }),
        };
        let enabled = found.filter(|agent| !agent.disabled);
        if enabled.is_some() {
            inner.bans.proved(from);
        }
        Ok(enabled)
    }

    /// The principal of this name, disabled ones too, from a cache that follows the store's version.
    ///
    /// # Errors
    /// The store's.
    pub async fn by_name(&self, name: &str) -> Result<Option<Arc<Principal>>, StoreError> {
        let inner = &*self.inner;
        let Ok(name) = check_name(name) else {
            return Ok(None);
        };
        let version = inner.version().await?;
        let key = Box::from(name.as_str());
        if let Some(principal) = inner.by_name.find(&key, version) {
            return Ok(Some(principal));
        }
        let found = inner.store.principal_by_name(&name).await?.map(Arc::new);
        if let Some(principal) = &found {
            inner.by_name.keep(key, version, Arc::clone(principal));
        }
        Ok(found)
    }

    /// The principal of this number, disabled ones too, from the same cache.
    ///
    /// # Errors
    /// The store's.
    pub async fn by_id(&self, id: PrincipalId) -> Result<Option<Arc<Principal>>, StoreError> {
        let inner = &*self.inner;
        let version = inner.version().await?;
        if let Some(principal) = inner.by_id.find(&id, version) {
            return Ok(Some(principal));
        }
        let found = inner.store.principal(id).await?.map(Arc::new);
        if let Some(principal) = &found {
            inner.by_id.keep(id, version, Arc::clone(principal));
        }
        Ok(found)
    }

    /// Makes the caches read again at once; for changes made in the store beside this door. Other gateways follow
    /// within a second.
    pub fn changed(&self) {
        self.inner.follower.forget();
    }
}

/// Why a login was refused, for the gateway's own eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    UnknownName,
    WrongSecret,
    Expired,
    Disabled,
    OutOfScope,
    WrongCode,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown name",
            Self::WrongSecret => "wrong secret",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
            Self::OutOfScope => "right, but not for this use",
            Self::WrongCode => "wrong code",
        }
    }
}

type Checked = Result<(Credential, Principal), Refusal>;

impl Inner {
    async fn version(&self) -> Result<i64, StoreError> {
        self.follower.version(&*self.store, &self.clock).await
    }

    /// A login that succeeded under the version that is in force, not too long ago.
    async fn succeeded_lately(&self, key: &[u8; 32]) -> Result<Option<Bearer>, AuthError> {
        let version = self.version().await?;
        let now = self.clock.now();
        Ok(self
            .successes
            .find(key, version)
            .filter(|s| now.saturating_duration_since(s.at) < SUCCESS_HOLDS && !self.is_over(s.expires_at))
            .map(|s| Bearer {
                principal: s.principal,
                scope: s.scope,
            }))
    }

    /// Whether strangers try this name so often that this one must wait too.
    fn is_guessed_at(&self, engine: EngineKind, name: &str, from: IpAddr) -> bool {
        if self.bans.has_proved(from) {
            return false;
        }
        let who = Who::Domain(name.chars().take(100).collect::<String>().to_ascii_lowercase());
        self.limits
            .take(engine, "login-of-name", who, limits::LOGINS_OF_NAME)
            .is_err()
    }

    /// Remembers a success that was read under `version`.
    fn keep(&self, key: [u8; 32], version: i64, credential: Credential, principal: Principal) -> Bearer {
        let bearer = Bearer {
            principal: Arc::new(principal),
            scope: credential.scope,
        };
        let success = Success {
            principal: Arc::clone(&bearer.principal),
            scope: bearer.scope.clone(),
            expires_at: credential.expires_at,
            at: self.clock.now(),
        };
        self.successes.keep(key, version, success);
        bearer
    }

    /// The last question of a login. A secret that is right but made for something else is a mistake of its owner, not
    /// an offence.
    fn within_scope(
        &self,
        engine: EngineKind,
        from: IpAddr,
        bearer: Bearer,
    ) -> Result<Arc<Principal>, AuthError> {
        self.bans.proved(from);
        if bearer.scope.works_in(engine) {
            return Ok(bearer.principal);
        }
        self.tell_refused(&bearer.principal.name, from, Refusal::OutOfScope);
        Err(AuthError::Refused)
    }

    /// Looks the secret up or computes it. The outer error is ours, the inner one the caller's.
    async fn check(&self, name: &str, secret: &str) -> Result<Checked, AuthError> {
        let name = check_name(name).ok();
        let secret = if secret.len() <= LONGEST_SECRET {
            secret
        } else {
            ""
        };
        if let (Some(name), Some(kind @ (CredentialKind::AppPassword | CredentialKind::Token))) =
            (&name, secrets::kind_of(secret))
        {
            let found = self.by_hash(kind, secret).await?;
            return match found {
                Ok((_, principal)) if principal.name != *name => Ok(Err(Refusal::WrongSecret)),
                Err(Refusal::WrongSecret) if self.store.principal_by_name(name).await?.is_none() => {
                    Ok(Err(Refusal::UnknownName))
                }
                found => Ok(found),
            };
        }
        let principal = match &name {
            Some(name) => self.store.principal_by_name(name).await?,
            None => None,
        };
        let credential = match &principal {
            Some(principal) => self.store.credentials(principal.id).await?,
            None => Vec::new(),
        }
        .into_iter()
        .find(|c| c.kind == CredentialKind::Password);
        // Also without a password to compare with, so that the time does not tell who exists.
        let phc = credential.as_ref().map(|c| c.hash.clone());
        let proved = self.verify(secret.to_owned(), phc).await?;
        let Some(principal) = principal else {
            return Ok(Err(Refusal::UnknownName));
        };
        match credential.filter(|_| proved) {
            Some(credential) => Ok(self.valid(credential, principal)),
            None => Ok(Err(Refusal::WrongSecret)),
        }
    }

    async fn by_hash(&self, kind: CredentialKind, secret: &str) -> Result<Checked, StoreError> {
        let hash = secrets::hash_generated(secret);
        let found = self.store.credential_by_hash(kind, &hash).await?;
        Ok(found
            .ok_or(Refusal::WrongSecret)
            .and_then(|(credential, principal)| self.valid(credential, principal)))
    }

    fn valid(&self, credential: Credential, principal: Principal) -> Checked {
        if principal.disabled {
            Err(Refusal::Disabled)
        } else if self.is_over(credential.expires_at) {
            Err(Refusal::Expired)
        } else {
            Ok((credential, principal))
        }
    }

    async fn verify(&self, secret: String, phc: Option<String>) -> Result<bool, AuthError> {
        let secret = zeroize::Zeroizing::new(secret);
        let place = tokio::time::timeout(CHECK_WAIT, self.checks.acquire())
            .await
            .map_err(|_| AuthError::Unavailable("too many logins are being checked".into()))?;
        let proved = self
            .pool
            .run(move || secrets::verify_password(&secret, phc.as_deref()))
            .await;
        drop(place);
        proved.map_err(|error| AuthError::Unavailable(error.into()))
    }

    fn is_over(&self, expires_at: Option<Timestamp>) -> bool {
        expires_at.is_some_and(|end| end <= self.clock.wall())
    }

    /// SHA-256 of name and secret under a key of this process, so that a memory image shows no hash worth guessing at.
    fn keyed_hash(&self, name: &str, secret: &str) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.salt);
        hash.update(&(name.len() as u64).to_be_bytes());
        hash.update(name.as_bytes());
        hash.update(secret.as_bytes());
        let digest = hash.finish();
        let mut key = [0; 32];
        key.copy_from_slice(digest.as_ref());
        key
    }

    fn offence(&self, refusal: Refusal, name: &str, key: &[u8; 32]) -> Offence {
        let short = |key: &[u8; 32]| {
            let mut first = [0; 8];
            first.copy_from_slice(&key[..8]);
            u64::from_be_bytes(first)
        };
        if refusal == Refusal::UnknownName {
            let name_hash = short(&self.keyed_hash(&name.to_ascii_lowercase(), ""));
            Offence::UnknownName { name_hash }
        } else {
            let secret_hash = short(key);
            Offence::WrongSecret { secret_hash }
        }
    }

    fn tell_refused(&self, name: &str, from: IpAddr, refusal: Refusal) {
        let printable = |c: char| if c.is_control() { '?' } else { c };
        self.events.emit(What::LoginRefused {
            name: name.chars().take(64).map(printable).collect(),
            from,
            reason: refusal.reason(),
        });
    }
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(BoxError::from(error))
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accounts")
    }
}
