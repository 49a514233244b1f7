//! Between the gateway's timestamps and the standard library's time, in which the pure part reckons.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tasuki_core::clock::Timestamp;

/// The same moment.
pub(crate) fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or(0))
}
