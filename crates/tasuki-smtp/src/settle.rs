//! From the results of an attempt to its settlement: who is done, who waits until when, who is told what.
//!
//! Outcomes go to the store in batches by one task. A notice commits in the same transaction as the failure it is about,
//! or neither does; only then is it handed to its lane.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tasuki_core::{
    clock::Timestamp,
    events::What,
    failure::{Failure, Verdict},
    ids::DeliverySeq,
    store::mail::{Hold, LaneKey, NewMail, Outcome, Recipient, Settled, Settlement},
    store::trail::{Server, Story},
};
use tasuki_proto::smtp::{Reply, dsn::Action};
use tokio::sync::mpsc;

use crate::{
    config::{Origin, Pool, Settings},
    context::{Context, Job},
    convert,
    deliver::{self, RecipientResult, dispatch},
    notice::{Notices, Told},
    route, trail,
};

/// Most outcomes given to the store at once.
const BATCH: usize = 256;
/// Outcomes that may wait for the settler; then workers wait.
pub(crate) const QUEUE: usize = 4096;

/// What became of one recipient in an attempt.
pub(crate) struct Judged {
    pub(crate) recipient: Recipient,
    pub(crate) result: RecipientResult,
    /// The server that said so.
    pub(crate) server: Option<Arc<Server>>,
    /// It says that there is no such mailbox.
    pub(crate) gone: bool,
}

/// What an attempt came to.
pub(crate) struct Attempted {
    pub(crate) results: Vec<Judged>,
    /// The server that was talked to.
    pub(crate) host: Option<String>,
    /// Whether it sends success notices itself.
    pub(crate) sends_notices: bool,
    /// Whether it is a mail store, and not another relay.
    pub(crate) is_final: bool,
    /// The next hop as such did not work, for this reason.
    pub(crate) route_failure: Option<String>,
}

impl Attempted {
    /// No recipient was judged: nothing but the route failed.
    pub(crate) fn is_nobodys(&self) -> bool {
        let waits = |result: &RecipientResult| {
            result
                .as_ref()
                .is_err_and(|failure| failure.verdict != Verdict::Permanent)
        };
        self.results.iter().all(|judged| waits(&judged.result))
    }
}

/// An outcome on its way to the store.
pub(crate) struct Report {
    outcome: Outcome,
    /// The lane's key, to note that the delivery is no longer in flight.
    lane: LaneKey,
    /// What to deliver once the outcome is committed.
    follow_up: Vec<Job>,
    due: Option<Timestamp>,
}

/// The recipients of an attempt by what became of them.
#[derive(Default)]
struct Sorted {
    delivered: Vec<(Recipient, Reply)>,
    bounced: Vec<(Recipient, Failure)>,
    waiting: Vec<(Recipient, Failure)>,
}

impl Context {
    /// Settles a job after an attempt.
    pub(crate) async fn conclude(self: &Arc<Self>, settings: &Settings, job: Job, attempted: Attempted) {
        let now = self.deps.clock.wall();
        let attempts = job.held.attempts + 1;
        let expired = now >= job.held.expires_at;
        let fates = trail::fates(&attempted, expired);
        self.suppressions.hear(settings, &job, &attempted, now);
        let mut sorted = Sorted::default();
        for Judged {
            recipient, result, ..
        } in attempted.results
        {
            match result {
                Ok(reply) => sorted.delivered.push((recipient, reply)),
                Err(failure) if failure.verdict == Verdict::Permanent => {
                    sorted.bounced.push((recipient, failure))
                }
                Err(failure) => sorted.waiting.push((recipient, failure)),
            }
        }
        if expired {
            sorted.bounced.append(&mut sorted.waiting);
        }
        let mut notices = Notices::new(self, settings, &job, attempted.host.as_deref(), now);
        notices.failed(&sorted.bounced, expired).await;
        if !attempted.sends_notices {
            notices.succeeded(&sorted.delivered, attempted.is_final).await;
        }
        let delay_due =
            !job.held.delay_reported && now.since(job.held.accepted_at) >= settings.delivery.delay_notice;
        let delay_reported = job.held.delay_reported || delay_due;
        if delay_due {
            notices.delayed(&sorted.waiting).await;
        }
        let (follow_up, told, sent) = notices.finish();
        let story = self.story(&job, (now, attempts), fates, sent);
        self.count(&job, &sorted, attempts, told);
        let told = (now, delay_reported);
        let mut settlement = waiting_settlement(settings, &job, &sorted.waiting, attempts, told);
        if let Settlement::Deferred { lane, recipients, .. } = &mut settlement {
            *lane = self.lane_now(settings, &job, recipients).await;
        }
        self.report(job, settlement, follow_up, story).await;
    }

