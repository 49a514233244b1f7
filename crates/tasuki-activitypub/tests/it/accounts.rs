//! No accounts: the fediverse engine asks for none.

use async_trait::async_trait;
use tasuki_core::acl::RuleSpec;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{CredentialId, PrincipalId, RuleId};
use tasuki_core::store::accounts::{
    Credential, CredentialKind, Locked, NewCredential, NewPrincipal, Principal, StoredRule,
};
use tasuki_core::store::{AccountStore, AuditEntry, StoreError, StoreResult};

pub(crate) struct NoAccounts;

fn none<T>() -> StoreResult<T> {
    Err(StoreError::NotFound("an account".to_owned()))
}

#[async_trait]
impl AccountStore for NoAccounts {
    async fn create_principal(&self, _: NewPrincipal, _: AuditEntry) -> StoreResult<Principal> {
        none()
    }
    async fn principals(&self) -> StoreResult<Vec<Principal>> {
        Ok(Vec::new())
    }
    async fn principal_by_name(&self, _: &str) -> StoreResult<Option<Principal>> {
        Ok(None)
    }
    async fn principal(&self, _: PrincipalId) -> StoreResult<Option<Principal>> {
        Ok(None)
    }
    async fn update_principal(&self, _: Principal, _: AuditEntry) -> StoreResult<()> {
        none()
    }
    async fn lock_principal(&self, _: PrincipalId, _: &str, _: AuditEntry) -> StoreResult<bool> {
        none()
    }
    async fn locks(&self) -> StoreResult<Vec<Locked>> {
        Ok(Vec::new())
    }
    async fn delete_principal(&self, _: PrincipalId, _: AuditEntry) -> StoreResult<()> {
        none()
    }
    async fn add_credential(
        &self,
        _: PrincipalId,
        _: NewCredential,
        _: AuditEntry,
    ) -> StoreResult<Credential> {
        none()
    }
    async fn credentials(&self, _: PrincipalId) -> StoreResult<Vec<Credential>> {
        Ok(Vec::new())
    }
    async fn remove_credential(&self, _: CredentialId, _: AuditEntry) -> StoreResult<()> {
        none()
    }
    async fn credential_by_hash(
        &self,
        _: CredentialKind,
        _: &str,
    ) -> StoreResult<Option<(Credential, Principal)>> {
        Ok(None)
    }
    async fn redeem_code(&self, _: &str, _: &str, _: Timestamp, _: AuditEntry) -> StoreResult<Principal> {
        none()
    }
    async fn accounts_version(&self) -> StoreResult<i64> {
        Ok(0)
    }
    async fn rules(&self) -> StoreResult<Vec<StoredRule>> {
        Ok(Vec::new())
    }
    async fn add_rule(&self, _: RuleSpec, _: AuditEntry) -> StoreResult<RuleId> {
        none()
    }
    async fn remove_rule(&self, _: RuleId, _: AuditEntry) -> StoreResult<()> {
        none()
    }
}
