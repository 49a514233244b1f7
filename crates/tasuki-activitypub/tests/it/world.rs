//! A relay in this process and small instances around it, all on loopback.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{OriginalUri, Path, State};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tasuki_activitypub::{Engine, FediConfig, Handle};
use tasuki_core::accounts::Accounts;
use tasuki_core::acl::Acl;
use tasuki_core::bans::Bans;
use tasuki_core::budget::Budget;
use tasuki_core::clock::Clock;
use tasuki_core::events::EventBus;
use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::limits::Limits;
use tasuki_core::metrics::Metrics;
use tasuki_core::net::ClientAddr;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::store::{BanStore, FediStore, SecretStore};
use tasuki_core::tls::{Tls, TlsConfig, install_provider};
use tasuki_core::{Deps, EngineKind, Shared};
use tasuki_proto::activitypub::activity::Activity;
use tasuki_proto::activitypub::cavage::{self, POST_COVERED, SignedRequest};
use tasuki_proto::activitypub::{PUBLIC, date, json as strict, ld};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::accounts::NoAccounts;
use crate::memory::Memory;

/// The longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that an engine's life leaves behind for the next.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) fedi: Arc<dyn FediStore>,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) bans: Arc<dyn BanStore>,
    pub(crate) keys: Arc<tempfile::TempDir>,
}

impl Ground {
    pub(crate) fn memory() -> (Self, Arc<Memory>) {
        let memory = Arc::new(Memory::default());
        let ground = Self {
            fedi: Arc::clone(&memory) as _,
            secrets: Arc::clone(&memory) as _,
            bans: Arc::clone(&memory) as _,
            keys: Arc::new(tempfile::tempdir().unwrap()),
        };
        (ground, memory)
    }

    /// The real store on SQLite.
    pub(crate) async fn sqlite() -> Self {
        let keys = Arc::new(tempfile::tempdir().unwrap());
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, keys.path())
            .await
            .unwrap();
        let (node, _) = store.join("test").await.unwrap();
        assert_eq!(node, NodeId(1));
        Self {
            fedi: Arc::clone(&store) as _,
            secrets: Arc::clone(&store) as _,
            bans: store as _,
            keys,
        }
    }
}

/// How a relay is started.
pub(crate) struct Setup {
    pub(crate) config: FediConfig,
    /// `None`: the loopback address that it listens on.
    pub(crate) public_url: Option<Option<String>>,
    pub(crate) budget: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: FediConfig {
                danger_allow_private_addresses: true,
                connect_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_secs(3),
                retry: vec![Duration::from_millis(200)],
                ..FediConfig::default()
            },
            public_url: None,
            budget: 64 << 20,
        }
    }
}

/// A running relay.
pub(crate) struct RelayUnderTest {
    pub(crate) addr: SocketAddr,
    pub(crate) acl: Acl,
    pub(crate) handle: Handle,
    pub(crate) metrics: Metrics,
    pub(crate) budget: Budget,
    shutdown: Shutdown,
    engine: tokio::task::JoinHandle<Drained>,
    /// Its own, so that a test can take away all of it at once.
    runtime: Option<tokio::runtime::Runtime>,
    /// Keeps the directory.
    _ground: Ground,
}

impl Drop for RelayUnderTest {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RelayUnderTest {
    pub(crate) async fn start(ground: &Ground, setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(ground, setup, listener).await
    }

