//! TLS reports by command.

use crate::gateway::Gateway;

#[test]
fn a_day_without_sessions_says_so_and_has_no_report() {
    let gateway = Gateway::start("");
    let said = gateway.ok(&["mail", "tls-report", "--day", "2026-01-31"]);
    assert_eq!(said.out.trim(), "no sessions were counted on 2026-01-31");
    let day = gateway.ok(&["mail", "tls-report", "shop.test", "--json"]).json();
    assert_eq!(day["domains"].as_array().unwrap().len(), 0, "{day}");
    assert_eq!(
        gateway.run(&["mail", "tls-report", "--day", "yesterday"]).code,
        64
    );
    // A file is of one domain, and only of one that there is something to tell of.
    let file = "/nonexistent/report.json.gz";
    assert_eq!(gateway.run(&["mail", "tls-report", "--output", file]).code, 64);
    assert_eq!(
        gateway
            .run(&["mail", "tls-report", "shop.test", "--output", file])
            .code,
        65
    );
}
