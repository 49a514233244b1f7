//! What would become of a mail, without sending it: every answer comes from the function that decides for real mail.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;
use tasuki_core::store::{StoreError, accounts::Principal};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::{
        Reply,
        client::{Protocol, Security},
    },
};

use crate::{
    config::{Device, Origin, Role, Settings, Smarthost},
    context::Context,
    convert, daily,
    deliver::{dialing, signing},
    dkim::Dkim,
    engine::Handle,
    guard,
    headers::Edit,
    policy::{self, Because},
    receive::{self, Trace},
    recipients,
    route::{self, Candidate, NextHop},
    session::{admission, transaction},
    tls_policy::{self, Basis, Level},
};

/// Who would hand the mail in.
#[derive(Clone, Debug)]
pub enum Whom {
    /// Whoever is at this address, without login.
    Address(IpAddr),
    /// A person or service that has logged in.
    Named(String),
}

/// What would become of a mail.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explanation {
    /// Whether it would be taken.
    pub accepted: bool,
    /// The reply that decides: to RCPT, or the first refusal.
    pub reply: String,
    /// Who the client is to us, and why it may or may not.
    pub grant: Vec<String>,
    /// What is changed of envelope and header.
    pub rewrite: Vec<String>,
    /// The header section as it would go on, for a mail with From, To and Subject only.
    pub header: Vec<String>,
    /// Where each recipient's mail would go.
    pub routes: Vec<RouteExplained>,
    /// Who signs it.
    pub signature: Vec<String>,
    /// Sizes, rates and caps.
    pub limits: Vec<String>,
}

/// The way of one recipient's mail.
#[derive(Clone, Debug, Serialize)]
pub struct RouteExplained {
    /// The recipient on the wire.
    pub recipient: String,
    /// The lane.
    pub lane: String,
    /// The servers in the order in which they are tried, or why there are none.
    pub servers: Vec<String>,
    /// How the connection is protected.
    pub tls: Vec<String>,
    /// What holds it up now.
    pub held_up: Vec<String>,
}

/// A client, as the listener that it would come to sees it.
struct Caller {
    role: Role,
    ip: Option<IpAddr>,
    principal: Option<Arc<Principal>>,
    device: Option<Arc<Device>>,
    login: bool,
}

impl Caller {
    fn client(&self) -> policy::Client<'_> {
        policy::Client {
            role: self.role,
            from: self.ip,
            principal: self.principal.as_deref(),
            device: self.device.as_deref(),
        }
    }
}

impl Handle {
    /// Tells what would become of a mail. A recipient whose existence is asked for at the next hop is asked for there, as
    /// always; nothing is sent.
    ///
    /// # Errors
    /// The store's, when who may send cannot be looked up.
    pub async fn explain(
        &self,
        from: &ReversePath,
        to: &Mailbox,
        whom: &Whom,
    ) -> Result<Explanation, StoreError> {
        let context = &self.context;
        let settings = context.settings.load_full();
        let mut told = Explanation::default();
        let Some(caller) = caller(context, &settings, whom, &mut told).await? else {
            return Ok(told);
        };
        let client = caller.client();
        if let Err(reply) = transaction::judge_sender(&client, &settings, from) {
            told.refuse("MAIL FROM", &reply);
            return Ok(told);
        }
        match policy::may_relay_to(&client, to, &settings, &context.deps.acl) {
            Ok(because) => told.grant.push(in_words(because, from, to)),
            Err(reply) => {
                told.refuse("RCPT TO", &reply);
                return Ok(told);
            }
        }
        let existence = match transaction::questions(&client, &settings, from, to) {
            Err(existence) => existence,
            Ok(questions) => {
                recipients::ask(Arc::clone(context), Arc::clone(&settings), to.clone(), questions).await
            }
        };
        if let Some(reply) = existence.refusal() {
            told.refuse("RCPT TO", &reply);
        }
        limits(context, &settings, &caller, &mut told).await;
        let header = told.rewritten(&settings, &caller, from, to);
        if told.reply.is_empty() {
            told.accepted = true;
            told.reply = transaction::RECIPIENT_OK.to_string();
        }
        let sender = receive::reverse_path(
            &settings,
            caller.principal.is_some(),
            caller.device.as_deref(),
            from.clone(),
        );
        let origin = Origin {
            principal: caller.principal.as_ref().map(|principal| principal.name.as_str()),
            sender: sender.mailbox(),
        };
        let recipient = tasuki_proto::smtp::Recipient::plain(to.clone());
        for recipient in receive::behind(&settings, convert::recipient_to_store(&recipient)) {
            let explained = way(self, &settings, origin, &recipient.mailbox).await;
            told.routes.push(explained);
        }
        told.signature = signature(context, caller.principal.is_some(), &header).await;
        Ok(told)
    }
}

