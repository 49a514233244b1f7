//! The header section as it goes on: our trace first, then what a submission server may add, change or take out
//! (RFC 6409 8).

use tasuki_core::{
    clock::Timestamp,
    ids::MailId,
    store::{accounts::Principal, trail::bare_message_id},
};
use tasuki_proto::{
    names::Mailbox,
    smtp::{
        Reply,
        header::{self, Header},
        rfc5322_date,
    },
};

use crate::{
    config::{Device, Settings},
    policy,
    receive::Trace,
};

#[cfg(test)]
mod tests;

/// What is known when the header section is there.
pub(crate) struct Edit<'a> {
    pub(crate) id: MailId,
    pub(crate) accepted_at: Timestamp,
    pub(crate) settings: &'a Settings,
    pub(crate) trace: &'a Trace,
    /// Who handed it in; a stranger's mail gets our trace and nothing else.
    pub(crate) principal: Option<&'a Principal>,
    pub(crate) device: Option<&'a Device>,
    /// Recipients that are exchanged for others.
    pub(crate) aliased: &'a [Mailbox],
}

/// An edited header section.
pub(crate) struct Edited {
    /// Without the empty line.
    pub(crate) text: Vec<u8>,
    /// The Message-ID without its brackets, as it is now.
    pub(crate) message_id: Option<String>,
    /// Those of the aliased recipients that the mail was sent on for before.
    pub(crate) came_back: Vec<Mailbox>,
}

/// Longest Message-ID that is remembered, in bytes.
const MAX_MESSAGE_ID: usize = 250;

/// What becomes of the From field.
enum From {
    Kept,
    /// The new field's value, and the Reply-To to add.
    Replaced(String, Option<String>),
}

