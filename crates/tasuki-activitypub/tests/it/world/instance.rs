//! A small instance on loopback: it signs what it sends, and checks what it gets as every server does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{OriginalUri, Path, State};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tasuki_activitypub::SignatureUse;
use tasuki_proto::activitypub::activity::Activity;
use tasuki_proto::activitypub::cavage::{self, Candidate, SignatureHeader, SignedRequest};
use tasuki_proto::activitypub::{PUBLIC, date, json as strict, ld, message_signature};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use super::letter::{Letter, key, other_key, pem, sign};
use super::{PATIENCE, RelayUnderTest, client};

/// What an instance does with deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    Answers(u16),
    /// Takes what the relay wrote itself, and answers everything else with this.
    RefusesForwards(u16),
    /// Takes only signatures made for it alone, and answers others with this.
    RefusesShared(u16),
    /// Takes only signatures by RFC 9421, and says so if `true`.
    WantsMessage(bool),
    /// Takes no signatures by RFC 9421.
    RefusesMessage,
    /// The inbox is not at `/inbox` any more, but at `/moved/inbox`.
    Moved,
    Hangs,
}

/// A delivery as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) body: Bytes,
    pub(crate) json: Value,
    /// How it was signed.
    pub(crate) signed: SignatureUse,
    /// The `Signature` header.
    pub(crate) signature: String,
    /// The key that signed it.
    pub(crate) key_id: String,
}

/// Status, headers, body.
pub(crate) type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

struct Server {
    base: String,
    mood: watch::Sender<Mood>,
    rotated: Mutex<bool>,
    documents: Mutex<HashMap<String, Value>>,
    /// Answers of any kind, by path: status, headers, body.
    answers: Mutex<HashMap<String, Answer>>,
    received: Mutex<Vec<Received>>,
    gets: Mutex<Vec<String>>,
    refusals: Mutex<usize>,
    relay_key: Mutex<Option<Vec<u8>>>,
    /// It never asks for the relay's key again.
    keeps_key: Mutex<bool>,
    arrived: Notify,
}

/// A small instance that signs what it sends and checks what it gets.
#[derive(Clone)]
pub(crate) struct Instance {
    server: Arc<Server>,
    client: reqwest::Client,
    pub(crate) base: String,
}

