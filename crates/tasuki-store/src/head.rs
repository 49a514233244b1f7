//! A mail's envelope and deliveries as one value in its row.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tasuki_core::ids::DeliverySeq;
use tasuki_core::store::mail::{Envelope, NewDelivery, NewMail};
use tasuki_core::store::{StoreError, StoreResult};

use crate::words::from_json;

/// The `head` column.
#[derive(Serialize, Deserialize)]
pub(crate) struct Head<'a> {
    #[serde(rename = "e")]
    pub(crate) envelope: Cow<'a, Envelope>,
    #[serde(rename = "d")]
    pub(crate) deliveries: Cow<'a, [NewDelivery]>,
}

/// Encodes the head of a new mail; refuses one that could never be delivered.
pub(crate) fn encode(mail: &NewMail) -> StoreResult<Vec<u8>> {
    if mail.deliveries.is_empty() || mail.deliveries.iter().any(|d| d.recipients.is_empty()) {
        return Err(StoreError::Damaged(format!(
            "mail {} has a delivery without recipients",
            mail.id
        )));
    }
    if mail.deliveries.len() > usize::from(u16::MAX) {
        return Err(StoreError::Damaged(format!(
            "mail {} has too many lanes",
            mail.id
        )));
    }
    let mut bytes = Vec::with_capacity(384);
    let head = Head {
        envelope: Cow::Borrowed(&mail.envelope),
        deliveries: Cow::Borrowed(&mail.deliveries),
    };
    serde_json::to_writer(&mut bytes, &head).map_err(|error| StoreError::Damaged(error.to_string()))?;
    Ok(bytes)
}

/// Decodes the `head` column.
pub(crate) fn decode(bytes: &[u8]) -> StoreResult<Head<'static>> {
    from_json(bytes)
}

/// How a settled or deferred delivery stands in the `gone` column, which begins with a comma: `,0,7,`.
pub(crate) fn gone_mark(seq: DeliverySeq) -> String {
    format!("{seq},")
}

/// Whether the `gone` column names this delivery.
pub(crate) fn is_gone(gone: &str, seq: u16) -> bool {
    gone.split(',').any(|part| part.parse() == Ok(seq))
}
