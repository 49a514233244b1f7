//! Delivery notices as mails of our own: built with the outcome that causes them, committed with it.

use std::sync::Arc;

use bytes::Bytes;
use tasuki_core::{
    clock::Timestamp,
    failure::Failure,
    ids::DeliverySeq,
    store::mail::{Class, Envelope, Held, Hold, NewDelivery, NewMail, Notify, Recipient},
    store::trail::{NoticeKind, NoticeSent, Received},
};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::{
        EnhancedCode, OriginalRecipient, Reply,
        data::HeaderEnd,
        dsn::{self, Action, Notice, ReportedRecipient},
        header::{Header, LineKind, is_automatic, line_kind},
    },
};

use crate::{
    config::Settings,
    context::{Context, Job, KeptBody},
    route,
    settle::{told, wants},
};

/// Most octets of the original header in a notice, so that the whole usually fits in the store's row.
const MAX_HEADER: usize = 8 * 1024;

/// One recipient in a notice.
pub(crate) struct Told {
    pub(crate) recipient: Recipient,
    pub(crate) status: (u8, u16, u16),
    pub(crate) words: Option<String>,
    /// Whether the words are the remote server's.
    pub(crate) by_peer: bool,
}

/// Collects the notices of one outcome.
pub(crate) struct Notices<'a> {
    context: &'a Context,
    settings: &'a Settings,
    job: &'a Job,
    host: Option<&'a str>,
    now: Timestamp,
    made: Vec<(NewMail, Job)>,
    sent: Vec<NoticeSent>,
    failure_told: bool,
}

impl<'a> Notices<'a> {
    pub(crate) fn new(
        context: &'a Context,
        settings: &'a Settings,
        job: &'a Job,
        host: Option<&'a str>,
        now: Timestamp,
    ) -> Self {
        Self {
            context,
            settings,
            job,
            host,
            now,
            made: Vec::new(),
            sent: Vec::new(),
            failure_told: false,
        }
    }

    pub(crate) async fn failed(&mut self, bounced: &[(Recipient, Failure)], expired: bool) {
        let list = told(bounced, |r| wants(r, Action::Failed), Action::Failed, expired);
        self.failure_told = self.make(Action::Failed, list).await;
    }

    pub(crate) async fn delayed(&mut self, waiting: &[(Recipient, Failure)]) {
        let list = told(waiting, |r| wants(r, Action::Delayed), Action::Delayed, false);
        self.make(Action::Delayed, list).await;
    }

    /// For recipients whose sender asked for success notices, when the next hop will not send them (RFC 3461 5.2.2).
    pub(crate) async fn succeeded(&mut self, delivered: &[(Recipient, Reply)], is_final: bool) {
        let action = if is_final {
            Action::Delivered
        } else {
            Action::Relayed
        };
        let asked = delivered
            .iter()
            .filter(|(recipient, _)| wants(recipient, Action::Relayed));
        let list: Vec<Told> = asked
            .map(|(recipient, reply)| Told {
                recipient: recipient.clone(),
                status: (2, 0, 0),
                words: Some(reply.to_string()),
                by_peer: true,
            })
            .collect();
        self.make(action, list).await;
    }

    /// The notices, whether one tells of the failures, and what the trail keeps of them.
    pub(crate) fn finish(self) -> (Vec<(NewMail, Job)>, bool, Vec<NoticeSent>) {
        (self.made, self.failure_told, self.sent)
    }

    async fn make(&mut self, action: Action, list: Vec<Told>) -> bool {
        let envelope = &self.job.held.envelope;
        // RFC 3464 2, RFC 5321 6.1: never about a notice, never to nobody.
        let (Some(to), false) = (envelope.reverse_path.mailbox(), envelope.is_dsn) else {
            return false;
        };
        if list.is_empty() {
            return false;
        }
        // RFC 8689 5: nothing of a mail that had to be protected goes into a notice that is not.
        let header = match self.job.head(&*self.context.deps.store).await {
            Ok(_) if envelope.require_tls => Bytes::new(),
            Ok(head) => header_of(&head),
            Err(error) => {
                tracing::warn!(mail.id = %self.job.held.mail, %error, "the notice goes without the mail's header");
                Bytes::new()
            }
        };
        // RFC 3834 2, RFC 5321 6.1: nobody vouches for a stranger's sender, and what a program or a list sent has no author
        // who waits. Our own people's mail is always answered.
        if envelope.principal.is_none() && is_automatic(&Header::parse(&header)) {
            tracing::debug!(mail.id = %self.job.held.mail, "no notice about a stranger's automatic mail");
            return false;
        }
        let unique = self.context.ids.next().to_string();
        let text = self.write(action, to, &list, (&header, &unique));
        let received = Received {
            message_id: Some(format!("{unique}@{}", self.settings.host)),
            notice_about: Some(self.job.held.mail),
            ..Received::default()
        };
        match own_mail(self.context, self.settings, to, (text, received), self.now).await {
            Ok(made) => {
                self.sent.push(NoticeSent {
                    mail: made.0.id,
                    to: to.clone(),
                    kind: match action {
                        Action::Failed => NoticeKind::Failed,
                        Action::Delayed => NoticeKind::Delayed,
                        Action::Relayed => NoticeKind::Relayed,
                        Action::Delivered => NoticeKind::Delivered,
                    },
                });
                self.made.push(made);
                true
            }
            Err(error) => {
                tracing::error!(mail.id = %self.job.held.mail, %error, "a delivery notice could not be stored");
                false
            }
        }
    }

