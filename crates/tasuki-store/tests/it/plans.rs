//! However long the queue is, nothing that is asked again and again reads all of it: the databases say how they would
//! answer, on a queue long enough that a scan would be cheaper nowhere.

use bytes::Bytes;
use sqlx::{Connection as _, PgConnection, Row as _, SqliteConnection};
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::DeliverySeq;
use tasuki_core::store::Store;
use tasuki_core::store::mail::{BodyPlace, Hold, Outcome, Settlement, StoredBody};

use super::support::{benches, lane, mail, recipient};

const MAILS: usize = 12_000;
const LANES: usize = 6_000;
const TABLES: [&str; 4] = ["mails", "deliveries", "lanes", "log"];

/// Mails that wait in many lanes.
async fn defer_many(store: &dyn Store) {
    let (node, epoch) = store.join("gw").await.unwrap();
    for first in (0..MAILS).step_by(500) {
        let domain = |n: usize| format!("d{}.example", n % LANES);
        let body = || StoredBody {
            len: 1_000,
            place: BodyPlace::Inline(Bytes::from(vec![b'x'; 1_000])),
        };
        let mails = (first..first + 500)
            .map(|n| mail(&[&domain(n)], body()))
            .collect();
        let ids = store.enqueue(node, epoch, mails).await.unwrap();
        let outcomes = ids
            .into_iter()
            .zip(first..)
            .map(|(mail, n)| Outcome {
                mail,
                delivery: DeliverySeq(0),
                hold: Hold::Fresh(epoch),
                settlement: Settlement::Deferred {
                    lane: lane(&domain(n)),
                    recipients: vec![recipient(&format!("bob@{}", domain(n)))],
                    attempts: 1,
                    due: Timestamp(1_000 + i64::try_from(n).unwrap()),
                    last_error: "450 later".into(),
                    delay_reported: false,
                },
                follow_up: Vec::new(),
                story: None,
            })
            .collect();
        store.settle(node, outcomes).await.unwrap();
    }
}

/// The statement with values in place of its parameters; all of them are numbers.
fn filled(sql: &str) -> String {
    (1..=9).rev().fold(format!("{sql} "), |sql, n| {
        // Limits come last in every statement.
        let value = if sql.contains(&format!("LIMIT ${n}")) {
            "16"
        } else {
            "3000"
        };
        sql.replace(&format!("${n}"), value)
    })
}

/// Which tables a plan of SQLite reads from end to end.
fn scanned_by_sqlite(plan: &[String]) -> Vec<&str> {
    let scans = plan.iter().filter_map(|line| line.strip_prefix("SCAN "));
    scans
        .filter(|rest| {
            let table = rest.split(' ').next().unwrap_or_default();
            // Adding the sizes up reads an index that holds nothing else.
            (TABLES.contains(&table) || matches!(table, "m" | "d"))
                && *rest != "log USING COVERING INDEX log_by_size"
        })
        .chain(
            plan.iter()
                .filter(|line| line.contains("TEMP B-TREE"))
                .map(String::as_str),
        )
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_periodic_scans_the_queue_on_sqlite() {
    let bench = benches().await.remove(0);
    let store = bench.open().await;
    defer_many(&*store).await;
    store.close().await;
    let file = format!("sqlite:{}", bench.dir().join("tasuki.db").display());
    let mut conn = SqliteConnection::connect(&file).await.unwrap();
    let mut plan = async |sql: &str| -> Vec<String> {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::query(sql).fetch_all(&mut conn).await.unwrap();
        rows.iter().map(|row| row.get("detail")).collect()
    };
    let statements = tasuki_store::periodic_statements(bench.url());
    assert!(statements.len() > 9, "{statements:?}");
    for sql in statements {
        let plan = plan(&filled(sql)).await;
        assert!(!plan.is_empty(), "{sql}");
        assert!(scanned_by_sqlite(&plan).is_empty(), "{sql}\n{plan:#?}");
    }
    for bad in [
        "SELECT count(*) FROM deliveries",
        "SELECT id FROM mails WHERE fresh > 0 ORDER BY accepted_at",
    ] {
        let plan = plan(bad).await;
        assert!(
            !scanned_by_sqlite(&plan).is_empty(),
            "{bad} is not seen: {plan:?}"
        );
    }
}

/// Which tables a plan of PostgreSQL reads from end to end.
fn scanned_by_postgres(plan: &[String]) -> Vec<&str> {
    plan.iter()
        .filter(|line| {
            line.contains("Seq Scan on") && TABLES.iter().any(|t| line.contains(&format!("on {t} ")))
        })
        .map(String::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_periodic_scans_the_queue_on_postgresql() {
    let bench = benches().await.remove(1);
    let store = bench.open().await;
    defer_many(&*store).await;
    store.close().await;
    let mut conn = PgConnection::connect(bench.url()).await.unwrap();
    sqlx::query("ANALYZE").execute(&mut conn).await.unwrap();
    let mut plan = async |sql: &str| -> Vec<String> {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN {sql}"));
        let rows = sqlx::raw_sql(sql).fetch_all(&mut conn).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let statements = tasuki_store::periodic_statements(bench.url());
    assert!(statements.len() > 9, "{statements:?}");
    for sql in statements {
        let plan = plan(&filled(sql)).await;
        assert!(!plan.is_empty(), "{sql}");
        assert!(scanned_by_postgres(&plan).is_empty(), "{sql}\n{plan:#?}");
    }
    let bad = "SELECT count(*) FROM deliveries WHERE attempts > 3";
    let plan = plan(bad).await;
    assert!(
        !scanned_by_postgres(&plan).is_empty(),
        "{bad} is not seen: {plan:?}"
    );
}
