//! One POST to one host: sign, send, and say what the answer means.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tasuki_core::clock::Clock;
use tasuki_core::failure::{Blame, BoxError, Failure, Reply, Verdict};
use tasuki_proto::activitypub::ids::InboxUrl;
use tasuki_proto::activitypub::{date, media, message_signature};
use url::Url;

use super::log::Payload;
use super::style::{SignatureUse, Style, speaks_of_signature};
use crate::config::FediConfig;
use crate::guard::{Guard, Guarded};
use crate::signer::{SignError, Signer};
use crate::time::system_time;

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const DIGEST: HeaderName = HeaderName::from_static("digest");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const ACCEPT_SIGNATURE: HeaderName = HeaderName::from_static("accept-signature");
/// Most of an answer's body that is read, so that the connection can be used again.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// Most of an answer's text that is kept for the operator.
const MAX_REPLY_BYTES: usize = 200;
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(60);
/// The longest time that a peer may put us off by `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// Where a host takes deliveries, in the forms in which it is needed for each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    url: Url,
    uri: Uri,
    host: Arc<str>,
    host_header: HeaderValue,
    path_and_query: Arc<str>,
}

impl Target {
    pub(crate) fn of(inbox: &str) -> Option<Self> {
        let inbox = InboxUrl::parse(inbox).ok()?;
        let url = inbox.url();
        let uri: Uri = url.as_str().parse().ok()?;
        Some(Self {
            // As it goes over the wire, with a port that is not the scheme's own.
            host_header: HeaderValue::from_str(uri.authority()?.as_str()).ok()?,
            host: uri.authority()?.as_str().into(),
            path_and_query: uri.path_and_query()?.as_str().into(),
            uri,
            url,
        })
    }
}

/// What an answer tells beside its status.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// By how many seconds its clock differs from ours, if it answered with a date.
    pub(crate) skew_s: Option<i64>,
    /// It asks for a signature by RFC 9421 (`Accept-Signature`).
    pub(crate) asks_for_message: bool,
}

/// How one request ended.
pub(crate) struct Sent {
    pub(crate) result: Result<(), Failure>,
    pub(crate) told: Told,
}

impl Sent {
    /// The host answered, whatever it was.
    pub(crate) fn is_answered(&self) -> bool {
        match &self.result {
            Ok(()) => true,
            Err(failure) => failure.reply.is_some(),
        }
    }

    /// The answer, if it speaks of the signature.
    pub(crate) fn refused_signature(&self) -> Option<&Reply> {
        let reply = self.result.as_ref().err()?.reply.as_ref()?;
        speaks_of_signature(reply.code).then_some(reply)
    }
}

/// Sends for all lanes; clones share the connections.
#[derive(Clone)]
pub(crate) struct Sender {
    client: Client<HttpsConnector<HttpConnector<Guard>>, Full<Bytes>>,
    guard: Guard,
    signer: Signer,
    clock: Clock,
    timeout: Duration,
}

