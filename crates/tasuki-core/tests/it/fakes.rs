//! A store in memory for the tests of policy, which can be told to fail. The real ones have their own contract suite.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use ipnet::IpNet;
use tasuki_core::acl::RuleSpec;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{BanId, CredentialId, PrincipalId, RuleId};
use tasuki_core::store::accounts::{
    Credential, CredentialKind, Locked, NewCredential, NewPrincipal, Principal, StoredRule,
};
use tasuki_core::store::bans::{Ban, NewBan};
use tasuki_core::store::{AccountStore, AuditEntry, BanStore, SecretStore, Sharing, StoreError, StoreResult};
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct FakeStore {
    data: Mutex<Data>,
    version: AtomicI64,
    fails: AtomicBool,
    credentials_read: AtomicU64,
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct Data {
    next: i64,
    pub(crate) principals: Vec<Principal>,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) rules: Vec<StoredRule>,
    pub(crate) secrets: BTreeMap<String, Vec<u8>>,
    facts: BTreeMap<String, String>,
    pub(crate) bans: Vec<Ban>,
    pub(crate) proved: Vec<(IpAddr, Timestamp)>,
    pub(crate) audit: Vec<AuditEntry>,
    locks: Vec<Locked>,
}

impl FakeStore {
    /// Every verb answers `Unavailable` while this is on.
    pub(crate) fn fail(&self, on: bool) {
        self.fails.store(on, Ordering::SeqCst);
    }

    pub(crate) fn data(&self) -> StoreResult<MutexGuard<'_, Data>> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("told to fail".into()));
        }
        Ok(self.data.lock().unwrap())
    }

    /// How often somebody's credentials were read.
    pub(crate) fn credentials_read(&self) -> u64 {
        self.credentials_read.load(Ordering::SeqCst)
    }

    fn change(&self, audit: AuditEntry) -> StoreResult<MutexGuard<'_, Data>> {
        let mut data = self.data()?;
        data.next += 1;
        data.audit.push(audit);
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        self.changed.notify_one();
        Ok(data)
    }
}

impl Data {
    fn add_credential(&mut self, of: PrincipalId, new: NewCredential) -> Credential {
        self.next += 1;
        if new.kind == CredentialKind::Password {
            self.credentials
                .retain(|c| c.principal != of || c.kind != CredentialKind::Password);
        }
        let credential = Credential {
            id: CredentialId(self.next),
            principal: of,
            kind: new.kind,
            hash: new.hash,
            label: new.label,
            scope: new.scope,
            created_at: new.created_at,
            expires_at: new.expires_at,
        };
        self.credentials.push(credential.clone());
        credential
    }
}

fn gone(what: &str) -> StoreError {
    StoreError::NotFound(what.to_owned())
}

