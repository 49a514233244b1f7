//! Handing a running gateway over to another process: sockets, and what is known of the connections on them.
//!
//! The two processes speak over one Unix socket pair. What is handed over is a row of [`Item`]s: each has a name, a small
//! JSON document, some bytes, and a file descriptor if there is one (SCM_RIGHTS, unix(7)). Parts of the gateway make items
//! and take them back by name, so this module knows none of them.
//!
//! The order of [`Word`]s is a commit in two steps: until the older process has said [`Word::Commit`] it can go on by
//! itself with what it gave, and the newer one moves nothing; from then on only the newer one does.
//!
//! Invariant: nothing that comes makes us keep more than the bounds of `frame` for one message, and a message of another
//! version or shape is an error, never a guess.

mod frame;
mod link;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use frame::{BadFrame, MAX_BYTES, MAX_FDS, MAX_JSON, VERSION};
pub use link::{Link, LinkError};

/// One thing that is handed over.
#[derive(Debug)]
pub struct Item {
    /// Which part of the gateway it belongs to: `socket`, `tunnel.flow`.
    pub what: String,
    /// Its state. A newer version may add fields; the older one ignores them.
    pub state: Value,
    /// Bytes that belong to it.
    pub bytes: Bytes,
    /// Its file descriptor.
    pub fd: Option<OwnedFd>,
}

impl Item {
    /// An item with this state.
    ///
    /// # Errors
    /// The state is none that JSON can hold.
    pub fn new(what: &str, state: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self {
            what: what.to_owned(),
            state: serde_json::to_value(state)?,
            bytes: Bytes::new(),
            fd: None,
        })
    }

    /// With a descriptor.
    #[must_use]
    pub fn with_fd(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.fd = Some(fd.into());
        self
    }

    /// With bytes; at most [`MAX_BYTES`] of them.
    #[must_use]
    pub fn with_bytes(mut self, bytes: Bytes) -> Self {
        self.bytes = bytes;
        self
    }

    /// Its state as a type of the part that it belongs to.
    ///
    /// # Errors
    /// A field is missing or of another kind.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.state)
    }
}

/// What the two processes say to each other, beside items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Word {
    /// The newer one lives, and can use its configuration.
    Hello {
        /// Version of its program.
        version: String,
    },
    /// The older one has closed everything it could not hand over; so many items follow.
    Take {
        /// How many.
        items: u64,
    },
    /// The newer one has everything and would serve at once.
    Ready,
    /// The older one has given it all up.
    Commit,
    /// The newer one serves.
    Serving,
    /// The newer one will not serve, and ends.
    Failed {
        /// Its exit code.
        code: u8,
        /// Why, for a person.
        message: String,
    },
    /// A word of another version.
    #[serde(other)]
    Unknown,
}
