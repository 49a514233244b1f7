//! Iceshrimp.NET on the wire: it subscribes as Misskey does, signs with `hs2019`, and believes no forward but a Delete.

use serde_json::json;

use crate::support::eventually;
use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;

#[test]
fn an_iceshrimp_joins_publishes_and_is_sent_announces_and_deletes() {
    let gateway = Gateway::start(Gateway::FEDIVERSE);
    let directory = gateway.directory();
    let iceshrimp = Instance::start("iceshrimp", "127.0.0.1", directory, &[]);
    let [mastodon, misskey] = [("mastodon", "127.0.0.2"), ("misskey", "127.0.0.3")]
        .map(|(style, bind)| Instance::start(style, bind, directory, &[]));
    for instance in [&iceshrimp, &mastodon, &misskey] {
        instance.subscribe(&gateway.relay_inbox());
    }
    eventually("what it runs is known", || {
        let form = gateway.json(&["fedi", "form", iceshrimp.host(), "--json"]);
        (form["software"] == "iceshrimp.net 2026.1" && form["form"] == "announce").then_some(())
    });

    let created = iceshrimp.publish(&json!({"text": "hello"})).remove(0);
    let edited = iceshrimp.publish(&json!({"kind": "update", "target": created["object"]}));
    let deleted = iceshrimp.publish(&json!({"kind": "delete", "target": created["object"]}));
    for sent in [&created, &edited[0], &deleted[0]] {
        for reader in [&mastodon, &misskey] {
            let got = reader.wait_for("the forward", |got| got["id"] == sent["id"]);
            assert_eq!(got["sha256"], sent["sha256"], "byte for byte");
        }
    }

    for author in [&mastodon, &misskey] {
        let created = author.publish(&json!({"text": "to Iceshrimp"})).remove(0);
        let got = iceshrimp.wait_for("the Announce", |got| got["object"] == created["object"]);
        assert_eq!(got["type"], "Announce");
        eventually("it has fetched the post", || {
            let all = iceshrimp.read("fetched");
            let all = all.as_array().unwrap();
            let is_it =
                |one: &serde_json::Value| one["object"] == created["object"] && one["outcome"] == "fetched";
            all.iter().any(is_it).then_some(())
        });
        let deleted = author
            .publish(&json!({"kind": "delete", "target": created["object"]}))
            .remove(0);
        let got = iceshrimp.wait_for("the Delete", |got| got["id"] == deleted["id"]);
        assert_eq!(got["sha256"], deleted["sha256"], "byte for byte");
    }
    for instance in [&iceshrimp, &mastodon, &misskey] {
        for got in instance.received() {
            assert_eq!(got["outcome"], "accepted", "{}: {}", instance.base, got["type"]);
        }
    }
}
