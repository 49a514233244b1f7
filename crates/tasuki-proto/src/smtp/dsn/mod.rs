//! Delivery status notices: what a sender is told of a mail that failed, is late, or was handed on (RFC 3464).
//!
//! A notice is a multipart/report of three parts: a text for people in English and Japanese, the status for programs, and
//! the header section of the mail it is about (never the body). It is 7-bit throughout unless the sender's own address is
//! not, and never longer than about 50 kB. It is sent from `<>`; whoever writes one for a null sender has a bug, so the
//! type demands a mailbox.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use time::OffsetDateTime;

use super::{EnhancedCode, OriginalRecipient, decode_xtext, rfc5322_date};
use crate::names::{Domain, Mailbox};

#[cfg(test)]
mod tests;
mod text;

/// Most octets of the original header section that are returned.
const MAX_HEADER_LEN: usize = 32 * 1024;
/// Most recipients that are reported one by one.
const MAX_RECIPIENTS: usize = 100;

/// What became of a recipient (RFC 3464 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It failed for good.
    Failed,
    /// It is late, and is still tried.
    Delayed,
    /// It was handed to a server that sends no notices of its own.
    Relayed,
    /// It was delivered.
    Delivered,
}

impl Action {
    fn keyword(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Relayed => "relayed",
            Self::Delivered => "delivered",
        }
    }
}

/// One recipient of a notice.
#[derive(Debug, Clone)]
pub struct ReportedRecipient {
    /// The address as we used it.
    pub mailbox: Mailbox,
    /// The address as the sender wrote it, if it said so.
    pub orcpt: Option<OriginalRecipient>,
    /// Class 5 for failed, 4 for delayed, 2 otherwise.
    pub status: EnhancedCode,
    /// The server that said so.
    pub remote_mta: Option<String>,
    /// Its words with the code, or ours; escaped here.
    pub diagnostic: Option<String>,
    /// When it was last tried.
    pub last_attempt: Option<OffsetDateTime>,
}

/// A notice about one mail; all its recipients share the action.
#[derive(Debug, Clone)]
pub struct Notice<'a> {
    /// Who writes.
    pub reporting_mta: &'a Domain,
    /// The sender of the mail, who gets this.
    pub to: &'a Mailbox,
    /// Now.
    pub date: OffsetDateTime,
    /// When the mail came.
    pub arrival: OffsetDateTime,
    /// Until when it is tried, for delays.
    pub will_retry_until: Option<OffsetDateTime>,
    /// ENVID as it came.
    pub envid: Option<&'a str>,
    /// Our id of the mail it is about.
    pub mail_id: &'a str,
    /// Unique for this notice: names it in Message-ID, and separates its parts. Letters and digits.
    pub unique: &'a str,
    /// What happened.
    pub action: Action,
    /// To whom.
    pub recipients: &'a [ReportedRecipient],
    /// The original header section, CRLF line ends.
    pub header: &'a [u8],
}

/// Writes the notice as a message with CRLF line ends.
pub fn write(notice: &Notice<'_>) -> Vec<u8> {
    let host = notice.reporting_mta;
    let boundary = format!("=_tasuki_{}", notice.unique);
    let mut out = String::with_capacity(4096 + notice.header.len().min(MAX_HEADER_LEN));
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
         To: <{}>\r\n\
         Subject: {}\r\n\
         Date: {}\r\n\
         Message-ID: <{}@{host}>\r\n\
         Auto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\
         \r\n\
         This is a delivery status notice in MIME format.\r\n\
         \r\n\
         --{boundary}\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: base64\r\n\
         \r\n",
        notice.to,
        text::subject(notice.action),
        rfc5322_date(notice.date),
        notice.unique,
    );
    push_base64(&mut out, text::body(notice).as_bytes());
    let _ = write!(
        out,
        "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\n"
    );
    push_status(&mut out, notice);
    let _ = write!(out, "\r\n--{boundary}\r\n");
    push_header(&mut out, notice.header);
    let _ = write!(out, "\r\n--{boundary}--\r\n");
    out.into_bytes()
}

