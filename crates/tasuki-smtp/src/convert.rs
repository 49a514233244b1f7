//! Between the protocol's types and the store's: the same things, with the store's spelling.

use tasuki_core::{
    accounts::MailClass,
    failure::{Blame, Failure, Reply as FailureReply, Verdict},
    store::accounts::Principal,
    store::mail::{Class, Envelope, Notify, Recipient, Ret},
};
use tasuki_proto::smtp::{
    self, OriginalRecipient, Reply, ReturnPart,
    client::{ClientFailure, Problem},
};

/// An envelope as received, for the store.
pub(crate) fn to_store(
    envelope: &smtp::Envelope,
    principal: Option<&Principal>,
    eight_bit: bool,
) -> Envelope {
    Envelope {
        reverse_path: envelope.from.clone(),
        principal: principal.map(|principal| principal.id),
        envid: envelope.envid.clone(),
        ret: envelope.ret.map(|ret| match ret {
            ReturnPart::Full => Ret::Full,
            ReturnPart::Headers => Ret::Hdrs,
        }),
        smtputf8: envelope.smtputf8,
        eight_bit,
        is_dsn: false,
        require_tls: envelope.require_tls,
        class: match principal.map(Principal::mail_class) {
            Some(MailClass::Bulk) => Class::Bulk,
            _ => Class::Transactional,
        },
        received: None,
    }
}

/// A recipient as received, for the store.
pub(crate) fn recipient_to_store(recipient: &smtp::Recipient) -> Recipient {
    let notify = recipient.notify.map_or(Notify::default(), |n| Notify {
        never: n == smtp::Notify::NEVER,
        success: n.success,
        failure: n.failure,
        delay: n.delay,
    });
    let orcpt = recipient.orcpt.as_ref().map(|o| o.as_str().to_owned());
    Recipient {
        mailbox: recipient.mailbox.clone(),
        notify,
        orcpt,
        written: None,
    }
}

/// A stored envelope for some of its recipients, for the wire.
pub(crate) fn to_wire(envelope: &Envelope, recipients: &[Recipient]) -> smtp::Envelope {
    let mut wire = smtp::Envelope::new(envelope.reverse_path.clone());
    wire.smtputf8 = envelope.smtputf8;
    wire.require_tls = envelope.require_tls;
    wire.envid = envelope.envid.clone();
    wire.ret = envelope.ret.map(|ret| match ret {
        Ret::Full => ReturnPart::Full,
        Ret::Hdrs => ReturnPart::Headers,
    });
    wire.recipients = recipients
        .iter()
        .map(|r| smtp::Recipient {
            mailbox: r.mailbox.clone(),
            notify: asked(r.notify),
            orcpt: r.orcpt.as_deref().and_then(|o| OriginalRecipient::parse(o).ok()),
        })
        .collect();
    wire
}

/// NOTIFY as the sender gave it; `None` if it gave none.
fn asked(notify: Notify) -> Option<smtp::Notify> {
    let Notify {
        never,
        success,
        failure,
        delay,
    } = notify;
    (never || success || failure || delay).then_some(smtp::Notify {
        success,
        failure,
        delay,
    })
}

/// The notices that are due, with the default where the sender said nothing (RFC 3461 4.1).
pub(crate) fn wanted(notify: Notify) -> smtp::Notify {
    asked(notify).unwrap_or(smtp::Notify {
        success: false,
        failure: true,
        delay: true,
    })
}

/// A client machine's failure, in the form the queue works with.
pub(crate) fn failure(failure: &ClientFailure) -> Failure {
    let (verdict, blame) = match &failure.problem {
        _ if failure.is_permanent() => (Verdict::Permanent, Blame::Peer),
        Problem::Ours(_) => (Verdict::Retry { not_before: None }, Blame::Us),
        _ if failure.judges_message() => (Verdict::Retry { not_before: None }, Blame::Peer),
        _ => (Verdict::Retry { not_before: None }, Blame::Route),
    };
    Failure {
        verdict,
        blame,
        reply: failure.reply().map(failure_reply),
        source: Some(Box::new(failure.clone())),
    }
}

/// A reply in the queue's form.
pub(crate) fn failure_reply(reply: &Reply) -> FailureReply {
    let mut text = reply.text.to_string();
    text.truncate(1000);
    FailureReply {
        code: reply.code,
        enhanced: reply.enhanced.map(|e| e.to_string()),
        text,
    }
}
