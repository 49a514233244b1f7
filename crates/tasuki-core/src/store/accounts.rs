//! Principals, their credentials and grants, added access rules, and sealed secrets.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{AuditEntry, StoreResult};
use crate::accounts::{Grant, PrincipalKind, Role, Scope};
use crate::acl::RuleSpec;
use crate::clock::Timestamp;
use crate::ids::{CredentialId, PrincipalId, RuleId};

/// A principal as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Its number.
    pub id: PrincipalId,
    /// Its unique name: 1 to 64 of `a-z 0-9 . _ - @`.
    pub name: String,
    /// Person, service, agent or instance.
    pub kind: PrincipalKind,
    /// What it may do to the gateway itself.
    pub role: Role,
    /// What it may do through the engines.
    pub grants: Vec<Grant>,
    /// Switched off: no credential of it is accepted.
    pub disabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A person's password: `hash` is an argon2id PHC string. At most one for each principal.
    Password,
    /// A generated password for one program: `hash` is hex SHA-256 of the secret.
    AppPassword,
    /// What SCRAM needs of an app password: `hash` is that one's `hash`, then the stored key and the server key (RFC 5802
    /// 3) in base64, with colons between. It is good only as long as the app password is.
    ScramSha256,
    /// An API token: `hash` is hex SHA-256 of the secret.
    Token,
    /// A one-time code with which an agent enrols: `hash` is hex SHA-256 of the code.
    EnrolCode,
    /// An agent's public key: `hash` is its fingerprint (hex SHA-256 of the SPKI).
    AgentKey,
    /// The public key of a client's certificate: `hash` is its fingerprint (hex SHA-256 of the SPKI). Nobody else's
    /// certificate has it.
    Certificate,
}

/// A credential as stored. The secret itself is never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its number.
    pub id: CredentialId,
    /// Whose it is.
    pub principal: PrincipalId,
    /// What it is.
    pub kind: CredentialKind,
    /// What proves it; see [`CredentialKind`].
    #[serde(skip_serializing)]
    pub hash: String,
    /// The operator's name for it.
    pub label: String,
    /// What it may be used for.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
}

/// A credential to be stored.
#[derive(Clone, Debug)]
pub struct NewCredential {
    /// What it is.
    pub kind: CredentialKind,
    /// What proves it; see [`CredentialKind`].
    pub hash: String,
    /// The operator's name for it.
    pub label: String,
    /// What it may be used for.
    pub scope: Scope,
    /// When it is made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
}

/// A principal to be stored.
#[derive(Clone, Debug)]
pub struct NewPrincipal {
    /// Its unique name.
    pub name: String,
    /// Person, service, agent or instance.
    pub kind: PrincipalKind,
    /// Its role.
    pub role: Role,
    /// Its first grants.
    pub grants: Vec<Grant>,
    /// Its first credentials.
    pub credentials: Vec<NewCredential>,
    /// When it is made.
    pub created_at: Timestamp,
}

/// An access rule added by command, with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRule {
    /// Its number; rules are tried in the order of their numbers, after the file's.
    pub id: RuleId,
    /// The rule.
    pub rule: RuleSpec,
}

/// A principal that the gateway switched off by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Locked {
    /// Its name.
    pub name: String,
    /// What it did, in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// Verbs for identity and access.
#[async_trait]
pub trait AccountStore: Send + Sync {
    /// Makes a principal. `Conflict` if the name is taken.
    async fn create_principal(&self, new: NewPrincipal, audit: AuditEntry) -> StoreResult<Principal>;
    /// All principals, by name.
    async fn principals(&self) -> StoreResult<Vec<Principal>>;
    /// The principal of that name.
    async fn principal_by_name(&self, name: &str) -> StoreResult<Option<Principal>>;
    /// The principal of that number.
    async fn principal(&self, id: PrincipalId) -> StoreResult<Option<Principal>>;
    /// Replaces role, grants and the disabled switch; one that is switched on is locked no more.
    async fn update_principal(&self, principal: Principal, audit: AuditEntry) -> StoreResult<()>;
    /// Switches a principal off and keeps why; false if it is off already, and then nothing is changed.
    async fn lock_principal(&self, id: PrincipalId, reason: &str, audit: AuditEntry) -> StoreResult<bool>;
    /// Those that are locked, the oldest first.
    async fn locks(&self) -> StoreResult<Vec<Locked>>;
    /// Removes a principal with its credentials. Its endpoints and names become tombstones.
    async fn delete_principal(&self, id: PrincipalId, audit: AuditEntry) -> StoreResult<()>;
    /// Adds a credential; a second [`CredentialKind::Password`] replaces the first. `Conflict` for a
    /// [`CredentialKind::Certificate`] whose key is there already, whoever has it.
    async fn add_credential(
        &self,
        of: PrincipalId,
        new: NewCredential,
        audit: AuditEntry,
    ) -> StoreResult<Credential>;
    /// The credentials of a principal.
    async fn credentials(&self, of: PrincipalId) -> StoreResult<Vec<Credential>>;
    /// Removes a credential. `NotFound` if it is not there.
    async fn remove_credential(&self, id: CredentialId, audit: AuditEntry) -> StoreResult<()>;
    /// The credential of this kind with this hash, with its principal.
    async fn credential_by_hash(
        &self,
        kind: CredentialKind,
        hash: &str,
    ) -> StoreResult<Option<(Credential, Principal)>>;
    /// Spends a one-time code and stores the agent's key in one transaction. `NotFound` if the code is unknown, spent
    /// or expired at `now`. An agent's earlier keys are removed.
    async fn redeem_code(
        &self,
        code_hash: &str,
        key_fingerprint: &str,
        now: Timestamp,
        audit: AuditEntry,
    ) -> StoreResult<Principal>;
    /// A number that grows with every change of principals, credentials or rules; cheap to read.
    async fn accounts_version(&self) -> StoreResult<i64>;
    /// Access rules added by command, in order.
    async fn rules(&self) -> StoreResult<Vec<StoredRule>>;
    /// Adds a rule after the others.
    async fn add_rule(&self, rule: RuleSpec, audit: AuditEntry) -> StoreResult<RuleId>;
    /// Removes a rule. `NotFound` if it is not there.
    async fn remove_rule(&self, id: RuleId, audit: AuditEntry) -> StoreResult<()>;
}

/// Sealed secrets and small facts that all gateways of a store share.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The sealed bytes under `name`.
    async fn secret(&self, name: &str) -> StoreResult<Option<Vec<u8>>>;
    /// Stores `sealed` under `name` unless something is there; returns what is there afterwards (the first wins).
    async fn put_secret_if_absent(&self, name: &str, sealed: Vec<u8>) -> StoreResult<Vec<u8>>;
    /// Stores `sealed` under `name`, replacing what was there.
    async fn replace_secret(&self, name: &str, sealed: Vec<u8>, audit: AuditEntry) -> StoreResult<()>;
    /// Removes `name` if exactly `sealed` is there still; whether it was. What another gateway put there meanwhile stays.
    async fn remove_secret(&self, name: &str, sealed: &[u8], audit: AuditEntry) -> StoreResult<bool>;
    /// A plain fact, for example `server.host` as first used with a subscriber.
    async fn fact(&self, name: &str) -> StoreResult<Option<String>>;
    /// Stores a plain fact.
    async fn put_fact(&self, name: &str, value: &str) -> StoreResult<()>;
}
