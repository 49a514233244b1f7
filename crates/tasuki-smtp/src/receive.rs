//! A mail while it comes in: header edits, memory by permit, the store's sink for what is large, and the commit.
//!
//! **Invariant:** [`Incoming::commit`] returns a 2xx only after the store's `enqueue` returned.

use std::{net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use tasuki_core::{
    budget::BudgetPermit,
    clock::Timestamp,
    events::What,
    ids::{DeliverySeq, MailId},
    store::accounts::Principal,
    store::{
        StoreError,
        mail::{BodyPlace, BodySink, Held, Hold, LaneKey, NewDelivery, NewMail, Recipient, StoredBody},
        trail::Received,
    },
};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::{self, Reply, data::HeaderEnd, encode_xtext, server::Message},
};

use crate::{
    config::{Device, Origin, Settings},
    context::{Context, INLINE_MAX, Job, KeptBody, PerAddress},
    convert,
    deliver::dispatch,
    headers::Edit,
    route,
};

/// Bodies to this size stay in memory for the first attempt.
const KEEP_MAX: u64 = 256 * 1024;
/// What a session takes from the budget before its data may come: one piece.
const FIRST_PERMIT: u64 = 64 * 1024;

/// The queue cannot take more now.
pub(crate) const BUSY: Reply = Reply::new(
    421,
    (4, 3, 2),
    "too much mail is in memory, come back in a minute",
);
const UNAVAILABLE: Reply = Reply::new(451, (4, 3, 0), "the queue cannot be written now, try again later");
pub(crate) const FULL: Reply = Reply::new(452, (4, 3, 1), "the queue has no space, try again later");

/// What the trace header says of the session.
pub(crate) struct Trace {
    pub(crate) helo: String,
    pub(crate) esmtp: bool,
    pub(crate) tls: bool,
    pub(crate) login: bool,
    pub(crate) smtputf8: bool,
    pub(crate) peer: SocketAddr,
    /// Version and cipher, when that is on.
    pub(crate) tls_in_words: Option<String>,
    /// The one recipient, if there is only one (RFC 5321 7.6).
    pub(crate) only_recipient: Option<String>,
    /// The reverse-path, for a message without From.
    pub(crate) sender: Option<String>,
}

/// One mail that is being received.
pub(crate) struct Incoming {
    id: MailId,
    accepted_at: Timestamp,
    settings: Arc<Settings>,
    trace: Trace,
    /// Who handed it in.
    principal: Option<Arc<Principal>>,
    device: Option<Arc<Device>>,
    pieces: Vec<Bytes>,
    len: u64,
    sink: Option<Box<dyn BodySink>>,
    permit: Option<BudgetPermit>,
    size_hint: Option<u64>,
    failed: Option<Reply>,
    /// The mail's recipients that are exchanged for others, and how many it has in all.
    aliased: Vec<Mailbox>,
    recipients: usize,
    /// Those of them that the mail was sent on for before.
    came_back: Vec<Mailbox>,
    message_id: Option<String>,
}

impl Incoming {
    /// Takes the first memory, or says why not.
    pub(crate) fn begin(
        context: &Context,
        settings: Arc<Settings>,
        trace: Trace,
        (principal, device): (Option<Arc<Principal>>, Option<Arc<Device>>),
        envelope: &smtp::Envelope,
    ) -> Result<Self, Reply> {
        let permit = context.deps.budget.try_take(FIRST_PERMIT).ok_or(BUSY)?;
        let mailboxes = envelope.recipients.iter().map(|r| &r.mailbox);
        let aliased = mailboxes
            .filter(|mailbox| exchanged(&settings, mailbox).is_some())
            .cloned()
            .collect();
        Ok(Self {
            id: context.ids.next(),
            accepted_at: context.deps.clock.wall(),
            settings,
            trace,
            principal,
            device,
            pieces: Vec::new(),
            len: 0,
            sink: None,
            permit: Some(permit),
            size_hint: envelope.size,
            failed: None,
            aliased,
            recipients: envelope.recipients.len(),
            came_back: Vec::new(),
            message_id: None,
        })
    }

