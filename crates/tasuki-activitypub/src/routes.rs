//! The relay's web side as an axum router, and its adapter for the front door.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;
use tasuki_core::front::{WebBody, WebService};
use tasuki_core::net::ClientAddr;
use tasuki_proto::activitypub::documents::{Facts, NodeInfoVersion, Relay};
use tasuki_proto::activitypub::media;
use tasuki_proto::activitypub::topic::Topic;
use tower::ServiceExt as _;

use crate::config::Mode;
use crate::engine::Inner;
use crate::page::page;
use crate::problem::Problem;
use crate::selfservice;
use crate::statistics::Statistics;

/// Where the source is, for NodeInfo 2.1: the licence wants it told.
const REPOSITORY: Option<&str> = option_env!("TASUKI_REPOSITORY");

type Shared = State<Arc<Inner>>;

/// The adapter: the front door hands in requests, the router answers.
pub(crate) struct Web {
    router: Router,
}

impl Web {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self {
            router: router(inner),
        }
    }
}

#[async_trait]
impl WebService for Web {
    async fn call(&self, request: Request<Incoming>, client: ClientAddr) -> http::Response<WebBody> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(client);
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}

fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/", get(front_page))
        .route("/actor", get(actor))
        // Admins open the pasted URL in a browser: it answers with the actor.
        .route("/inbox", get(actor).post(inbox))
        .route("/outbox", get(collection))
        .route("/followers", get(collection))
        .route("/following", get(collection))
        .route("/{kind}/{name}", get(topic_actor))
        .route("/{kind}/{name}/inbox", get(topic_actor).post(inbox))
        .route("/{kind}/{name}/outbox", get(collection))
        .route("/{kind}/{name}/followers", get(collection))
        .route("/{kind}/{name}/following", get(collection))
        .route("/.well-known/webfinger", get(webfinger))
        .route("/.well-known/nodeinfo", get(nodeinfo_links))
        .route("/nodeinfo/2.0", get(nodeinfo_2_0))
        .route("/nodeinfo/2.1", get(nodeinfo_2_1))
        .route("/api/v1/instance", get(instance))
        .merge(selfservice::routes())
        .route("/stats.json", get(statistics))
        .method_not_allowed_fallback(async || Problem::method())
        .fallback(async || Problem::not_found("there is no such page here"))
        .with_state(inner)
}

async fn inbox(State(inner): Shared, request: Request<Body>) -> Result<StatusCode, Problem> {
    let from = request
        .extensions()
        .get::<ClientAddr>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0.ip());
    inner.receive(request, tasuki_core::net::unmapped(from)).await
}

/// Unsigned, for everybody, also for blocked hosts: they need the key to verify a Reject.
async fn actor(State(inner): Shared) -> Response {
    let config = inner.config.load();
    with_relay(&inner, |relay| {
        let document = relay.actor(&config.name, &config.summary, &inner.signer.public_pem());
        json(media::ACTIVITY_JSON, &document)
    })
}

/// A topic's actor, by its own path or that of its inbox.
async fn topic_actor(State(inner): Shared, uri: Uri) -> Response {
    let actor = uri.path().strip_suffix("/inbox").unwrap_or(uri.path());
    with_topic(&inner, Topic::of_path(actor), |relay| {
        let (name, summary) = inner.words_of(relay.topic());
        let document = relay.actor(&name, &summary, &inner.signer.public_pem());
        json(media::ACTIVITY_JSON, &document)
    })
}

async fn collection(State(inner): Shared, uri: Uri) -> Response {
    let (actor, name) = uri.path().rsplit_once('/').unwrap_or_default();
    let topic = match actor {
        "" => Some(Topic::All),
        actor => Topic::of_path(actor),
    };
    with_topic(&inner, topic, |relay| {
        json(media::ACTIVITY_JSON, &relay.empty_collection(name))
    })
}

