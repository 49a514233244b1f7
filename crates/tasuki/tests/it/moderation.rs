//! Moderation of the fediverse by command.

use tempfile::TempDir;

use crate::gateway::Gateway;

#[test]
fn moderation_is_ordered_listed_exported_and_taken_back() {
    let gateway = Gateway::start("");
    gateway.ok(&["fedi", "block", "*.Evil.test", "--reason", "spam, lots"]);
    gateway.ok(&["fedi", "limit", "--software", "Spamware"]);
    gateway.ok(&["fedi", "silence", "--tag", "#Ads"]);
    let rules = gateway.ok(&["fedi", "rules", "--json"]).json();
    assert_eq!(rules["rules"].as_array().map(Vec::len), Some(3), "{rules}");
    assert_eq!(rules["rules"][0]["subject"], "evil.test");
    let why = gateway.ok(&["fedi", "why", "a.evil.test"]).out;
    assert!(
        why.contains("may not publish") && why.contains("spam, lots"),
        "{why}"
    );
    let exported = gateway.ok(&["fedi", "blocklist", "export"]).out;
    assert!(
        exported.contains("evil.test,suspend,false,false,\"spam, lots\",false"),
        "{exported}"
    );
    let directory = TempDir::new().unwrap();
    let list = directory.path().join("list.csv");
    std::fs::write(
        &list,
        "#domain,#severity\nbad.test,suspend\nevil.test,silence\nx*.test,suspend\n",
    )
    .unwrap();
    let list = list.to_str().unwrap();
    let dry = gateway
        .ok(&["fedi", "blocklist", "import", list, "--dry-run"])
        .out;
    assert!(
        dry.contains("1 would be added, 0 known already, 1 kept") && dry.contains("line 4 skipped"),
        "{dry}"
    );
    gateway.ok(&["fedi", "blocklist", "import", list]);
    assert_eq!(
        gateway.ok(&["fedi", "rules", "--json"]).json()["rules"]
            .as_array()
            .map(Vec::len),
        Some(4)
    );
    gateway.ok(&["fedi", "lift", "--tag", "ads"]);
    for (words, code) in [
        (&["fedi", "block"][..], 64),
        (&["fedi", "block", "x", "--software", "y"], 64),
        (&["fedi", "silence", "--regex", "("], 64),
        (&["fedi", "lift", "--tag", "ads"], 65),
        (&["fedi", "form", "a.test", "forward"], 65),
        (&["fedi", "blocklist", "import", "/nowhere"], 74),
    ] {
        assert_eq!(gateway.run(words).code, code, "{words:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for action in [
        "fedi.block ",
        "fedi.limit ",
        "fedi.silence ",
        "fedi.blocklist ",
        "fedi.lift ",
    ] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    assert!(gateway.ok(&["fedi", "pending"]).out.contains("no instance waits"));
}
