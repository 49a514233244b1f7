//! Read buffers that idle connections do not hold: one is taken when a socket has bytes, and given back after.

use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;

/// Size of a fresh buffer.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
const KEPT: usize = 32;

/// Whole buffers waiting for the next reader.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<BytesMut>>,
}

impl Pool {
    /// An empty buffer with all its capacity.
    pub(crate) fn take(&self) -> BytesMut {
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
    }

    /// Keeps a buffer for others if it is still whole.
    pub(crate) fn put(&self, mut buffer: BytesMut) {
        buffer.clear();
        if buffer.capacity() >= BUFFER_BYTES {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT {
                free.push(buffer);
            }
        }
    }
}
