//! The two spellings of time on this wire: HTTP dates (RFC 9110 5.6.7) and XML Schema timestamps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const IMF_FIXDATE: &[BorrowedFormatItem<'static>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
const XSD: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// `Tue, 24 Nov 2026 05:00:00 GMT`.
pub fn http_date(at: SystemTime) -> String {
    utc(at).format(IMF_FIXDATE).unwrap_or_default()
}

/// Reads an HTTP date in the form that everybody sends; the two obsolete forms are refused.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    if text.len() > 64 {
        return None;
    }
    let at = PrimitiveDateTime::parse(text.trim(), IMF_FIXDATE).ok()?;
    from_unix(at.assume_utc().unix_timestamp())
}

/// `2026-11-24T05:00:00Z`, as in `published`.
pub fn timestamp(at: SystemTime) -> String {
    utc(at).format(XSD).unwrap_or_default()
}

/// Reads `published` or `updated`.
pub fn parse_timestamp(text: &str) -> Option<SystemTime> {
    if text.len() > 64 {
        return None;
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    from_unix(at.unix_timestamp())
}

/// Seconds since 1970, for `(created)`.
pub fn from_unix(seconds: i64) -> Option<SystemTime> {
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    }
}

fn utc(at: SystemTime) -> OffsetDateTime {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
