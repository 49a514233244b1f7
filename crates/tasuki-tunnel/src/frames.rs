//! Frames of the control stream, as both ends read them.

use bytes::BytesMut;
use quinn::RecvStream;
use serde::de::DeserializeOwned;
use tasuki_proto::tunnel::{ControlError, take_frame};

/// The next frame; `None` when the other side ended the stream or the session. Cancel-safe: bytes read so far stay in
/// `input`.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    receive: &mut RecvStream,
    input: &mut BytesMut,
) -> Result<Option<T>, ControlError> {
    loop {
        if let Some(frame) = take_frame(input)? {
            return Ok(Some(frame));
        }
        match receive.read_chunk(16 * 1024, true).await {
            Ok(Some(chunk)) => input.extend_from_slice(&chunk.bytes),
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// Name and version of this program, as the other side shows it.
pub(crate) fn software() -> String {
    concat!("tasuki/", env!("CARGO_PKG_VERSION")).to_owned()
}
