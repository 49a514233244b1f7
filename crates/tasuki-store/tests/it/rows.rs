//! What is written for an activity, and how many transactions it takes: as much for ten hosts as for ten thousand. The databases
//! say so themselves: their rows before and after, SQLite's write-ahead log with its commits, PostgreSQL's transaction numbers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use sqlx::{Connection as _, PgConnection, Row as _, SqliteConnection};
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{HostNo, LogSeq};
use tasuki_core::store::Store;
use tasuki_core::store::fedi::{Appended, EntryKind, HostProgress, NewEntry};

use super::support::{Bench, benches};

const CROWDS: [u32; 4] = [10, 100, 1_000, 10_000];

/// Rows that are new or changed, and the transactions that wrote.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    rows: usize,
    transactions: usize,
}

/// Looks into a database beside the store.
enum Look {
    Sqlite(SqliteConnection, std::path::PathBuf),
    Postgres(PgConnection),
}

impl Look {
    async fn at(bench: &Bench) -> Self {
        if bench.url().starts_with("postgres") {
            return Self::Postgres(PgConnection::connect(bench.url()).await.unwrap());
        }
        let file = bench.dir().join("tasuki.db");
        let conn = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await;
        Self::Sqlite(conn.unwrap(), bench.dir().join("tasuki.db-wal"))
    }

    /// All rows of all tables, with the transaction that wrote each where the database knows it.
    async fn rows(&mut self) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        match self {
            Self::Sqlite(conn, _) => {
                let tables =
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
                let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *conn).await.unwrap();
                for table in tables {
                    let columns = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)");
                    let columns: Vec<String> = columns.bind(&table).fetch_all(&mut *conn).await.unwrap();
                    let columns: Vec<String> =
                        columns.iter().map(|name| format!("quote(\"{name}\")")).collect();
                    let sql = format!("SELECT {} FROM \"{table}\"", columns.join(" || ',' || "));
                    let rows = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql));
                    for row in rows.fetch_all(&mut *conn).await.unwrap() {
                        all.insert((format!("{table}: {row}"), String::new()));
                    }
                }
            }
            Self::Postgres(conn) => {
                let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'";
                let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *conn).await.unwrap();
                for table in tables {
                    let sql = format!("SELECT t::text, t.xmin::text FROM \"{table}\" t");
                    for row in sqlx::query(sqlx::AssertSqlSafe(sql))
                        .fetch_all(&mut *conn)
                        .await
                        .unwrap()
                    {
                        let text: String = row.get(0);
                        all.insert((format!("{table}: {text}"), row.get(1)));
                    }
                }
            }
        }
        all
    }

    /// Empties SQLite's log, so that what comes is all that is in it.
    async fn begin(&mut self) -> BTreeSet<(String, String)> {
        if let Self::Sqlite(conn, log) = self {
            sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                .execute(&mut *conn)
                .await
                .unwrap();
            assert_eq!(commits(log), 0, "the log was emptied");
        }
        self.rows().await
    }

    async fn end(&mut self, before: &BTreeSet<(String, String)>) -> Written {
        let after = self.rows().await;
        let new: Vec<_> = after.difference(before).collect();
        let transactions = match self {
            Self::Sqlite(_, log) => commits(log),
            Self::Postgres(_) => new.iter().map(|(_, xmin)| xmin).collect::<BTreeSet<_>>().len(),
        };
        Written {
            rows: new.len(),
            transactions,
        }
    }
}

/// Commits in a write-ahead log (<https://www.sqlite.org/fileformat2.html#walformat>): frames that say how large the database
/// is after them.
fn commits(log: &Path) -> usize {
    let bytes = std::fs::read(log).unwrap();
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    if bytes.len() < 32 {
        return 0;
    }
    let frame = 24 + usize::try_from(number(8)).unwrap();
    let salts = &bytes[16..24];
    let frames = (32..bytes.len().saturating_sub(frame - 1)).step_by(frame);
    frames
        .take_while(|at| bytes[at + 8..at + 16] == *salts)
        .filter(|at| number(at + 4) != 0)
        .count()
}

fn activity(kind: EntryKind, object: &str, hosts: u32) -> NewEntry {
    // Every third number, so that the bitmap is no single run.
    let audience: RoaringBitmap = (0..hosts).map(|n| n * 3).collect();
    NewEntry {
        kind,
        object: object.to_owned(),
        actor: "https://a.example/users/alice".into(),
        dedupe: format!("{kind:?} {object}"),
        body: Bytes::from_static(br#"{"type":"Create"}"#),
        announce: Some(Bytes::from_static(br#"{"type":"Announce"}"#)),
        announce_to: audience.iter().step_by(2).collect(),
        via: vec![("tag/cats".into(), audience.iter().step_by(5).collect())],
        if_known: audience.clone(),
        audience,
        at: Timestamp(5),
    }
}

async fn appended(store: &dyn Store, entry: NewEntry) -> LogSeq {
    match store.append(entry).await.unwrap() {
        Appended::Stored(seq) => seq,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activity_makes_as_many_rows_in_one_transaction_for_ten_as_for_ten_thousand_hosts() {
    for bench in benches().await {
        let store = bench.open().await;
        let mut look = Look::at(&bench).await;
        for kind in [EntryKind::Activity, EntryKind::Change, EntryKind::Delete] {
            let mut seen = Vec::new();
            for hosts in CROWDS {
                let object = format!("https://a.example/notes/{hosts}");
                let before = look.begin().await;
                appended(&*store, activity(kind, &object, hosts)).await;
                seen.push(look.end(&before).await);
            }
            // The log, what is known of the object, and that it was appended; a Delete also empties what it deletes.
            for written in &seen {
                assert_eq!(written.transactions, 1, "{kind:?} {seen:?} at {}", bench.url());
                assert_eq!(written, &seen[0], "{kind:?} {seen:?} at {}", bench.url());
                assert!((2..=5).contains(&written.rows), "{kind:?} {seen:?}");
            }
        }
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_one_transaction_however_many_are_behind() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, _) = store.join("gw").await.unwrap();
        let epoch = store.claim_fanout(node, Duration::from_secs(60)).await.unwrap();
        let epoch = epoch.expect("nobody else has it");
        let mut look = Look::at(&bench).await;
        for hosts in CROWDS {
            let seq = appended(&*store, activity(EntryKind::Activity, &format!("{hosts}"), hosts)).await;
            let behind = |host| HostProgress {
                host: HostNo(host),
                up_to: LogSeq(seq.0 - 1),
                also: Vec::new(),
                parked: Vec::new(),
                failures: 1,
                next_try: Some(Timestamp(9)),
                last_error: Some("503".into()),
            };
            let rows: Vec<HostProgress> = (0..hosts).map(|n| behind(n * 3)).collect();
            let before = look.begin().await;
            store
                .checkpoint(node, epoch, Some(seq), &rows, &[])
                .await
                .unwrap();
            let written = look.end(&before).await;
            assert_eq!(written.transactions, 1, "{written:?} at {}", bench.url());
            assert!(written.rows > 1, "{written:?}");
        }
        store.close().await;
    }
}
