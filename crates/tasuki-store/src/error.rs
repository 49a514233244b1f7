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
            StoreError::Unavailable(Box::new(error))
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => StoreError::Damaged(error.to_string()),
        other => StoreError::Unavailable(Box::new(other)),
    }
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