impl Explanation {
    fn refuse(&mut self, command: &str, reply: &Reply) {
        // The first refusal is the one that a client would hear.
        if self.reply.is_empty() {
            self.reply = reply.to_string();
        }
        self.grant.push(format!("refused at {command}: {reply}"));
    }

    /// What becomes of envelope and header; returns the header section.
    fn rewritten(
        &mut self,
        settings: &Settings,
        caller: &Caller,
        from: &ReversePath,
        to: &Mailbox,
    ) -> Vec<u8> {
        let of_principal = caller.principal.is_some();
        let sender = receive::reverse_path(settings, of_principal, caller.device.as_deref(), from.clone());
        if sender != *from {
            self.rewrite
                .push(format!("the sender becomes <{sender}>, who hears of failures"));
        }
        let recipient = tasuki_proto::smtp::Recipient::plain(to.clone());
        let behind = receive::behind(settings, convert::recipient_to_store(&recipient));
        let behind: Vec<&Mailbox> = behind.iter().map(|recipient| &recipient.mailbox).collect();
        if behind != [to] {
            let list: Vec<String> = behind.iter().map(|mailbox| format!("<{mailbox}>")).collect();
            self.rewrite
                .push(format!("the recipient becomes {}", list.join(", ")));
        }
        let trace = Trace {
            helo: "client".to_owned(),
            esmtp: true,
            tls: caller.role != Role::Relay && caller.role != Role::Devices,
            login: caller.login,
            smtputf8: from.mailbox().is_some_and(Mailbox::needs_smtputf8) || to.needs_smtputf8(),
            peer: SocketAddr::new(caller.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0),
            tls_in_words: None,
            only_recipient: Some(to.to_string()),
            sender: transaction::rewritten_sender(settings, from).map(ToString::to_string),
        };
        let author = from.mailbox().map_or_else(
            || format!("From: <mailer-daemon@{}>\r\n", settings.host),
            |mailbox| format!("From: <{mailbox}>\r\n"),
        );
        let original = format!("{author}To: <{to}>\r\nSubject: an example\r\n");
        let edit = Edit {
            id: tasuki_core::ids::MailId(0),
            accepted_at: tasuki_core::clock::Timestamp(0),
            settings,
            trace: &trace,
            principal: caller.principal.as_deref(),
            device: caller.device.as_deref(),
            aliased: &[],
        };
        match edit.apply(original.as_bytes()) {
            Err(reply) => {
                self.refuse("the end of DATA, for the same address in From", &reply);
                original.into_bytes()
            }
            Ok(edited) => {
                let header = edited.text;
                let text = String::from_utf8_lossy(&header);
                // Unfolded, and without our own trace, which every mail gets.
                let unfolded = text.replace("\r\n\t", " ");
                let mut lines = unfolded.lines();
                self.header.extend(lines.by_ref().skip(1).map(str::to_owned));
                if !text.contains(&author) {
                    self.rewrite
                        .push("From is exchanged, see the header below".to_owned());
                }
                if of_principal && settings.rewrite.hide_client {
                    self.rewrite
                        .push("the client's address is left out of Received".to_owned());
                }
                header
            }
        }
    }
}

