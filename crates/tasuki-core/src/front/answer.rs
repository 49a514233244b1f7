//! Answers of the door itself: RFC 9457 problem documents, redirects, ACME proofs.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, RETRY_AFTER};
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

/// A page for people, in Japanese and English, when the server behind a name does not serve now; a problem document for
/// programs. `accepts_html` is whether the client asked for a page.
#[must_use]
pub fn not_serving(
    status: StatusCode,
    japanese: &str,
    english: &str,
    accepts_html: bool,
) -> Response<WebBody> {
    let mut response = if accepts_html {
        let page = format!(
            "<!doctype html>\n<html lang=\"ja\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width\">\n<title>{}</title>\n<style>body{{font-family:sans-serif;max-width:36em;\
             margin:15vh auto;padding:0 1em;line-height:1.7;color:#333}}</style>\n<p>{japanese}</p>\n<p lang=\"en\">\
             {english}</p>\n",
            status.as_u16(),
        );
        let mut response = Response::new(full(page));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        response
    } else {
        problem(status, english)
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("30"));
    }
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
