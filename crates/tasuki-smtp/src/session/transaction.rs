//! One mail: may it be sent, does its recipient exist, is there room for it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tasuki_core::{
    EngineKind,
    bans::Offence,
    limits::{Rate, Who},
};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::{
        Reply,
        server::{Session, Ticket},
    },
};

use super::Shell;
use crate::{
    config::{Origin, Settings, Via},
    connect::Socket,
    context::Context,
    daily::{self, Reserved},
    guard, nat, policy,
    receive::{BUSY, FULL, Incoming, Trace},
    recipients::{self, Existence, Questions},
    trail,
};

const SENDER_OK: Reply = Reply::new(250, (2, 1, 0), "sender ok");
pub(crate) const RECIPIENT_OK: Reply = Reply::new(250, (2, 1, 5), "recipient ok");
const GO_ON: Reply = Reply::new(250, (2, 0, 0), "go on");

impl Shell {
    pub(super) fn client(&self) -> policy::Client<'_> {
        policy::Client {
            role: self.role,
            from: Some(self.ip()),
            principal: self.principal().map(|p| &**p),
            device: self.device.as_deref(),
        }
    }

    fn tls_in_words(&self) -> Option<String> {
        match &self.socket {
            Socket::Server(tls) => Some(trail::tls_in_words(tls.get_ref().1)),
            _ => None,
        }
    }

    pub(super) async fn check_sender(&mut self, session: &Session) -> Reply {
        // A mail keeps the settings of its MAIL to its end.
        self.settings = self.context.settings.load_full();
        self.reserved = None;
        if let Err(reply) = self.look_again().await {
            return reply;
        }
        if self.login.is_none()
            && self.network.is_some()
            && self.device.is_none()
            && let Some((name, _)) = session.helo()
        {
            nat::heard(&self.context, self.ip(), name);
        }
        let Some(envelope) = session.envelope() else {
            return BUSY;
        };
        match judge_sender(&self.client(), &self.settings, &envelope.from) {
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
        let from = session
            .envelope()
            .map_or(&ReversePath::Null, |envelope| &envelope.from);
        let questions = match questions(&self.context, &client, &self.settings, from, &mailbox) {
            Ok(questions) => questions,
            Err(existence) => return Some(self.known(existence).await),
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

    /// The reply to a recipient that is allowed, once it is known whether it exists.
    pub(super) async fn known(&mut self, existence: Existence) -> Reply {
        match existence.refusal() {
            None => self.charge().await,
            Some(reply) => {
                self.context.metrics.refuse(match existence {
                    Existence::SenderTakesNoMail => "sender",
                    Existence::Suppressed(_) => "suppressed",
                    _ => "recipient",
                });
                reply
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
        if let Some(principal) = self.principal()
            && let Err(reply) = guard::charge(&self.context, &self.settings, principal).await
        {
            self.context.metrics.refuse("rate");
            return reply;
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
            tls_in_words: self.tls_in_words(),
            login: self.login.is_some(),
            smtputf8: envelope.smtputf8,
            peer: self.peer,
            only_recipient,
            sender: rewritten_sender(&self.settings, &envelope.from).map(ToString::to_string),
        };
        let settings = Arc::clone(&self.settings);
        match Incoming::begin(
            &self.context,
            settings,
            trace,
            (self.principal().cloned(), self.device.clone()),
            envelope,
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

/// What is to be asked about a recipient that the client may reach; `Err` with what the configuration says already.
pub(crate) fn questions(
    context: &Context,
    client: &policy::Client<'_>,
    settings: &Settings,
    from: &ReversePath,
    mailbox: &Mailbox,
) -> Result<Questions, Existence> {
    let whom = match recipients::listed(settings, mailbox) {
        Ok(Existence::Known) => None,
        Ok(existence) => return Err(existence),
        Err(whom) => Some(whom),
    };
    let origin = Origin {
        principal: client.principal.map(|principal| principal.name.as_str()),
        sender: from.mailbox(),
    };
    let is_direct =
        settings.rewrite.alias(mailbox).is_none() && *settings.ways.choose(origin, mailbox) == Via::Direct;
    // Nobody here vouches for a stranger's sender.
    let stranger = client.principal.is_none() && client.device.is_none();
    let domain = |mailbox: &Mailbox| mailbox.domain().cloned();
    Ok(Questions {
        direct: is_direct.then(|| domain(mailbox)).flatten(),
        sender: from.mailbox().filter(|_| stranger).and_then(domain),
        whom,
        suppressed: context.suppressions.question(settings, client, from, mailbox),
    })
}

/// Whether the client may start a mail from here. A principal may send as what its sender becomes; a stranger's sender
/// becomes nothing.
pub(crate) fn judge_sender(
    client: &policy::Client<'_>,
    settings: &Settings,
    from: &ReversePath,
) -> Result<(), Reply> {
    match rewritten_sender(settings, from) {
        Some(sender) if client.principal.is_some() => {
            policy::may_send_as(client, &ReversePath::Mailbox(sender.clone()))
        }
        _ => policy::may_send_as(client, from),
    }
}

/// The sender as the table has it.
pub(crate) fn rewritten_sender<'a>(settings: &'a Settings, from: &'a ReversePath) -> Option<&'a Mailbox> {
    let sender = from.mailbox()?;
    Some(settings.rewrite.sender(sender).unwrap_or(sender))
}
