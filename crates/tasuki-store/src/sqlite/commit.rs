//! What one transaction of the writer does.

use sqlx::SqliteConnection;
use tasuki_core::store::mail::Settled;
use tasuki_core::store::{StoreError, StoreResult};

use super::mail::{self, MailRow};
use super::settle::{self, Applied};
use super::writer::{ALL_NODES, Change, Enqueue, Riders, SettleNow};
use super::{totals, trail};
use crate::error::{is_io_error, store_error};

/// What a transaction is made of, beside riders and changes.
pub(super) struct Work<'a> {
    pub(super) enqueues: &'a [Enqueue],
    pub(super) settles: &'a [SettleNow],
    /// Whether there is room for the trail.
    pub(super) keeps_trail: bool,
}

/// What became of it: each one's own result, in order.
#[derive(Default)]
pub(super) struct Done {
    pub(super) applied: Applied,
    pub(super) enqueued: Vec<StoreResult<()>>,
    pub(super) settled: Vec<StoreResult<Vec<Settled>>>,
    pub(super) changed: Vec<StoreResult<()>>,
}

/// One transaction; once more, caller by caller, if one of the new mails was refused.
///
/// Each trip to the thread that SQLite works on costs two thread switches, so statements that belong together are one
/// text: the beginning with the mails that are gone, and the end with the trail, the figures and the commit.
pub(super) async fn transact(
    conn: &mut SqliteConnection,
    riders: &[Riders],
    work: &Work<'_>,
    changes: &mut [Box<dyn Change>],
) -> StoreResult<Done> {
    let mut done = Done::default();
    begin(conn, riders, &mut done.applied).await?;
    let rows: Vec<&MailRow> = work.enqueues.iter().flat_map(|e| &e.rows).collect();
    match mail::insert(conn, &rows).await {
        Ok(()) => {
            done.applied.mails += count_of(rows.len());
            done.enqueued = work.enqueues.iter().map(|_| Ok(())).collect();
        }
        Err(StoreError::Conflict(_)) => {
            run(conn, "ROLLBACK").await?;
            done = Done::default();
            begin(conn, riders, &mut done.applied).await?;
            done.enqueued = insert_one_by_one(conn, work.enqueues, &mut done.applied).await?;
        }
        Err(error) => return Err(error),
    }
    apply_settles(conn, work.settles, &mut done).await?;
    apply_changes(conn, changes, &mut done).await?;
    end(conn, work.keeps_trail, &mut done.applied).await?;
    Ok(done)
}

/// Begins the transaction, with the outcomes that ride in it.
async fn begin(conn: &mut SqliteConnection, riders: &[Riders], applied: &mut Applied) -> StoreResult<()> {
    let riders = riders.iter().map(|r| (r.node, r.outcomes.as_slice()));
    mail::begin_with_riders(conn, riders, applied).await?;
    settle::finish(conn, applied).await
}

/// The last row of stories, the figures and the commit.
const END: &str = "INSERT INTO trail (written_at, size_bytes, stories) VALUES (?, ?, ?);
    INSERT INTO trail_keys (batch, keys) VALUES (last_insert_rowid(), ?);
    INSERT INTO queue_totals (node, mails, deferred, trail_bytes) VALUES (?, ?, ?, ?)
        ON CONFLICT (node) DO UPDATE SET mails = queue_totals.mails + excluded.mails,
            deferred = queue_totals.deferred + excluded.deferred,
            trail_bytes = queue_totals.trail_bytes + excluded.trail_bytes;
    COMMIT";

