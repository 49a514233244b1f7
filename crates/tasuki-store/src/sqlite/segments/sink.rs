//! A body on its way in.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tasuki_core::store::StoreResult;
use tasuki_core::store::mail::{BodyPlace, BodySink, StoredBody};

use super::file::SegmentFile;
use super::{Place, Segments, blocking};
use crate::bodies::INLINE;

/// Bytes buffered before a body leases a segment of its own; also what is written at once then.
pub(super) const SPILL: usize = 128 << 10;

/// Takes a body's bytes; see the module above for where they go.
pub(crate) struct Sink {
    segments: Arc<Segments>,
    buffer: BytesMut,
    len: u64,
    checksum: u32,
    lease: Option<Lease>,
}

/// A place that grows. Dropped unfinished, its space is free again.
struct Lease {
    segments: Arc<Segments>,
    file: Arc<SegmentFile>,
    place: Place,
    is_complete: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.segments.end_lease(self.place, self.is_complete);
    }
}

impl Sink {
    pub(super) fn new(segments: Arc<Segments>, size_hint: Option<u64>) -> Self {
        let expected = size_hint.map_or(4096, |n| usize::try_from(n).unwrap_or(SPILL).min(SPILL));
        Self {
            segments,
            buffer: BytesMut::with_capacity(expected),
            len: 0,
            checksum: 0,
            lease: None,
        }
    }

    async fn spill(&mut self) -> StoreResult<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.segments.require_space()?;
        if self.lease.is_none() {
            let segments = Arc::clone(&self.segments);
            self.lease = Some(blocking(move || lease(segments)).await?);
        }
        let Some(lease) = &mut self.lease else {
            return Ok(());
        };
        let bytes = self.buffer.split().freeze();
        let offset = lease.place.offset + lease.place.len;
        // The place grows before the write: if this future is dropped, the write may go on, and nobody else may have
        // its space.
        lease.place.len += bytes.len() as u64;
        let file = Arc::clone(&lease.file);
        blocking(move || file.write_at(&bytes, offset)).await
    }

    async fn finish_shared(self, bytes: Bytes) -> StoreResult<BodyPlace> {
        self.segments.require_space()?;
        let segments = Arc::clone(&self.segments);
        let checksum = self.checksum;
        let place = blocking(move || {
            let (file, place) = segments.reserve(bytes.len() as u64)?;
            let result = file.write_at(&bytes, place.offset);
            segments.end_reserved(place, result.is_ok());
            result.map(|()| place)
        })
        .await?;
        Ok(placed(place, checksum))
    }
}

fn lease(segments: Arc<Segments>) -> std::io::Result<Lease> {
    let (file, segment, offset) = segments.lease()?;
    Ok(Lease {
        segments,
        file,
        place: Place {
            segment,
            offset,
            len: 0,
        },
        is_complete: false,
    })
}

fn placed(place: Place, checksum: u32) -> BodyPlace {
    BodyPlace::Segment {
        segment: place.segment,
        offset: place.offset,
        checksum,
    }
}

#[async_trait]
impl BodySink for Sink {
    async fn write(&mut self, chunk: Bytes) -> StoreResult<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, &chunk);
        self.len += chunk.len() as u64;
        self.buffer.extend_from_slice(&chunk);
        if self.buffer.len() >= SPILL {
            self.spill().await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<StoredBody> {
        let len = self.len;
        if self.lease.is_some() {
            self.spill().await?;
        }
        let checksum = self.checksum;
        let place = if let Some(mut lease) = self.lease.take() {
            lease.is_complete = true;
            placed(lease.place, checksum)
        } else {
            let bytes = self.buffer.split().freeze();
            if bytes.len() <= INLINE {
                BodyPlace::Inline(bytes)
            } else {
                self.finish_shared(bytes).await?
            }
        };
        Ok(StoredBody { len, place })
    }
}
