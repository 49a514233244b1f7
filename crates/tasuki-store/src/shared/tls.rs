//! TLS of outgoing mail: policies that hold, and what became of each day's sessions.

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::tls::{DayTally, MAX_TALLIES, StsPolicy, TlsReport, TlsStore};
use tasuki_core::store::{StoreError, StoreResult};
use tasuki_proto::names::Domain;
use tasuki_proto::smtp::tlsrpt::{FailureDetail, SessionPolicy, Tally};

use super::{Conn, Db, DbRow};
use crate::error::store_error;

/// The text forms of a kind of sessions, and the key that stands for both.
struct Kind {
    key: String,
    policy: String,
    failure: Option<String>,
}

impl Kind {
    fn of(policy: &SessionPolicy, failure: Option<&FailureDetail>) -> StoreResult<Self> {
        let text = |value: Result<String, serde_json::Error>| value.map_err(|error| bad_tally(&error));
        let policy = text(serde_json::to_string(policy))?;
        let failure = failure
            .map(|failure| text(serde_json::to_string(failure)))
            .transpose()?;
        let both = format!("{policy}\n{}", failure.as_deref().unwrap_or_default());
        let hash = digest(&SHA256, both.as_bytes());
        let key = hash
            .as_ref()
            .iter()
            .take(16)
            .map(|octet| format!("{octet:02x}"))
            .collect();
        Ok(Self { key, policy, failure })
    }
}

/// Adds to a row, or makes it if fewer than `room` rows are there; whether it did.
async fn add(conn: &mut Conn, new: &DayTally, kind: Kind, room: i64) -> StoreResult<bool> {
    let done = sqlx::query(
        "INSERT INTO tls_sessions (day, domain, kind, policy, failure, sessions)
         SELECT $1, $2, $3, $4, $5, $6
         WHERE EXISTS (SELECT 1 FROM tls_sessions WHERE day = $1 AND domain = $2 AND kind = $3)
            OR (SELECT COUNT(*) FROM tls_sessions WHERE day = $1 AND domain = $2) < $7
         ON CONFLICT (day, domain, kind) DO UPDATE SET sessions = tls_sessions.sessions + excluded.sessions",
    )
    .bind(new.day)
    .bind(new.domain.as_str())
    .bind(kind.key)
    .bind(kind.policy)
    .bind(kind.failure)
    .bind(i64::try_from(new.tally.sessions).unwrap_or(i64::MAX))
    .bind(room)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(done.rows_affected() > 0)
}

fn domain_of(row: &DbRow) -> StoreResult<Domain> {
    let domain: String = row.try_get("domain").map_err(store_error)?;
    Domain::parse(&domain).map_err(|error| StoreError::Damaged(format!("a domain of TLS sessions: {error}")))
}

fn tally_of(day: i64, row: &DbRow) -> StoreResult<DayTally> {
    let policy: String = row.try_get("policy").map_err(store_error)?;
    let failure: Option<String> = row.try_get("failure").map_err(store_error)?;
    let sessions: i64 = row.try_get("sessions").map_err(store_error)?;
    let failure = failure.map(|text| serde_json::from_str(&text)).transpose();
    Ok(DayTally {
        day,
        domain: domain_of(row)?,
        tally: Tally {
            policy: serde_json::from_str(&policy).map_err(|error| bad_tally(&error))?,
            failure: failure.map_err(|error| bad_tally(&error))?,
            sessions: sessions.unsigned_abs(),
        },
    })
}

fn report_of(row: &DbRow) -> StoreResult<TlsReport> {
    let sent: String = row.try_get("sent").map_err(store_error)?;
    Ok(TlsReport {
        tries: row.try_get("tries").map_err(store_error)?,
        sent: sent.lines().map(str::to_owned).collect(),
        is_done: row.try_get::<i64, _>("done").map_err(store_error)? != 0,
    })
}

fn bad_tally(error: &serde_json::Error) -> StoreError {
    StoreError::Damaged(format!("TLS sessions: {error}"))
}

fn damaged(error: &serde_json::Error) -> StoreError {
    StoreError::Damaged(format!("an MTA-STS policy: {error}"))
}

#[async_trait]
impl TlsStore for Db {
    async fn sts_policy(&self, domain: &Domain) -> StoreResult<Option<StsPolicy>> {
        self.read(async |conn| {
            let row = sqlx::query("SELECT id, policy, expires FROM sts_policies WHERE domain = $1")
                .bind(domain.as_str())
                .fetch_optional(conn)
                .await
                .map_err(store_error)?;
            let Some(row) = row else { return Ok(None) };
            let policy: String = row.try_get("policy").map_err(store_error)?;
            Ok(Some(StsPolicy {
                id: row.try_get("id").map_err(store_error)?,
                policy: serde_json::from_str(&policy).map_err(|error| damaged(&error))?,
                expires: Timestamp(row.try_get("expires").map_err(store_error)?),
            }))
        })
        .await
    }

