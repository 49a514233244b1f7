//! Suppressed addresses.

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::PrincipalId;
use tasuki_core::store::suppress::{
    Entered, MAX_REASON, Subject, Suppressed, SuppressedFilter, SuppressionStore,
};
use tasuki_core::store::{AuditEntry, StoreError, StoreResult};
use tasuki_proto::names::Domain;

use super::{Conn, Db, DbRow, audit};
use crate::error::store_error;
use crate::words::no_nul;

/// For all principals; none has this number.
const EVERYBODY: i64 = 0;

fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn scope(principal: Option<PrincipalId>) -> i64 {
    principal.map_or(EVERYBODY, |id| id.0)
}

fn clipped(reason: &str) -> String {
    let reason = no_nul(reason);
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

fn entry_of(row: &DbRow) -> StoreResult<Suppressed> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let domain = Domain::parse(&text("domain")?)
        .map_err(|error| StoreError::Damaged(format!("a domain of suppressed addresses: {error}")))?;
    let principal = number("principal")?;
    let until: Option<i64> = row.try_get("until").map_err(store_error)?;
    Ok(Suppressed {
        subject: Subject::from_parts(text("local")?, domain),
        principal: (principal != EVERYBODY).then_some(PrincipalId(principal)),
        reason: text("reason")?,
        by: Some(text("made_by")?).filter(|by| !by.is_empty()),
        since: Timestamp(number("since")?),
        until: until.map(Timestamp),
    })
}

async fn count(conn: &mut Conn) -> StoreResult<i64> {
    sqlx::query_scalar("SELECT COUNT(*) FROM suppressed")
        .fetch_one(conn)
        .await
        .map_err(store_error)
}

/// The number before those that `n` changes get. The row's lock keeps other gateways' numbers in the order of commits.
async fn numbers(conn: &mut Conn, n: usize) -> StoreResult<i64> {
    let last: i64 = sqlx::query_scalar(
        "UPDATE versions SET value = value + $1 WHERE name = 'suppressed' RETURNING value",
    )
    .bind(number(n))
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    Ok(last - number(n))
}

/// Lets one that came by itself last longer; whether it is there.
async fn renew(conn: &mut Conn, new: &Suppressed, change: i64) -> StoreResult<bool> {
    let done = sqlx::query(
        "UPDATE suppressed SET reason = $4, since = CASE WHEN until <= $5 THEN $5 ELSE since END, until = $6,
             change = $7
         WHERE domain = $1 AND local = $2 AND principal = $3 AND made_by = ''",
    )
    .bind(new.subject.domain().as_str())
    .bind(new.subject.local())
    .bind(scope(new.principal))
    .bind(clipped(&new.reason))
    .bind(new.since.0)
    .bind(new.until.map(|until| until.0))
    .bind(change)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(done.rows_affected() > 0)
}

const INSERT: &str =
    "INSERT INTO suppressed (domain, local, principal, reason, made_by, since, until, change)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (domain, local, principal) DO NOTHING";
const REPLACE: &str =
    "INSERT INTO suppressed (domain, local, principal, reason, made_by, since, until, change)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (domain, local, principal) DO UPDATE SET
         reason = excluded.reason, made_by = excluded.made_by, since = excluded.since, until = excluded.until,
         change = excluded.change";

/// Writes an entry; whether that changed anything.
async fn write(conn: &mut Conn, sql: &'static str, new: &Suppressed, change: i64) -> StoreResult<bool> {
    let done = sqlx::query(sql)
        .bind(new.subject.domain().as_str())
        .bind(no_nul(new.subject.local()))
        .bind(scope(new.principal))
        .bind(clipped(&new.reason))
        .bind(new.by.as_deref().unwrap_or_default())
        .bind(new.since.0)
        .bind(new.until.map(|until| until.0))
        .bind(change)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(done.rows_affected() > 0)
}

macro_rules! listing {
    ($of_domain:literal) => {
        concat!(
            "SELECT domain, local, principal, reason, made_by, since, until, change FROM suppressed
             WHERE ",
            $of_domain,
            " AND ($3 = '' OR local IN ($3, '*')) AND ($4 = 0 OR principal = $4) ORDER BY change LIMIT $5"
        )
    };
}
const ALL: &str = listing!("change > $1 AND $2 = ''");
/// By the key and not by the number (the sign keeps its index out): a domain's entries are few among all.
const OF_DOMAIN: &str = listing!("+change > $1 AND domain = $2");

async fn enter(conn: &mut Conn, new: &[Suppressed], most: usize) -> StoreResult<Vec<Entered>> {
    let mut change = numbers(conn, new.len()).await?;
    let mut room = number(most) - count(conn).await?;
    let mut entered = Vec::with_capacity(new.len());
    for entry in new {
        change += 1;
        entered.push(if renew(conn, entry, change).await? {
            Entered::Known
        } else if room <= 0 {
            Entered::NoRoom
        } else if write(conn, INSERT, entry, change).await? {
            room -= 1;
            Entered::New
        } else {
            Entered::Known
        });
    }
    Ok(entered)
}

