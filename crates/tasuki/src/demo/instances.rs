//! Four small instances: two in the style of Mastodon, one of Misskey, one of LitePub (Pleroma, Akkoma).
//!
//! They subscribe with their own documents, check every signature that reaches them, and keep what they received.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use axum::extract::State;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use serde_json::{Value, json};
use tasuki_core::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::Url;

use super::keys::{Key, verify_post};
use super::web;

const AS: &str = "https://www.w3.org/ns/activitystreams";
const PUBLIC: &str = "https://www.w3.org/ns/activitystreams#Public";
const MAX_INBOX_BYTES: usize = 1 << 20;

/// How an instance speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Mastodon,
    Misskey,
    LitePub,
}

/// A running instance.
pub(super) struct Instance {
    /// A name for people.
    pub(super) name: &'static str,
    pub(super) style: Style,
    /// `http://127.0.0.1:PORT`.
    pub(super) base: String,
    clock: Clock,
    actor: String,
    key: Key,
    /// The person who posts here.
    author: String,
    author_key: Key,
    /// Documents that others may fetch, by path.
    documents: Mutex<HashMap<String, Value>>,
    /// The relay's key, fetched once.
    relay_pem: tokio::sync::OnceCell<String>,
    arrivals: mpsc::Sender<Arrival>,
}

/// Something that came into an inbox with a good signature of the relay.
pub(super) struct Arrival {
    /// The body, byte for byte.
    pub(super) body: Bytes,
    /// The same, read.
    pub(super) activity: Value,
}

/// The relay as an instance's admin knows it.
#[derive(Clone)]
pub(super) struct Relay {
    /// What the admin pastes.
    pub(super) inbox: Url,
    /// What LitePub instances follow.
    pub(super) actor: Url,
}

