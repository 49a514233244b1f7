//! Secrets that must be readable again: sealed with AES-256-GCM under `keys/seal.key`, kept in the store.
//!
//! **Invariant:** what leaves this process sealed opens only with the key and under the name it was sealed for; no
//! error and no debug print shows a secret.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::store::{AuditEntry, SecretStore, StoreError};

#[cfg(unix)]
mod key_file;
#[cfg(test)]
mod tests;

#[cfg(unix)]
pub use key_file::{KeyFile, KeyFileError};

/// A text that must not reach a log: `Debug` and `Serialize` show asterisks.
#[derive(Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("***")
    }
}

/// Why a sealed secret was not given.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sealed bytes do not open: another key, or damage.
    #[error("the secret {0:?} does not open with keys/seal.key: restore the key that belongs to this store")]
    WrongKey(String),
}

/// The sealed secrets; clones share the key.
#[derive(Clone)]
pub struct Secrets {
    store: Arc<dyn SecretStore>,
    key: Arc<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Secrets in `store` under `key`.
    #[must_use]
    pub fn new(store: Arc<dyn SecretStore>, key: [u8; 32]) -> Self {
        Self {
            store,
            key: Arc::new(Zeroizing::new(key)),
        }
    }

    /// The secret under `name`, or the one that `make` makes now. With several gateways the first one wins.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn load_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> Vec<u8> + Send,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if let Some(there) = self.load(name).await? {
            return Ok(there);
        }
        let made = Zeroizing::new(make());
        let kept = self
            .store
            .put_secret_if_absent(name, seal(&self.key, name, &made))
            .await?;
        open(&self.key, name, &kept)
    }

    /// The secret under `name`, if there is one.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn load(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        let Some(sealed) = self.store.secret(name).await? else {
            return Ok(None);
        };
        open(&self.key, name, &sealed).map(Some)
    }

    /// Puts `secret` under `name`, replacing what was there.
    ///
    /// # Errors
    /// The store's.
    pub async fn replace(&self, name: &str, secret: &[u8], audit: AuditEntry) -> Result<(), SealError> {
        let sealed = seal(&self.key, name, secret);
        Ok(self.store.replace_secret(name, sealed, audit).await?)
    }

    /// Removes what is under `name` if `is_over` says so of it; whether it is gone by this. What another gateway puts there
    /// meanwhile stays.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn remove_if(
        &self,
        name: &str,
        is_over: impl FnOnce(&[u8]) -> bool + Send,
        audit: AuditEntry,
    ) -> Result<bool, SealError> {
        let Some(sealed) = self.store.secret(name).await? else {
            return Ok(false);
        };
        if !is_over(&open(&self.key, name, &sealed)?) {
            return Ok(false);
        }
        Ok(self.store.remove_secret(name, &sealed, audit).await?)
    }
}

/// The first byte of sealed bytes: AES-256-GCM, the name bound as associated data.
const VERSION: u8 = 1;

/// Version, nonce, ciphertext and tag. The nonces are random: a store holds some hundred secrets, far below the 2^32
/// for which NIST SP 800-38D section 8.3 allows that.
fn seal(key: &[u8; 32], name: &str, secret: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).expect("the operating system gives random bytes");
    let mut sealed = Vec::with_capacity(1 + NONCE_LEN + secret.len() + 16);
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    // Encrypted where it will stay, so that no copy of the secret is left behind.
    sealed.extend_from_slice(secret);
    let tag = aead_key(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            bound_to(name),
            &mut sealed[1 + NONCE_LEN..],
        )
        .expect("a secret is far shorter than AES-GCM's limit of 64 GiB");
    sealed.extend_from_slice(tag.as_ref());
    sealed
}

/// Whether `sealed` opens with `key` under `name`; what is inside is not given.
#[must_use]
pub fn opens(key: &[u8; 32], name: &str, sealed: &[u8]) -> bool {
    open(key, name, sealed).is_ok()
}

fn open(key: &[u8; 32], name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let wrong = || SealError::WrongKey(name.to_owned());
    let (version, rest) = sealed.split_first().ok_or_else(wrong)?;
    let (nonce, ciphertext) = rest.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
    if *version != VERSION {
        return Err(wrong());
    }
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    let length = aead_key(key)
        .open_in_place(nonce, bound_to(name), &mut plain)
        .map_err(|_| wrong())?
        .len();
    plain.truncate(length);
    Ok(plain)
}

fn aead_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

/// A sealed secret that somebody moved under another name does not open there.
fn bound_to(name: &str) -> Aad<Vec<u8>> {
    Aad::from([b"tasuki secret\0", name.as_bytes()].concat())
}