    pub(crate) async fn start_on(ground: &Ground, setup: Setup, listener: TcpListener) -> Self {
        install_provider();
        let addr = listener.local_addr().unwrap();
        let clock = Clock::system();
        let events = EventBus::new(clock.clone());
        let bans = Bans::new(Arc::clone(&ground.bans), clock.clone(), events.clone());
        // As in the gateway: the machine itself is never banned.
        bans.set_exempt(["127.0.0.0/8".parse::<ipnet::IpNet>().unwrap()]);
        let pool = CpuPool::new(2, 1024).unwrap();
        let metrics = Metrics::new();
        let acl = Acl::new();
        let budget = Budget::new(setup.budget);
        let tls = Tls::load(
            &TlsConfig::default(),
            ground.keys.path(),
            None,
            clock.clone(),
            events.clone(),
        )
        .unwrap();
        let deps = Deps {
            store: Arc::clone(&ground.fedi),
            node: (NodeId(1), Epoch(1)),
            accounts: Accounts::new(
                Arc::new(NoAccounts),
                bans.clone(),
                pool.clone(),
                clock.clone(),
                events.clone(),
            ),
            acl: acl.clone(),
            limits: Limits::new(clock.clone()),
            bans,
            budget: budget.clone(),
            pool,
            clock,
            events,
            metrics: metrics.engine(EngineKind::Fediverse),
            secrets: Secrets::new(Arc::clone(&ground.secrets), [7; 32]),
            tls,
            health: tasuki_core::health::Health::default(),
            shared: Arc::new(Shared {
                public_url: setup.public_url.unwrap_or_else(|| Some(format!("http://{addr}"))),
                ..Shared::default()
            }),
        };
        let engine = Engine::build(setup.config, deps).await.unwrap();
        let web = engine.web();
        let handle = engine.handle();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let web = Arc::clone(&web);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let web = Arc::clone(&web);
                        async move { Ok::<_, std::convert::Infallible>(web.call(request, ClientAddr(peer)).await) }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let shutdown = Shutdown::new(Duration::from_secs(10));
        Self {
            addr,
            acl,
            handle,
            metrics,
            budget,
            engine: runtime.spawn(engine.run(shutdown.clone())),
            shutdown,
            runtime: Some(runtime),
            _ground: ground.clone(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Closes the house in good order.
    pub(crate) async fn stop(mut self) -> Drained {
        self.shutdown.begin();
        let drained = tokio::time::timeout(PATIENCE, &mut self.engine)
            .await
            .unwrap()
            .unwrap();
        // The port is free again when this returns.
        self.kill().await;
        drained
    }

    /// The power goes: no checkpoint, no goodbye.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE))
            .await
            .unwrap();
    }

    /// The value of a counter, summed over its labels.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let prefix = format!("tasuki_fediverse_{name}");
        self.metrics
            .encode()
            .lines()
            .filter(|line| line.starts_with(&prefix) && !line.starts_with('#'))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .map(|value| value as u64)
            .sum()
    }
}

/// The one key pair of all instances here; making one takes long.
fn key() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

/// Another one, for forgeries and rotations.
fn other_key() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

fn pem(key: &RsaKeyPair) -> String {
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(der.as_ref())
    )
}

/// What an instance does with deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    Answers(u16),
    /// Takes what the relay wrote itself, and answers everything else with this.
    RefusesForwards(u16),
    /// The inbox is not at `/inbox` any more, but at `/moved/inbox`.
    Moved,
    Hangs,
}

/// A delivery as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) body: Bytes,
    pub(crate) json: Value,
}

struct Server {
    base: String,
    mood: watch::Sender<Mood>,
    rotated: Mutex<bool>,
    documents: Mutex<HashMap<String, Value>>,
    received: Mutex<Vec<Received>>,
    gets: Mutex<Vec<String>>,
    refusals: Mutex<usize>,
    relay_key: Mutex<Option<Vec<u8>>>,
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
            received: Mutex::default(),
            gets: Mutex::default(),
            refusals: Mutex::default(),
            relay_key: Mutex::default(),
            arrived: Notify::new(),
        });
        let router = Router::new()
            .route("/inbox", post(take))
            .route("/moved/inbox", post(take))
            .route("/{*path}", get(document))
            .with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            server,
            client: client(),
            base,
        }
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

    /// Forwards that were refused.
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
        self.put("nodeinfo/2.1", json!({"version": "2.1", "software": software}));
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