impl Instance {
    /// Starts an instance on a free loopback port.
    pub(super) async fn start(
        name: &'static str,
        style: Style,
        relay: &Relay,
        clock: &Clock,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Arrival>)> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("an instance cannot listen")?;
        let base = format!("http://{}", listener.local_addr()?);
        let actor = match style {
            Style::Mastodon => format!("{base}/actor"),
            Style::Misskey => format!("{base}/users/9relayrelay"),
            Style::LitePub => format!("{base}/relay"),
        };
        let author = format!("{base}/users/alice");
        let (key, author_key) = {
            let (actor, author) = (actor.clone(), author.clone());
            tokio::task::spawn_blocking(move || {
                Ok::<_, anyhow::Error>((Key::new(&actor)?, Key::new(&author)?))
            })
            .await??
        };
        let (arrivals, received) = mpsc::channel(64);
        let instance = Arc::new(Self {
            name,
            style,
            base,
            clock: clock.clone(),
            actor,
            key,
            author,
            author_key,
            documents: Mutex::default(),
            relay_pem: tokio::sync::OnceCell::new(),
            arrivals,
        });
        instance.publish_actors();
        let router = axum::Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&instance), relay.clone()));
        tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok((instance, received))
    }

    fn publish_actors(&self) {
        let people = [
            (&self.actor, &self.key, "Application", "relay"),
            (&self.author, &self.author_key, "Person", "alice"),
        ];
        for (id, key, kind, name) in people {
            let document = json!({
                "@context": [AS, "https://w3id.org/security/v1"],
                "id": id, "type": kind, "preferredUsername": name,
                "inbox": format!("{}/inbox", self.base),
                "endpoints": {"sharedInbox": format!("{}/inbox", self.base)},
                "publicKey": {"id": key.id, "owner": id, "publicKeyPem": key.public_pem},
            });
            self.serve(id, document);
        }
        let software = match self.style {
            Style::Mastodon => ("mastodon", "4.6.0"),
            Style::Misskey => ("misskey", "2026.5.0"),
            Style::LitePub => ("akkoma", "3.16.0"),
        };
        let nodeinfo = format!("{}/nodeinfo/2.0", self.base);
        self.serve(
            &format!("{}/.well-known/nodeinfo", self.base),
            json!({"links": [{"rel": "http://nodeinfo.diaspora.software/ns/schema/2.0", "href": nodeinfo}]}),
        );
        self.serve(
            &nodeinfo,
            json!({"version": "2.0", "software": {"name": software.0, "version": software.1},
                "protocols": ["activitypub"], "services": {"inbound": [], "outbound": []},
                "openRegistrations": false, "usage": {"users": {"total": 1}}, "metadata": {}}),
        );
    }

    fn serve(&self, id: &str, document: Value) {
        let path = id.strip_prefix(&self.base).unwrap_or(id).to_owned();
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path, document);
    }

    fn document(&self, path: &str) -> Option<Value> {
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
            .cloned()
    }

    /// Subscribes as the instance's software does, and returns when the relay has accepted (and, in LitePub's style,
    /// has followed back and was accepted).
    pub(super) async fn subscribe(
        &self,
        relay: &Relay,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Result<()> {
        let follow = self.follow(relay);
        self.send(&self.key, &relay.inbox, &follow)
            .await
            .context("the Follow")?;
        let mut accepted = false;
        let mut followed_back = self.style != Style::LitePub;
        while !(accepted && followed_back) {
            let arrival = arrivals.recv().await.context("the instance has stopped")?;
            match arrival.activity["type"].as_str() {
                Some("Accept") => {
                    self.check_accept(&arrival.activity, &follow)?;
                    accepted = true;
                }
                Some("Follow") => {
                    ensure!(
                        arrival.activity["object"] == self.actor,
                        "the relay followed somebody else"
                    );
                    let accept = json!({
                        "@context": AS, "id": format!("{}/activities/accept-relay", self.base), "type": "Accept",
                        "actor": self.actor, "to": [relay.actor.as_str()], "object": arrival.activity,
                    });
                    self.send(&self.key, &relay.inbox, &accept)
                        .await
                        .context("the Accept of the follow back")?;
                    followed_back = true;
                }
                Some("Reject") => bail!("the relay refused the subscription of {}", self.name),
                other => bail!("{} got {other:?} in place of an Accept", self.name),
            }
        }
        Ok(())
    }

    fn follow(&self, relay: &Relay) -> Value {
        match self.style {
            // app/models/relay.rb: no `to`, no `cc`.
            Style::Mastodon => json!({
                "@context": AS, "id": format!("{}/7c9e6679-7425-40de-944b-e07fc1f90ae7", self.base),
                "type": "Follow", "actor": self.actor, "object": PUBLIC,
            }),
            // RelayService.ts.
            Style::Misskey => json!({
                "@context": [AS, "https://w3id.org/security/v1"],
                "id": format!("{}/activities/follow-relay/9abcdef", self.base),
                "type": "Follow", "actor": self.actor, "object": PUBLIC,
            }),
            // web/activity_pub/relay.ex: the relay's actor is followed.
            Style::LitePub => json!({
                "@context": AS, "id": format!("{}/activities/3fa85f64-5717-4562-b3fc-2c963f66afa6", self.base),
                "type": "Follow", "actor": self.actor, "object": relay.actor.as_str(),
                "to": [relay.actor.as_str()], "cc": [], "state": "pending",
            }),
        }
    }

    fn check_accept(&self, accept: &Value, follow: &Value) -> Result<()> {
        let object = &accept["object"];
        // Misskey demands the embedded Follow, the others take its id as well.
        let embedded = object["id"] == follow["id"] && object["actor"] == follow["actor"];
        let by_id = self.style != Style::Misskey && *object == follow["id"];
        ensure!(embedded || by_id, "the Accept is for another Follow: {object}");
        Ok(())
    }

    /// Publishes a public note as its author, with an LD signature. Returns the bytes that were sent and the note's id.
    pub(super) async fn publish(&self, relay: &Relay, content: &str) -> Result<(Bytes, String)> {
        let now = self.clock.wall().to_string();
        let id = format!("{}/users/alice/statuses/1", self.base);
        let activity_id = format!("{id}/activity");
        let note = json!({
            "id": id, "type": "Note", "attributedTo": self.author, "content": content,
            "published": now, "to": [PUBLIC],
        });
        let mut alone = note.clone();
        alone["@context"] = json!(AS);
        self.serve(&id, alone);
        let mut create = json!({
            "@context": AS, "id": activity_id, "type": "Create", "actor": self.author,
            "published": now, "to": [PUBLIC], "object": note,
        });
        let quads = quads(&activity_id, &id, &self.author, content, &now);
        self.author_key.sign_document(&mut create, quads, &now)?;
        let body = Bytes::from(create.to_string());
        self.post(&self.author_key, &relay.inbox, body.clone())
            .await
            .context("the Create")?;
        Ok((body, id))
    }

    async fn send(&self, key: &Key, to: &Url, document: &Value) -> Result<()> {
        self.post(key, to, Bytes::from(document.to_string())).await
    }

    async fn post(&self, key: &Key, to: &Url, body: Bytes) -> Result<()> {
        let date = tasuki_proto::activitypub::date::http_date(self.clock.wall().to_utc().into());
        let headers = key.sign_post(&web::host_of(to), to.path(), &date, &body)?;
        let answer = web::post(to, &headers, body).await?;
        ensure!(
            answer.status.is_success(),
            "the relay answered {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
                .chars()
                .take(300)
                .collect::<String>()
        );
        Ok(())
    }

    /// Judges a POST to the inbox as the instance's software would.
    async fn take(&self, relay: &Relay, path: &str, headers: &http::HeaderMap, body: Bytes) -> Result<()> {
        let pem = self
            .relay_pem
            .get_or_try_init(|| async {
                let answer = web::get(&relay.actor).await?;
                let actor: Value = serde_json::from_slice(&answer.body)?;
                ensure!(
                    actor["inbox"] == relay.inbox.as_str(),
                    "the relay's inbox is not the URL that the admin pasted"
                );
                actor["publicKey"]["publicKeyPem"]
                    .as_str()
                    .map(str::to_owned)
                    .context("the relay's actor has no key")
            })
            .await?;
        verify_post(headers, path, &body, pem)?;
        let activity = serde_json::from_slice(&body)?;
        self.arrivals.send(Arrival { body, activity }).await?;
        Ok(())
    }
}

