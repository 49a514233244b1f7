//! Small values as they stand in rows: closed enums as one word, structures as JSON.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tasuki_core::store::{StoreError, StoreResult};

/// A unit variant as its serialised name.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// The variant of that name.
pub(crate) fn from_word<T: DeserializeOwned>(word: &str) -> StoreResult<T> {
    serde_json::from_value(serde_json::Value::String(word.into()))
        .map_err(|error| StoreError::Damaged(format!("{word:?}: {error}")))
}

/// Without NUL, which PostgreSQL's texts cannot hold; peers' words may have it.
pub(crate) fn no_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// As JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> StoreResult<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// From JSON.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8]) -> StoreResult<T> {
    serde_json::from_slice(text).map_err(|error| StoreError::Damaged(error.to_string()))
}
