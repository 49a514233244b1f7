//! What would become of a mail, without sending it: every answer comes from the function that decides for real mail.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;
use tasuki_core::store::StoreError;
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::{self, Reply},
};

use self::{
    caller::{Caller, caller, in_words, limits},
    way::way,
};
use crate::{
    config::{Origin, Role, Settings},
    context::Context,
    convert,
    deliver::signing,
    dkim::Dkim,
    engine::Handle,
    headers::Edit,
    policy,
    receive::{self, Trace},
    recipients,
    session::transaction,
};

mod caller;
mod pace;
mod way;

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
    /// How the connection is protected, and whether that is enough for REQUIRETLS.
    pub tls: Vec<String>,
    /// How fast mail may go there, and by which rule.
    pub pace: Vec<String>,
    /// What holds it up now.
    pub held_up: Vec<String>,
}

impl Handle {
    /// An address as a client may write it in MAIL and RCPT: by the grammar, or, in `mail.legacy_domains`, as carriers gave
    /// it out in spite of that.
    #[must_use]
    pub fn mailbox(&self, text: &str) -> Option<Mailbox> {
        let legacy = &self.context.settings.load().server.legacy_domains;
        smtp::parse_mailbox(text, legacy).ok()
    }

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
        let existence = match transaction::questions(context, &client, &settings, from, to) {
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
        let recipient = smtp::Recipient::plain(to.clone());
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
        let recipient = smtp::Recipient::plain(to.clone());
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
