//! Who may send what to whom: the one place where relaying is decided. Closed by default.
//!
//! Mail passes if its sender is a principal whose grants cover the reverse-path (by login, or by being in a network of
//! `mynetworks`), or if an access rule allows it, or if the recipient is in `relay_domains` or an alias. A listed device
//! reaches what its service owns, `relay_domains`, and whom its entry lists. Everything else gets one
//! generic 550 5.7.1; the log says why. Nothing a client merely claims (HELO, From, PTR) counts.

use std::net::IpAddr;

use tasuki_core::{
    EngineKind,
    accounts::Grant,
    acl::{Acl, Action, Answer, Question},
    store::accounts::Principal,
};
use tasuki_proto::{
    names::{Domain, Mailbox, ReversePath},
    smtp::{Reply, header},
};

use crate::config::{Device, Role, Settings};

#[cfg(test)]
mod tests;

const LOGIN_FIRST: Reply = Reply::new(530, (5, 7, 0), "authentication required");
const NOT_YOUR_SENDER: Reply = Reply::new(550, (5, 7, 1), "you may not send as this address");
const NO_RELAY: Reply = Reply::new(550, (5, 7, 1), "relaying denied");
const NOT_YOUR_AUTHOR: Reply = Reply::new(550, (5, 7, 1), "you may not send with this From address");
const NOT_THE_DEVICES_SENDER: Reply = Reply::new(
    550,
    (5, 7, 1),
    "the sender and contact of this device must be addresses that its service may send as",
);
const BAD_AUTHOR: Reply = Reply::new(550, (5, 6, 0), "the From field is malformed or not the only one");

/// What is known of a client for certain.
pub(crate) struct Client<'a> {
    pub(crate) role: Role,
    /// Its address; absent only where none is known.
    pub(crate) from: Option<IpAddr>,
    /// By login, or by its network.
    pub(crate) principal: Option<&'a Principal>,
    /// The device that it is, at the devices' listener.
    pub(crate) device: Option<&'a Device>,
}

/// Why a recipient is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Because {
    /// An access rule says so.
    Rule,
    /// The device's entry lists it.
    Listed,
    /// The device's service may send as that domain, or we take mail for it.
    Owned,
    /// The client is a principal.
    Principal,
    /// We take mail for it from anybody: it is in `relay_domains`, or an alias.
    TakenForAll,
    /// It is our postmaster.
    Postmaster,
}

/// Whether the client may start a mail with this reverse-path.
pub(crate) fn may_send_as(client: &Client<'_>, sender: &ReversePath) -> Result<(), Reply> {
    match client.principal {
        // Whatever a device calls itself: its mail leaves in the name of its contact, who must be one that its service may
        // send as, like its own sender.
        Some(principal) if client.role.is_for_devices() => match client.device {
            Some(device)
                if principal.may_send_from(&device.contact) && principal.may_send_from(&device.sender) =>
            {
                Ok(())
            }
            _ => Err(NOT_THE_DEVICES_SENDER),
        },
        Some(principal) if principal.may_send_as(sender) => Ok(()),
        Some(_) => Err(NOT_YOUR_SENDER),
        None if client.role == Role::Relay => Ok(()),
        None => Err(LOGIN_FIRST),
    }
}

/// Whether the mail may go to this recipient; only after [`may_send_as`] agreed.
pub(crate) fn may_relay_to(
    client: &Client<'_>,
    recipient: &Mailbox,
    settings: &Settings,
    acl: &Acl,
) -> Result<Because, Reply> {
    let domain = recipient.domain();
    let answer = acl.decide(&Question {
        engine: EngineKind::Mail,
        action: Action::Relay,
        from: client.from,
        principal: client.principal,
        domain,
    });
    match answer {
        answer if answer.is_denied() => return Err(NO_RELAY),
        Answer::Rule { .. } => return Ok(Because::Rule),
        Answer::Default => {}
    }
    if let (true, Some(principal)) = (client.role.is_for_devices(), client.principal) {
        let listed = client.device.is_some_and(|device| device.lists(recipient));
        let owned = !recipient.hides_route()
            && (takes_mail_for(settings, recipient) || owns_domain_of(principal, recipient));
        return match (listed, owned) {
            (true, _) => Ok(Because::Listed),
            (false, true) => Ok(Because::Owned),
            (false, false) => Err(NO_RELAY),
        };
    }
    if client.principal.is_some() {
        return Ok(Because::Principal);
    }
    // From here on strangers speak. What could be read as a route of its own might be followed by the next server, and
    // an address literal belongs to nobody we know.
    let ours = !recipient.hides_route() && takes_mail_for(settings, recipient);
    let postmaster = settings.postmaster.is_some()
        && domain == Some(&settings.host)
        && recipient.local().eq_ignore_ascii_case("postmaster");
    match (ours, postmaster) {
        (true, _) => Ok(Because::TakenForAll),
        (false, true) => Ok(Because::Postmaster),
        (false, false) => Err(NO_RELAY),
    }
}

/// Whether a mail handed in by a principal may carry these authors (RFC 6409 6.1). A missing From is added apart.
pub(crate) fn may_author(principal: &Principal, fields: &header::Header<'_>) -> Result<(), Reply> {
    if fields.count("from") == 0 || principal.grants.contains(&Grant::SendAsAny) {
        return Ok(());
    }
    let authors = header::authors(fields).map_err(|_| BAD_AUTHOR)?;
    let owned = authors.iter().all(|author| principal.may_send_from(author));
    if owned { Ok(()) } else { Err(NOT_YOUR_AUTHOR) }
}

/// To send as any address is not to own all domains.
fn owns_domain_of(principal: &Principal, recipient: &Mailbox) -> bool {
    recipient.domain().is_some_and(|domain| {
        let owns = |grant: &Grant| matches!(grant, Grant::SendAs(own) if domain.is_within(own));
        principal.grants.iter().any(owns)
    })
}

fn takes_mail_for(settings: &Settings, recipient: &Mailbox) -> bool {
    let within = |domain: &Domain| settings.relay_domains.iter().any(|ours| domain.is_within(ours));
    recipient.domain().is_some_and(within) || settings.rewrite.alias(recipient).is_some()
}
