//! The mail part of a real store, told to fail on command.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tasuki_core::{
    clock::Timestamp,
    ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId},
    store::{
        AuditEntry, MailStore, Sharing, Store, StoreError, StoreResult, SuppressionStore, TlsStore,
        TrailStore,
        mail::{
            BodySink, BodySource, Changed, Held, Lane, LaneKey, NewMail, Order, Outcome, Paused, QueueCounts,
            QueueFilter, QueueMatch, QueueRow, Settled, StoredBody,
        },
        suppress::{Entered, Subject, Suppressed, SuppressedFilter},
        tls::{DayTally, StsPolicy, TlsReport},
        trail::{Announced, Announcement, Answers, ToldStory, Traced},
    },
};
use tasuki_proto::names::{Domain, Mailbox};

/// See the module.
pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn Store>,
    /// Every verb fails.
    pub(crate) unavailable: AtomicBool,
    /// New mail does not fit.
    pub(crate) full: AtomicBool,
    /// How often addresses were said to exist.
    pub(crate) unsuppressed: AtomicUsize,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            unavailable: AtomicBool::new(false),
            full: AtomicBool::new(false),
            unsuppressed: AtomicUsize::new(0),
        }
    }

    fn works(&self) -> StoreResult<&dyn Store> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("told to fail".into()));
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl TlsStore for Faulty {
    async fn sts_policy(&self, domain: &Domain) -> StoreResult<Option<StsPolicy>> {
        self.works()?.sts_policy(domain).await
    }
    async fn keep_sts_policy(&self, domain: &Domain, policy: StsPolicy, now: Timestamp) -> StoreResult<()> {
        self.works()?.keep_sts_policy(domain, policy, now).await
    }
    async fn add_tls_sessions(&self, tallies: Vec<DayTally>) -> StoreResult<()> {
        self.works()?.add_tls_sessions(tallies).await
    }
    async fn tls_sessions(
        &self,
        day: i64,
        domain: Option<&Domain>,
        limit: i64,
    ) -> StoreResult<Vec<DayTally>> {
        self.works()?.tls_sessions(day, domain, limit).await
    }
    async fn tls_domains(&self, day: i64, after: Option<&Domain>, limit: i64) -> StoreResult<Vec<Domain>> {
        self.works()?.tls_domains(day, after, limit).await
    }
    async fn take_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Option<TlsReport>> {
        self.works()?.take_tls_report(day, domain, now, until).await
    }
    async fn note_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        sent: &[String],
        is_done: bool,
    ) -> StoreResult<()> {
        self.works()?.note_tls_report(day, domain, sent, is_done).await
    }
    async fn tls_reports(&self, day: i64, limit: i64) -> StoreResult<Vec<(Domain, TlsReport)>> {
        self.works()?.tls_reports(day, limit).await
    }
    async fn forget_tls_sessions(&self, before: i64) -> StoreResult<()> {
        self.works()?.forget_tls_sessions(before).await
    }
}

impl Sharing for Faulty {
    fn is_shared(&self) -> bool {
        Sharing::is_shared(&*self.inner)
    }
}

#[async_trait]
impl SuppressionStore for Faulty {
    async fn suppress(&self, new: Vec<Suppressed>, most: usize) -> StoreResult<Vec<Entered>> {
        self.works()?.suppress(new, most).await
    }
    async fn unsuppress(&self, found: Vec<Subject>) -> StoreResult<usize> {
        self.unsuppressed.fetch_add(1, Ordering::SeqCst);
        self.works()?.unsuppress(found).await
    }
    async fn change_suppressed(
        &self,
        add: Vec<Suppressed>,
        remove: Vec<(Subject, Option<PrincipalId>)>,
        most: usize,
        audit: AuditEntry,
    ) -> StoreResult<(usize, usize)> {
        self.works()?.change_suppressed(add, remove, most, audit).await
    }
    async fn suppression(
        &self,
        subject: &Subject,
        principal: PrincipalId,
        now: Timestamp,
    ) -> StoreResult<Option<Suppressed>> {
        self.works()?.suppression(subject, principal, now).await
    }
    async fn suppressed(
        &self,
        filter: &SuppressedFilter,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Suppressed)>> {
        self.works()?.suppressed(filter, limit).await
    }
    async fn prune_suppressed(&self, now: Timestamp) -> StoreResult<usize> {
        self.works()?.prune_suppressed(now).await
    }
}

