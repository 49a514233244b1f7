//! The demo on the database that one machine does not hold alone.

use serde_json::Value;

use crate::support::postgres::Postgres;
use crate::support::process;

/// The SHA-256 of everything `engine` delivered, and of what it was sent.
fn digests(report: &Value, engine: &str) -> (String, Vec<String>) {
    let proof = &report["engines"][engine];
    assert_eq!(proof["ok"], true, "{report:#}");
    let text = |value: &Value| value["sha256"].as_str().unwrap().to_owned();
    let received = proof["received"].as_array().unwrap();
    (text(&proof["sent"]), received.iter().map(text).collect())
}

#[test]
fn the_demo_proves_all_three_engines_on_postgresql() {
    let postgres = Postgres::start();
    let output = process::run(
        &process::ours("tasuki"),
        &["demo", "--once", "--json", "--store", &postgres.url()],
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    assert!(output.status.success(), "{report:#}");
    assert_eq!(
        (&report["ok"], &report["store"]),
        (&true.into(), &"postgresql".into()),
        "{report:#}"
    );
    for engine in ["mail", "tunnel"] {
        let (sent, received) = digests(&report, engine);
        assert_eq!(received, [sent], "{engine}: {report:#}");
    }
    let (sent, received) = digests(&report, "fediverse");
    let forwarded = received.iter().filter(|one| **one == sent).count();
    assert_eq!((received.len(), forwarded), (3, 2), "{report:#}");
    let stored = postgres.ask("SELECT count(*) FROM subscriptions");
    assert_eq!(stored, "4", "the demo used this database");
}