impl Instance {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = Arc::new(Server {
            base: base.clone(),
            mood: watch::Sender::new(Mood::Takes),
            rotated: Mutex::new(false),
            documents: Mutex::default(),
            answers: Mutex::default(),
            received: Mutex::default(),
            gets: Mutex::default(),
            refusals: Mutex::default(),
            relay_key: Mutex::default(),
            keeps_key: Mutex::default(),
            arrived: Notify::new(),
        });
        let router = Router::new()
            .route("/inbox", post(take))
            .route("/moved/inbox", post(take))
            .route("/{*path}", get(document))
            .with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let instance = Self {
            server,
            client: client(),
            base,
        };
        instance.put_software("mastodon", "4.5.4");
        instance
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.server.mood.send_replace(mood);
    }

    pub(crate) fn rotate_key(&self) {
        *self.server.rotated.lock().unwrap() = true;
    }

    pub(crate) fn put(&self, path: &str, document: Value) {
        self.server
            .documents
            .lock()
            .unwrap()
            .insert(path.to_owned(), document);
    }

    /// From now on it believes the key of the relay that it knows, and asks no more.
    pub(crate) fn keep_key(&self) {
        *self.server.keeps_key.lock().unwrap() = true;
    }

    /// What it answers under a path from now on, whatever is asked.
    pub(crate) fn put_answer(&self, path: &str, answer: Answer) {
        self.server
            .answers
            .lock()
            .unwrap()
            .insert(path.to_owned(), answer);
    }

    /// Requests that were refused.
    pub(crate) fn refusals(&self) -> usize {
        *self.server.refusals.lock().unwrap()
    }

    /// What its NodeInfo says from now on.
    pub(crate) fn put_software(&self, name: &str, version: &str) {
        let href = format!("{}/nodeinfo/2.1", self.base);
        let rel = "http://nodeinfo.diaspora.software/ns/schema/2.1";
        self.put(
            ".well-known/nodeinfo",
            json!({"links": [{"rel": rel, "href": href}]}),
        );
        let software = json!({"name": name, "version": version});
        let people = json!({"users": {"total": 12}});
        self.put(
            "nodeinfo/2.1",
            json!({"version": "2.1", "software": software, "openRegistrations": false, "usage": people}),
        );
    }

    /// Paths that were asked for.
    pub(crate) fn gets(&self) -> Vec<String> {
        self.server.gets.lock().unwrap().clone()
    }

    pub(crate) fn actor(&self) -> String {
        format!("{}/actor", self.base)
    }

    pub(crate) fn user(&self, name: &str) -> String {
        format!("{}/users/{name}", self.base)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.server.received.lock().unwrap().clone()
    }

    /// Waits until something arrives that `wanted` says yes to.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Received {
        let look = async {
            loop {
                let arrived = self.server.arrived.notified();
                if let Some(found) = self.received().into_iter().find(|one| wanted(&one.json)) {
                    return found;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|_| panic!("{}: {what} did not arrive; got {:?}", self.base, self.received()))
    }

    /// Waits until all activities of these ids have arrived.
    pub(crate) async fn wait_for_all(&self, ids: &[Value]) {
        let mut missing: HashSet<&str> = ids.iter().filter_map(Value::as_str).collect();
        let mut seen = 0;
        let look = async {
            loop {
                let arrived = self.server.arrived.notified();
                {
                    let received = self.server.received.lock().unwrap();
                    for one in &received[seen..] {
                        missing.remove(one.json["id"].as_str().unwrap_or_default());
                    }
                    seen = received.len();
                }
                if missing.is_empty() {
                    return;
                }
                arrived.await;
            }
        };
        if tokio::time::timeout(2 * PATIENCE, look).await.is_err() {
            panic!("{}: {} of {} did not arrive", self.base, missing.len(), ids.len());
        }
    }

    /// POSTs to the relay as `actor`, signed with the key of this world.
    pub(crate) async fn post(&self, relay: &RelayUnderTest, actor: &str, document: &Value) -> StatusCode {
        let body = document.to_string();
        let letter = Letter::new(relay, &format!("{actor}#main-key"), body.as_bytes());
        let (status, problem) = self.send(relay, letter).await;
        if !problem.is_null() {
            // Shown when the test fails.
            println!("{document}: {status}: {problem}");
        }
        status
    }

    pub(crate) async fn send(&self, relay: &RelayUnderTest, letter: Letter) -> (StatusCode, Value) {
        let mut request = self.client.post(relay.url(&letter.path)).body(letter.body);
        for (name, value) in letter.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        let status = StatusCode::from_u16(response.status().as_u16()).unwrap();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// POSTs to the inbox of one of the relay's topics.
    pub(crate) async fn post_to(
        &self,
        relay: &RelayUnderTest,
        topic: &str,
        actor: &str,
        document: &Value,
    ) -> StatusCode {
        let path = format!("/{topic}/inbox");
        let letter = Letter::to(
            relay,
            &path,
            &format!("{actor}#main-key"),
            document.to_string().as_bytes(),
        );
        let (status, problem) = self.send(relay, letter).await;
        println!("{topic}: {status}: {problem}");
        status
    }

    /// Joins a topic in Mastodon's way and gives the answer: an Accept or a Reject.
    pub(crate) async fn join(&self, relay: &RelayUnderTest, topic: &str) -> Received {
        let follow = self.follow(&format!("follow-{}", topic.replace('/', "-")));
        let status = self.post_to(relay, topic, &self.actor(), &follow).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        self.wait_for("the answer", |got| got["object"]["id"] == follow["id"])
            .await
    }

    pub(crate) fn follow(&self, id: &str) -> Value {
        json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{}/{id}", self.base),
            "type": "Follow", "actor": self.actor(), "object": PUBLIC})
    }

    /// Subscribes in Mastodon's way and waits for the Accept.
    pub(crate) async fn subscribe(&self, relay: &RelayUnderTest) {
        let follow = self.follow("follow-1");
        assert_eq!(
            self.post(relay, &self.actor(), &follow).await,
            StatusCode::ACCEPTED
        );
        let id = follow["id"].clone();
        self.wait_for("the Accept", |got| {
            got["type"] == "Accept" && got["object"]["id"] == id
        })
        .await;
    }

    /// A public post by a user of this instance, Linked-Data-signed as far as a relay can see.
    pub(crate) fn create(&self, number: usize, signed: bool) -> Value {
        let user = self.user("alice");
        let note = format!("{}/notes/{number}", self.base);
        let mut create = json!({"@context": "https://www.w3.org/ns/activitystreams", "id": format!("{note}/activity"),
            "type": "Create", "actor": user, "to": [PUBLIC], "cc": [format!("{user}/followers")],
            "published": date::timestamp(SystemTime::now()),
            "object": {"id": note, "type": "Note", "attributedTo": user, "to": [PUBLIC], "content": format!("post {number}")}});
        if signed {
            create["signature"] = self.ld_signature("alice");
        }
        create
    }

    pub(crate) fn ld_signature(&self, user: &str) -> Value {
        json!({"type": "RsaSignature2017", "creator": format!("{}#main-key", self.user(user)),
            "created": "2026-11-24T00:00:00Z", "signatureValue": "AAAA"})
    }

    /// Signs a document as alice: a Linked Data signature that holds.
    pub(crate) fn ld_sign(&self, document: &Value) -> Value {
        let mut signed = document.clone();
        signed["signature"] = self.ld_signature("alice");
        let body = signed.to_string();
        let activity = Activity::read(body.as_bytes(), &strict::Limits::default()).unwrap();
        let message = ld::read(&signed, &activity, SystemTime::now())
            .unwrap()
            .messages
            .remove(0);
        signed["signature"]["signatureValue"] = json!(STANDARD.encode(sign(key(), message.as_bytes())));
        signed
    }

    /// Publishes a Create of alice; the relay must take it.
    pub(crate) async fn publish(&self, relay: &RelayUnderTest, number: usize, signed: bool) -> Value {
        let create = self.create(number, signed);
        assert_eq!(
            self.post(relay, &self.user("alice"), &create).await,
            StatusCode::ACCEPTED
        );
        create
    }
}

