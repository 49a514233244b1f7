//! The smallest HTTP client that the demo's instances need.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use url::Url;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// An answer.
pub(super) struct Answer {
    pub(super) status: http::StatusCode,
    pub(super) body: Bytes,
}

/// The `Host` header for `url`.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// GETs an activity document.
pub(super) async fn get(url: &Url) -> Result<Answer> {
    request(
        "GET",
        url,
        &[("accept", "application/activity+json".to_owned())],
        Bytes::new(),
    )
    .await
}

/// POSTs `body`.
pub(super) async fn post(url: &Url, headers: &[(&'static str, String)], body: Bytes) -> Result<Answer> {
    request("POST", url, headers, body).await
}

async fn request(method: &str, url: &Url, headers: &[(&'static str, String)], body: Bytes) -> Result<Answer> {
    let exchange = async {
        let port = url.port_or_known_default().context("the URL has no port")?;
        let host = url.host_str().context("the URL has no host")?;
        let stream = TcpStream::connect((host, port)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method)
            .uri(url.path())
            .header("host", host_of(url));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))?
            .to_bytes();
        driver.abort();
        Ok::<_, anyhow::Error>(Answer { status, body })
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{method} {url}: no answer within 10 s"))?
        .with_context(|| format!("{method} {url}"))
}