impl Edit<'_> {
    /// The edited header section.
    pub(crate) fn apply(&self, original: &[u8]) -> Result<Edited, Reply> {
        let mut out = Vec::with_capacity(original.len() + 512);
        self.write_received(&mut out);
        let fields = Header::parse(original);
        let came_back = self.came_back(&fields);
        let mut message_id = fields
            .value("message-id")
            .map(|id| bare_message_id(&id).to_owned())
            .filter(|id| !id.is_empty() && id.len() <= MAX_MESSAGE_ID);
        let Some(principal) = self.principal else {
            out.extend_from_slice(original);
            return Ok(Edited {
                text: out,
                message_id,
                came_back,
            });
        };
        let from = self.from(principal, &fields);
        let mut added = String::new();
        if let From::Replaced(value, reply_to) = &from {
            added += &format!("From: {value}\r\n");
            if let Some(reply_to) = reply_to {
                added += &format!("Reply-To: {reply_to}\r\n");
            }
        }
        if fields.count("date") == 0 {
            added += &format!("Date: {}\r\n", rfc5322_date(self.accepted_at.to_utc()));
        }
        if fields.count("message-id") == 0 {
            let id = format!("{}@{}", self.id, self.settings.host);
            added += &format!("Message-ID: <{id}>\r\n");
            message_id = Some(id);
        }
        added += &self.settings.rewrite.add_headers;
        // The result is judged, not what came: a table may not give anybody a sender that is not granted.
        let judged = match &from {
            From::Kept => policy::may_author(principal, &fields),
            From::Replaced(..) => policy::may_author(principal, &Header::parse(added.as_bytes())),
        };
        judged?;
        out.extend_from_slice(added.as_bytes());
        let replaced = matches!(from, From::Replaced(..));
        let removed = &self.settings.rewrite.remove_headers;
        fields.write_where(
            |name| {
                let lower = name.to_ascii_lowercase();
                !(lower == "bcc" || replaced && lower == "from" || removed.contains(&lower))
            },
            &mut out,
        );
        Ok(Edited {
            text: out,
            message_id,
            came_back,
        })
    }

    /// RFC 9228: what we sent on for an alias bears that address in Delivered-To; if it comes for the same address again,
    /// it would go round for ever.
    fn came_back(&self, fields: &Header<'_>) -> Vec<Mailbox> {
        if self.aliased.is_empty() {
            return Vec::new();
        }
        let been: Vec<String> = fields
            .values("delivered-to")
            .map(|value| value.trim_matches(['<', '>', ' ']).to_lowercase())
            .collect();
        let is_there = |mailbox: &&Mailbox| been.contains(&mailbox.to_string().to_lowercase());
        self.aliased.iter().filter(is_there).cloned().collect()
    }

    fn from(&self, principal: &Principal, fields: &Header<'_>) -> From {
        if let Some(device) = self.device {
            return device_from(principal, device, fields, &self.settings.rewrite);
        }
        if fields.count("from") == 0 {
            return match &self.trace.sender {
                Some(sender) => From::Replaced(format!("<{sender}>"), None),
                None => From::Kept,
            };
        }
        rewritten(fields, &self.settings.rewrite).map_or(From::Kept, |value| From::Replaced(value, None))
    }

    /// RFC 5321 4.4; the protocol names are those of RFC 3848 and RFC 6531 4.3.
    fn write_received(&self, out: &mut Vec<u8>) {
        use std::io::Write as _;
        let (trace, settings) = (self.trace, self.settings);
        let tls = if trace.tls { "S" } else { "" };
        let login = if trace.login { "A" } else { "" };
        let protocol = match (trace.smtputf8, trace.esmtp) {
            (true, _) => format!("UTF8SMTP{tls}{login}"),
            (false, true) => format!("ESMTP{tls}{login}"),
            (false, false) => "SMTP".to_owned(),
        };
        let ip = match trace.peer.ip() {
            std::net::IpAddr::V4(ip) => format!("[{ip}]"),
            std::net::IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
        };
        let client = if self.principal.is_some() && settings.rewrite.hide_client {
            String::new()
        } else {
            format!("from {} ({ip})\r\n\t", trace.helo)
        };
        // Writing to a Vec cannot fail; it grows.
        let _ = write!(
            out,
            "Received: {client}by {} (Tasuki) with {protocol} id {}",
            settings.host, self.id
        );
        if let Some(recipient) = &trace.only_recipient {
            let _ = write!(out, "\r\n\tfor <{recipient}>");
        }
        let _ = write!(out, ";\r\n\t{}\r\n", rfc5322_date(self.accepted_at.to_utc()));
    }
}

/// The From of a device's mail: its own if its service may send as that, else the configured one, with the original in
/// Reply-To so that an answer reaches who scanned it.
fn device_from(
    principal: &Principal,
    device: &Device,
    fields: &Header<'_>,
    rewrite: &crate::config::Rewrite,
) -> From {
    let authors = header::authors(fields).unwrap_or_default();
    if let Some(value) = rewritten(fields, rewrite) {
        return From::Replaced(value, None);
    }
    if !authors.is_empty() && authors.iter().all(|author| principal.may_send_from(author)) {
        return From::Kept;
    }
    let value = format!("\"{}\" <{}>", device.name, device.sender);
    let list: Vec<String> = authors.iter().map(Mailbox::to_string).collect();
    let reply_to = (fields.count("reply-to") == 0 && !list.is_empty()).then(|| list.join(", "));
    From::Replaced(value, reply_to)
}

/// The From value with its address exchanged, if the table of senders names it. A From of several authors is left alone.
fn rewritten(fields: &Header<'_>, rewrite: &crate::config::Rewrite) -> Option<String> {
    let authors = header::authors(fields).ok()?;
    let [author] = authors.as_slice() else {
        return None;
    };
    let to = rewrite.sender(author)?;
    let value = fields.value("from")?;
    // The display name stays where the address stands in its plain form behind it.
    let name = value
        .strip_suffix('>')
        .and_then(|v| v.rsplit_once('<'))
        .map(|(name, _)| name.trim())
        .filter(|name| name.is_ascii() && !name.contains(['<', '>']));
    Some(match name {
        Some(name) if !name.is_empty() => format!("{name} <{to}>"),
        _ => format!("<{to}>"),
    })
}
