//! Logins by SCRAM-SHA-256 (RFC 7677): the secret never crosses the wire. App passwords only: a verifier of a password
//! that a person made up would be easier to guess at than its argon2id hash.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tasuki_proto::scram::{ITERATIONS, Verifier};

use super::{Accounts, AuthError, Bearer, Refusal, check_name};
use crate::bans::Standing;
use crate::engine::EngineKind;
use crate::limits;
use crate::store::accounts::{Credential, CredentialKind, NewCredential, Principal};

/// A login that has named itself and proved nothing yet.
pub struct ScramLogin {
    name: String,
    salt: [u8; 16],
    /// `None` for a name that is unknown or disabled, which looks the same from outside.
    principal: Option<Arc<Principal>>,
    secrets: Vec<(Verifier, Credential)>,
}

impl ScramLogin {
    /// The salt of all its secrets.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// What is stored of its secrets.
    #[must_use]
    pub fn verifiers(&self) -> Vec<Verifier> {
        self.secrets.iter().map(|(verifier, _)| *verifier).collect()
    }
}

/// One salt for all secrets of a name, so that the proof decides which one was used, and unknown names have one too. It
/// need not be secret, nor random: the secrets have 130 random bits.
fn salt_of(name: &str) -> [u8; 16] {
    let hash = digest(
        &SHA256,
        format!("tasuki SCRAM {}", name.to_ascii_lowercase()).as_bytes(),
    );
    let mut salt = [0; 16];
    salt.copy_from_slice(&hash.as_ref()[..16]);
    salt
}

/// What is stored beside an app password of this name for SCRAM.
pub(super) fn verifier_of(name: &str, secret: &str, app_password: &NewCredential) -> NewCredential {
    let verifier = Verifier::of(secret, &salt_of(name), ITERATIONS);
    let (stored, server) = (
        STANDARD.encode(verifier.stored_key),
        STANDARD.encode(verifier.server_key),
    );
    NewCredential {
        kind: CredentialKind::ScramSha256,
        hash: format!("{}:{stored}:{server}", app_password.hash),
        ..app_password.clone()
    }
}

/// The hash of the app password, and the verifier.
fn parse(hash: &str) -> Option<(&str, Verifier)> {
    let mut parts = hash.split(':');
    let (app_password, stored, server) = (parts.next()?, parts.next()?, parts.next()?);
    let key = |text: &str| <[u8; 32]>::try_from(STANDARD.decode(text).ok()?).ok();
    let verifier = Verifier {
        stored_key: key(stored)?,
        server_key: key(server)?,
    };
    Some((app_password, verifier))
}

impl Accounts {
    /// Begins a login by SCRAM: what is stored of this name's app passwords.
    ///
    /// # Errors
    /// [`AuthError::TooMany`] and [`AuthError::Unavailable`]; an unknown name is no error.
    pub async fn scram(&self, engine: EngineKind, name: &str, from: IpAddr) -> Result<ScramLogin, AuthError> {
        let inner = &*self.inner;
        let standing = inner.bans.standing(engine, from);
        let limited = || inner.limits.take_from(engine, "login", from, limits::LOGINS);
        if matches!(standing, Standing::Banned(_)) || limited().is_err() {
            return Err(AuthError::TooMany);
        }
        if inner.is_guessed_at(engine, name, from) {
            return Err(AuthError::TooMany);
        }
        if let Standing::Slowed(by) = standing {
            tokio::time::sleep(by).await;
        }
        let mut login = ScramLogin {
            name: name.to_owned(),
            salt: salt_of(name),
            principal: None,
            secrets: Vec::new(),
        };
        let Ok(name) = check_name(name) else {
            return Ok(login);
        };
        let principal = inner.store.principal_by_name(&name).await?;
        let Some(principal) = principal.filter(|principal| !principal.disabled) else {
            return Ok(login);
        };
        let credentials = inner.store.credentials(principal.id).await?;
        let of_kind = |kind| credentials.iter().filter(move |c| c.kind == kind);
        for (app_password, verifier) in of_kind(CredentialKind::ScramSha256).filter_map(|c| parse(&c.hash)) {
            // The app password is what was made, listed and revoked; this is only its shadow.
            let owner = of_kind(CredentialKind::AppPassword)
                .find(|c| c.hash == app_password && !inner.is_over(c.expires_at));
            login.secrets.extend(owner.map(|owner| (verifier, owner.clone())));
        }
        login.principal = Some(Arc::new(principal));
        Ok(login)
    }

    /// The login has proved the secret with this place in [`ScramLogin::verifiers`].
    ///
    /// # Errors
    /// [`AuthError::Refused`] if that app password is not for this engine.
    pub fn scram_proved(
        &self,
        engine: EngineKind,
        from: IpAddr,
        login: &ScramLogin,
        which: usize,
    ) -> Result<Arc<Principal>, AuthError> {
        let (Some(principal), Some((_, credential))) = (&login.principal, login.secrets.get(which)) else {
            return Err(AuthError::Refused);
        };
        let bearer = Bearer {
            principal: Arc::clone(principal),
            scope: credential.scope.clone(),
        };
        self.inner.within_scope(engine, from, bearer)
    }

    /// The login has proved none of them: an offence, like a wrong password. Which one was tried cannot be told, so that
    /// all tries at one name count as the same.
    pub fn scram_refused(&self, engine: EngineKind, from: IpAddr, login: &ScramLogin) {
        let inner = &*self.inner;
        let refusal = match &login.principal {
            None => Refusal::UnknownName,
            Some(_) => Refusal::WrongSecret,
        };
        let key = inner.keyed_hash(&login.name, "");
        let offence = inner.offence(refusal, &login.name, &key);
        inner.bans.offence(engine, from, offence);
        inner.tell_refused(&login.name, from, refusal);
    }
}
