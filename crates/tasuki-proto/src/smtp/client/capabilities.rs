//! What a next hop offers in EHLO, and the command lines and refusals that follow from it.

use std::fmt::Write as _;

use super::{Job, Problem};
use crate::smtp::{BodyType, Recipient, Reply, ReturnPart};

/// The extensions of a server that we use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 1870: offered, and the limit in octets unless it is zero or unsaid.
    pub size: Option<Option<u64>>,
    /// RFC 4954 with RFC 4616.
    pub auth_plain: bool,
    /// AUTH LOGIN.
    pub auth_login: bool,
    /// AUTH XOAUTH2.
    pub auth_xoauth2: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 8689.
    pub require_tls: bool,
}

impl Capabilities {
    /// From the lines of EHLO's reply; the first is the greeting.
    pub(super) fn parse(lines: &[String]) -> Self {
        let mut offers = Self::default();
        for line in lines.iter().skip(1) {
            let upper = line.to_ascii_uppercase();
            // "AUTH=PLAIN" is what some old servers say beside "AUTH PLAIN".
            let mut words = upper.split([' ', '=']).filter(|w| !w.is_empty());
            match words.next().unwrap_or_default() {
                "PIPELINING" => offers.pipelining = true,
                "STARTTLS" => offers.starttls = true,
                "8BITMIME" => offers.eight_bit_mime = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "DSN" => offers.dsn = true,
                "CHUNKING" => offers.chunking = true,
                "REQUIRETLS" => offers.require_tls = true,
                "SIZE" => {
                    offers.size = Some(words.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0));
                }
                "AUTH" => {
                    for mechanism in words {
                        offers.auth_plain |= mechanism == "PLAIN";
                        offers.auth_login |= mechanism == "LOGIN";
                        offers.auth_xoauth2 |= mechanism == "XOAUTH2";
                    }
                }
                _ => {}
            }
        }
        offers
    }

    /// Why the server cannot be given this mail; it is never altered to fit. `tls`: whether TLS is on, and verified.
    pub(super) fn cannot_take(&self, job: &Job, tls: Option<bool>) -> Option<Problem> {
        // RFC 8689 4.2.1: to nobody but an authenticated server that makes the same promise.
        if job.envelope.require_tls && !(self.require_tls && tls == Some(true)) {
            let text = if tls == Some(true) {
                "the mail requires TLS all the way (REQUIRETLS), and the next server does not offer to keep to that"
            } else {
                "the mail requires verified TLS all the way (REQUIRETLS), and that is not to be had with the next server"
            };
            return Some(Problem::Unfit(Reply::new(550, (5, 7, 30), text)));
        }
        let limit = self.size.flatten();
        if limit.is_some_and(|limit| job.size > limit) {
            let reply = Reply::new(552, (5, 3, 4), "the message is over the next server's size limit");
            return Some(Problem::Unfit(reply));
        }
        if needs_smtputf8(job) && !self.smtputf8 {
            // RFC 6531 3.5 and 3.6.
            let reply = Reply::new(
                550,
                (5, 6, 7),
                "the next server does not take non-ASCII addresses",
            );
            return Some(Problem::Unfit(reply));
        }
        if job.eight_bit && job.envelope.body == BodyType::EightBitMime && !self.eight_bit_mime {
            // RFC 6152 3: convert or bounce; what was not declared 8-bit is passed on as it came.
            let reply = Reply::new(550, (5, 6, 3), "the next server does not take 8-bit mail");
            return Some(Problem::Unfit(reply));
        }
        None
    }

    pub(super) fn mail_line(&self, job: &Job) -> String {
        let envelope = &job.envelope;
        let mut line = format!("MAIL FROM:<{}>", envelope.from);
        // Writing to a String cannot fail.
        if self.size.is_some() {
            let _ = write!(line, " SIZE={}", job.size);
        }
        if self.eight_bit_mime && (job.eight_bit || envelope.body == BodyType::EightBitMime) {
            line.push_str(" BODY=8BITMIME");
        }
        if self.smtputf8 && (envelope.smtputf8 || needs_smtputf8(job)) {
            line.push_str(" SMTPUTF8");
        }
        if envelope.require_tls {
            line.push_str(" REQUIRETLS");
        }
        if self.dsn {
            match envelope.ret {
                Some(ReturnPart::Full) => line.push_str(" RET=FULL"),
                Some(ReturnPart::Headers) => line.push_str(" RET=HDRS"),
                None => {}
            }
            if let Some(envid) = &envelope.envid {
                let _ = write!(line, " ENVID={envid}");
            }
        }
        line.push_str("\r\n");
        line
    }

    pub(super) fn rcpt_line(&self, recipient: &Recipient) -> String {
        let mut line = format!("RCPT TO:<{}>", recipient.mailbox);
        if self.dsn {
            if let Some(notify) = recipient.notify {
                let _ = write!(line, " NOTIFY={}", notify.keyword());
            }
            if let Some(orcpt) = &recipient.orcpt {
                // RFC 6533 3: a raw utf-8 address goes only where SMTPUTF8 is.
                if self.smtputf8 || orcpt.as_str().is_ascii() {
                    let _ = write!(line, " ORCPT={}", orcpt.as_str());
                }
            }
        }
        line.push_str("\r\n");
        line
    }
}

fn needs_smtputf8(job: &Job) -> bool {
    let sender = job.envelope.from.mailbox().is_some_and(|m| m.needs_smtputf8());
    sender
        || job.envelope.smtputf8 && job.eight_bit
        || job.envelope.recipients.iter().any(|r| r.mailbox.needs_smtputf8())
}