impl Sender {
    pub(crate) fn new(
        config: &FediConfig,
        guard: Guard,
        signer: Signer,
        tls: &rustls::ClientConfig,
        clock: Clock,
    ) -> Self {
        let mut http = HttpConnector::new_with_resolver(guard.clone());
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(config.connect_timeout));
        http.set_keepalive(Some(Duration::from_secs(60)));
        let mut tls = tls.clone();
        // The connector sets its own.
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(config.host_concurrency)
            .build(https);
        Self {
            client,
            guard,
            signer,
            clock,
            timeout: config.request_timeout,
        }
    }

    /// Sends one body to one host, signed as `style` says under the name of `key_id`.
    pub(crate) async fn send(
        &self,
        target: &Target,
        payload: &Payload,
        style: Style,
        key_id: &Arc<str>,
    ) -> Sent {
        let mut told = Told::default();
        let result = self.try_send(target, payload, (style, key_id), &mut told).await;
        Sent { result, told }
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    async fn try_send(
        &self,
        target: &Target,
        payload: &Payload,
        signed: (Style, &Arc<str>),
        told: &mut Told,
    ) -> Result<(), Failure> {
        self.guard.check(&target.url).map_err(refused_by_guard)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(target.uri.clone())
            .body(Full::new(payload.body.clone()))
            .map_err(Failure::us)?;
        let headers = request.headers_mut();
        headers.reserve(8);
        headers.insert(HOST, target.host_header.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media::ACTIVITY_JSON));
        headers.insert(USER_AGENT, HeaderValue::from_static(crate::USER_AGENT));
        self.sign(target, payload, signed, headers)
            .await
            .map_err(Failure::us)?;
        match tokio::time::timeout(self.timeout, self.exchange(request, told)).await {
            Ok(Ok((status, retry_after, text))) => judge(status, retry_after, text),
            Ok(Err(error)) => Err(not_sent(error)),
            Err(_) => Err(Failure::route(format!("no answer within {:?}", self.timeout))),
        }
    }

    async fn sign(
        &self,
        target: &Target,
        payload: &Payload,
        (style, key_id): (Style, &Arc<str>),
        headers: &mut HeaderMap,
    ) -> Result<(), SignError> {
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| SignError::Key);
        if style.signature == SignatureUse::Shared {
            let shared = payload
                .shared
                .headers(&self.signer, style.key, key_id, &payload.digest)
                .await?;
            headers.insert(DATE, shared.date.clone());
            headers.insert(DIGEST, shared.digest.clone());
            headers.insert(SIGNATURE, shared.signature.clone());
            return Ok(());
        }
        let key_id = Arc::clone(key_id);
        if style.signature == SignatureUse::Rfc9421 {
            let digest = message_signature::content_digest_header(&payload.body);
            let target = target.url.as_str().to_owned();
            let signed = self
                .signer
                .sign_message(style.key, key_id, target, digest)
                .await?;
            headers.insert(CONTENT_DIGEST, value(&signed.content_digest)?);
            headers.insert(SIGNATURE_INPUT, value(&signed.input)?);
            headers.insert(SIGNATURE, value(&signed.signature)?);
            return Ok(());
        }
        let signed = self
            .signer
            .sign_post(
                style.key,
                key_id,
                Arc::clone(&target.host),
                Arc::clone(&target.path_and_query),
                Arc::clone(&payload.digest),
            )
            .await?;
        headers.insert(DATE, value(&signed.date)?);
        headers.insert(DIGEST, value(&payload.digest)?);
        headers.insert(SIGNATURE, value(&signed.signature)?);
        Ok(())
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        told: &mut Told,
    ) -> Result<(StatusCode, Option<Duration>, String), BoxError> {
        let response = match self.client.request(request.clone()).await {
            // The host closed a kept connection while the request was on its way: nobody's failure, and a host that did
            // take it knows the activity by its id.
            Err(error) if was_closed(&error) => self.client.request(request).await?,
            other => other?,
        };
        let status = response.status();
        told.skew_s = self.skew_s(&response);
        told.asks_for_message = response
            .headers()
            .get(ACCEPT_SIGNATURE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(message_signature::is_asked_for);
        let retry_after = self.retry_after(&response);
        // Reading to the end gives the connection back; an endless answer costs it.
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let text = match (status.is_success(), body) {
            (false, Ok(body)) => printable(&body.to_bytes()),
            _ => String::new(),
        };
        Ok((status, retry_after, text))
    }

    fn skew_s(&self, response: &Response<Incoming>) -> Option<i64> {
        let theirs = date::parse_http_date(response.headers().get(DATE)?.to_str().ok()?)?;
        let ours = system_time(self.clock.wall());
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        Some(match theirs.duration_since(ours) {
            Ok(ahead) => seconds(ahead),
            Err(behind) => -seconds(behind.duration()),
        })
    }

    /// RFC 9110 10.2.3: seconds or a date.
    fn retry_after(&self, response: &Response<Incoming>) -> Option<Duration> {
        let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => date::parse_http_date(text)?
                .duration_since(system_time(self.clock.wall()))
                .unwrap_or_default(),
        };
        Some(wait.min(MAX_RETRY_AFTER))
    }
}

/// 2xx is taken. Final: 4xx except 401 (a breaker at the peer while it could not fetch our actor), 404 and 410 (the inbox may
/// have moved: the actor is asked), 408 and 429; and 501. A redirect is not followed, since the signature binds the path.
fn judge(status: StatusCode, retry_after: Option<Duration>, text: String) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let is_final = status == StatusCode::NOT_IMPLEMENTED
        || (status.is_client_error() && !matches!(status.as_u16(), 401 | 404 | 408 | 410 | 429));
    let text = match text.is_empty() {
        true => format!("answered {status}"),
        false => format!("answered {status}: {text}"),
    };
    let reply = Some(Reply {
        code: status.as_u16(),
        enhanced: None,
        text,
    });
    Err(Failure {
        verdict: match is_final {
            true => Verdict::Permanent,
            false => Verdict::Retry {
                // Only overload makes a host's wish binding for the whole lane.
                not_before: retry_after.filter(|_| matches!(status.as_u16(), 429 | 503)),
            },
        },
        blame: Blame::Peer,
        reply,
        source: None,
    })
}

fn refused_by_guard(error: Guarded) -> Failure {
    Failure {
        verdict: Verdict::Retry { not_before: None },
        blame: Blame::Route,
        reply: None,
        source: Some(error.into()),
    }
}

/// The way there failed; a lack of descriptors here is our own fault.
fn not_sent(error: BoxError) -> Failure {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<io::Error>()
            // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL (no free local port).
            && matches!(io.raw_os_error(), Some(24 | 23 | 105 | 12 | 99))
        {
            return Failure::us(error);
        }
        cause = one.source();
    }
    Failure::route(error)
}

fn was_closed(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(one) = cause {
        if let Some(hyper) = one.downcast_ref::<hyper::Error>() {
            return hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed();
        }
        cause = one.source();
    }
    false
}

fn printable(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(MAX_REPLY_BYTES)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// A failure in one line for the operator: the peer's words, or the last cause.
pub(crate) fn in_words(failure: &Failure) -> String {
    if let Some(reply) = &failure.reply {
        return reply.text.clone();
    }
    let Some(source) = &failure.source else {
        return "the delivery failed".to_owned();
    };
    let mut text = source.to_string();
    let mut cause = source.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text.chars().take(400).collect()
}
