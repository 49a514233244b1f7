//! A backup of the running gateway, as a stream: whoever asks writes it where they may.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use tokio::io::AsyncReadExt as _;

use super::Admin;
use super::auth::{Caller, Door};
use super::problem::{Answer, Problem};
use crate::backup::write::{self, Origin};
use crate::exit::{Fail, Outcome, chain};

/// A reader that takes nothing for so long is given up, and mail bodies may leave the disk again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes in one piece of the answer.
const PIECE: usize = 128 << 10;

/// About how large the archive will be, for whoever must have room for it.
pub(crate) const SIZE: &str = "x-tasuki-size-bytes";

pub(super) async fn take(
    State(admin): State<Arc<Admin>>,
    Extension(door): Extension<Door>,
    caller: Caller,
) -> Answer<Response> {
    if !matches!(door, Door::Socket { .. }) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "a backup holds every key, so it is given over the control socket alone: run `tasuki backup` on the gateway",
        ));
    }
    let origin = Origin::of(&admin.live.load().loaded);
    // Noted before anything leaves.
    let note = caller.audit(
        admin.clock.wall(),
        "backup",
        "gateway",
        "keys, configuration, queue",
    );
    admin.store.note(note).await?;
    let unavailable = |e: std::io::Error| Problem::unavailable(format!("no backup can be given: {e}"));
    let (mut ours, theirs) = UnixStream::pair().map_err(unavailable)?;
    ours.set_write_timeout(Some(PATIENCE)).map_err(unavailable)?;
    theirs.set_nonblocking(true).map_err(unavailable)?;
    let theirs = tokio::net::UnixStream::from_std(theirs).map_err(unavailable)?;
    let size = admin.store.stats().size_bytes;
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let done = runtime.block_on(produce(&admin, &origin, &mut ours));
        match done {
            Ok(()) => tracing::info!("a backup was given"),
            Err(fail) => tracing::error!("a backup could not be completed: {fail}"),
        }
    });
    let pieces = futures_util::stream::try_unfold(theirs, |mut theirs| async move {
        let mut piece = Vec::with_capacity(PIECE);
        let n = theirs.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((n > 0).then(|| (Bytes::from(piece), theirs)))
    });
    Ok(([(SIZE, size.to_string())], Body::from_stream(pieces)).into_response())
}

async fn produce(admin: &Admin, origin: &Origin, out: &mut (dyn Write + Send)) -> Outcome {
    let take = async |file: &std::path::Path| {
        admin
            .store
            .snapshot(file)
            .await
            .map_err(|e| Fail::new(crate::exit::IO, chain(&e)))
    };
    write::archive(origin, take, out).await
}