    /// Where mail for these recipients of a job waits. The configuration may have changed since it was taken; the lane
    /// follows, unless an operator chose it, or the recipients would part.
    pub(crate) async fn lane_now(&self, settings: &Settings, job: &Job, recipients: &[Recipient]) -> LaneKey {
        let held = &job.held;
        if held.orders.rerouted || route::is_loop(&held.lane) {
            return held.lane.clone();
        }
        // It stays where it is until it is known who sent it.
        let Some(principal) = self.principal_name(settings, job).await else {
            return held.lane.clone();
        };
        let origin = Origin {
            principal: principal.as_deref(),
            sender: held.envelope.reverse_path.mailbox(),
        };
        let lanes = recipients.iter();
        let mut lanes = lanes.map(|r| route::lane_for(settings, origin, &r.mailbox));
        match lanes.next() {
            Some(first) if lanes.all(|lane| lane == first) => first,
            _ => held.lane.clone(),
        }
    }

    /// Who handed a mail in, if a route asks for that; `None` in the first place if it cannot be told now.
    async fn principal_name(&self, settings: &Settings, job: &Job) -> Option<Option<String>> {
        let id = job.held.envelope.principal;
        let Some(id) = id.filter(|_| settings.ways.asks_for_principal()) else {
            return Some(None);
        };
        let principal = self.deps.accounts.by_id(id).await.ok()?;
        Some(principal.map(|principal| principal.name.clone()))
    }

    /// The pool of our addresses that a job goes out from.
    pub(crate) async fn source_of(&self, settings: &Settings, job: &Job) -> Option<Arc<Pool>> {
        if !settings.ways.has_sources() {
            return None;
        }
        let principal = self.principal_name(settings, job).await.flatten();
        let origin = Origin {
            principal: principal.as_deref(),
            sender: job.held.envelope.reverse_path.mailbox(),
        };
        let first = job.held.recipients.first()?;
        settings.ways.source(origin, &first.mailbox).cloned()
    }

    /// Gives a job to another lane, without an attempt.
    pub(crate) async fn move_to(self: &Arc<Self>, job: Job, lane: LaneKey) {
        let held = &job.held;
        let settlement = Settlement::Deferred {
            lane,
            recipients: held.recipients.clone(),
            attempts: held.attempts,
            due: self.deps.clock.wall(),
            last_error: clip(held.last_error.as_deref().unwrap_or("its route was changed")),
            delay_reported: held.delay_reported,
        };
        self.report(job, settlement, Vec::new(), None).await;
    }

    /// Puts a job off without an attempt.
    pub(crate) async fn put_off(self: &Arc<Self>, job: Job, due: Timestamp, why: &str) {
        let settlement = Settlement::Deferred {
            lane: job.held.lane.clone(),
            recipients: job.held.recipients.clone(),
            attempts: job.held.attempts,
            due: due.min(job.held.expires_at.max(self.deps.clock.wall())),
            last_error: clip(why),
            delay_reported: job.held.delay_reported,
        };
        self.metrics.deferrals.inc();
        self.report(job, settlement, Vec::new(), None).await;
    }

    /// Drops a job because an operator said so; nobody is told.
    pub(crate) async fn delete(&self, job: Job) {
        let recipients = job.held.recipients.len();
        self.count_settled(&job, recipients);
        self.metrics.dropped.inc_by(recipients as u64);
        tracing::info!(mail.id = %job.held.mail, recipients, "mail was deleted by an operator's order");
        let when = (self.deps.clock.wall(), job.held.attempts);
        let story = self.story(&job, when, trail::deleted(&job), Vec::new());
        self.report(job, Settlement::Finished, Vec::new(), story).await;
    }

    /// Recipients of a job that wait no more.
    fn count_settled(&self, job: &Job, settled: usize) {
        if job.held.accepted_at >= self.started {
            self.metrics.waiting.dec_by(i64::try_from(settled).unwrap_or(0));
        } else {
            self.metrics.inherited.inc_by(settled as u64);
        }
    }