/// Writes what the transaction's outcomes left to tell and to count, and commits.
async fn end(conn: &mut SqliteConnection, keeps_trail: bool, applied: &mut Applied) -> StoreResult<()> {
    let stories = std::mem::take(&mut applied.stories);
    let mut batches = match keeps_trail {
        true => trail::batches(&stories)?,
        false => Vec::new(),
    };
    let change = totals::Change {
        mails: applied.mails,
        deferred: applied.deferred,
        trail_bytes: trail::size_of(&batches),
    };
    let Some(last) = batches.pop() else {
        totals::add(conn, ALL_NODES, change).await?;
        return run(conn, "COMMIT").await;
    };
    trail::append(conn, batches).await?;
    sqlx::query(END)
        .bind(last.written_at)
        .bind(last.size_bytes)
        .bind(last.stories)
        .bind(last.keys)
        .bind(ALL_NODES)
        .bind(change.mails)
        .bind(change.deferred)
        .bind(change.trail_bytes)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

async fn apply_settles(
    conn: &mut SqliteConnection,
    settles: &[SettleNow],
    done: &mut Done,
) -> StoreResult<()> {
    for settle in settles {
        run(conn, "SAVEPOINT one").await?;
        let mut applied = Applied::default();
        let result = settle_now(conn, settle, &mut applied).await;
        match &result {
            Err(error) if is_storage(error) => return result.map(drop),
            Ok(_) => {
                done.applied.mails += applied.mails;
                done.applied.deferred += applied.deferred;
                done.applied.freed.append(&mut applied.freed);
                done.applied.stories.append(&mut applied.stories);
            }
            Err(_) => run(conn, "ROLLBACK TO one").await?,
        }
        run(conn, "RELEASE one").await?;
        done.settled.push(result);
    }
    Ok(())
}

async fn apply_changes(
    conn: &mut SqliteConnection,
    changes: &mut [Box<dyn Change>],
    done: &mut Done,
) -> StoreResult<()> {
    for change in changes.iter_mut() {
        run(conn, "SAVEPOINT one").await?;
        let result = change.apply(conn).await;
        if result.as_ref().is_err_and(is_storage) {
            return result;
        }
        if result.is_err() {
            run(conn, "ROLLBACK TO one").await?;
        }
        run(conn, "RELEASE one").await?;
        done.changed.push(result);
    }
    Ok(())
}

/// A failure of the disk: SQLite may have rolled everything back, so it is everybody's.
fn is_storage(error: &StoreError) -> bool {
    matches!(error, StoreError::Full) || is_io_error(error)
}

async fn run(conn: &mut SqliteConnection, sql: &'static str) -> StoreResult<()> {
    sqlx::query(sql).execute(conn).await.map_err(store_error)?;
    Ok(())
}

/// Inserts caller by caller, so that a refused one fails alone.
async fn insert_one_by_one(
    conn: &mut SqliteConnection,
    enqueues: &[Enqueue],
    applied: &mut Applied,
) -> StoreResult<Vec<StoreResult<()>>> {
    let mut results = Vec::with_capacity(enqueues.len());
    for enqueue in enqueues {
        run(conn, "SAVEPOINT one").await?;
        let own: Vec<&MailRow> = enqueue.rows.iter().collect();
        let result = mail::insert(conn, &own).await;
        match &result {
            Ok(()) => applied.mails += count_of(own.len()),
            Err(StoreError::Conflict(_)) => run(conn, "ROLLBACK TO one").await?,
            Err(_) => return result.map(|()| Vec::new()),
        }
        run(conn, "RELEASE one").await?;
        results.push(result);
    }
    Ok(results)
}

/// Outcomes with what they cause, all or nothing; the savepoint is the caller's.
async fn settle_now(
    conn: &mut SqliteConnection,
    settle: &SettleNow,
    applied: &mut Applied,
) -> StoreResult<Vec<Settled>> {
    let mut results = Vec::with_capacity(settle.outcomes.len());
    for (outcome, follow_up) in settle.outcomes.iter().zip(&settle.follow_ups) {
        let result = settle::settle_one(conn, settle.node, outcome, applied).await?;
        if result == Settled::Done && !follow_up.is_empty() {
            let rows: Vec<&MailRow> = follow_up.iter().collect();
            mail::insert(conn, &rows).await?;
            applied.mails += count_of(rows.len());
        }
        results.push(result);
    }
    settle::finish(conn, applied).await?;
    Ok(results)
}

fn count_of(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