#[async_trait]
impl TrailStore for Faulty {
    async fn trail(&self, traced: &Traced, mails: usize) -> StoreResult<Vec<ToldStory>> {
        self.inner.trail(traced, mails).await
    }
    async fn prune_trail(&self, before: Timestamp, max_bytes: u64, n: usize) -> StoreResult<usize> {
        self.works()?.prune_trail(before, max_bytes, n).await
    }
    async fn announce(&self, node: NodeId, announcement: &Announcement) -> StoreResult<i64> {
        self.works()?.announce(node, announcement).await
    }
    async fn announced(&self, node: NodeId) -> StoreResult<Vec<Announced>> {
        self.works()?.announced(node).await
    }
    async fn answer(&self, announcement: i64, deliveries: u64) -> StoreResult<()> {
        self.works()?.answer(announcement, deliveries).await
    }
    async fn answers(&self, node: NodeId, announcement: i64) -> StoreResult<Answers> {
        self.works()?.answers(node, announcement).await
    }
}

#[async_trait]
impl MailStore for Faulty {
    async fn open_body(&self, size_hint: Option<u64>) -> StoreResult<Box<dyn BodySink>> {
        self.works()?.open_body(size_hint).await
    }
    async fn enqueue(&self, node: NodeId, epoch: Epoch, batch: Vec<NewMail>) -> StoreResult<Vec<MailId>> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full);
        }
        self.works()?.enqueue(node, epoch, batch).await
    }
    async fn body(&self, body: &StoredBody) -> StoreResult<Box<dyn BodySource>> {
        self.works()?.body(body).await
    }
    async fn adopt(&self, node: NodeId, epoch: Epoch, n: usize) -> StoreResult<Vec<Held>> {
        self.works()?.adopt(node, epoch, n).await
    }
    async fn claim_lanes(
        &self,
        node: NodeId,
        now: Timestamp,
        hold: Duration,
        n: usize,
        renew: &[(LaneId, Epoch)],
    ) -> StoreResult<Vec<Lane>> {
        self.works()?.claim_lanes(node, now, hold, n, renew).await
    }
    async fn release_lanes(&self, lanes: &[(LaneId, Epoch)]) -> StoreResult<()> {
        self.works()?.release_lanes(lanes).await
    }
    async fn due(
        &self,
        lane: LaneId,
        epoch: Epoch,
        now: Timestamp,
        n: usize,
        in_flight: &[(MailId, DeliverySeq)],
    ) -> StoreResult<Vec<Held>> {
        self.works()?.due(lane, epoch, now, n, in_flight).await
    }
    async fn settle(&self, node: NodeId, outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>> {
        self.works()?.settle(node, outcomes).await
    }
    async fn next_due(&self, node: NodeId) -> StoreResult<Option<Timestamp>> {
        self.works()?.next_due(node).await
    }
    async fn queue(&self, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>> {
        self.inner.queue(filter, limit).await
    }
    async fn is_recipient(&self, mailbox: &Mailbox) -> StoreResult<bool> {
        self.works()?.is_recipient(mailbox).await
    }
    async fn change_recipients(
        &self,
        add: Vec<Mailbox>,
        remove: Vec<Mailbox>,
        audit: AuditEntry,
    ) -> StoreResult<()> {
        self.works()?.change_recipients(add, remove, audit).await
    }
    async fn recipients(&self, domain: &Domain, after: &str, limit: usize) -> StoreResult<Vec<String>> {
        self.works()?.recipients(domain, after, limit).await
    }
    async fn add_sent(&self, day: i64, sent: Vec<(PrincipalId, u64)>) -> StoreResult<Vec<u64>> {
        self.works()?.add_sent(day, sent).await
    }
    async fn queue_counts(&self) -> StoreResult<QueueCounts> {
        self.inner.queue_counts().await
    }
    async fn queue_match(&self, filter: &QueueFilter) -> StoreResult<QueueMatch> {
        self.inner.queue_match(filter).await
    }
    async fn order(
        &self,
        filter: &QueueFilter,
        order: &Order,
        now: Timestamp,
        limit: usize,
        audit: AuditEntry,
    ) -> StoreResult<Changed> {
        self.works()?.order(filter, order, now, limit, audit).await
    }
    async fn pause_lane(&self, paused: Paused, audit: AuditEntry) -> StoreResult<()> {
        self.works()?.pause_lane(paused, audit).await
    }
    async fn resume_lane(&self, lane: &LaneKey, audit: AuditEntry) -> StoreResult<()> {
        self.works()?.resume_lane(lane, audit).await
    }
    async fn paused_lanes(&self) -> StoreResult<Vec<Paused>> {
        self.works()?.paused_lanes().await
    }
}