    /// Takes a piece; `header` comes with the first one.
    pub(crate) async fn piece(&mut self, context: &Context, piece: Bytes, header: Option<HeaderEnd>) {
        if self.failed.is_some() {
            return;
        }
        if let Some(end) = header {
            let edit = Edit {
                id: self.id,
                accepted_at: self.accepted_at,
                settings: &self.settings,
                trace: &self.trace,
                principal: self.principal.as_deref(),
                device: self.device.as_deref(),
                aliased: &self.aliased,
            };
            match edit.apply(&piece[..end.len]) {
                Ok(edited) if !edited.came_back.is_empty() && edited.came_back.len() == self.recipients => {
                    self.fail(route::DELIVERED_BEFORE);
                }
                Ok(edited) => {
                    let mut text = edited.text;
                    self.came_back = edited.came_back;
                    self.message_id = edited.message_id;
                    // What has no empty line of its own gets one, or the body would be read as header.
                    if !end.separated {
                        text.extend_from_slice(b"\r\n");
                    }
                    self.keep(context, Bytes::from(text)).await;
                    self.keep(context, piece.slice(end.len..)).await;
                }
                Err(reply) => self.fail(reply),
            }
            return;
        }
        self.keep(context, piece).await;
    }

    fn fail(&mut self, reply: Reply) {
        self.failed = Some(reply);
        self.pieces.clear();
        self.sink = None;
    }

    /// Keeps a piece in memory while it may stay there, else hands it to the store.
    async fn keep(&mut self, context: &Context, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len() as u64;
        if self.sink.is_none() {
            self.pieces.push(piece);
            if self.fits_memory() {
                return;
            }
            // Too large to stay: from here on only one piece at a time is in memory.
            if let Err(error) = self.spill(context).await {
                self.fail(refusal(&error));
            }
            if let Some(permit) = &mut self.permit {
                permit.shrink(permit.bytes().saturating_sub(FIRST_PERMIT));
            }
            return;
        }
        if let Some(sink) = &mut self.sink
            && let Err(error) = sink.write(piece).await
        {
            self.fail(refusal(&error));
        }
    }

    fn fits_memory(&mut self) -> bool {
        let Some(permit) = &mut self.permit else {
            return false;
        };
        let held = permit.bytes();
        self.len <= held || self.len <= KEEP_MAX && permit.grow(self.len - held)
    }

    async fn spill(&mut self, context: &Context) -> Result<(), StoreError> {
        let mut sink = context.deps.store.open_body(self.size_hint).await?;
        for piece in std::mem::take(&mut self.pieces) {
            sink.write(piece).await?;
        }
        self.sink = Some(sink);
        Ok(())
    }

