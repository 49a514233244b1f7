//! The page on which an instance sets its own filter: `/filter`. Forms alone, no script, nothing stored for them.

mod dns;
mod form;
mod page;
mod proofs;
mod sent;
mod session;
mod staff;
mod token;
mod words;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use tasuki_core::EngineKind;
use tasuki_core::clock::Timestamp;
use tasuki_core::limits::{Rate, Who};
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::FilterBy;
use tasuki_proto::activitypub::ids::Authority;

pub(crate) use self::dns::Txt;
use self::form::NewFilter;
use self::page::Step;
use self::sent::Sent;
use self::session::Session;
use self::token::Grant;
pub(crate) use self::token::Prover;
use self::words::Words;
use crate::engine::Inner;
use crate::handle::HandleError;

/// Largest form.
const MAX_FORM_BYTES: usize = 16 * 1024;
/// Proofs looked for at one host, whoever asks: each asks its server or DNS.
const PROOFS: Rate = Rate {
    burst: 10,
    per_period: 30,
    period: Duration::from_secs(3600),
};

/// The routes; they answer only while `fediverse.self_service` is on.
pub(crate) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/filter", get(begin).post(challenge))
        .route("/filter/prove", post(prove))
        .route("/filter/set", post(set))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
}

async fn begin(State(inner): State<Arc<Inner>>) -> Response {
    match inner.config.load().self_service {
        true => shown(&inner, StatusCode::OK, None, Step::Begin),
        false => off(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    host: String,
}

async fn challenge(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Sent(asked, _): Sent<Asked>,
) -> Response {
    let Some(host) = inner.asked(&asked.host) else {
        return shown(
            &inner,
            StatusCode::NOT_FOUND,
            Some(&Words::NOT_SUBSCRIBED),
            Step::Begin,
        );
    };
    let session = Session::of(&headers).unwrap_or_else(Session::new);
    let challenge = inner.prover.challenge(&host, &session, inner.deps.clock.wall());
    let mut response = shown(&inner, StatusCode::OK, None, Step::Prove(&challenge));
    let relay = inner.relay.as_ref();
    let is_https = relay.is_some_and(|relay| relay.origin().starts_with("https:"));
    if let Some(cookie) = session.cookie(is_https) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    host: String,
    expires: i64,
    nonce: String,
    /// The post's address; empty for a proof in DNS.
    #[serde(default)]
    post: String,
}

async fn prove(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Sent(proof, from): Sent<Proof>,
) -> Response {
    let now = inner.deps.clock.wall();
    let session = Session::of(&headers);
    let again = |(host, session): (Authority, &Session)| {
        let made = (Timestamp(proof.expires), proof.nonce.as_str());
        inner.prover.again(&host, session, made, now)
    };
    let asked = inner.asked(&proof.host).zip(session.as_ref());
    let Some((challenge, session)) = asked.and_then(again).zip(session.as_ref()) else {
        return shown(&inner, StatusCode::FORBIDDEN, Some(&Words::TOO_LATE), Step::Begin);
    };
    let who = Who::Domain(challenge.host.to_string());
    if inner
        .deps
        .limits
        .take(EngineKind::Fediverse, "proof", who, PROOFS)
        .is_err()
    {
        let step = Step::Prove(&challenge);
        return shown(
            &inner,
            StatusCode::TOO_MANY_REQUESTS,
            Some(&Words::TOO_MANY),
            step,
        );
    }
    let is_subscribed = inner.subscribed(&proof.host).is_some();
    let proven = match proof.post.trim() {
        // Nobody is asked for a stranger, and nobody learns that it is one.
        "" if !is_subscribed => Err(Words::NO_RECORD),
        _ if !is_subscribed => Err(Words::NO_TOKEN),
        "" => inner.proven_in_dns(&challenge).await,
        post => inner.proven_by_post(&challenge, post).await,
    };
    match proven {
        Ok(()) => {
            tracing::info!(actor.host = %challenge.host, peer.addr = %from, "an instance proved itself for its filter");
            let grant = inner.prover.grant(&challenge, session, now);
            let step = Step::Set(&grant, inner.filter_of(&grant.host));
            shown(&inner, StatusCode::OK, None, step)
        }
        Err(why) => shown(&inner, StatusCode::FORBIDDEN, Some(&why), Step::Prove(&challenge)),
    }
}

async fn set(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Sent(new, from): Sent<NewFilter>,
) -> Response {
    let granted = inner.subscribed(&new.host).zip(Session::of(&headers));
    let granted = granted.and_then(|(host, session)| {
        let sent = (Timestamp(new.expires), new.grant.as_str());
        inner
            .prover
            .granted(&host, &session, sent, inner.deps.clock.wall())
    });
    let Some(grant) = granted else {
        return shown(&inner, StatusCode::FORBIDDEN, Some(&Words::TOO_LATE), Step::Begin);
    };
    let (status, words) = inner.set_own_filter(&grant, &new, from).await;
    let step = Step::Set(&grant, inner.filter_of(&grant.host));
    shown(&inner, status, Some(&words), step)
}

impl Inner {
    async fn set_own_filter(&self, grant: &Grant, new: &NewFilter, from: IpAddr) -> (StatusCode, Words) {
        let kept = self.subscribers.filters();
        let kept = kept.host(&grant.host);
        if kept.is_some_and(|kept| kept.by == FilterBy::Operator) {
            return (StatusCode::CONFLICT, Words::BY_OPERATOR);
        }
        let filter = match new.filter() {
            Ok(filter) => filter,
            Err(why) => return (StatusCode::BAD_REQUEST, why),
        };
        let (who, from) = (format!("instance {}", grant.host), from.to_string());
        let set = self
            .set_filter(&grant.host, filter, FilterBy::Instance, (&who, &from))
            .await;
        match set {
            Ok(_) => (StatusCode::OK, Words::KEPT),
            Err(HandleError::NotARule(why)) => (StatusCode::BAD_REQUEST, Words::because(why)),
            // There was none to take away.
            Err(HandleError::Store(StoreError::NotFound(_))) => (StatusCode::OK, Words::KEPT),
            Err(error) => {
                tracing::warn!(error = %error, "a filter was not kept");
                (StatusCode::SERVICE_UNAVAILABLE, Words::NOT_NOW)
            }
        }
    }
}

fn off() -> Response {
    crate::problem::Problem::not_found("there is no such page here").into_response()
}

fn shown(inner: &Inner, status: StatusCode, note: Option<&Words>, step: Step<'_>) -> Response {
    let text = page::page(&inner.config.load().name, note, step);
    let mut response = (status, Html(text)).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
