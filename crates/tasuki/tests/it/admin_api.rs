//! The admin API on its TCP port: who may do what.

use crate::gateway::Gateway;

fn token(gateway: &Gateway, name: &str, role: &str) -> String {
    let made = gateway
        .ok(&["token", "new", name, "--role", role, "--json"])
        .json();
    made["token"].as_str().unwrap().to_owned()
}

#[test]
fn each_role_may_do_its_part_and_no_more() {
    let gateway = Gateway::start("");
    let viewer = token(&gateway, "look", "viewer");
    let operator = token(&gateway, "run", "operator");
    let admin = token(&gateway, "all", "admin");
    let ban = r#"{"net": "198.51.100.9"}"#;
    let user = r#"{"name": "made-by-token"}"#;
    let server = "/v1/tunnel/doctor?nameserver=127.0.0.1:1";
    for (who, method, path, body, wanted) in [
        (None, "GET", "/v1/status", "", 401),
        (Some("tsk_wrong"), "GET", "/v1/status", "", 401),
        (Some(viewer.as_str()), "GET", "/v1/status", "", 200),
        (Some(&viewer), "GET", "/v1/audit", "", 403),
        (Some(&viewer), "POST", "/v1/bans", ban, 403),
        (Some(&viewer), "GET", server, "", 403),
        (Some(&operator), "GET", server, "", 200),
        (Some(&operator), "GET", "/v1/audit", "", 200),
        (Some(&operator), "POST", "/v1/bans", ban, 201),
        (Some(&operator), "POST", "/v1/users", user, 403),
        (Some(&operator), "POST", "/v1/keys/relay/export", "", 403),
        (Some(&admin), "POST", "/v1/users", user, 201),
        (Some(&admin), "POST", "/v1/keys/relay/export", "", 200),
    ] {
        let (status, answer) = gateway.http(method, path, who, body);
        assert_eq!(status, wanted, "{method} {path}: {answer}");
        if status >= 400 {
            assert!(answer.contains("application/problem+json"), "{answer}");
        }
    }
    let audit = gateway.ok(&["audit", "--json"]).json();
    let entries = audit["entries"].as_array().unwrap();
    let made = entries.iter().find(|e| e["object"] == "made-by-token").unwrap();
    assert_eq!(
        (made["who"].as_str(), made["from"].as_str()),
        (Some("all"), Some("127.0.0.1"))
    );
}

#[test]
fn a_narrow_token_reads_only_or_reaches_one_engine_whatever_its_owner_may() {
    let gateway = Gateway::start("");
    let make = |arguments: &[&str]| {
        let all = [&["token", "new", "admin", "--json"], arguments].concat();
        let made = gateway.ok(&all).json();
        made["token"].as_str().unwrap().to_owned()
    };
    let full = make(&[]);
    let read = make(&["--read-only"]);
    let tunnel = make(&["--engine", "tunnel"]);
    let read_tunnel = make(&["--engine", "tunnel", "--read-only"]);
    let (ban, agent) = (r#"{"net": "198.51.100.9"}"#, r#"{"name": "home"}"#);
    for (token, method, path, body, wanted) in [
        (&full, "GET", "/v1/users", "", 200),
        (&read, "GET", "/v1/users", "", 200),
        (&read, "POST", "/v1/bans", ban, 403),
        (&read, "POST", "/v1/tunnel/agents", agent, 403),
        (&tunnel, "GET", "/v1/users", "", 403),
        (&tunnel, "GET", "/v1/mail/queue", "", 403),
        (&tunnel, "POST", "/v1/bans", ban, 403),
        (&tunnel, "GET", "/v1/tunnel/agents", "", 200),
        (&tunnel, "POST", "/v1/tunnel/agents", agent, 201),
        (&read_tunnel, "GET", "/v1/tunnel/agents", "", 200),
        (&read_tunnel, "POST", "/v1/tunnel/agents", agent, 403),
    ] {
        let (status, answer) = gateway.http(method, path, Some(token), body);
        assert_eq!(status, wanted, "{method} {path}: {answer}");
    }
    let listed = gateway.ok(&["token", "list", "--json"]).json();
    let scopes: Vec<_> = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["scope"])
        .collect();
    assert_eq!(
        serde_json::json!(scopes),
        serde_json::json!([null, "read", "tunnel", "read tunnel"])
    );
    let audit = gateway.ok(&["audit"]).out;
    assert!(
        audit.contains("token.add") && audit.contains("scope read tunnel"),
        "{audit}"
    );
}

#[test]
fn a_rule_keeps_even_an_admin_out() {
    let gateway = Gateway::start("");
    let admin = token(&gateway, "all", "admin");
    assert_eq!(gateway.http("GET", "/v1/status", Some(&admin), "").0, 200);
    gateway.ok(&["acl", "add", "deny", "--action", "admin", "--principal", "all"]);
    assert_eq!(gateway.http("GET", "/v1/status", Some(&admin), "").0, 403);
}

#[test]
fn a_revoked_token_is_refused_at_once() {
    let gateway = Gateway::start("");
    let made = gateway
        .ok(&["token", "new", "probe", "--role", "viewer", "--json"])
        .json();
    let token = made["token"].as_str().unwrap();
    assert_eq!(gateway.http("GET", "/v1/status", Some(token), "").0, 200);
    gateway.ok(&["token", "revoke", &made["id"].to_string()]);
    assert_eq!(gateway.http("GET", "/v1/status", Some(token), "").0, 401);
}

#[test]
fn health_and_metrics_need_no_token_on_loopback() {
    let gateway = Gateway::start("");
    assert_eq!(gateway.http("GET", "/healthz", None, "").0, 200);
    assert_eq!(gateway.http("GET", "/readyz", None, "").0, 200);
    let (status, metrics) = gateway.http("GET", "/metrics", None, "");
    assert_eq!(status, 200);
    for branch in ["tasuki_mail_", "tasuki_fediverse_", "tasuki_tunnel_", "# EOF"] {
        assert!(metrics.contains(branch), "{branch} in the metrics");
    }
}

#[test]
fn bad_requests_get_a_problem_that_says_what_is_wrong() {
    let gateway = Gateway::start("");
    let admin = token(&gateway, "all", "admin");
    let long = format!("{{\"name\": \"{}\"}}", "a".repeat(100_000));
    for (method, path, body, wanted, word) in [
        ("GET", "/v1/nothing", "", 404, "no such resource"),
        ("DELETE", "/v1/status", "", 405, "does not take this method"),
        ("POST", "/v1/users", "{", 400, "EOF"),
        ("POST", "/v1/users", r#"{"nam": "x"}"#, 400, "nam"),
        (
            "POST",
            "/v1/users",
            r#"{"name": "x", "role": "king"}"#,
            400,
            "king",
        ),
        ("POST", "/v1/users", long.as_str(), 413, "length limit"),
        ("GET", "/v1/audit?limit=many", "", 400, "limit"),
        ("GET", "/v1/mail/queue?mail=zzz", "", 400, "not a mail id"),
        ("DELETE", "/v1/tokens/77", "", 404, "token 77"),
    ] {
        let (status, answer) = gateway.http(method, path, Some(&admin), body);
        assert_eq!(status, wanted, "{method} {path}: {answer}");
        assert!(
            answer.contains(word) && answer.contains("application/problem+json"),
            "{path}: {answer}"
        );
    }
}
