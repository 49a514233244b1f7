//! What all stores share about bodies.

use async_trait::async_trait;
use bytes::Bytes;
use tasuki_core::store::StoreResult;
use tasuki_core::store::mail::BodySource;

/// Bodies up to this size are in the mail's row.
pub(crate) const INLINE: usize = 16 << 10;
/// Bytes given to a reader at once.
pub(crate) const PIECE: u64 = 256 << 10;

/// A body that is in memory already.
pub(crate) struct Inline {
    bytes: Option<Bytes>,
}

impl Inline {
    /// Reads `bytes`, in one piece.
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self {
            bytes: Some(bytes).filter(|b| !b.is_empty()),
        }
    }
}

#[async_trait]
impl BodySource for Inline {
    async fn next(&mut self) -> StoreResult<Option<Bytes>> {
        Ok(self.bytes.take())
    }
}
