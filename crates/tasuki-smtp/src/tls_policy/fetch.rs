//! Fetches a policy over HTTPS: from the well-known place only, without redirects, from a public address, at most 64 KiB.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, header};
use tasuki_proto::{
    names::Domain,
    smtp::{
        mta_sts::{MAX_POLICY_LEN, Policy, StsError},
        tlsrpt::ResultType,
    },
};
use tokio::time::timeout;

use crate::{
    config::Settings,
    context::Context,
    https::{self, HttpsError},
};

/// For all of it (RFC 8461 3.3).
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a policy was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Https(#[from] HttpsError),
    #[error("no answer in time")]
    TimedOut,
    #[error("the answer is {0}, not 200")]
    Status(StatusCode),
    #[error("the answer is not text/plain")]
    ContentType,
    #[error("the answer is over 64 KiB, or broke off")]
    Body,
    #[error(transparent)]
    Policy(#[from] StsError),
}

impl FetchError {
    /// What a report calls it (RFC 8460 4.3.2.2).
    pub(super) fn result(&self) -> ResultType {
        let of_certificate = |error: &std::io::Error| {
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
        };
        match self {
            Self::Policy(_) => ResultType::StsPolicyInvalid,
            Self::Https(HttpsError::Certificate(_, error)) if of_certificate(error) => {
                ResultType::StsWebpkiInvalid
            }
            _ => ResultType::StsPolicyFetchError,
        }
    }
}

/// The policy of a domain as it is published now.
pub(super) async fn fetch(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
) -> Result<Policy, FetchError> {
    let all = async {
        let host = format!("mta-sts.{}", domain.as_str());
        let request = Request::get("/.well-known/mta-sts.txt")
            .header(header::HOST, &host)
            .body(Full::<Bytes>::default())
            .expect("the request has no part that could be wrong");
        let port = settings.delivery.mta_sts_port;
        let answer = https::ask(context, settings, (&host, port), request).await?;
        Ok(Policy::parse(&body(answer.response).await?)?)
    };
    timeout(FETCH_TIMEOUT, all)
        .await
        .unwrap_or(Err(FetchError::TimedOut))
}

async fn body(response: hyper::Response<hyper::body::Incoming>) -> Result<Bytes, FetchError> {
    // RFC 8461 3.3: redirects are not followed.
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let kind = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if !kind.eq_ignore_ascii_case("text/plain") {
        return Err(FetchError::ContentType);
    }
    let body = Limited::new(response.into_body(), MAX_POLICY_LEN).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|_| FetchError::Body)
}
