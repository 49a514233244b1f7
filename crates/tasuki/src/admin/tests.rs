use http::Method;
use tasuki_core::EngineKind;
use tasuki_core::accounts::Role;

use super::auth::{Demand, demand, engine_of};

#[test]
fn what_is_not_named_demands_an_admin_and_reading_demands_a_viewer() {
    for (method, path, wanted) in [
        (Method::GET, "/healthz", Demand::Nothing),
        (Method::GET, "/readyz", Demand::Nothing),
        (Method::GET, "/metrics", Demand::LoopbackOr(Role::Viewer)),
        (Method::GET, "/v1/status", Demand::Role(Role::Viewer)),
        (Method::GET, "/v1/users", Demand::Role(Role::Viewer)),
        (Method::GET, "/v1/audit", Demand::Role(Role::Operator)),
        (Method::POST, "/v1/acl/explain", Demand::Role(Role::Viewer)),
        (Method::POST, "/v1/bans", Demand::Role(Role::Operator)),
        (Method::DELETE, "/v1/bans/{ban}", Demand::Role(Role::Operator)),
        (Method::GET, "/v1/tunnel/players", Demand::Role(Role::Operator)),
        (Method::GET, "/v1/tunnel/agents", Demand::Role(Role::Viewer)),
        (Method::POST, "/v1/tunnel/agents", Demand::Role(Role::Operator)),
        (
            Method::DELETE,
            "/v1/fediverse/subscribers/{host}",
            Demand::Role(Role::Operator),
        ),
        (Method::POST, "/v1/acl", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/users", Demand::Role(Role::Admin)),
        (Method::PATCH, "/v1/principals/{name}", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/tokens", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/app-passwords", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/reload", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/keys/relay/export", Demand::Role(Role::Admin)),
        (Method::POST, "/v1/banshee", Demand::Role(Role::Admin)),
        (Method::PUT, "/v2/anything", Demand::Role(Role::Admin)),
    ] {
        assert_eq!(demand(&method, path, None), wanted, "{method} {path}");
    }
    for (path, query, wanted) in [
        ("/v1/tunnel/doctor", None, Role::Viewer),
        ("/v1/tunnel/doctor", Some(""), Role::Viewer),
        (
            "/v1/tunnel/doctor",
            Some("nameserver=192.0.2.1:53"),
            Role::Operator,
        ),
        (
            "/v1/tunnel/doctor",
            Some("n%61meserver=192.0.2.1:53"),
            Role::Operator,
        ),
        ("/v1/status", Some("nameserver=192.0.2.1:53"), Role::Viewer),
    ] {
        let found = demand(&Method::GET, path, query);
        assert_eq!(found, Demand::Role(wanted), "{path} {query:?}");
    }
}

#[test]
fn a_route_belongs_to_the_engine_that_its_path_names() {
    for (path, engine) in [
        ("/v1/mail/queue", Some(EngineKind::Mail)),
        ("/v1/fediverse/subscribers/{host}", Some(EngineKind::Fediverse)),
        ("/v1/tunnel", Some(EngineKind::Tunnel)),
        ("/v1/mailbox", None),
        ("/v1/status", None),
        ("/mail", None),
    ] {
        assert_eq!(engine_of(path), engine, "{path}");
    }
}
