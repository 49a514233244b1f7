//! What is remembered of a mail after it is gone: made with the outcome that ends it, written with its settlement.

use std::{sync::Arc, time::Duration};

use tasuki_core::{
    clock::Timestamp,
    failure::Verdict,
    store::trail::{End, Fate, NoticeSent, Server, Story},
};

use crate::{
    context::{Context, Job},
    deliver,
    settle::{Attempted, clip},
};

/// How often old stories are forgotten, and how many batches in one transaction.
const PRUNE: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 200;

/// What an attempt ended, recipients of the same fate together; those that wait are not in it.
pub(crate) fn fates(attempted: &Attempted, expired: bool) -> Vec<Fate> {
    let mut fates: Vec<Fate> = Vec::new();
    for judged in &attempted.results {
        let (end, words) = match &judged.result {
            Ok(reply) if attempted.is_final => (End::Delivered, reply.to_string()),
            Ok(reply) => (End::Relayed, reply.to_string()),
            Err(failure) if failure.verdict == Verdict::Permanent => (End::Bounced, deliver::words(failure)),
            Err(failure) if expired => (End::Expired, deliver::words(failure)),
            Err(_) => continue,
        };
        let (words, server) = (clip(&words), judged.server.as_deref());
        let mailbox = judged.recipient.mailbox.clone();
        let same =
            |fate: &&mut Fate| fate.end == end && fate.words == words && fate.server.as_ref() == server;
        match fates.iter_mut().find(same) {
            Some(fate) => fate.recipients.push(mailbox),
            None => fates.push(Fate {
                recipients: vec![mailbox],
                end,
                words,
                server: server.cloned(),
            }),
        }
    }
    fates
}

/// The fate of a job that an operator deletes.
pub(crate) fn deleted(job: &Job) -> Vec<Fate> {
    let recipients = job.held.recipients.iter();
    vec![Fate {
        recipients: recipients.map(|recipient| recipient.mailbox.clone()).collect(),
        end: End::Deleted,
        words: String::new(),
        server: None,
    }]
}

impl Context {
    /// The story of what just ended for some of a job's recipients; `None` if nothing did, or nothing is remembered.
    pub(crate) fn story(
        &self,
        job: &Job,
        (at, attempt): (Timestamp, u32),
        fates: Vec<Fate>,
        notices: Vec<NoticeSent>,
    ) -> Option<Arc<Story>> {
        if fates.is_empty() && notices.is_empty() || self.settings.load().trace.keep.is_zero() {
            return None;
        }
        let held = &job.held;
        let is_told = |mailbox| fates.iter().any(|fate| fate.recipients.contains(mailbox));
        let aliased = held.recipients.iter().filter_map(|recipient| {
            let written = recipient.written.clone()?;
            is_told(&recipient.mailbox).then(|| (written, recipient.mailbox.clone()))
        });
        let aliases = aliased.collect();
        Some(Arc::new(Story {
            mail: held.mail,
            delivery: held.delivery,
            accepted_at: held.accepted_at,
            reverse_path: held.envelope.reverse_path.clone(),
            principal: held.envelope.principal,
            size_bytes: held.body.len,
            received: held.envelope.received.clone(),
            at,
            attempt,
            lane: held.lane.clone(),
            fates,
            aliases,
            notices,
        }))
    }
}

/// Version, cipher and key exchange of a TLS connection, for people.
pub(crate) fn tls_in_words(tls: &rustls::CommonState) -> String {
    let version = match tls.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    let cipher = tls
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str());
    let exchange = tls
        .negotiated_key_exchange_group()
        .and_then(|group| group.name().as_str());
    let parts = [Some(version), cipher, exchange];
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    parts.join(" ")
}

/// A server that there was no connection to, by the name it was looked for under.
pub(crate) fn unreached(host: &str) -> Option<Arc<Server>> {
    (!host.is_empty()).then(|| {
        Arc::new(Server {
            host: host.to_owned(),
            addr: None,
            tls: None,
        })
    })
}

/// The task that forgets, a little at a time.
pub(crate) async fn keeper(context: Arc<Context>) {
    let mut wait = PRUNE;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.closing.cancelled() => return,
        }
        let settings = context.settings.load_full();
        let before = context.deps.clock.wall().minus(settings.trace.keep);
        let pruned = context
            .deps
            .store
            .prune_trail(before, settings.trace.max_size, AT_ONCE)
            .await;
        wait = match pruned {
            // There is more: soon, but not so soon that mail waits behind it.
            Ok(AT_ONCE) => Duration::from_millis(200),
            Ok(_) => PRUNE,
            Err(error) => {
                tracing::warn!(%error, "the trail of finished mail cannot be shortened, trying again later");
                PRUNE
            }
        };
    }
}
