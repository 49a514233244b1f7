//! The DKIM signature of a mail that is about to be sent.

use bytes::Bytes;
use tasuki_proto::{
    names::{Domain, Mailbox},
    smtp::{dkim::HeaderTooLong, header},
};

use super::report::report_keys;
use crate::{
    config::Settings,
    context::{Context, Job},
    dkim,
};

/// The DKIM signatures that go in front of a mail: if it is one of ours, and its author's domain has keys.
pub(super) async fn signature(context: &Context, settings: &Settings, job: &Job) -> Result<Bytes, String> {
    let held = &job.held;
    if !is_ours(held.envelope.principal.is_some(), held.envelope.is_dsn) {
        return Ok(Bytes::new());
    }
    let ring = context.dkim.ring(context.deps.clock.now()).await;
    report_keys(context, ring.as_ref().err());
    let ring = ring?;
    if ring.is_empty() {
        return Ok(Bytes::new());
    }
    // Our own trace fields stand in front of what was taken in.
    let mut message = dkim::hasher(settings.server.data.max_header_size + 64 * 1024);
    let too_long = |error: HeaderTooLong| error.to_string();
    match &job.body {
        Some(kept) => {
            for piece in &kept.pieces {
                message.update(piece).map_err(too_long)?;
            }
        }
        None => {
            let store = &context.deps.store;
            let mut source = store.body(&held.body).await.map_err(|e| e.to_string())?;
            while let Some(piece) = source.next().await.map_err(|e| e.to_string())? {
                message.update(&piece).map_err(too_long)?;
            }
        }
    }
    let (header, body_hash) = message.finish();
    let Some(author) = author_of(&header) else {
        return Ok(Bytes::new());
    };
    let now = context.deps.clock.wall();
    let fields = context.dkim.sign(&ring, &author, header, body_hash, now).await;
    report_keys(context, fields.as_ref().err());
    fields.map(Bytes::from)
}

/// Whether mail is signed at all. What strangers bring for relay domains may claim any author.
pub(crate) fn is_ours(of_principal: bool, is_dsn: bool) -> bool {
    of_principal || is_dsn
}

/// The domain whose keys sign a message with this header section.
pub(crate) fn author_of(header: &[u8]) -> Option<Domain> {
    let authors = header::authors(&header::Header::parse(header)).unwrap_or_default();
    authors.first().and_then(Mailbox::domain).cloned()
}
