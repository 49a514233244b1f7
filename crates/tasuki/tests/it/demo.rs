//! The demo proves the three main jobs, with the real programs.

use tempfile::TempDir;

use crate::gateway::run;

#[test]
fn the_demo_delivers_unchanged_in_all_three_engines() {
    let directory = TempDir::new().unwrap();
    let said = run(directory.path(), &["demo", "--once", "--json"]);
    let report = said.json();
    assert_eq!(said.code, 0, "{report:#}\n{}", said.err);
    assert_eq!(report["ok"], true, "{report:#}");
    let engines = &report["engines"];
    for engine in ["mail", "tunnel"] {
        let proof = &engines[engine];
        assert_eq!(
            proof["sent"]["sha256"], proof["received"][0]["sha256"],
            "{engine}: {proof:#}"
        );
    }
    let fediverse = &engines["fediverse"];
    let received = fediverse["received"].as_array().unwrap();
    assert_eq!(received.len(), 3, "{fediverse:#}");
    let forwarded = received
        .iter()
        .filter(|r| r["sha256"] == fediverse["sent"]["sha256"])
        .count();
    assert_eq!(
        forwarded, 2,
        "two get the bytes, LitePub gets an Announce: {fediverse:#}"
    );
    assert!(report["seconds"].as_f64().unwrap() < 30.0, "{report:#}");
}