#[async_trait]
impl AccountStore for FakeStore {
    async fn create_principal(&self, new: NewPrincipal, audit: AuditEntry) -> StoreResult<Principal> {
        if self.data()?.principals.iter().any(|p| p.name == new.name) {
            return Err(StoreError::Conflict("the name is taken".to_owned()));
        }
        let mut data = self.change(audit)?;
        let principal = Principal {
            id: PrincipalId(data.next),
            name: new.name,
            kind: new.kind,
            role: new.role,
            grants: new.grants,
            disabled: false,
            created_at: new.created_at,
        };
        data.principals.push(principal.clone());
        for credential in new.credentials {
            data.add_credential(principal.id, credential);
        }
        Ok(principal)
    }
    async fn principals(&self) -> StoreResult<Vec<Principal>> {
        Ok(self.data()?.principals.clone())
    }
    async fn principal_by_name(&self, name: &str) -> StoreResult<Option<Principal>> {
        Ok(self.data()?.principals.iter().find(|p| p.name == name).cloned())
    }
    async fn principal(&self, id: PrincipalId) -> StoreResult<Option<Principal>> {
        Ok(self.data()?.principals.iter().find(|p| p.id == id).cloned())
    }
    async fn update_principal(&self, principal: Principal, audit: AuditEntry) -> StoreResult<()> {
        let mut data = self.change(audit)?;
        let there = data.principals.iter_mut().find(|p| p.id == principal.id);
        *there.ok_or_else(|| gone("principal"))? = principal;
        Ok(())
    }
    async fn lock_principal(&self, id: PrincipalId, reason: &str, audit: AuditEntry) -> StoreResult<bool> {
        if !self.data()?.principals.iter().any(|p| p.id == id && !p.disabled) {
            return Ok(false);
        }
        let since = audit.at;
        let mut data = self.change(audit)?;
        let mut named = data.principals.iter_mut().filter(|p| p.id == id);
        let principal = named.next().ok_or_else(|| gone("principal"))?;
        principal.disabled = true;
        let name = principal.name.clone();
        data.locks.push(Locked {
            name,
            reason: reason.to_owned(),
            since,
        });
        Ok(true)
    }
    async fn locks(&self) -> StoreResult<Vec<Locked>> {
        Ok(self.data()?.locks.clone())
    }
    async fn delete_principal(&self, id: PrincipalId, audit: AuditEntry) -> StoreResult<()> {
        let mut data = self.change(audit)?;
        data.principals.retain(|p| p.id != id);
        data.credentials.retain(|c| c.principal != id);
        Ok(())
    }
    async fn add_credential(
        &self,
        of: PrincipalId,
        new: NewCredential,
        audit: AuditEntry,
    ) -> StoreResult<Credential> {
        let is_listed = |c: &Credential| {
            c.kind == CredentialKind::Certificate && (c.kind, &c.hash) == (new.kind, &new.hash)
        };
        if self.data()?.credentials.iter().any(is_listed) {
            return Err(StoreError::Conflict("the key is listed already".to_owned()));
        }
        Ok(self.change(audit)?.add_credential(of, new))
    }
    async fn credentials(&self, of: PrincipalId) -> StoreResult<Vec<Credential>> {
        self.credentials_read.fetch_add(1, Ordering::SeqCst);
        let data = self.data()?;
        Ok(data
            .credentials
            .iter()
            .filter(|c| c.principal == of)
            .cloned()
            .collect())
    }
    async fn remove_credential(&self, id: CredentialId, audit: AuditEntry) -> StoreResult<()> {
        self.change(audit)?.credentials.retain(|c| c.id != id);
        Ok(())
    }
    async fn credential_by_hash(
        &self,
        kind: CredentialKind,
        hash: &str,
    ) -> StoreResult<Option<(Credential, Principal)>> {
        let data = self.data()?;
        let found = data.credentials.iter().find(|c| c.kind == kind && c.hash == hash);
        Ok(found.and_then(|c| {
            let of = data.principals.iter().find(|p| p.id == c.principal)?;
            Some((c.clone(), of.clone()))
        }))
    }
    async fn redeem_code(
        &self,
        code_hash: &str,
        key_fingerprint: &str,
        now: Timestamp,
        audit: AuditEntry,
    ) -> StoreResult<Principal> {
        let found = self
            .credential_by_hash(CredentialKind::EnrolCode, code_hash)
            .await?
            .filter(|(c, _)| c.expires_at.is_none_or(|end| end > now));
        let (code, of) = found.ok_or_else(|| gone("code"))?;
        let mut data = self.change(audit)?;
        data.credentials
            .retain(|c| c.id != code.id && (c.principal != of.id || c.kind != CredentialKind::AgentKey));
        data.add_credential(
            of.id,
            NewCredential {
                kind: CredentialKind::AgentKey,
                hash: key_fingerprint.to_owned(),
                label: String::new(),
                scope: tasuki_core::accounts::Scope::FULL,
                created_at: now,
                expires_at: None,
            },
        );
        Ok(of)
    }
    async fn accounts_version(&self) -> StoreResult<i64> {
        drop(self.data()?);
        Ok(self.version.load(Ordering::SeqCst))
    }
    async fn rules(&self) -> StoreResult<Vec<StoredRule>> {
        Ok(self.data()?.rules.clone())
    }
    async fn add_rule(&self, rule: RuleSpec, audit: AuditEntry) -> StoreResult<RuleId> {
        let mut data = self.change(audit)?;
        let id = RuleId(data.next);
        data.rules.push(StoredRule { id, rule });
        Ok(id)
    }
    async fn remove_rule(&self, id: RuleId, audit: AuditEntry) -> StoreResult<()> {
        self.change(audit)?.rules.retain(|r| r.id != id);
        Ok(())
    }
}

