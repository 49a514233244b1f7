//! Answers of the door itself: RFC 9457 problem documents, redirects, ACME proofs.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::WebBody;

/// A problem document; `detail` is one sentence for the person at the other end.
#[must_use]
pub fn problem(status: StatusCode, detail: &str) -> Response<WebBody> {
    let text = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    let mut response = Response::new(full(text.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// A whole body that is in memory.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> WebBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(super) fn redirect(location: &str) -> Response<WebBody> {
    match HeaderValue::from_str(location) {
        Ok(value) => {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(LOCATION, value);
            response
        }
        Err(_) => problem(
            StatusCode::BAD_REQUEST,
            "the address asked for cannot be written in a redirect",
        ),
    }
}

/// RFC 8555 8.3.
pub(super) fn acme_proof(key_authorization: String) -> Response<WebBody> {
    let mut response = Response::new(full(key_authorization));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}