    async fn keep_sts_policy(&self, domain: &Domain, policy: StsPolicy, now: Timestamp) -> StoreResult<()> {
        let domain = domain.as_str().to_owned();
        let text = serde_json::to_string(&policy.policy).map_err(|error| damaged(&error))?;
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query("DELETE FROM sts_policies WHERE expires <= $1")
                    .bind(now.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                sqlx::query(
                    "INSERT INTO sts_policies (domain, id, policy, expires) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (domain) DO UPDATE
                     SET id = excluded.id, policy = excluded.policy, expires = excluded.expires",
                )
                .bind(domain)
                .bind(policy.id)
                .bind(text)
                .bind(policy.expires.0)
                .execute(conn)
                .await
                .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }

    async fn add_tls_sessions(&self, mut tallies: Vec<DayTally>) -> StoreResult<()> {
        if tallies.is_empty() {
            return Ok(());
        }
        // In one order everywhere, so that gateways do not wait for each other in a circle.
        tallies.sort_by(|a, b| {
            let key = |t: &DayTally| (t.day, t.domain.as_str().to_owned(), t.tally.policy.clone());
            key(a)
                .cmp(&key(b))
                .then_with(|| a.tally.failure.cmp(&b.tally.failure))
        });
        self.change(move |conn| {
            Box::pin(async move {
                for new in &tallies {
                    let (policy, failure) = (&new.tally.policy, new.tally.failure.as_ref());
                    if add(conn, new, Kind::of(policy, failure)?, MAX_TALLIES).await? {
                        continue;
                    }
                    // There are few of these, whatever peers say.
                    let folded = failure.map(FailureDetail::folded);
                    let kind = Kind::of(&policy.folded(), folded.as_ref())?;
                    add(conn, new, kind, MAX_TALLIES * 10).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn tls_sessions(
        &self,
        day: i64,
        domain: Option<&Domain>,
        limit: i64,
    ) -> StoreResult<Vec<DayTally>> {
        self.read(async |conn| {
            let rows = sqlx::query(
                "SELECT domain, policy, failure, sessions FROM tls_sessions
                 WHERE day = $1 AND ($2 = '' OR domain = $2)
                 ORDER BY domain, kind LIMIT $3",
            )
            .bind(day)
            .bind(domain.map_or("", Domain::as_str))
            .bind(limit)
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
            rows.iter().map(|row| tally_of(day, row)).collect()
        })
        .await
    }

    async fn tls_domains(&self, day: i64, after: Option<&Domain>, limit: i64) -> StoreResult<Vec<Domain>> {
        self.read(async |conn| {
            let rows = sqlx::query(
                "SELECT DISTINCT domain FROM tls_sessions WHERE day = $1 AND domain > $2 ORDER BY domain LIMIT $3",
            )
            .bind(day)
            .bind(after.map_or("", Domain::as_str))
            .bind(limit)
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
            rows.iter().map(domain_of).collect()
        })
        .await
    }

    async fn take_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Option<TlsReport>> {
        let domain = domain.as_str().to_owned();
        self.change(move |conn| {
            Box::pin(async move {
                let row = sqlx::query(
                    "INSERT INTO tls_reports (day, domain, tries, sent, done, not_before) VALUES ($1, $2, 1, '', 0, $4)
                     ON CONFLICT (day, domain) DO UPDATE
                     SET tries = tls_reports.tries + 1, not_before = excluded.not_before
                     WHERE tls_reports.done = 0 AND tls_reports.not_before <= $3
                     RETURNING tries, sent, done",
                )
                .bind(day)
                .bind(domain)
                .bind(now.0)
                .bind(until.0)
                .fetch_optional(conn)
                .await
                .map_err(store_error)?;
                row.as_ref().map(report_of).transpose()
            })
        })
        .await
    }

    async fn note_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        sent: &[String],
        is_done: bool,
    ) -> StoreResult<()> {
        let (domain, sent) = (domain.as_str().to_owned(), sent.join("\n"));
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query("UPDATE tls_reports SET sent = $3, done = $4 WHERE day = $1 AND domain = $2")
                    .bind(day)
                    .bind(domain)
                    .bind(sent)
                    .bind(i64::from(is_done))
                    .execute(conn)
                    .await
                    .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }

    async fn tls_reports(&self, day: i64, limit: i64) -> StoreResult<Vec<(Domain, TlsReport)>> {
        self.read(async |conn| {
            let rows = sqlx::query(
                "SELECT domain, tries, sent, done FROM tls_reports WHERE day = $1 ORDER BY domain LIMIT $2",
            )
            .bind(day)
            .bind(limit)
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
            rows.iter()
                .map(|row| Ok((domain_of(row)?, report_of(row)?)))
                .collect()
        })
        .await
    }

    async fn forget_tls_sessions(&self, before: i64) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                for table in [
                    "DELETE FROM tls_sessions WHERE day < $1",
                    "DELETE FROM tls_reports WHERE day < $1",
                ] {
                    sqlx::query(table)
                        .bind(before)
                        .execute(&mut *conn)
                        .await
                        .map_err(store_error)?;
                }
                Ok(())
            })
        })
        .await
    }
}