/// A signed request that a test may spoil before it is sent.
pub(crate) struct Letter {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Letter {
    pub(crate) fn new(relay: &RelayUnderTest, key_id: &str, body: &[u8]) -> Self {
        Self::signed(&relay.addr.to_string(), key_id, body, SystemTime::now(), key())
    }

    pub(crate) fn at(relay: &RelayUnderTest, key_id: &str, body: &[u8], at: SystemTime) -> Self {
        Self::signed(&relay.addr.to_string(), key_id, body, at, key())
    }

    pub(crate) fn for_host(host: &str, key_id: &str, body: &[u8]) -> Self {
        Self::signed(host, key_id, body, SystemTime::now(), key())
    }

    pub(crate) fn by_other_key(relay: &RelayUnderTest, key_id: &str, body: &[u8]) -> Self {
        Self::signed(
            &relay.addr.to_string(),
            key_id,
            body,
            SystemTime::now(),
            other_key(),
        )
    }

    fn signed(host: &str, key_id: &str, body: &[u8], at: SystemTime, key: &RsaKeyPair) -> Self {
        let mut headers = BTreeMap::from(
            [
                ("host", host.to_owned()),
                ("date", date::http_date(at)),
                ("digest", cavage::digest_header(body)),
                ("content-type", "application/activity+json".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let string = cavage::signing_string("POST", "/inbox", &POST_COVERED, headers.clone()).unwrap();
        let signature = sign(key, string.as_bytes());
        headers.insert(
            "signature".to_owned(),
            cavage::signature_header(key_id, &POST_COVERED, &signature),
        );
        Self {
            path: "/inbox".to_owned(),
            headers,
            body: body.to_vec(),
        }
    }
}

fn sign(key: &RsaKeyPair, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
        .unwrap();
    signature
}

pub(crate) fn client() -> reqwest::Client {
    install_provider();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// Any path is an actor of that name, unless a test put something else there.
async fn document(State(server): State<Arc<Server>>, Path(path): Path<String>) -> axum::response::Response {
    server.gets.lock().unwrap().push(path.clone());
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
) -> StatusCode {
    let mut mood = server.mood.subscribe();
    let now = *mood.borrow();
    match now {
        Mood::Moved if uri.path() == "/inbox" => return StatusCode::GONE,
        Mood::Takes | Mood::RefusesForwards(_) | Mood::Moved => {}
        Mood::Answers(status) => return StatusCode::from_u16(status).unwrap(),
        Mood::Hangs => {
            let _ = mood.wait_for(|mood| *mood != Mood::Hangs).await;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    let flat: BTreeMap<String, String> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let host = server.base.trim_start_matches("http://");
    let request = SignedRequest {
        method: "POST",
        path_and_query: uri.path(),
        headers: &flat,
    };
    let candidate = match cavage::check_post(&request, &body, host, SystemTime::now()) {
        Ok(candidate) => candidate,
        Err(error) => panic!("the relay's signature is refused: {error}"),
    };
    let known = server.relay_key.lock().unwrap().clone();
    let spki = match known {
        Some(spki) => spki,
        None => {
            let actor: Value = client()
                .get(candidate.key_id.url())
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            assert_eq!(actor["publicKey"]["id"], candidate.key_id.as_str());
            let pem = actor["publicKey"]["publicKeyPem"].as_str().unwrap();
            let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            let spki = STANDARD.decode(base64).unwrap();
            *server.relay_key.lock().unwrap() = Some(spki.clone());
            spki
        }
    };
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki)
        .verify(candidate.signing_strings[0].as_bytes(), &candidate.signature)
        .expect("the relay's signature verifies");
    let json: Value = serde_json::from_slice(&body).unwrap();
    if let (Mood::RefusesForwards(status), Some(relay)) = (now, candidate.key_id.as_str().split('#').next())
        && json["actor"] != relay
    {
        *server.refusals.lock().unwrap() += 1;
        return StatusCode::from_u16(status).unwrap();
    }
    server.received.lock().unwrap().push(Received { body, json });
    server.arrived.notify_waiters();
    StatusCode::ACCEPTED
}