    async fn report(
        &self,
        job: Job,
        settlement: Settlement,
        follow_up: Vec<(NewMail, Job)>,
        story: Option<Arc<Story>>,
    ) {
        let due = match &settlement {
            Settlement::Deferred { due, .. } => Some(*due),
            Settlement::Finished => None,
        };
        let (mails, jobs) = follow_up.into_iter().unzip();
        let held = job.held;
        let outcome = Outcome {
            mail: held.mail,
            delivery: held.delivery,
            hold: held.hold,
            settlement,
            follow_up: mails,
            story,
        };
        self.note_finished();
        // The receiver lives as long as the engine; if it is gone, the hold ends with this life and nothing is lost.
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        let _ = self
            .reports
            .send(Report {
                outcome,
                lane: held.lane,
                follow_up: jobs,
                due,
            })
            .await;
    }

    /// The figures and events of an attempt; see `metrics` for the sum that must hold.
    fn count(&self, job: &Job, sorted: &Sorted, attempts: u32, told: bool) {
        let held = &job.held;
        let (delivered, bounced, waiting) =
            (sorted.delivered.len(), sorted.bounced.len(), sorted.waiting.len());
        self.count_settled(job, delivered + bounced);
        self.metrics.delivered.inc_by(delivered as u64);
        // A failure that nobody can be told of is dropped; one whose sender did not want to know is bounced all the same.
        let silent = held.envelope.reverse_path.is_null();
        let failures = if silent {
            &self.metrics.dropped
        } else {
            &self.metrics.bounced
        };
        failures.inc_by(bounced as u64);
        let mail = held.mail;
        if delivered > 0 {
            self.deps.events.emit(What::MailDelivered {
                mail,
                recipients: delivered,
                attempts,
            });
        }
        if let Some((_, failure)) = sorted.bounced.first() {
            let reason = deliver::words(failure);
            tracing::info!(mail.id = %mail, lane = %held.lane.0, recipients = bounced, error = %reason, "mail failed for good");
            self.deps.events.emit(What::MailBounced {
                mail,
                recipients: bounced,
                reason,
                reported: told,
            });
        }
        if let Some((_, failure)) = sorted.waiting.first() {
            self.metrics.deferrals.inc();
            let reason = deliver::words(failure);
            tracing::info!(mail.id = %mail, lane = %held.lane.0, recipients = waiting, attempts, error = %reason, "mail is tried again later");
            self.deps.events.emit(What::MailDeferred {
                mail,
                recipients: waiting,
                attempts,
                reason,
            });
        }
    }
}

fn waiting_settlement(
    settings: &Settings,
    job: &Job,
    waiting: &[(Recipient, Failure)],
    attempts: u32,
    (now, delay_reported): (Timestamp, bool),
) -> Settlement {
    let Some((_, failure)) = waiting.first() else {
        return Settlement::Finished;
    };
    let mut wait = settings
        .retry
        .delay(attempts, job.held.mail.0.cast_unsigned() ^ u64::from(attempts));
    if let Verdict::Retry {
        not_before: Some(asked),
    } = failure.verdict
    {
        wait = wait.max(asked.min(Duration::from_secs(86_400)));
    }
    Settlement::Deferred {
        lane: job.held.lane.clone(),
        recipients: waiting.iter().map(|(recipient, _)| recipient.clone()).collect(),
        attempts,
        // The last attempt is made when the mail expires.
        due: now.plus(wait).min(job.held.expires_at),
        last_error: clip(&deliver::words(failure)),
        delay_reported,
    }
}

