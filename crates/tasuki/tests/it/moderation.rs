//! Moderation of the fediverse by command.

use tempfile::TempDir;

use crate::gateway::Gateway;

#[test]
fn the_brake_is_pulled_shown_and_released_and_waiting_posts_are_taken_out() {
    let gateway = Gateway::start("");
    gateway.ok(&["fedi", "pause", "--hold", "--reason", "spam wave"]);
    let status = gateway.run(&["status", "--check"]);
    assert!(
        status.code != 0 && status.out.contains("spam wave"),
        "{}",
        status.out
    );
    let paused = gateway.ok(&["fedi", "pause", "--refuse", "--json"]).json();
    assert_eq!(paused["mode"], "refuse");
    let purged = gateway
        .ok(&["fedi", "purge", "--matching", "pills", "--json"])
        .json();
    assert_eq!(
        (&purged["activities"], &purged["dry_run"]),
        (&0.into(), &false.into())
    );
    let dry = gateway
        .ok(&["fedi", "purge", "--host", "a.test", "--dry-run"])
        .out;
    assert!(dry.contains("0 activities would be taken out"), "{dry}");
    let watched = gateway
        .ok(&["fedi", "follow", "a.test", "--json", "--seconds", "1"])
        .out;
    assert_eq!(watched, "");
    assert_eq!(
        gateway.ok(&["fedi", "resume", "--json"]).json()["was_paused"],
        true
    );
    assert!(gateway.ok(&["fedi", "resume"]).out.contains("was not pulled"));
    gateway.ok(&["status", "--check"]);
    for words in [
        &["fedi", "pause"][..],
        &["fedi", "purge"],
        &["fedi", "purge", "--matching", "("],
    ] {
        assert_eq!(gateway.run(words).code, 64, "{words:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for action in ["fedi.pause ", "fedi.resume", "fedi.purge "] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
}

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

#[test]
fn filters_are_set_shown_and_taken_away() {
    let gateway = Gateway::start("");
    let directory = TempDir::new().unwrap();
    let list = directory.path().join("list.csv");
    std::fs::write(&list, "actor,inbox\nhttps://c.test/actor,https://c.test/inbox\n").unwrap();
    gateway.ok(&["fedi", "import", "--from", "csv", list.to_str().unwrap()]);
    assert!(gateway.ok(&["fedi", "filter"]).out.contains("there is no filter"));
    let set = gateway.ok(&[
        "fedi",
        "filter",
        "c.test",
        "--language",
        "ja",
        "--no-tag",
        "#Ads",
        "--no-bots",
        "--per-minute",
        "30",
        "--json",
    ]);
    let set = set.json();
    let one = &set["filters"][0];
    assert_eq!(
        one["in_words"],
        "languages ja, no hashtags ads, no bots, at most 30 a minute"
    );
    assert_eq!((&one["host"], &one["by"]), (&"c.test".into(), &"operator".into()));
    assert_eq!(one["filter"]["tags_out"][0], "ads");
    let listed = gateway.ok(&["fedi", "filter", "--json"]).json();
    assert_eq!(listed, set);
    let why = gateway.ok(&["fedi", "why", "c.test"]).out;
    assert!(
        why.contains("filter: languages ja, no hashtags ads") && why.contains("set by the operator"),
        "{why}"
    );
    for (words, code) in [
        (&["fedi", "filter", "--no-bots"][..], 64),
        (&["fedi", "filter", "c.test", "--no-bots", "--clear"], 64),
        (&["fedi", "filter", "c.test", "--language", "japanese"], 64),
        (&["fedi", "filter", "stranger.test", "--no-bots"], 65),
    ] {
        let said = gateway.run(words);
        assert_eq!(said.code, code, "{words:?}: {}", said.err);
    }
    let cleared = gateway.ok(&["fedi", "filter", "c.test", "--clear"]).out;
    assert!(cleared.contains("everything again"), "{cleared}");
    assert_eq!(gateway.run(&["fedi", "filter", "c.test", "--clear"]).code, 65);
    let audit = gateway.ok(&["audit"]).out;
    let lines: Vec<&str> = audit
        .lines()
        .filter(|line| line.contains("fedi.filter"))
        .collect();
    assert!(
        lines.len() == 2 && audit.contains("at most 30 a minute"),
        "{audit}"
    );
}

#[test]
fn a_domain_opts_out_is_listed_and_comes_back() {
    let gateway = Gateway::start("");
    assert!(
        gateway
            .ok(&["fedi", "opt-out"])
            .out
            .contains("no domain opted out")
    );
    let out = gateway.ok(&[
        "fedi",
        "opt-out",
        "*.Shy.test",
        "--reason",
        "asked by mail",
        "--json",
    ]);
    let out = out.json();
    assert_eq!(out["opted_out"][0]["subject"], "shy.test");
    assert_eq!(gateway.ok(&["fedi", "opt-out", "--json"]).json(), out);
    let why = gateway.ok(&["fedi", "why", "a.shy.test"]).out;
    assert!(
        why.contains("is not relayed: it opted out (shy.test: asked by mail)"),
        "{why}"
    );
    // It stands beside the operator's own rule, and is in no list of blocks.
    gateway.ok(&["fedi", "block", "shy.test"]);
    gateway.ok(&["fedi", "lift", "shy.test"]);
    assert!(!gateway.ok(&["fedi", "blocklist", "export"]).out.contains("shy"));
    gateway.ok(&["fedi", "opt-out", "shy.test", "--clear"]);
    for (words, code) in [
        (&["fedi", "opt-out", "shy.test", "--clear"][..], 65),
        (&["fedi", "opt-out", "no host/"], 64),
        (&["fedi", "opt-out", "--clear"], 64),
    ] {
        assert_eq!(gateway.run(words).code, code, "{words:?}");
    }
    let audit = gateway.ok(&["audit"]).out;
    for line in ["fedi.opt_out", "optout: asked by mail", "fedi.lift"] {
        assert!(audit.contains(line), "{line}: {audit}");
    }
}
