//! A body on its way out.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tasuki_core::store::mail::BodySource;
use tasuki_core::store::{StoreError, StoreResult};

use super::{Place, blocking};
use crate::bodies::PIECE;

/// Reads a body and checks it before giving its last piece.
pub(crate) struct Source {
    file: Arc<File>,
    place: Place,
    done: u64,
    checksum: u32,
    expected: u32,
}

impl Source {
    pub(super) async fn open(path: PathBuf, place: Place, expected: u32) -> StoreResult<Self> {
        let file = blocking(move || File::open(path)).await?;
        Ok(Self {
            file: Arc::new(file),
            place,
            done: 0,
            checksum: 0,
            expected,
        })
    }
}

#[async_trait]
impl BodySource for Source {
    async fn next(&mut self) -> StoreResult<Option<Bytes>> {
        let rest = self.place.len - self.done;
        if rest == 0 {
            return Ok(None);
        }
        let piece = usize::try_from(rest.min(PIECE)).unwrap_or(usize::MAX);
        let offset = self.place.offset + self.done;
        let file = Arc::clone(&self.file);
        let bytes = blocking(move || {
            let mut bytes = vec![0; piece];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
        .await?;
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        self.done += bytes.len() as u64;
        if self.done == self.place.len && self.checksum != self.expected {
            return Err(StoreError::Damaged(format!(
                "a body of {} bytes in segment {} does not match its checksum",
                self.place.len, self.place.segment
            )));
        }
        Ok(Some(Bytes::from(bytes)))
    }
}
