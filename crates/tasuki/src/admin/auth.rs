//! Who asks, and whether they may: decided in one function, closed by default.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use tasuki_core::EngineKind;
use tasuki_core::accounts::{AuthError, Bearer, Role};
use tasuki_core::clock::Timestamp;
use tasuki_core::store::{Actor, AuditEntry};

use super::Admin;
use super::problem::{Answer, Problem};

/// Which door a request came through.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    /// The control socket; its file permission has let this user in.
    Socket {
        /// The peer's user id (SO_PEERCRED).
        uid: u32,
    },
    /// The TCP listener.
    Tcp(SocketAddr),
}

/// A caller who may do what they ask for.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Actor);

impl Caller {
    /// The audit's line for a change by this caller.
    pub(crate) fn audit(
        &self,
        at: Timestamp,
        action: &str,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> AuditEntry {
        self.0.entry(at, action, object, detail)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "nobody has said who is asking; this is a mistake of the gateway",
            )
        })
    }
}

/// What a route demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Anybody: it says only whether the gateway lives.
    Nothing,
    /// Loopback, or the role.
    LoopbackOr(Role),
    /// The role.
    Role(Role),
}

/// What `method` on the route `path` with this query demands. What is not named here demands an admin.
pub(crate) fn demand(method: &Method, path: &str, query: Option<&str>) -> Demand {
    match path {
        "/healthz" | "/readyz" => Demand::Nothing,
        "/metrics" => Demand::LoopbackOr(Role::Viewer),
        // Where people live, as far as an address tells it.
        "/v1/audit" | "/v1/tunnel/players" => Demand::Role(Role::Operator),
        // With words of its own it asks a name server that the caller chooses.
        "/v1/tunnel/doctor" if query.is_some_and(|query| !query.is_empty()) => Demand::Role(Role::Operator),
        "/v1/acl/explain" => Demand::Role(Role::Viewer),
        // It brings the relay's key.
        "/v1/fediverse/import" => Demand::Role(Role::Admin),
        _ if method == Method::GET => Demand::Role(Role::Viewer),
        _ if ["/v1/bans", "/v1/fediverse", "/v1/mail", "/v1/tunnel"]
            .iter()
            .any(|part| {
                path == *part || path.strip_prefix(part).is_some_and(|rest| rest.starts_with('/'))
            }) =>
        {
            Demand::Role(Role::Operator)
        }
        _ => Demand::Role(Role::Admin),
    }
}

/// The engine that a route belongs to; a token made for one engine reaches no other route.
pub(crate) fn engine_of(path: &str) -> Option<EngineKind> {
    EngineKind::ALL.into_iter().find(|engine| {
        path.strip_prefix("/v1/")
            .and_then(|rest| rest.strip_prefix(engine.name()))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// What is known of a request before its handler.
struct Question {
    door: Option<Door>,
    demand: Demand,
    engine: Option<EngineKind>,
    authorization: Option<HeaderValue>,
}

/// Lets a request through to its handler if its caller may do what it asks for.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let question = Question {
        door: request.extensions().get::<Door>().copied(),
        demand: path.map_or(Demand::Role(Role::Viewer), |path| {
            demand(request.method(), path, request.uri().query())
        }),
        engine: path.and_then(engine_of),
        authorization: request.headers().get(header::AUTHORIZATION).cloned(),
    };
    let caller = authorize(&admin, question).await?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// The one place where the admin API decides.
async fn authorize(admin: &Admin, question: Question) -> Answer<Caller> {
    let from = match question.door {
        Some(Door::Socket { uid }) => {
            return Ok(Caller(Actor::control_socket(uid)));
        }
        Some(Door::Tcp(addr)) => tasuki_core::net::unmapped(addr.ip()),
        None => {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "the request came through no known door",
            ));
        }
    };
    let role = match question.demand {
        Demand::Nothing => return Ok(anonymous(from)),
        Demand::LoopbackOr(_) if from.is_loopback() => return Ok(anonymous(from)),
        Demand::LoopbackOr(role) | Demand::Role(role) => role,
    };
    let Bearer { principal, scope } = admin
        .accounts
        .token(bearer(question.authorization.as_ref())?, from)
        .await
        .map_err(|error| match error {
            AuthError::Refused => Problem::new(
                StatusCode::UNAUTHORIZED,
                "the token is unknown, expired or revoked",
            ),
            AuthError::TooMany => Problem::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            AuthError::Unavailable(_) => Problem::unavailable(error.to_string()),
        })?;
    if admin.acl.decide_admin(from, &principal).is_denied() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("an access rule keeps {} from the admin API", principal.name),
        ));
    }
    if !scope.reaches(question.engine) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("this token of {} was made for {scope} alone", principal.name),
        ));
    }
    let has = scope.role(principal.role);
    if has < role {
        let who = if has < principal.role {
            format!("this token of {}", principal.name)
        } else {
            principal.name.clone()
        };
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("{who} has the role {has}, and this needs {role}"),
        ));
    }
    Ok(Caller(Actor::principal(&principal.name, from)))
}

fn anonymous(from: IpAddr) -> Caller {
    Caller(Actor::principal("anonymous", from))
}

fn bearer(authorization: Option<&HeaderValue>) -> Answer<&str> {
    authorization
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= 256)
        .ok_or_else(|| {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "a token is needed: Authorization: Bearer TOKEN (make one with `tasuki token new NAME`)",
            )
        })
}
