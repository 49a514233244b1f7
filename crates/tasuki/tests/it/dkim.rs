//! DKIM keys by command.

use crate::gateway::Gateway;

#[test]
fn dkim_keys_are_made_rotated_listed_and_removed_by_command() {
    let gateway = Gateway::start("");
    let said = gateway.ok(&["mail", "dkim", "add", "shop.test", "--selector", "mail"]);
    // One record fits in a string; the other one is cut as zone files need it.
    assert!(
        said.out
            .contains("mailr._domainkey.shop.test. IN TXT ( \"v=DKIM1; k=rsa; p=MIIBIjAN"),
        "{}",
        said.out
    );
    assert!(
        said.out
            .contains("maile._domainkey.shop.test. IN TXT \"v=DKIM1; k=ed25519; p=")
    );
    for string in said.out.split('"').skip(1).step_by(2) {
        assert!(string.len() <= 255, "{string}");
    }
    assert_eq!(gateway.run(&["mail", "dkim", "add", "shop.test"]).code, 65);
    assert_eq!(
        gateway
            .run(&["mail", "dkim", "add", "x.test", "--algorithm", "md5"])
            .code,
        64
    );
    assert_eq!(gateway.run(&["mail", "dkim", "rotate", "other.test"]).code, 65);
    let next = gateway.ok(&["mail", "dkim", "rotate", "shop.test"]);
    assert!(next.out.contains("next keys made"), "{}", next.out);
    // The DNS cannot show them, so only --force changes over.
    assert_eq!(gateway.run(&["mail", "dkim", "rotate", "shop.test"]).code, 65);
    let over = gateway.ok(&["mail", "dkim", "rotate", "shop.test", "--force"]);
    assert!(
        over.out.contains("remove mailr._domainkey.shop.test in a week"),
        "{}",
        over.out
    );
    let keys = gateway.ok(&["mail", "dkim", "list", "--json"]).json();
    let states: Vec<&str> = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["retired", "retired", "active", "active"]);
    assert!(!keys.to_string().contains("pkcs8"));
    gateway.ok(&["mail", "dkim", "remove", "shop.test", "--yes"]);
    assert!(gateway.ok(&["mail", "dkim", "list"]).out.contains("no keys yet"));
}