    /// Ends the body and stores the mail; the reply to give, and on success the jobs are on their way.
    pub(crate) async fn commit(mut self, context: &Arc<Context>, message: Message) -> Reply {
        if let Some(reply) = self.failed {
            context.metrics.refuse("content");
            return reply;
        }
        let size_bytes = self.len;
        let body = match self.finish_body(context).await {
            Ok(body) => body,
            Err(error) => return refusal(&error),
        };
        let kept = self.kept(&body);
        let principal = self.principal.as_ref().map(|p| p.id);
        let mut envelope = convert::to_store(&message.envelope, self.principal.as_deref(), message.eight_bit);
        let settings = &*self.settings;
        envelope.reverse_path = reverse_path(
            settings,
            self.principal.is_some(),
            self.device.as_deref(),
            envelope.reverse_path,
        );
        let deliveries = self.deliveries(&message, &envelope.reverse_path);
        envelope.received = Some(Box::new(self.received(&message, &envelope.reverse_path)));
        let (node, epoch) = context.deps.node;
        let patience = self.settings.delivery.expire_of(self.principal.as_deref());
        let expires_at = self.accepted_at.plus(patience);
        let jobs: Vec<Job> = deliveries
            .iter()
            .enumerate()
            .map(|(at, delivery)| Job {
                held: Held {
                    mail: self.id,
                    delivery: DeliverySeq(u16::try_from(at).unwrap_or(u16::MAX)),
                    hold: Hold::Fresh(epoch),
                    lane: delivery.lane.clone(),
                    envelope: envelope.clone(),
                    recipients: delivery.recipients.clone(),
                    body: body.clone(),
                    attempts: 0,
                    accepted_at: self.accepted_at,
                    expires_at,
                    delay_reported: false,
                    last_error: None,
                    orders: tasuki_core::store::mail::Orders::default(),
                },
                body: kept.clone(),
            })
            .collect();
        let recipients = jobs.iter().map(|j| j.held.recipients.len()).sum();
        let mail = NewMail {
            id: self.id,
            envelope,
            body,
            deliveries,
            accepted_at: self.accepted_at,
            expires_at,
        };
        if let Err(error) = context.deps.store.enqueue(node, epoch, vec![mail]).await {
            return refusal(&error);
        }
        context.deps.events.emit(What::MailAccepted {
            mail: self.id,
            principal,
            size_bytes,
            recipients,
        });
        // Half of the budget is for mail that comes in; what waits for a slow next hop must not shut the door.
        let budget = &context.deps.budget;
        let crowded = budget.used_bytes() > budget.limit_bytes() / 2;
        for job in jobs {
            context.accepted(&job);
            if crowded {
                let now = context.deps.clock.wall();
                context
                    .put_off(job, now, "more mail than fits in memory waits")
                    .await;
            } else {
                dispatch(context, job).await;
            }
        }
        Reply::with_text(250, (2, 0, 0), format!("queued as {}", self.id))
    }

    async fn finish_body(&mut self, context: &Context) -> Result<StoredBody, StoreError> {
        if let Some(sink) = self.sink.take() {
            return sink.finish().await;
        }
        if self.len <= INLINE_MAX as u64 {
            let mut whole = BytesMut::with_capacity(usize::try_from(self.len).unwrap_or(0));
            for piece in self.pieces.drain(..) {
                whole.extend_from_slice(&piece);
            }
            return Ok(StoredBody {
                len: self.len,
                place: BodyPlace::Inline(whole.freeze()),
            });
        }
        let mut sink = context.deps.store.open_body(Some(self.len)).await?;
        for piece in &self.pieces {
            sink.write(piece.clone()).await?;
        }
        sink.finish().await
    }

    /// What stays in memory for the first attempt, with its share of the budget.
    fn kept(&mut self, body: &StoredBody) -> Option<Arc<KeptBody>> {
        let pieces = match &body.place {
            BodyPlace::Inline(whole) => vec![whole.clone()],
            _ if self.pieces.is_empty() => return None,
            _ => std::mem::take(&mut self.pieces),
        };
        let mut permit = self.permit.take();
        if let Some(permit) = &mut permit {
            permit.shrink(permit.bytes().saturating_sub(self.len));
        }
        Some(Arc::new(KeptBody {
            pieces,
            _permit: permit,
        }))
    }

