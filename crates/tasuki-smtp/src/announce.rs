//! Orders among the gateways of a common store.
//!
//! What waits in the store obeys an order wherever it was given. Fresh mail is in the memory of the gateway that took it,
//! so that one must hear of the order: it is announced in the store, the others look there twice a second, take the mail
//! that it is about out of memory, and give the order to just that. Who ordered waits a moment for their answers, so that
//! he is told the whole number.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use tasuki_core::{
    ids::MailId,
    store::{
        AuditEntry, StoreError,
        mail::{Order, QueueFilter},
        trail::{Announced, Announcement},
    },
};

use crate::{context::Context, engine::Handle};

/// How often a gateway looks for announcements, and an announcer for answers.
const LOOK: Duration = Duration::from_millis(500);
const ASK: Duration = Duration::from_millis(100);
/// How long the answers are waited for: a gateway that is dead does not answer, and its mail is adopted anyway.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often an order is tried again while the store fails, before the mail goes back to its usual way.
const TRIES: u32 = 10;

impl Handle {
    /// Tells the other gateways of an order, or (without one) that pauses have changed; returns how many deliveries they
    /// changed. What cannot be told or heard is left out: the order itself stands.
    pub(crate) async fn announce(
        &self,
        filter: &QueueFilter,
        order: Option<&Order>,
        audit: &AuditEntry,
    ) -> u64 {
        if !self.context.deps.store.is_shared() {
            return 0;
        }
        let announcement = Announcement {
            filter: filter.clone(),
            order: order.cloned(),
            audit: audit.clone(),
        };
        match self.ask(&announcement).await {
            Ok(deliveries) => deliveries,
            Err(error) => {
                tracing::warn!(%error, "the other gateways may not have heard of an order");
                0
            }
        }
    }

    async fn ask(&self, announcement: &Announcement) -> Result<u64, StoreError> {
        let deps = &self.context.deps;
        let id = deps.store.announce(deps.node.0, announcement).await?;
        let until = deps.clock.now() + PATIENCE;
        loop {
            let answers = deps.store.answers(deps.node.0, id).await?;
            if answers.answered >= answers.expected || deps.clock.now() >= until {
                return Ok(answers.deliveries);
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Does for the mail in memory what another gateway announced.
    async fn follow(&self, announced: Announced) -> Result<u64, StoreError> {
        let Announcement { filter, order, audit } = announced.announcement;
        let Some(order) = order else {
            self.context.refresh_pauses().await?;
            self.recall(&filter).await;
            return Ok(0);
        };
        // What was taken after the order is not meant by it.
        let end = filter
            .taken_before
            .map_or(announced.at, |end| end.min(announced.at));
        let filter = QueueFilter {
            taken_before: Some(end),
            ..filter
        };
        let fresh = self.recall(&filter).await;
        let deliveries = self.give_to(fresh, &filter, &order, &audit).await?;
        if matches!(order, Order::Release | Order::Retry | Order::Reroute(_)) {
            self.retry_now();
        }
        Ok(deliveries)
    }

    /// Gives an order to mail that was taken out of memory for it.
    async fn give_to(
        &self,
        mails: BTreeSet<MailId>,
        filter: &QueueFilter,
        order: &Order,
        audit: &AuditEntry,
    ) -> Result<u64, StoreError> {
        let Some(first) = mails.first().copied() else {
            return Ok(0);
        };
        let those = QueueFilter {
            after: Some(MailId(first.0 - 1)),
            mails,
            ..filter.clone()
        };
        let mut tries = 1;
        loop {
            match self.give(&those, order, audit).await {
                Err(error) if tries < TRIES => {
                    tracing::warn!(%error, "another gateway's order is tried again");
                    tries += 1;
                    tokio::time::sleep(LOOK * tries).await;
                }
                done => return done,
            }
        }
    }
}

/// The task that hears what other gateways announce.
pub(crate) async fn listener(handle: Handle) {
    let context: Arc<Context> = Arc::clone(&handle.context);
    let (store, node) = (&context.deps.store, context.deps.node.0);
    if !store.is_shared() {
        return;
    }
    let mut heard = HashSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = context.closing.cancelled() => return,
        }
        let announced = match store.announced(node).await {
            Ok(announced) => announced,
            Err(error) => {
                tracing::debug!(%error, "what other gateways announce cannot be read now");
                continue;
            }
        };
        heard.retain(|id| announced.iter().any(|now| now.id == *id));
        for new in announced {
            let id = new.id;
            if !heard.insert(id) {
                continue;
            }
            let answered = match handle.follow(new).await {
                Ok(deliveries) => store.answer(id, deliveries).await,
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                tracing::warn!(%error, "an order of another gateway is not followed for the mail in memory here");
            }
        }
    }
}