    fn write(&self, action: Action, to: &Mailbox, list: &[Told], (header, unique): (&[u8], &str)) -> Vec<u8> {
        let held = &self.job.held;
        let recipients: Vec<ReportedRecipient> = list
            .iter()
            .map(|told| ReportedRecipient {
                mailbox: told.recipient.mailbox.clone(),
                orcpt: told
                    .recipient
                    .orcpt
                    .as_deref()
                    .and_then(|o| OriginalRecipient::parse(o).ok()),
                status: EnhancedCode(told.status.0, told.status.1, told.status.2),
                remote_mta: self.host.filter(|_| told.by_peer).map(str::to_owned),
                diagnostic: told.words.clone(),
                last_attempt: Some(self.now.to_utc()),
            })
            .collect();
        dsn::write(&Notice {
            reporting_mta: &self.settings.host,
            to,
            date: self.now.to_utc(),
            arrival: held.accepted_at.to_utc(),
            will_retry_until: Some(held.expires_at.to_utc()),
            envid: held.envelope.envid.as_deref(),
            mail_id: &held.mail.to_string(),
            unique,
            action,
            recipients: &recipients,
            header,
        })
    }
}

/// The header section at the front of a message, cut at a line.
fn header_of(head: &Bytes) -> Bytes {
    let mut end = HeaderEnd::default().len;
    while let Some(line) = head[end..].iter().position(|b| *b == b'\n').map(|n| n + 1) {
        let done = matches!(line_kind(&head[end..end + line]), LineKind::End | LineKind::Body);
        if done || end + line > MAX_HEADER {
            break;
        }
        end += line;
    }
    head.slice(..end)
}

/// A mail of our own, from nobody (so that nothing comes back), to be stored and then tried.
pub(crate) async fn own_mail(
    context: &Context,
    settings: &Settings,
    to: &Mailbox,
    (text, received): (Vec<u8>, Received),
    now: Timestamp,
) -> tasuki_core::store::StoreResult<(NewMail, Job)> {
    let eight_bit = !text.is_ascii();
    let text = Bytes::from(text);
    let body = context.store_body(text.clone()).await?;
    let id = context.ids.next();
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        principal: None,
        envid: None,
        ret: None,
        smtputf8: to.needs_smtputf8(),
        eight_bit,
        is_dsn: true,
        require_tls: false,
        class: Class::default(),
        received: Some(Box::new(received)),
    };
    // A notice about a notice is not wanted by anybody.
    let notify = Notify {
        never: true,
        ..Notify::default()
    };
    let recipient = Recipient {
        mailbox: to.clone(),
        notify,
        orcpt: None,
        written: None,
    };
    let lane = route::lane_of(settings, to);
    let expires_at = now.plus(
        settings
            .delivery
            .expire
            .min(std::time::Duration::from_secs(2 * 86_400)),
    );
    let held = Held {
        mail: id,
        delivery: DeliverySeq(0),
        hold: Hold::Fresh(context.deps.node.1),
        lane: lane.clone(),
        envelope: envelope.clone(),
        recipients: vec![recipient.clone()],
        body: body.clone(),
        attempts: 0,
        accepted_at: now,
        expires_at,
        delay_reported: true,
        last_error: None,
        orders: tasuki_core::store::mail::Orders::default(),
    };
    let mail = NewMail {
        id,
        envelope,
        body,
        deliveries: vec![NewDelivery {
            lane,
            recipients: vec![recipient],
        }],
        accepted_at: now,
        expires_at,
    };
    let kept = KeptBody {
        pieces: vec![text],
        _permit: None,
    };
    Ok((
        mail,
        Job {
            held,
            body: Some(Arc::new(kept)),
        },
    ))
}