    /// The recipients by lane; who is named twice gets one copy.
    fn deliveries(&self, message: &Message, sender: &ReversePath) -> Vec<NewDelivery> {
        let origin = Origin {
            principal: self.principal.as_ref().map(|principal| principal.name.as_str()),
            sender: sender.mailbox(),
        };
        let mut deliveries: Vec<NewDelivery> = Vec::new();
        for recipient in &message.envelope.recipients {
            if self.came_back.contains(&recipient.mailbox) {
                let lane = LaneKey(route::LOOP_LANE.to_owned());
                let recipients = vec![convert::recipient_to_store(recipient)];
                deliveries.push(NewDelivery { lane, recipients });
                continue;
            }
            for recipient in behind(&self.settings, convert::recipient_to_store(recipient)) {
                let lane: LaneKey = route::lane_for(&self.settings, origin, &recipient.mailbox);
                let is_there = |d: &NewDelivery| {
                    d.lane == lane && d.recipients.iter().any(|r| r.mailbox == recipient.mailbox)
                };
                if deliveries.iter().any(is_there) {
                    continue;
                }
                // What is marked for one address is not read by the recipients behind another one.
                let fits = |d: &&mut NewDelivery| {
                    d.lane == lane && d.recipients.iter().all(|r| r.written == recipient.written)
                };
                match deliveries.iter_mut().find(fits) {
                    Some(delivery) => delivery.recipients.push(recipient),
                    None => deliveries.push(NewDelivery {
                        lane,
                        recipients: vec![recipient],
                    }),
                }
            }
        }
        deliveries
    }
}

impl Incoming {
    /// How the mail came, for the trail.
    fn received(&self, message: &Message, sender: &ReversePath) -> Received {
        let given = &message.envelope.from;
        Received {
            client: Some(self.trace.peer),
            helo: self.trace.helo.chars().take(100).collect(),
            tls: self.trace.tls_in_words.clone(),
            principal: self.principal.as_ref().map(|principal| principal.name.clone()),
            login: self.trace.login,
            message_id: self.message_id.clone(),
            sender: given.mailbox().filter(|_| given != sender).cloned(),
            notice_about: None,
        }
    }
}

/// Who hears of failures: a device's contact, or the sender as the table has it.
pub(crate) fn reverse_path(
    settings: &Settings,
    of_principal: bool,
    device: Option<&Device>,
    given: ReversePath,
) -> ReversePath {
    if let Some(device) = device {
        return ReversePath::Mailbox(device.contact.clone());
    }
    match given.mailbox() {
        Some(sender) if of_principal => match settings.rewrite.sender(sender) {
            Some(to) => ReversePath::Mailbox(to.clone()),
            None => given,
        },
        _ => given,
    }
}

/// What a recipient is exchanged for; `None` if it stays.
fn exchanged<'a>(settings: &'a Settings, mailbox: &Mailbox) -> Option<&'a [Mailbox]> {
    let is_boss =
        mailbox.domain() == Some(&settings.host) && mailbox.local().eq_ignore_ascii_case("postmaster");
    let boss = settings.postmaster.as_ref().filter(|_| is_boss);
    settings
        .rewrite
        .alias(mailbox)
        .or_else(|| boss.map(std::slice::from_ref))
}

/// The recipients behind this one: those of an alias, postmaster's, or itself. What the sender wrote goes with them as
/// ORCPT (RFC 3461 5.2.1), so that notices name the address it knows.
pub(crate) fn behind(settings: &Settings, recipient: Recipient) -> Vec<Recipient> {
    let Some(to) = exchanged(settings, &recipient.mailbox) else {
        return vec![recipient];
    };
    let written = recipient.mailbox.to_string();
    let orcpt = recipient.orcpt.clone().or_else(|| {
        written
            .is_ascii()
            .then(|| format!("rfc822;{}", encode_xtext(&written)))
    });
    to.iter()
        .map(|mailbox| Recipient {
            mailbox: mailbox.clone(),
            notify: recipient.notify,
            orcpt: orcpt.clone(),
            // A mailbox that keeps its own copy would take its name in Delivered-To for a loop.
            written: (*mailbox != recipient.mailbox).then(|| recipient.mailbox.clone()),
        })
        .collect()
}

fn refusal(error: &StoreError) -> Reply {
    match error {
        StoreError::Full => {
            tracing::warn!(%error, "mail is refused until there is space");
            FULL
        }
        error => {
            tracing::error!(%error, "mail cannot be stored");
            UNAVAILABLE
        }
    }
}

impl PerAddress {
    /// The reply to one connection too many.
    pub(crate) const TOO_MANY: Reply = Reply::new(421, (4, 7, 0), "too many connections from your address");
}
