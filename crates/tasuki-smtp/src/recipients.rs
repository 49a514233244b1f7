//! Whether an address exists, before its mail is taken: by list, by the store's table, by asking the next hop.
//!
//! A refusal at RCPT is the sender's server's business; a bounce later would be ours, to an address that may be forged.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tasuki_core::store::suppress::Suppressed;
use tasuki_proto::{
    names::{Domain, Mailbox},
    smtp::Reply,
};
use tokio::sync::Semaphore;

use crate::{
    callout::{self, Word},
    config::{Listed, Settings},
    context::Context,
    dns::MxAnswer,
    route::NULL_MX,
    suppress::{self, Suppressions},
};

/// How long the next hop's yes and no are remembered.
const YES: Duration = Duration::from_secs(3600);
const NO: Duration = Duration::from_secs(300);
/// Answers that are remembered; about 2 MiB.
const CAPACITY: usize = 16_384;
/// Questions to next hops at a time, and how long one waits for its turn.
const AT_ONCE: usize = 32;
const TURN: Duration = Duration::from_secs(20);
/// How long a client waits at most for what DNS says of a null MX; delivery looks again.
const NULL_MX_WAIT: Duration = Duration::from_secs(5);

const UNKNOWN: Reply = Reply::new(550, (5, 1, 1), "there is no such address here");
const UNCLEAR: Reply = Reply::new(
    450,
    (4, 1, 1),
    "the address cannot be checked now, try again later",
);

/// RFC 7505 4.2: the sender could never be told of a failure.
const SENDER_TAKES_NONE: Reply = Reply::new(
    550,
    (5, 7, 27),
    "the sender's domain takes no mail (null MX), so nothing can be answered to it",
);

/// Whether an address is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    Known,
    Unknown,
    /// It cannot be told now.
    Unclear,
    /// Its domain has a null MX.
    TakesNoMail,
    /// The sender's domain has a null MX.
    SenderTakesNoMail,
    /// It is on the list of suppressed addresses.
    Suppressed(Box<Suppressed>),
}

impl Existence {
    /// What a client is told of a recipient that is not taken.
    pub(crate) fn refusal(&self) -> Option<Reply> {
        Some(match self {
            Self::Known => return None,
            Self::Unknown => UNKNOWN,
            Self::Unclear => UNCLEAR,
            Self::TakesNoMail => NULL_MX,
            Self::SenderTakesNoMail => SENDER_TAKES_NONE,
            Self::Suppressed(entry) => suppress::refusal(entry),
        })
    }
}

/// What must be asked before a recipient is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Questions {
    /// The recipient's domain, if its own mail servers are the next hop.
    pub(crate) direct: Option<Domain>,
    /// The domain of a sender whom nobody here vouches for.
    pub(crate) sender: Option<Domain>,
    /// Whether the table or the next hop knows the address; `None` if the configuration has said that it exists.
    pub(crate) whom: Option<(bool, bool)>,
    /// Whether it is on the list of suppressed addresses.
    pub(crate) suppressed: Option<suppress::Question>,
}

impl Questions {
    pub(crate) fn is_empty(&self) -> bool {
        self.direct.is_none() && self.sender.is_none() && self.whom.is_none() && self.suppressed.is_none()
    }
}

/// Asks the list of suppressed addresses, DNS for null MX records, then the table, then the next hop.
pub(crate) async fn ask(
    context: Arc<Context>,
    settings: Arc<Settings>,
    mailbox: Mailbox,
    questions: Questions,
) -> Existence {
    if let Some(question) = &questions.suppressed {
        match Suppressions::ask(&context, question).await {
            Ok(None) => {}
            Ok(Some(entry)) => return Existence::Suppressed(Box::new(entry)),
            Err(error) => {
                tracing::error!(%error, "suppressed addresses cannot be read");
                return Existence::Unclear;
            }
        }
    }
    if has_null_mx(&context, questions.sender.as_ref()).await {
        return Existence::SenderTakesNoMail;
    }
    if has_null_mx(&context, questions.direct.as_ref()).await {
        return Existence::TakesNoMail;
    }
    match questions.whom {
        Some(whom) => look_up(&context, &settings, mailbox, whom).await,
        None => Existence::Known,
    }
}

/// Only a clear answer counts: a failing or slow DNS never refuses.
async fn has_null_mx(context: &Context, domain: Option<&Domain>) -> bool {
    let Some(domain) = domain else { return false };
    let answer = tokio::time::timeout(NULL_MX_WAIT, context.resolver.mx(domain.as_str())).await;
    matches!(answer, Ok(Ok(MxAnswer::Null)))
}

/// What next hops said lately.
pub(crate) struct CallOuts {
    said: Mutex<HashMap<Mailbox, (bool, Instant)>>,
    permits: Semaphore,
}

impl Default for CallOuts {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            permits: Semaphore::new(AT_ONCE),
        }
    }
}

impl CallOuts {
    fn remembered(&self, mailbox: &Mailbox, now: Instant) -> Option<bool> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(mailbox)
            .filter(|(_, end)| *end > now)
            .map(|(yes, _)| *yes)
    }

    fn remember(&self, mailbox: Mailbox, yes: bool, now: Instant) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= CAPACITY {
            said.retain(|_, (_, end)| *end > now);
        }
        // A flood of made-up addresses fills the table with its own; asking again is all that is lost.
        if said.len() >= CAPACITY {
            said.clear();
        }
        said.insert(mailbox, (yes, now + if yes { YES } else { NO }));
    }
}

/// What the configuration alone says; `Err` with what else to ask.
pub(crate) fn listed(settings: &Settings, mailbox: &Mailbox) -> Result<Existence, (bool, bool)> {
    if settings.rewrite.alias(mailbox).is_some() {
        return Ok(Existence::Known);
    }
    match settings.recipients.look(mailbox) {
        Listed::Yes => Ok(Existence::Known),
        Listed::No => Ok(Existence::Unknown),
        Listed::Ask { table, call_out } => Err((table, call_out)),
    }
}

/// Asks the table, then the next hop.
async fn look_up(
    context: &Context,
    settings: &Settings,
    mailbox: Mailbox,
    (table, call_out): (bool, bool),
) -> Existence {
    if table {
        match context.deps.store.is_recipient(&mailbox).await {
            Ok(true) => return Existence::Known,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the table of recipients cannot be read");
                return Existence::Unclear;
            }
        }
    }
    if !call_out {
        return Existence::Unknown;
    }
    let existence = |yes| if yes { Existence::Known } else { Existence::Unknown };
    if let Some(yes) = context.call_outs.remembered(&mailbox, context.deps.clock.now()) {
        return existence(yes);
    }
    let Ok(Ok(_turn)) = tokio::time::timeout(TURN, context.call_outs.permits.acquire()).await else {
        return Existence::Unclear;
    };
    match callout::ask(context, settings, &mailbox).await {
        Word::Unclear(reason) => {
            tracing::debug!(reason, "the next hop does not say whether an address exists");
            Existence::Unclear
        }
        word => {
            let yes = word == Word::Yes;
            context.call_outs.remember(mailbox, yes, context.deps.clock.now());
            existence(yes)
        }
    }
}