/// The note as RDF, line by line.
fn quads(activity: &str, note: &str, author: &str, content: &str, now: &str) -> Vec<String> {
    const TYPE: &str = "<http://www.w3.org/1999/02/22-rdf-syntax-ns#type>";
    let time = format!("\"{now}\"^^<http://www.w3.org/2001/XMLSchema#dateTime>");
    let text = content
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    [
        (activity, TYPE.to_owned(), format!("<{AS}#Create>")),
        (activity, format!("<{AS}#actor>"), format!("<{author}>")),
        (activity, format!("<{AS}#object>"), format!("<{note}>")),
        (activity, format!("<{AS}#published>"), time.clone()),
        (activity, format!("<{AS}#to>"), format!("<{PUBLIC}>")),
        (note, TYPE.to_owned(), format!("<{AS}#Note>")),
        (note, format!("<{AS}#attributedTo>"), format!("<{author}>")),
        (note, format!("<{AS}#content>"), format!("\"{text}\"")),
        (note, format!("<{AS}#published>"), time),
        (note, format!("<{AS}#to>"), format!("<{PUBLIC}>")),
    ]
    .into_iter()
    .map(|(subject, predicate, object)| format!("<{subject}> {predicate} {object} .\n"))
    .collect()
}

async fn answer(
    State((instance, relay)): State<(Arc<Instance>, Relay)>,
    request: axum::extract::Request,
) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if parts.method == http::Method::GET {
        return match instance.document(path) {
            Some(document) => (
                [(http::header::CONTENT_TYPE, "application/activity+json")],
                document.to_string(),
            )
                .into_response(),
            None => http::StatusCode::NOT_FOUND.into_response(),
        };
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_INBOX_BYTES).await else {
        return http::StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    match instance.take(&relay, path, &parts.headers, body).await {
        Ok(()) => http::StatusCode::ACCEPTED.into_response(),
        Err(error) => (http::StatusCode::UNAUTHORIZED, format!("{error:#}")).into_response(),
    }
}