async fn delete_automatic(conn: &mut Conn, found: &[Subject]) -> StoreResult<usize> {
    let mut removed = 0;
    for subject in found {
        let done = sqlx::query("DELETE FROM suppressed WHERE domain = $1 AND local = $2 AND made_by = ''")
            .bind(subject.domain().as_str())
            .bind(subject.local())
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
        removed += usize::try_from(done.rows_affected()).unwrap_or(0);
    }
    Ok(removed)
}

async fn delete(
    conn: &mut Conn,
    (subject, principal): &(Subject, Option<PrincipalId>),
) -> StoreResult<usize> {
    let done =
        sqlx::query("DELETE FROM suppressed WHERE domain = $1 AND local = $2 AND ($3 = 0 OR principal = $3)")
            .bind(subject.domain().as_str())
            .bind(subject.local())
            .bind(scope(*principal))
            .execute(conn)
            .await
            .map_err(store_error)?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(0))
}

async fn change(
    conn: &mut Conn,
    add: &[Suppressed],
    remove: &[(Subject, Option<PrincipalId>)],
    most: usize,
    entry: &AuditEntry,
) -> StoreResult<(usize, usize)> {
    let mut removed = 0;
    for gone in remove {
        removed += delete(conn, gone).await?;
    }
    let mut change = numbers(conn, add.len()).await?;
    for new in add {
        change += 1;
        write(conn, REPLACE, new, change).await?;
    }
    if !add.is_empty() && count(conn).await? > number(most) {
        return Err(StoreError::Conflict(format!(
            "the list would have more than {most} entries (mail.suppression.max_entries)"
        )));
    }
    if add.len() + removed > 0 {
        audit::append(conn, entry).await?;
    }
    Ok((add.len(), removed))
}

/// Nothing of a principal that is gone.
pub(super) async fn forget_principal(conn: &mut Conn, principal: PrincipalId) -> StoreResult<()> {
    sqlx::query("DELETE FROM suppressed WHERE principal = $1")
        .bind(principal.0)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

#[async_trait]
impl SuppressionStore for Db {
    async fn suppress(&self, new: Vec<Suppressed>, most: usize) -> StoreResult<Vec<Entered>> {
        self.change(move |conn| Box::pin(async move { enter(conn, &new, most).await }))
            .await
    }

    async fn unsuppress(&self, found: Vec<Subject>) -> StoreResult<usize> {
        self.change(move |conn| Box::pin(async move { delete_automatic(conn, &found).await }))
            .await
    }

    async fn change_suppressed(
        &self,
        add: Vec<Suppressed>,
        remove: Vec<(Subject, Option<PrincipalId>)>,
        most: usize,
        audit: AuditEntry,
    ) -> StoreResult<(usize, usize)> {
        self.change(move |conn| Box::pin(async move { change(conn, &add, &remove, most, &audit).await }))
            .await
    }

    async fn suppression(
        &self,
        subject: &Subject,
        principal: PrincipalId,
        now: Timestamp,
    ) -> StoreResult<Option<Suppressed>> {
        self.read(async |conn| {
            let row = sqlx::query(
                "SELECT domain, local, principal, reason, made_by, since, until FROM suppressed
                 WHERE domain = $1 AND local IN ($2, '*') AND principal IN (0, $3)
                   AND (until IS NULL OR until > $4)
                 ORDER BY principal DESC, local DESC LIMIT 1",
            )
            .bind(subject.domain().as_str())
            .bind(subject.local())
            .bind(principal.0)
            .bind(now.0)
            .fetch_optional(conn)
            .await
            .map_err(store_error)?;
            row.as_ref().map(entry_of).transpose()
        })
        .await
    }

    async fn suppressed(
        &self,
        filter: &SuppressedFilter,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Suppressed)>> {
        let domain = filter.domain.as_ref().map_or("", Domain::as_str);
        let sql = if domain.is_empty() { ALL } else { OF_DOMAIN };
        self.read(async |conn| {
            let rows = sqlx::query(sql)
                .bind(filter.after)
                .bind(domain)
                .bind(filter.local.as_deref().unwrap_or_default())
                .bind(scope(filter.principal))
                .bind(number(limit))
                .fetch_all(conn)
                .await
                .map_err(store_error)?;
            let numbered = |row: &DbRow| Ok((row.try_get("change").map_err(store_error)?, entry_of(row)?));
            rows.iter().map(numbered).collect()
        })
        .await
    }

    async fn prune_suppressed(&self, now: Timestamp) -> StoreResult<usize> {
        self.change(move |conn| {
            Box::pin(async move {
                let done = sqlx::query("DELETE FROM suppressed WHERE until <= $1")
                    .bind(now.0)
                    .execute(conn)
                    .await
                    .map_err(store_error)?;
                Ok(usize::try_from(done.rows_affected()).unwrap_or(0))
            })
        })
        .await
    }
}
