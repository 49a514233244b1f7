//! Secrets that must be readable again: sealed with AES-256-GCM under `keys/seal.key`, kept in the store.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::store::{SecretStore, StoreError};

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
        let _ = (name, make, &self.store, &self.key);
        todo!("core1")
    }

    /// The secret under `name`, if there is one.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn load(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        let _ = name;
        todo!("core1")
    }
}