/// A text of at most 1,000 bytes.
pub(crate) fn clip(text: &str) -> String {
    let mut end = text.len().min(1000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The task that gives outcomes to the store, until the last sender is gone.
pub(crate) async fn settler(context: Arc<Context>, mut reports: mpsc::Receiver<Report>) {
    let mut batch = Vec::with_capacity(BATCH);
    while reports.recv_many(&mut batch, BATCH).await > 0 {
        let count = batch.len();
        settle(&context, std::mem::take(&mut batch)).await;
        if context.unsettled.fetch_sub(count, Ordering::AcqRel) == count {
            context.all_settled.notify_waiters();
        }
    }
}

async fn settle(context: &Arc<Context>, batch: Vec<Report>) {
    let outcomes: Vec<Outcome> = batch.iter().map(|r| r.outcome.clone()).collect();
    let mut pause = Duration::from_millis(100);
    let settled = loop {
        match context
            .deps
            .store
            .settle(context.deps.node.0, outcomes.clone())
            .await
        {
            Ok(settled) => break settled,
            Err(error) => {
                // What was delivered must be noted, or it would be delivered again; so this waits for the store.
                tracing::error!(%error, "deliveries cannot be settled, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
                if context.is_closing() && pause >= Duration::from_secs(5) {
                    return;
                }
            }
        }
    };
    let now = context.deps.clock.now();
    for (report, settled) in batch.into_iter().zip(settled) {
        if let Hold::Lane(..) = report.outcome.hold {
            context
                .lanes
                .lane(&report.lane)
                .settled(report.outcome.mail, report.outcome.delivery, now);
        }
        match settled {
            Settled::Done => {
                if let Some(due) = report.due {
                    context.due_at(due);
                }
                for job in report.follow_up {
                    context.accepted(&job);
                    // In a task of its own: dispatching can put off, which waits for room in the queue read here.
                    let context = Arc::clone(context);
                    context
                        .tracker
                        .clone()
                        .spawn(async move { dispatch(&context, job).await });
                }
            }
            Settled::LaneLost => {
                tracing::debug!(mail.id = %report.outcome.mail, "another gateway tries this mail now");
            }
        }
    }
}

impl Context {
    /// Counts a mail that was committed, as one delivery's job.
    pub(crate) fn accepted(&self, job: &Job) {
        let recipients = job.held.recipients.len();
        self.metrics.accepted.inc_by(recipients as u64);
        self.metrics
            .waiting
            .inc_by(i64::try_from(recipients).unwrap_or(0));
        if job.held.delivery == DeliverySeq(0) {
            self.metrics.accepted_mails.inc();
            self.metrics.accepted_bytes.inc_by(job.held.body.len);
        }
    }
}

impl Context {
    /// Waits until the store has all outcomes, but not forever.
    pub(crate) async fn settled(&self) {
        let all = async {
            loop {
                let notified = self.all_settled.notified();
                if self.unsettled.load(Ordering::Acquire) == 0 {
                    return;
                }
                notified.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), all).await.is_err() {
            tracing::warn!(
                "some deliveries could not be settled in time and may be repeated after the restart"
            );
        }
    }
}

/// The status class of a failed recipient's notice.
pub(crate) fn status(failure: &Failure, action: Action) -> (u8, u16, u16) {
    let class = match action {
        Action::Failed => 5,
        Action::Delayed => 4,
        Action::Relayed | Action::Delivered => 2,
    };
    let said = failure.reply.as_ref().and_then(|r| r.enhanced.as_deref());
    let parsed = said.and_then(tasuki_proto::smtp::EnhancedCode::parse);
    let default = match failure.blame {
        tasuki_core::failure::Blame::Peer => (0, 0),
        tasuki_core::failure::Blame::Route => (4, 1),
        tasuki_core::failure::Blame::Us => (3, 0),
    };
    let (subject, detail) = parsed.map_or(default, |e| (e.1, e.2));
    (class, subject, detail)
}

/// Who was told, for `notice`.
pub(crate) fn told(
    list: &[(Recipient, Failure)],
    pick: impl Fn(&Recipient) -> bool,
    action: Action,
    expired: bool,
) -> Vec<Told> {
    list.iter()
        .filter(|(recipient, _)| pick(recipient))
        .map(|(recipient, failure)| {
            let mut status = status(failure, action);
            let mut words = deliver::words(failure);
            if expired && failure.verdict != Verdict::Permanent {
                // RFC 3463 3.5: delivery time expired; the last failure tells why.
                status = (5, 4, 7);
                words = format!("the mail expired; the last failure was: {words}");
            }
            Told {
                recipient: recipient.clone(),
                status,
                words: Some(words),
                by_peer: failure.reply.is_some(),
            }
        })
        .collect()
}

/// Whether the sender wants to hear of this recipient's failure, delay, success.
pub(crate) fn wants(recipient: &Recipient, action: Action) -> bool {
    let notify = convert::wanted(recipient.notify);
    match action {
        Action::Failed => notify.failure,
        Action::Delayed => notify.delay,
        Action::Relayed | Action::Delivered => notify.success,
    }
}
