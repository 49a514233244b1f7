//! Fetching documents that a peer named: signed, guarded, bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, DATE, LOCATION, USER_AGENT};
use tasuki_core::failure::BoxError;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::media;
use tokio::sync::Semaphore;
use url::Url;

use crate::guard::{Guard, Guarded};
use crate::signer::{KeyChoice, SignError, Signer};

/// What a fetch asks for.
const FETCH_ACCEPT: &str =
    "application/activity+json, application/ld+json; profile=\"https://www.w3.org/ns/activitystreams\"";
/// The kind of document that is asked for.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// ActivityStreams: nothing else may hold an actor or a post, or a user's upload could.
    Activity,
    /// Any JSON.
    Json,
}

impl Wanted {
    fn accept(self) -> &'static str {
        match self {
            Self::Activity => FETCH_ACCEPT,
            Self::Json => "application/json",
        }
    }

    fn is_met_by(self, content_type: &str) -> bool {
        match self {
            Self::Activity => media::is_activity(content_type),
            Self::Json => {
                let kind = content_type.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
            }
        }
    }
}

/// Largest document taken, after decompression.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 512 * 1024;
/// Redirects followed; each is checked and signed again.
const MAX_REDIRECTS: usize = 3;
/// Fetches under way at once: their targets are chosen by strangers.
const MAX_FETCHES: usize = 64;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// Not to be asked at all.
    #[error(transparent)]
    Guarded(#[from] Guarded),
    /// The document is gone (404, 410).
    #[error("{url} answered {status}")]
    Gone { url: Url, status: StatusCode },
    /// Another answer than 200.
    #[error("{url} answered {status}")]
    Status { url: Url, status: StatusCode },
    /// A redirect to nowhere, to another host's document, or too many.
    #[error("{0} redirects in a way that is not followed")]
    Redirect(Url),
    /// Not an ActivityStreams document.
    #[error("{0} does not answer with the content type that was asked for")]
    ContentType(Url),
    /// Too much.
    #[error("{0} answers with more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge(Url),
    /// No answer.
    #[error("{url} cannot be fetched")]
    Unreachable {
        url: Url,
        #[source]
        source: BoxError,
    },
    /// We could not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Too many fetches are under way.
    #[error("too many fetches are under way")]
    Busy,
}

impl FetchError {
    /// Whether another try may go better: the peer is asked to come again.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Sign(_) | Self::Busy => true,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 429),
            _ => false,
        }
    }
}

/// A fetched document and where it was found in the end.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) url: Url,
    pub(crate) body: Bytes,
}

/// Fetches documents; clones share connections and the limit.
#[derive(Clone)]
pub(crate) struct Fetcher {
    client: reqwest::Client,
    guard: Guard,
    signer: Signer,
    key_id: Arc<str>,
    places: Arc<Semaphore>,
    deadline: Duration,
}

impl Fetcher {
    pub(crate) fn new(
        guard: Guard,
        signer: Signer,
        key_id: Arc<str>,
        tls: &rustls::ClientConfig,
        connect_timeout: Duration,
        request_timeout: Duration,
    ) -> Result<Self, BoxError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .dns_resolver(guard.clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(connect_timeout)
            .timeout(request_timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(2)
            .build()?;
        Ok(Self {
            client,
            guard,
            signer,
            key_id,
            places: Arc::new(Semaphore::new(MAX_FETCHES)),
            deadline: request_timeout,
        })
    }

    /// Fetches one ActivityStreams document.
    pub(crate) async fn fetch(&self, url: Url) -> Result<Document, FetchError> {
        self.fetch_as(url, Wanted::Activity).await
    }

    /// Fetches one JSON document of no certain kind.
    pub(crate) async fn fetch_json(&self, url: Url) -> Result<Document, FetchError> {
        self.fetch_as(url, Wanted::Json).await
    }

    /// The whole, with redirects, takes no longer than the request timeout.
    async fn fetch_as(&self, url: Url, wanted: Wanted) -> Result<Document, FetchError> {
        let _place = self.places.try_acquire().map_err(|_| FetchError::Busy)?;
        match tokio::time::timeout(self.deadline, self.follow(url.clone(), wanted)).await {
            Ok(result) => result,
            Err(late) => Err(FetchError::Unreachable {
                url,
                source: late.into(),
            }),
        }
    }

    async fn follow(&self, mut url: Url, wanted: Wanted) -> Result<Document, FetchError> {
        url.set_fragment(None);
        for _ in 0..=MAX_REDIRECTS {
            let mut response = self.ask(&url, wanted, KeyChoice::Current).await?;
            // A host that keeps the relay's old key may not have heard of the new one.
            if response.status() == StatusCode::UNAUTHORIZED && self.signer.previous_until().is_some() {
                response = self.ask(&url, wanted, KeyChoice::Previous).await?;
            }
            let status = response.status();
            if status.is_redirection() {
                url = redirect_target(&url, &response)?;
                continue;
            }
            return match status {
                StatusCode::OK => Self::read(url, response, wanted).await,
                StatusCode::GONE | StatusCode::NOT_FOUND => Err(FetchError::Gone { url, status }),
                _ => Err(FetchError::Status { url, status }),
            };
        }
        Err(FetchError::Redirect(url))
    }

    async fn ask(&self, url: &Url, wanted: Wanted, key: KeyChoice) -> Result<reqwest::Response, FetchError> {
        self.guard.check(url)?;
        let host = Authority::of(url).map(|a| a.to_string()).unwrap_or_default();
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let signed = self
            .signer
            .sign_get(key, Arc::clone(&self.key_id), host, target, wanted.accept())
            .await?;
        self.client
            .get(url.clone())
            .header(ACCEPT, wanted.accept())
            .header(DATE, signed.date)
            .header("signature", signed.signature)
            .header(USER_AGENT, crate::USER_AGENT)
            .send()
            .await
            .map_err(|e| FetchError::Unreachable {
                url: url.clone(),
                source: e.without_url().into(),
            })
    }

    async fn read(url: Url, mut response: reqwest::Response, wanted: Wanted) -> Result<Document, FetchError> {
        let is_document = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| wanted.is_met_by(kind));
        if !is_document {
            return Err(FetchError::ContentType(url));
        }
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > MAX_DOCUMENT_BYTES => {
                    return Err(FetchError::TooLarge(url));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(e) => {
                    return Err(FetchError::Unreachable {
                        url,
                        source: e.without_url().into(),
                    });
                }
            }
        }
        Ok(Document {
            url,
            body: body.freeze(),
        })
    }
}

/// Only within the same authority: a document's id must be on the host that serves it.
fn redirect_target(url: &Url, response: &reqwest::Response) -> Result<Url, FetchError> {
    let refused = || FetchError::Redirect(url.clone());
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(refused)?;
    let mut target = url.join(location).map_err(|_| refused())?;
    target.set_fragment(None);
    if Authority::of(&target) != Authority::of(url) || target.scheme() != url.scheme() {
        return Err(refused());
    }
    Ok(target)
}