/// Any path is an actor of that name, unless a test put something else there.
async fn document(State(server): State<Arc<Server>>, Path(path): Path<String>) -> axum::response::Response {
    server.gets.lock().unwrap().push(path.clone());
    let answer = server.answers.lock().unwrap().get(&path).cloned();
    if let Some((status, headers, body)) = answer {
        let mut response = axum::response::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        return response.body(body.into()).unwrap();
    }
    let put = server.documents.lock().unwrap().get(&path).cloned();
    let id = format!("{}/{path}", server.base);
    let rotated = *server.rotated.lock().unwrap();
    let document = put.unwrap_or_else(|| {
        let kind = if path.starts_with("users/") { "Person" } else { "Application" };
        json!({"@context": ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/v1"],
            "id": id, "type": kind, "preferredUsername": path.rsplit('/').next(), "inbox": format!("{}/inbox", server.base),
            "publicKey": {"id": format!("{id}#main-key"), "owner": id, "publicKeyPem": pem(if rotated { other_key() } else { key() })}})
    });
    if document["type"] == "Tombstone" {
        return StatusCode::GONE.into_response();
    }
    (
        [("content-type", "application/activity+json")],
        document.to_string(),
    )
        .into_response()
}

/// The inbox: checks the relay's signature as every server does, then does what its mood says.
async fn take(
    State(server): State<Arc<Server>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let mut mood = server.mood.subscribe();
    let now = *mood.borrow();
    match now {
        Mood::Moved if uri.path() == "/inbox" => return StatusCode::GONE.into_response(),
        Mood::Answers(status) => return status_of(status).into_response(),
        Mood::Hangs => {
            let _ = mood.wait_for(|mood| *mood != Mood::Hangs).await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        _ => {}
    }
    let flat: BTreeMap<String, String> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let (signed, candidate) = read_signature(&server, uri.path(), &flat, &body);
    let refusal = match now {
        Mood::RefusesShared(status) if signed == SignatureUse::Shared => {
            Some(status_of(status).into_response())
        }
        Mood::RefusesMessage if signed == SignatureUse::Rfc9421 => {
            Some(StatusCode::BAD_REQUEST.into_response())
        }
        Mood::WantsMessage(says_so) if signed != SignatureUse::Rfc9421 => {
            let wish = r#"sig1=("@method" "@target-uri" "content-digest");created;keyid"#;
            let mut answer = StatusCode::UNAUTHORIZED.into_response();
            if says_so {
                answer
                    .headers_mut()
                    .insert("accept-signature", wish.parse().unwrap());
            }
            Some(answer)
        }
        _ => None,
    };
    if let Some(refusal) = refusal {
        *server.refusals.lock().unwrap() += 1;
        return refusal;
    }
    if !is_by_relay(&server, &candidate).await {
        *server.refusals.lock().unwrap() += 1;
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let json: Value = serde_json::from_slice(&body).unwrap();
    if let (Mood::RefusesForwards(status), Some(relay)) = (now, candidate.key_id.as_str().split('#').next())
        && json["actor"] != relay
    {
        *server.refusals.lock().unwrap() += 1;
        return status_of(status).into_response();
    }
    let is_by_relay_itself = json["actor"].as_str() == candidate.key_id.as_str().split('#').next();
    if is_by_relay_itself && json["type"] == "Update" && json["object"]["id"] == json["actor"] {
        // The relay's own: signed by a key that is known, it teaches the new one.
        *server.relay_key.lock().unwrap() = Some(spki_of(&json["object"]));
    }
    server.received.lock().unwrap().push(Received {
        body,
        json,
        signed,
        signature: flat["signature"].clone(),
        key_id: candidate.key_id.as_str().to_owned(),
    });
    server.arrived.notify_waiters();
    StatusCode::ACCEPTED.into_response()
}

fn status_of(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap()
}

/// Which kind of signature it is, by the rules that its receivers have.
fn read_signature(
    server: &Server,
    path: &str,
    headers: &BTreeMap<String, String>,
    body: &[u8],
) -> (SignatureUse, Candidate) {
    let host = server.base.trim_start_matches("http://");
    let request = SignedRequest {
        method: "POST",
        path_and_query: path,
        headers,
    };
    let now = SystemTime::now();
    let refused = |error| -> ! { panic!("the relay's signature is refused: {error}") };
    if message_signature::is_used(headers) {
        let candidate = message_signature::check_post(&request, body, &server.base, host, now);
        return (SignatureUse::Rfc9421, candidate.unwrap_or_else(|e| refused(e)));
    }
    let header = SignatureHeader::parse(&headers["signature"]).unwrap_or_else(|e| refused(e));
    if header.covered == cavage::SHARED_COVERED {
        // As Mastodon does: a date within its window, and the digest of the body.
        let date = date::parse_http_date(&headers["date"]).unwrap();
        assert!(now.duration_since(date).unwrap_or_default() < Duration::from_secs(65 * 60));
        cavage::check_digest(&headers["digest"], body).unwrap();
        let string = cavage::signing_string("POST", path, &cavage::SHARED_COVERED, headers.clone());
        let candidate = Candidate {
            key_id: header.key_id,
            kind: None,
            signature: header.signature,
            signing_strings: vec![string.unwrap()],
            valid_until: now,
        };
        return (SignatureUse::Shared, candidate);
    }
    let candidate = cavage::check_post(&request, body, host, now);
    (SignatureUse::Full, candidate.unwrap_or_else(|e| refused(e)))
}

/// Verifies with the relay's key, which is asked for once, and once more when a signature does not verify, as most do.
async fn is_by_relay(server: &Server, candidate: &Candidate) -> bool {
    let verifies = |spki: &[u8]| {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki)
            .verify(candidate.signing_strings[0].as_bytes(), &candidate.signature)
            .is_ok()
    };
    let known = server.relay_key.lock().unwrap().clone();
    if let Some(known) = &known
        && (verifies(known) || *server.keeps_key.lock().unwrap())
    {
        return verifies(known);
    }
    let actor: Value = client()
        .get(candidate.key_id.url())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(actor["publicKey"]["id"], candidate.key_id.as_str());
    let spki = spki_of(&actor);
    *server.relay_key.lock().unwrap() = Some(spki.clone());
    verifies(&spki)
}

fn spki_of(actor: &Value) -> Vec<u8> {
    let pem = actor["publicKey"]["publicKeyPem"].as_str().unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(base64).unwrap()
}
