//! The page on which an instance sets its own filter, and any domain says that it does not want to be relayed: `/filter`. Forms
//! alone, no script, nothing stored for them.

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
use tasuki_core::net;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{FilterBy, ModerationEffect, ModerationKind};
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
use crate::handle::{Handle, HandleError};

/// Largest form.
const MAX_FORM_BYTES: usize = 16 * 1024;
/// Proofs looked for at one host for one network: others who ask in vain keep nobody out.
const PROOFS: Rate = Rate {
    burst: 10,
    per_period: 30,
    period: Duration::from_secs(3600),
};
/// Proofs looked for at one host, whoever asks: each asks its server or DNS.
const PROOFS_OF_HOST: Rate = Rate::per_minute(60, 20);

/// Proofs looked for by one network at all hosts together that are not subscribed: their names are anybody's idea.
const STRANGERS: Rate = Rate::per_minute(20, 10);
/// The same by everybody.
const ALL_STRANGERS: Rate = Rate::per_minute(300, 150);
/// Domains that are out of being relayed before the page takes no more; the operator may add to them.
const MAX_OPT_OUTS: usize = 10_000;
/// The same with one ending (`example.com`, but also `co.jp`): whoever has a domain has any number of names below it.
const MAX_OPT_OUTS_OF_ENDING: usize = 200;

/// The routes; they answer only while `fediverse.self_service` is on.
pub(crate) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/filter", get(begin).post(challenge))
        .route("/filter/prove", post(prove))
        .route("/filter/set", post(set))
        .route("/filter/opt-out", post(opt_out))
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
    let Ok(host) = Authority::parse(asked.host.trim()) else {
        let words = Some(&Words::NOT_A_HOST);
        return shown(&inner, StatusCode::BAD_REQUEST, words, Step::Begin);
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
    let asked = Authority::parse(proof.host.trim()).ok().zip(session.as_ref());
    let Some((challenge, session)) = asked.and_then(again).zip(session.as_ref()) else {
        return shown(&inner, StatusCode::FORBIDDEN, Some(&Words::TOO_LATE), Step::Begin);
    };
    let take = |what, who, rate| inner.deps.limits.take(EngineKind::Fediverse, what, who, rate);
    let host = challenge.host.to_string();
    let asker = Who::Domain(format!("{host} {}", net::prefix(from)));
    let may = take("proof", asker, PROOFS)
        .and_then(|()| take("proof_of_host", Who::Domain(host), PROOFS_OF_HOST))
        .and_then(|()| match inner.subscribed(&challenge.host) {
            true => Ok(()),
            false => take("proof_of_stranger", Who::Prefix(from), STRANGERS)
                .and_then(|()| take("proof_of_stranger", Who::Engine, ALL_STRANGERS)),
        });
    if may.is_err() {
        let step = Step::Prove(&challenge);
        return shown(
            &inner,
            StatusCode::TOO_MANY_REQUESTS,
            Some(&Words::TOO_MANY),
            step,
        );
    }
    let proven = match proof.post.trim() {
        "" => inner.proven_in_dns(&challenge).await,
        post => inner.proven_by_post(&challenge, post).await,
    };
    match proven {
        Ok(()) => {
            tracing::info!(actor.host = %challenge.host, peer.addr = %from, "an instance proved itself for its filter or opt-out");
            let grant = inner.prover.grant(&challenge, session, now);
            let step = Step::Set(&grant, inner.own(&grant.host));
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
    let sent = (Timestamp(new.expires), new.grant.as_str());
    let Some(grant) = inner.granted(&headers, &new.host, sent) else {
        return shown(&inner, StatusCode::FORBIDDEN, Some(&Words::TOO_LATE), Step::Begin);
    };
    let (status, words) = match inner.subscribed(&grant.host) {
        true => inner.set_own_filter(&grant, &new, from).await,
        false => (StatusCode::NOT_FOUND, Words::NOT_SUBSCRIBED),
    };
    let step = Step::Set(&grant, inner.own(&grant.host));
    shown(&inner, status, Some(&words), step)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptOut {
    host: String,
    expires: i64,
    grant: String,
    wish: OptOutWish,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum OptOutWish {
    Out,
    In,
}

async fn opt_out(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Sent(new, from): Sent<OptOut>,
) -> Response {
    let sent = (Timestamp(new.expires), new.grant.as_str());
    let Some(grant) = inner.granted(&headers, &new.host, sent) else {
        return shown(&inner, StatusCode::FORBIDDEN, Some(&Words::TOO_LATE), Step::Begin);
    };
    let (status, words) = set_opt_out(&inner, &grant, new.wish == OptOutWish::Out, from).await;
    let step = Step::Set(&grant, inner.own(&grant.host));
    shown(&inner, status, Some(&words), step)
}

async fn set_opt_out(inner: &Arc<Inner>, grant: &Grant, is_out: bool, from: IpAddr) -> (StatusCode, Words) {
    let moderation = inner.subscribers.moderation();
    // Its own wish, or that of a domain above it, holds already.
    if is_out && moderation.opt_out(&grant.host).is_some() {
        return (StatusCode::OK, Words::KEPT);
    }
    let is_full = moderation.opted_out() >= MAX_OPT_OUTS
        || moderation.opted_out_of_ending(&grant.host) >= MAX_OPT_OUTS_OF_ENDING;
    if is_out && is_full {
        return (StatusCode::SERVICE_UNAVAILABLE, Words::TOO_MANY_OPT_OUTS);
    }
    let (handle, host) = (Handle::new(Arc::clone(inner)), grant.host.as_str());
    let (who, from) = (format!("instance {host}"), from.to_string());
    let by = (who.as_str(), from.as_str());
    let reason = "said on the page, after it proved itself";
    let done = match is_out {
        true => handle
            .moderate(ModerationEffect::OptOut, ModerationKind::OptOut, host, reason, by)
            .await
            .map(|_| ()),
        false => handle.lift(ModerationKind::OptOut, host, by).await,
    };
    match done {
        Ok(()) => (StatusCode::OK, Words::KEPT),
        // There was none to take back.
        Err(HandleError::NoSuchRule(_)) => (StatusCode::OK, Words::KEPT),
        Err(error) => {
            tracing::warn!(error = %error, "a wish not to be relayed was not kept");
            (StatusCode::SERVICE_UNAVAILABLE, Words::NOT_NOW)
        }
    }
}

impl Inner {
    fn granted(&self, headers: &HeaderMap, host: &str, sent: (Timestamp, &str)) -> Option<Grant> {
        let (host, session) = Authority::parse(host.trim()).ok().zip(Session::of(headers))?;
        self.prover.granted(&host, &session, sent, self.deps.clock.wall())
    }

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
