//! Who would hand the mail in: what that one is to us, and what it may take up.

use std::{net::IpAddr, sync::Arc};

use tasuki_core::store::{StoreError, accounts::Principal};
use tasuki_proto::names::{Mailbox, ReversePath};

use super::{Explanation, Whom};
use crate::{
    config::{Device, Role, Settings},
    context::Context,
    daily, guard,
    policy::{self, Because},
    session::admission,
};

/// A client, as the listener that it would come to sees it.
pub(super) struct Caller {
    pub(super) role: Role,
    pub(super) ip: Option<IpAddr>,
    pub(super) principal: Option<Arc<Principal>>,
    pub(super) device: Option<Arc<Device>>,
    pub(super) login: bool,
}

impl Caller {
    pub(super) fn client(&self) -> policy::Client<'_> {
        policy::Client {
            role: self.role,
            from: self.ip,
            principal: self.principal.as_deref(),
            device: self.device.as_deref(),
        }
    }
}

/// Who the client is; `None` after a refusal.
pub(super) async fn caller(
    context: &Context,
    settings: &Settings,
    whom: &Whom,
    told: &mut Explanation,
) -> Result<Option<Caller>, StoreError> {
    match whom {
        Whom::Named(name) => {
            let principal = context.deps.accounts.by_name(name).await?;
            let Some(principal) = principal.filter(|principal| !principal.disabled) else {
                let words = format!("nobody is named {name:?}, or it is disabled: its login is refused");
                told.grant.push(words);
                told.reply = "535 5.7.8 authentication failed".to_owned();
                return Ok(None);
            };
            told.grant.push(format!(
                "after login at the submission listener it is {}; rules about addresses are not considered",
                described(&principal)
            ));
            Ok(Some(Caller {
                role: Role::Submission,
                ip: None,
                principal: Some(principal),
                device: None,
                login: true,
            }))
        }
        Whom::Address(ip) => {
            let device = settings.device(*ip).is_some();
            let role = if device { Role::Devices } else { Role::Relay };
            let listener = if device { "devices" } else { "relay" };
            match admission::admit(context, settings, role, *ip).await {
                Err(reply) => {
                    told.refuse("the connection", &reply);
                    Ok(None)
                }
                Ok(admitted) => {
                    let who = match (&admitted.device, &admitted.network) {
                        (Some(device), Some(service)) => {
                            format!("the device {:?} of {}", device.name, described(service))
                        }
                        (_, Some(service)) => format!("by its network {}", described(service)),
                        _ => "a stranger".to_owned(),
                    };
                    told.grant
                        .push(format!("{ip} at the {listener} listener is {who}"));
                    if !admitted.slowed.is_zero() {
                        let wait = admitted.slowed.as_secs_f32();
                        told.limits
                            .push(format!("it is slowed: each session begins {wait} s later"));
                    }
                    Ok(Some(Caller {
                        role,
                        ip: Some(*ip),
                        principal: admitted.network,
                        device: admitted.device,
                        login: false,
                    }))
                }
            }
        }
    }
}

fn described(principal: &Principal) -> String {
    let grants: Vec<String> = principal.grants.iter().map(ToString::to_string).collect();
    let grants = if grants.is_empty() {
        "no grant".to_owned()
    } else {
        grants.join(", ")
    };
    format!("{} ({grants})", principal.name)
}

pub(super) fn in_words(because: Because, from: &ReversePath, to: &Mailbox) -> String {
    match because {
        Because::Rule => format!("an access rule allows <{to}>: `tasuki acl explain` names it"),
        Because::Listed => format!("the device's entry lists <{to}>"),
        Because::Owned => format!("<{to}> belongs to the device's service or to us"),
        Because::Principal => format!("its grants cover the sender <{from}>"),
        Because::TakenForAll => format!("mail for <{to}> is taken from anybody (relay_domains, or an alias)"),
        Because::Postmaster => "mail for our postmaster is taken from anybody".to_owned(),
    }
}

/// Sizes, rates and caps.
pub(super) async fn limits(context: &Context, settings: &Settings, caller: &Caller, told: &mut Explanation) {
    let server = if caller.device.is_some() {
        &settings.devices_server
    } else {
        &settings.server
    };
    told.limits.push(format!(
        "{} bytes and {} recipients in one mail",
        server.data.max_size, server.max_recipients
    ));
    let Some(principal) = &caller.principal else {
        return;
    };
    told.limits
        .push(format!("its mail is {}", principal.mail_class().name()));
    if settings.recipients_per_minute > 0 {
        told.limits.push(format!(
            "{} recipients in a minute",
            settings.recipients_per_minute
        ));
    }
    if let Some(cap) = guard::hourly_cap(settings, principal) {
        told.limits.push(format!("{cap} recipients in an hour"));
    }
    if let Some(cap) = guard::address_cap(settings, principal) {
        told.limits
            .push(format!("logins from {cap} addresses within an hour"));
    }
    let Some(cap) = daily::cap_of(settings, principal) else {
        told.limits.push("no daily cap".to_owned());
        return;
    };
    let deps = &context.deps;
    match context
        .daily
        .look(&*deps.store, &deps.clock, principal.id, cap)
        .await
    {
        Ok(used) => told
            .limits
            .push(format!("{used} of {cap} recipients of today (UTC) are used")),
        Err(reply) => told.refuse("RCPT TO", &reply),
    }
}