/// One that may be joined, or that somebody joined: they need its key to verify a Reject.
fn with_topic(inner: &Inner, topic: Option<Topic>, answer: impl FnOnce(&Relay) -> Response) -> Response {
    match topic.filter(|topic| inner.serves(topic)) {
        Some(topic) => with_relay(inner, |relay| answer(&relay.at(&topic))),
        None => Problem::not_found("there is no such topic here").into_response(),
    }
}

#[derive(Deserialize)]
struct Asked {
    resource: Option<String>,
}

async fn webfinger(State(inner): Shared, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let Query(asked) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            return Problem::malformed(format!("the query is not understood: {error}")).into_response();
        }
    };
    with_relay(&inner, |relay| match asked.resource.as_deref() {
        None => Problem::malformed("WebFinger needs ?resource=acct:relay@HOST").into_response(),
        Some(resource) => with_topic(&inner, relay.topic_of_resource(resource), |relay| {
            json("application/jrd+json", &relay.webfinger())
        }),
    })
}

async fn nodeinfo_links(State(inner): Shared) -> Response {
    with_relay(&inner, |relay| json("application/json", &relay.nodeinfo_links()))
}

async fn nodeinfo_2_0(State(inner): Shared) -> Response {
    nodeinfo(&inner, NodeInfoVersion::V2_0)
}

async fn nodeinfo_2_1(State(inner): Shared) -> Response {
    nodeinfo(&inner, NodeInfoVersion::V2_1)
}

fn nodeinfo(inner: &Inner, version: NodeInfoVersion) -> Response {
    let content_type = match version {
        NodeInfoVersion::V2_0 => {
            "application/json; profile=\"http://nodeinfo.diaspora.software/ns/schema/2.0#\""
        }
        NodeInfoVersion::V2_1 => {
            "application/json; profile=\"http://nodeinfo.diaspora.software/ns/schema/2.1#\""
        }
    };
    with_relay(inner, |relay| {
        with_facts(inner, |facts| json(content_type, &relay.nodeinfo(version, facts)))
    })
}

async fn instance(State(inner): Shared) -> Response {
    with_relay(&inner, |relay| {
        with_facts(&inner, |facts| json("application/json", &relay.instance(facts)))
    })
}

/// Sums for everybody, also for a directory that draws them: no host is named.
async fn statistics(State(inner): Shared) -> Response {
    json("application/json", &Statistics::of(&inner).document())
}

async fn front_page(State(inner): Shared) -> Response {
    let config = inner.config.load();
    let hosts = inner.subscribers.table().active_hosts();
    let shown: &[String] = if config.show_peers { &hosts } else { &[] };
    let topics = inner.shown_topics();
    let statistics = Statistics::of(&inner);
    Html(page(inner.relay.as_ref(), &config, &topics, shown, &statistics)).into_response()
}

fn with_facts(inner: &Inner, answer: impl FnOnce(&Facts<'_>) -> Response) -> Response {
    let config = inner.config.load();
    let hosts = inner.subscribers.table().active_hosts();
    let topics: Vec<String> = inner
        .shown_topics()
        .iter()
        .map(|(topic, _)| topic.to_string())
        .collect();
    answer(&Facts {
        software_version: env!("CARGO_PKG_VERSION"),
        repository: REPOSITORY,
        name: &config.name,
        summary: &config.summary,
        contact: &config.contact,
        open: config.mode == Mode::Open,
        topic_mode: config.topics.mode.as_str(),
        topics: &topics,
        peers: if config.show_peers { &hosts } else { &[] },
        peer_count: hosts.len(),
    })
}

fn with_relay(inner: &Inner, answer: impl FnOnce(&Relay) -> Response) -> Response {
    match &inner.relay {
        Some(relay) => answer(relay),
        None => {
            Problem::unavailable("this relay has no public name yet: its operator has to set server.host")
                .into_response()
        }
    }
}

fn json(content_type: &'static str, document: &Value) -> Response {
    let mut response = document.to_string().into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=180"));
    response
}
