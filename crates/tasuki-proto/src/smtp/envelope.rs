//! The envelope: what MAIL and RCPT said, kept with the message until its last recipient is settled.

use serde::{Deserialize, Serialize};

use super::decode_xtext;
use crate::names::{Mailbox, ReversePath};

/// What the client declared about the body (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyType {
    /// Nothing, or `BODY=7BIT`.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// How much of the message a failure notice returns (RFC 3461 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPart {
    /// `RET=FULL`.
    Full,
    /// `RET=HDRS`.
    Headers,
}

/// Which notices a recipient's fate causes (RFC 3461 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// A notice when it was delivered or relayed to a place that sends none.
    pub success: bool,
    /// A notice when it failed for good.
    pub failure: bool,
    /// A notice when it is late.
    pub delay: bool,
}

impl Notify {
    /// `NOTIFY=NEVER`.
    pub const NEVER: Self = Self {
        success: false,
        failure: false,
        delay: false,
    };

    /// The parameter's value, as sent to a next hop.
    pub fn keyword(self) -> String {
        let named = [
            (self.success, "SUCCESS"),
            (self.failure, "FAILURE"),
            (self.delay, "DELAY"),
        ];
        let names: Vec<_> = named
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| *name)
            .collect();
        if names.is_empty() {
            "NEVER".to_owned()
        } else {
            names.join(",")
        }
    }
}

/// `ORCPT`: the recipient as the first sender wrote it (RFC 3461 4.2), kept as it came: `rfc822;user+2Btag@example.com`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct OriginalRecipient(String);

/// The text is not `type;address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an original recipient is written as type;address, the address in xtext")]
pub struct BadOriginalRecipient;

/// Longest ORCPT as sent.
const MAX_ORCPT_LEN: usize = 500;

impl OriginalRecipient {
    /// Checks type, length and encoding.
    pub fn parse(text: &str) -> Result<Self, BadOriginalRecipient> {
        let (address_type, address) = text.split_once(';').ok_or(BadOriginalRecipient)?;
        let valid_type = !address_type.is_empty()
            && address_type.len() <= 64
            && address_type
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let decoded = if address_type.eq_ignore_ascii_case("utf-8") {
            // RFC 6533 3: such addresses come in their own encoding (\x{...}, or raw under SMTPUTF8).
            Some(address.to_owned())
        } else {
            decode_xtext(address)
        };
        let valid = decoded.is_some_and(|a| !a.is_empty() && !a.chars().any(char::is_control));
        if valid_type && valid && text.len() <= MAX_ORCPT_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadOriginalRecipient)
        }
    }

    /// As it came, for the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Type and address, the address decoded where it was xtext.
    pub fn decoded(&self) -> (&str, String) {
        let (address_type, address) = self.0.split_once(';').unwrap_or(("rfc822", &self.0));
        (
            address_type,
            decode_xtext(address).unwrap_or_else(|| address.to_owned()),
        )
    }
}

impl TryFrom<String> for OriginalRecipient {
    type Error = BadOriginalRecipient;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<OriginalRecipient> for String {
    fn from(orcpt: OriginalRecipient) -> Self {
        orcpt.0
    }
}

/// One recipient of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Where it goes.
    pub mailbox: Mailbox,
    /// `NOTIFY`, if given; otherwise failure and delay notices are up to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// `ORCPT`, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orcpt: Option<OriginalRecipient>,
}

impl Recipient {
    /// A recipient without DSN parameters.
    pub fn plain(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            notify: None,
            orcpt: None,
        }
    }

    /// The notices that are due, with the default where the sender said nothing (RFC 3461 4.1: failure, maybe delay).
    pub fn notify_or_default(&self) -> Notify {
        self.notify.unwrap_or(Notify {
            success: false,
            failure: true,
            delay: true,
        })
    }
}

/// Sender, recipients and parameters of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Who hears of failures.
    pub from: ReversePath,
    /// `SIZE=`, octets, as declared.
    pub size: Option<u64>,
    /// `BODY=`.
    pub body: BodyType,
    /// `SMTPUTF8`: the message needs next hops that have it.
    pub smtputf8: bool,
    /// `REQUIRETLS`: the message needs next hops with verified TLS that keep this promise too (RFC 8689).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_tls: bool,
    /// `RET=`.
    pub ret: Option<ReturnPart>,
    /// `ENVID=`, as it came (xtext).
    pub envid: Option<String>,
    /// In the order of the commands; those that policy refused are not here.
    pub recipients: Vec<Recipient>,
}

impl Envelope {
    /// An envelope without parameters and recipients.
    pub fn new(from: ReversePath) -> Self {
        Self {
            from,
            size: None,
            body: BodyType::default(),
            smtputf8: false,
            require_tls: false,
            ret: None,
            envid: None,
            recipients: Vec::new(),
        }
    }
}
