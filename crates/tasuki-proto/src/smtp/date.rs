//! Dates as header fields have them.

use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// RFC 5322 3.3, for example `Tue, 24 Nov 2026 04:00:00 +0000`.
pub fn rfc5322_date(at: OffsetDateTime) -> String {
    // The format refuses years before 1900 and after 9999 only.
    at.format(&Rfc2822)
        .unwrap_or_else(|_| "Thu, 01 Jan 1970 00:00:00 +0000".to_owned())
}
