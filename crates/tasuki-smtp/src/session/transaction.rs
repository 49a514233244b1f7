//! One mail: may it be sent, does its recipient exist, is there room for it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tasuki_core::{
    EngineKind,
    bans::Offence,
    limits::{Rate, Who},
};
use tasuki_proto::{
    names::{Domain, Mailbox, ReversePath},
    smtp::{
        Envelope, Reply,
        server::{Session, Ticket},
    },
};

use super::Shell;
use crate::{
    config::{Origin, Settings, Via},
    daily::{self, Reserved},
    policy,
    receive::{BUSY, FULL, Incoming, Trace},
    recipients::{self, Existence, Questions},
    route,
};

const SENDER_OK: Reply = Reply::new(250, (2, 1, 0), "sender ok");
const RECIPIENT_OK: Reply = Reply::new(250, (2, 1, 5), "recipient ok");
const GO_ON: Reply = Reply::new(250, (2, 0, 0), "go on");

impl Shell {
    pub(super) fn client(&self) -> policy::Client<'_> {
        policy::Client {
            role: self.role,
            from: self.ip(),
            principal: self.principal().map(|p| &**p),
            device: self.device.as_deref(),
        }
    }

    pub(super) fn check_sender(&mut self, session: &Session) -> Reply {
        // A mail keeps the settings of its MAIL to its end.
        self.settings = self.context.settings.load_full();
        self.reserved = None;
        let Some(envelope) = session.envelope() else {
            return BUSY;
        };
        // A principal may send as what its sender becomes; a stranger's sender becomes nothing.
        let sender = match rewritten_sender(&self.settings, envelope) {
            Some(sender) if self.principal().is_some() => ReversePath::Mailbox(sender.clone()),
            _ => envelope.from.clone(),
        };
        match policy::may_send_as(&self.client(), &sender) {
            Ok(()) => SENDER_OK,
            Err(reply) => {
                self.context.metrics.refuse("sender");
                tracing::debug!(peer.addr = %self.peer, principal = self.principal().map(|p| p.name.as_str()), "sender refused");
                reply
            }
        }
    }

    pub(super) async fn check_recipient(
        &mut self,
        session: &Session,
        ticket: Ticket,
        mailbox: Mailbox,
    ) -> Option<Reply> {
        let client = self.client();
        if let Err(reply) = policy::may_relay_to(&client, &mailbox, &self.settings, &self.context.deps.acl) {
            self.context.metrics.refuse("relay");
            tracing::debug!(peer.addr = %self.peer, "relaying denied");
            if self.principal().is_none() {
                self.context
                    .deps
                    .bans
                    .offence(EngineKind::Mail, self.ip(), Offence::RelayProbe);
            }
            return Some(reply);
        }
        let whom = match recipients::listed(&self.settings, &mailbox) {
            Ok(Existence::Known) => None,
            Ok(existence) => return Some(self.known(existence).await),
            Err(whom) => Some(whom),
        };
        let sender = session.envelope().and_then(|envelope| match &envelope.from {
            ReversePath::Mailbox(sender) => Some(sender),
            ReversePath::Null => None,
        });
        let questions = Questions {
            direct: self.direct(sender, &mailbox),
            sender: self.stranger().and(sender).and_then(Mailbox::domain).cloned(),
            whom,
        };
        if questions.is_empty() {
            return Some(self.known(Existence::Known).await);
        }
        let (context, settings) = (Arc::clone(&self.context), Arc::clone(&self.settings));
        let question = async move {
            (
                ticket,
                recipients::ask(context, settings, mailbox, questions).await,
            )
        };
        self.asking.push(question.boxed());
        None
    }

    /// The recipient's domain, if mail to it goes to its own mail servers.
    fn direct(&self, sender: Option<&Mailbox>, mailbox: &Mailbox) -> Option<Domain> {
        let origin = Origin {
            principal: self.principal().map(|principal| principal.name.as_str()),
            sender,
        };
        let is_direct = self.settings.rewrite.alias(mailbox).is_none()
            && *self.settings.ways.choose(origin, mailbox) == Via::Direct;
        is_direct.then(|| mailbox.domain().cloned()).flatten()
    }

    /// Something, if nobody here vouches for the client.
    fn stranger(&self) -> Option<()> {
        (self.principal().is_none() && self.device.is_none()).then_some(())
    }

    /// The reply to a recipient that is allowed, once it is known whether it exists.
    pub(super) async fn known(&mut self, existence: Existence) -> Reply {
        match existence {
            Existence::Known => self.charge().await,
            Existence::Unknown => {
                self.context.metrics.refuse("recipient");
                recipients::UNKNOWN
            }
            Existence::Unclear => recipients::UNCLEAR,
            Existence::TakesNoMail => {
                self.context.metrics.refuse("recipient");
                route::NULL_MX
            }
            Existence::SenderTakesNoMail => {
                self.context.metrics.refuse("sender");
                recipients::SENDER_TAKES_NONE
            }
        }
    }

    /// Takes one recipient off the principal's rate and cap.
    pub(super) async fn charge(&mut self) -> Reply {
        let per_minute = self.settings.recipients_per_minute;
        if let Some(principal) = self.principal()
            && per_minute > 0
        {
            let rate = Rate {
                burst: per_minute,
                per_period: per_minute,
                period: Duration::from_secs(60),
            };
            let who = Who::Principal(principal.id);
            if let Err(wait) = self
                .context
                .deps
                .limits
                .take(EngineKind::Mail, "recipients", who, rate)
            {
                self.context.metrics.refuse("rate");
                let text = format!(
                    "too many recipients for now, try again in {} s",
                    wait.as_secs() + 1
                );
                return Reply::with_text(451, (4, 7, 1), text);
            }
        }
        if let Some(principal) = self.principal().cloned()
            && let Some(cap) = daily::cap_of(&self.settings, &principal)
            && let Err(reply) = Reserved::add(&mut self.reserved, &self.context, &principal, cap).await
        {
            self.context.metrics.refuse("rate");
            return reply;
        }
        RECIPIENT_OK
    }

    pub(super) fn begin_data(&mut self, session: &Session) -> Reply {
        if self.context.deps.health.disk_full() {
            self.context.metrics.refuse("disk");
            return FULL;
        }
        let Some(envelope) = session.envelope() else {
            return BUSY;
        };
        let (helo, esmtp) = session.helo().unwrap_or(("unknown", false));
        let only_recipient = match envelope.recipients.as_slice() {
            [one] => Some(one.mailbox.to_string()),
            _ => None,
        };
        let trace = Trace {
            helo: helo.to_owned(),
            esmtp,
            tls: session.is_tls(),
            login: self.login.is_some(),
            smtputf8: envelope.smtputf8,
            peer: self.peer,
            only_recipient,
            sender: rewritten_sender(&self.settings, envelope).map(ToString::to_string),
        };
        let settings = Arc::clone(&self.settings);
        match Incoming::begin(
            &self.context,
            settings,
            trace,
            (self.principal().cloned(), self.device.clone()),
            envelope.size,
        ) {
            Ok(incoming) => {
                self.incoming = Some(incoming);
                GO_ON
            }
            Err(reply) => {
                self.context.metrics.refuse("memory");
                reply
            }
        }
    }
}

/// The sender as the table has it.
fn rewritten_sender<'a>(settings: &'a Settings, envelope: &'a Envelope) -> Option<&'a Mailbox> {
    let sender = envelope.from.mailbox()?;
    Some(settings.rewrite.sender(sender).unwrap_or(sender))
}