fn push_status(out: &mut String, notice: &Notice<'_>) {
    let _ = write!(out, "Reporting-MTA: dns; {}\r\n", notice.reporting_mta);
    if let Some(envid) = notice.envid.and_then(decode_xtext) {
        let _ = write!(out, "Original-Envelope-Id: {}\r\n", one_line(&envid));
    }
    let _ = write!(out, "X-Tasuki-Mail-Id: {}\r\n", one_line(notice.mail_id));
    let _ = write!(out, "Arrival-Date: {}\r\n", rfc5322_date(notice.arrival));
    for recipient in notice.recipients.iter().take(MAX_RECIPIENTS) {
        out.push_str("\r\n");
        if let Some(orcpt) = &recipient.orcpt {
            let (address_type, address) = orcpt.decoded();
            let _ = write!(
                out,
                "Original-Recipient: {address_type}; {}\r\n",
                one_line(&address)
            );
        }
        let _ = write!(out, "Final-Recipient: {}\r\n", address(&recipient.mailbox));
        let _ = write!(
            out,
            "Action: {}\r\nStatus: {}\r\n",
            notice.action.keyword(),
            recipient.status
        );
        if let Some(remote) = &recipient.remote_mta {
            let _ = write!(out, "Remote-MTA: dns; {}\r\n", one_line(remote));
        }
        if let Some(diagnostic) = &recipient.diagnostic {
            // RFC 3464 2.3.6: `smtp` is for the words of a reply, which begin with its code.
            let is_reply = diagnostic.bytes().take(3).filter(u8::is_ascii_digit).count() == 3;
            let kind = if is_reply { "smtp" } else { "X-Tasuki" };
            let _ = write!(out, "Diagnostic-Code: {kind}; {}\r\n", one_line(diagnostic));
        }
        if let Some(at) = recipient.last_attempt {
            let _ = write!(out, "Last-Attempt-Date: {}\r\n", rfc5322_date(at));
        }
        if let (Action::Delayed, Some(until)) = (notice.action, notice.will_retry_until) {
            let _ = write!(out, "Will-Retry-Until: {}\r\n", rfc5322_date(until));
        }
    }
}

fn push_header(out: &mut String, header: &[u8]) {
    let header = cut_at_line(header, MAX_HEADER_LEN);
    match std::str::from_utf8(header) {
        Ok(text) if text.is_ascii() => {
            out.push_str("Content-Type: text/rfc822-headers\r\n\r\n");
            out.push_str(text);
        }
        _ => {
            out.push_str("Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: base64\r\n\r\n");
            push_base64(out, header);
        }
    }
}

fn cut_at_line(header: &[u8], max: usize) -> &[u8] {
    if header.len() <= max {
        return header;
    }
    memchr::memrchr(b'\n', &header[..max]).map_or(&[], |end| &header[..=end])
}

fn push_base64(out: &mut String, octets: &[u8]) {
    // 57 octets make a line of 76 characters (RFC 2045 6.8).
    for line in octets.chunks(57) {
        STANDARD.encode_string(line, out);
        out.push_str("\r\n");
    }
}

/// `rfc822; user@host`, or `utf-8; ...` with everything outside ASCII as `\x{HEX}` (RFC 6533 3).
fn address(mailbox: &Mailbox) -> String {
    let text = mailbox.to_string();
    if text.is_ascii() {
        return format!("rfc822; {text}");
    }
    let mut out = String::from("utf-8; ");
    for c in text.chars() {
        if c.is_ascii() && c != '\\' {
            out.push(c);
        } else {
            let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
        }
    }
    out
}

/// Printable ASCII only, at most 800 characters: a peer's words must not become a field of their own.
fn one_line(text: &str) -> String {
    text.chars()
        .take(800)
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .collect()
}