/// Who the client is; `None` after a refusal.
async fn caller(
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

fn in_words(because: Because, from: &ReversePath, to: &Mailbox) -> String {
    match because {
        Because::Rule => format!("an access rule allows <{to}>: `tasuki acl explain` names it"),
        Because::Listed => format!("the device's entry lists <{to}>"),
        Because::Owned => format!("<{to}> belongs to the device's service or to us"),
        Because::Principal => format!("its grants cover the sender <{from}>"),
        Because::TakenForAll => format!("mail for <{to}> is taken from anybody (relay_domains, or an alias)"),
        Because::Postmaster => "mail for our postmaster is taken from anybody".to_owned(),
    }
}

async fn limits(context: &Context, settings: &Settings, caller: &Caller, told: &mut Explanation) {
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

/// Where one recipient's mail would go.
async fn way(
    handle: &Handle,
    settings: &Settings,
    origin: Origin<'_>,
    recipient: &Mailbox,
) -> RouteExplained {
    let context = &*handle.context;
    let lane = route::lane_for(settings, origin, recipient);
    let mut explained = RouteExplained {
        recipient: recipient.to_string(),
        lane: lane.0.clone(),
        servers: Vec::new(),
        tls: Vec::new(),
        held_up: Vec::new(),
    };
    explained.held_up.extend(context.pauses.why(&lane));
    for status in handle.lanes_of(&lane) {
        if let Some(rest) = status.rests_s {
            let error = status.last_error.unwrap_or_default();
            explained
                .held_up
                .push(format!("{} rests for another {rest} s: {error}", status.lane));
        }
    }
    let hop = match route::next_hop(settings, &lane) {
        Ok(hop) => hop,
        Err(error) => {
            explained.servers.push(error.to_string());
            return explained;
        }
    };
    match &hop {
        NextHop::Mx(_) => match route::candidates(context, settings, &hop, 0).await {
            Ok(servers) => to_servers(context, settings, &hop, servers, &mut explained).await,
            Err(error) => explained.servers.push(error.to_string()),
        },
        NextHop::Smarthost(smarthost) => to_smarthost(context, smarthost, &mut explained).await,
        NextHop::Group(group) => {
            for smarthost in context.members.in_order(group, context.deps.clock.now()) {
                to_smarthost(context, &smarthost, &mut explained).await;
            }
        }
    }
    explained
}

async fn to_servers(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    servers: Vec<Candidate>,
    explained: &mut RouteExplained,
) {
    let named = servers.iter();
    explained
        .servers
        .extend(named.map(|server| format!("{} at {}", server.host, server.addr)));
    // It is no session, so nothing is counted.
    let mut noted = tls_policy::Noted::default();
    match tls_policy::demands_on(context, settings, hop, servers, &mut noted).await {
        Err(refusal) => explained.tls.push(refusal.failure.to_string()),
        Ok(demands) => {
            for (server, demand) in demands {
                let how = match demand.level {
                    Level::Plain => "no TLS",
                    Level::May => "TLS where it works, with any certificate",
                    Level::Encrypt => "TLS or nothing, with any certificate",
                    Level::Verify => "TLS or nothing, with a verified certificate",
                    Level::Dane(_) => "TLS or nothing, with a certificate that its TLSA records name",
                };
                let line = match demand.basis {
                    Basis::Nothing => format!("{}: {how}", server.host),
                    _ => format!("{}: {how} ({})", server.host, demand.name()),
                };
                if !explained.tls.contains(&line) {
                    explained.tls.push(line);
                }
            }
        }
    }
}

async fn to_smarthost(context: &Context, smarthost: &Smarthost, explained: &mut RouteExplained) {
    let protocol = match smarthost.protocol {
        Protocol::Lmtp => "by LMTP",
        Protocol::Smtp => "by SMTP",
    };
    let login = match &smarthost.username {
        Some(username) => format!(", as {username}"),
        None => ", without login".to_owned(),
    };
    match route::smarthost_addresses(context, smarthost).await {
        Ok(servers) => explained.servers.extend(servers.iter().map(|server| {
            format!(
                "{}: {} at {} {protocol}{login}",
                smarthost.name, server.host, server.addr
            )
        })),
        Err(error) => explained.servers.push(format!("{}: {error}", smarthost.name)),
    }
    explained
        .tls
        .push(format!("{}: {}", smarthost.name, protected(smarthost)));
}

fn protected(smarthost: &Smarthost) -> String {
    let (security, verifies) = dialing::protection(Some(smarthost));
    let how = match security {
        Security::Plain => "no TLS",
        Security::Opportunistic => "TLS if the server offers it, else plain",
        Security::Required => "STARTTLS or nothing",
        Security::Implicit => "TLS from the first octet",
    };
    let certificate = match (security, verifies) {
        (Security::Plain, _) => "",
        (_, true) => "; the certificate is verified",
        (_, false) => "; any certificate",
    };
    format!("{how}{certificate}")
}

async fn signature(context: &Context, of_principal: bool, header: &[u8]) -> Vec<String> {
    if !signing::is_ours(of_principal, false) {
        return vec!["none: what strangers bring is not signed".to_owned()];
    }
    let Some(author) = signing::author_of(header) else {
        return vec!["none: From names no domain".to_owned()];
    };
    let ring = context.dkim.ring(context.deps.clock.now()).await;
    match ring.and_then(|ring| Dkim::signatures(&ring, &author)) {
        Err(why) => vec![format!("it waits until this is repaired: {why}")],
        Ok(keys) if keys.is_empty() => vec![format!("none: {author} has no DKIM keys")],
        Ok(keys) => keys
            .iter()
            .map(|(domain, selector, algorithm)| format!("DKIM d={domain} s={selector} {}", algorithm.name()))
            .collect(),
    }
}
