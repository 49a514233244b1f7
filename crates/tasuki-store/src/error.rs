//! From sqlx's errors to the store's.

use tasuki_core::store::StoreError;

/// What a database error means to the caller of a verb.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(ref db) => {
            if is_full(db.code().as_deref()) {
                return StoreError::Full;
            }
            if db.is_unique_violation() {
                return StoreError::Conflict("somebody else stored the same at the same time".into());
            }
            // A value that this database cannot hold (class 22: a NUL in a text, a number out of range).
            if db
                .code()
                .is_some_and(|code| code.len() == 5 && code.starts_with("22"))
            {
                return StoreError::Damaged(error.to_string());
            }
            StoreError::Unavailable(Box::new(error))
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => StoreError::Damaged(error.to_string()),
        other => StoreError::Unavailable(Box::new(other)),
    }
}

fn code_of(error: &StoreError) -> Option<std::borrow::Cow<'_, str>> {
    let StoreError::Unavailable(source) = error else {
        return None;
    };
    source.downcast_ref::<sqlx::Error>()?.as_database_error()?.code()
}

/// Whether SQLite met an error of the operating system (SQLITE_IOERR and its kinds): it does not pass on which.
pub(crate) fn is_io_error(error: &StoreError) -> bool {
    code_of(error)
        .and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| code & 0xff == 10)
}

/// SQLite's SQLITE_FULL; PostgreSQL's disk_full.
fn is_full(code: Option<&str>) -> bool {
    matches!(code, Some("13" | "53100"))
}

/// Whether the error is a broken uniqueness, that is: the row's own fault.
pub(crate) fn is_duplicate(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|db| db.is_unique_violation())
}

/// An operating system's error in a segment or data directory.
pub(crate) fn io_error(error: std::io::Error) -> StoreError {
    if matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    ) {
        StoreError::Full
    } else {
        StoreError::Unavailable(Box::new(error))
    }
}

/// Whether a transaction met another one and would have gone through alone: serialization_failure, deadlock_detected.
pub(crate) fn is_collision(error: &StoreError) -> bool {
    code_of(error).is_some_and(|code| matches!(code.as_ref(), "40001" | "40P01"))
}

/// Whether one request's content is the cause, so that others in the same transaction would have gone through.
pub(crate) fn is_own_fault(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Damaged(_) | StoreError::StaleEpoch
    )
}

/// The same failure for each who shared a commit.
pub(crate) fn share(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full => StoreError::Full,
        StoreError::Unavailable(source) => StoreError::Unavailable(source.to_string().into()),
        other => StoreError::Unavailable(other.to_string().into()),
    }
}