#[async_trait]
impl SecretStore for FakeStore {
    async fn secret(&self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        Ok(self.data()?.secrets.get(name).cloned())
    }
    async fn put_secret_if_absent(&self, name: &str, sealed: Vec<u8>) -> StoreResult<Vec<u8>> {
        Ok(self
            .data()?
            .secrets
            .entry(name.to_owned())
            .or_insert(sealed)
            .clone())
    }
    async fn replace_secret(&self, name: &str, sealed: Vec<u8>, audit: AuditEntry) -> StoreResult<()> {
        self.change(audit)?.secrets.insert(name.to_owned(), sealed);
        Ok(())
    }
    async fn remove_secret(&self, name: &str, sealed: &[u8], audit: AuditEntry) -> StoreResult<bool> {
        let mut data = self.change(audit)?;
        let is_it = data.secrets.get(name).is_some_and(|there| there == sealed);
        Ok(is_it && data.secrets.remove(name).is_some())
    }
    async fn fact(&self, name: &str) -> StoreResult<Option<String>> {
        Ok(self.data()?.facts.get(name).cloned())
    }
    async fn put_fact(&self, name: &str, value: &str) -> StoreResult<()> {
        self.data()?.facts.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

impl Sharing for FakeStore {
    fn is_shared(&self) -> bool {
        true
    }
}

#[async_trait]
impl BanStore for FakeStore {
    async fn bans(&self, now: Timestamp) -> StoreResult<Vec<Ban>> {
        let data = self.data()?;
        let holds = |b: &&Ban| b.until.is_none_or(|until| until > now);
        Ok(data.bans.iter().filter(holds).cloned().collect())
    }
    async fn add_ban(&self, new: NewBan, audit: AuditEntry) -> StoreResult<Ban> {
        let repeats = self.ban_repeats(new.net, new.since).await?;
        let mut data = self.change(audit)?;
        let ban = Ban {
            id: BanId(data.next),
            net: new.net,
            engine: new.engine,
            reason: new.reason,
            by: new.by,
            since: new.since,
            until: new.until,
            repeats,
        };
        data.bans.push(ban.clone());
        Ok(ban)
    }
    async fn remove_ban(&self, id: BanId, audit: AuditEntry) -> StoreResult<()> {
        let now = audit.at;
        let mut data = self.change(audit)?;
        let there = data.bans.iter_mut().find(|b| b.id == id);
        there.ok_or_else(|| gone("ban"))?.until = Some(now);
        Ok(())
    }
    async fn ban_repeats(&self, net: IpNet, now: Timestamp) -> StoreResult<u32> {
        let month = std::time::Duration::from_secs(30 * 86_400);
        let data = self.data()?;
        let count = data
            .bans
            .iter()
            .filter(|b| b.net == net && now.since(b.since) < month);
        Ok(u32::try_from(count.count()).unwrap())
    }
    async fn note_proved(&self, addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()> {
        self.data()?.proved.extend_from_slice(addresses);
        self.changed.notify_waiters();
        self.changed.notify_one();
        Ok(())
    }
    async fn proved(&self, since: Timestamp) -> StoreResult<Vec<IpAddr>> {
        let data = self.data()?;
        Ok(data
            .proved
            .iter()
            .filter(|(_, at)| *at >= since)
            .map(|(ip, _)| *ip)
            .collect())
    }
}
