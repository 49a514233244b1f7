//! Fetches a policy over HTTPS: from the well-known place only, without redirects, from a public address, at most 64 KiB.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tasuki_core::net::is_special;
use tasuki_proto::{
    names::Domain,
    smtp::mta_sts::{MAX_POLICY_LEN, Policy, StsError},
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{config::Settings, context::Context};

/// For all of it (RFC 8461 3.3).
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Most addresses tried.
const MAX_ADDRESSES: usize = 2;

/// Why a policy was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    Lookup(#[from] crate::dns::LookupError),
    #[error("{0} has no address that may be asked")]
    Address(String),
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    #[error("no TLS with a certificate for {0}: {1}")]
    Certificate(String, #[source] std::io::Error),
    #[error("no answer in time")]
    TimedOut,
    #[error("no proper answer")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}, not 200")]
    Status(StatusCode),
    #[error("the answer is not text/plain")]
    ContentType,
    #[error("the answer is over 64 KiB, or broke off")]
    Body,
    #[error(transparent)]
    Policy(#[from] StsError),
}

/// The policy of a domain as it is published now.
pub(super) async fn fetch(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
) -> Result<Policy, FetchError> {
    let all = async {
        let host = format!("mta-sts.{}", domain.as_str());
        let found = context.resolver.addresses(&host).await?;
        let allowed = may_be_asked(found, settings.delivery.danger_private_addresses);
        let tls = connect(context, &host, &allowed, settings.delivery.mta_sts_port).await?;
        Ok(Policy::parse(&ask(tls, &host).await?)?)
    };
    timeout(FETCH_TIMEOUT, all)
        .await
        .unwrap_or(Err(FetchError::TimedOut))
}

/// Anybody's DNS names these addresses: ours, and those behind us, are none of their business.
fn may_be_asked(mut addresses: Vec<IpAddr>, private_too: bool) -> Vec<IpAddr> {
    addresses.retain(|ip| private_too || !is_special(*ip));
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

async fn connect(
    context: &Context,
    host: &str,
    addresses: &[IpAddr],
    port: u16,
) -> Result<TlsStream<TcpStream>, FetchError> {
    let nowhere = || FetchError::Address(host.to_owned());
    let name = ServerName::try_from(host.to_owned()).map_err(|_| nowhere())?;
    let mut last = None;
    for ip in addresses {
        let stream = match TcpStream::connect(SocketAddr::new(*ip, port)).await {
            Ok(stream) => stream,
            Err(error) => {
                last = Some(FetchError::Connect(error));
                continue;
            }
        };
        let connector = TlsConnector::from(Arc::clone(&context.deps.tls.client()));
        match connector.connect(name.clone(), stream).await {
            Ok(tls) => return Ok(tls),
            Err(error) => last = Some(FetchError::Certificate(host.to_owned(), error)),
        }
    }
    Err(last.unwrap_or_else(nowhere))
}

async fn ask(tls: TlsStream<TcpStream>, host: &str) -> Result<Bytes, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get("/.well-known/mta-sts.txt")
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .expect("the request has no part that could be wrong");
    let response = sender.send_request(request).await?;
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

#[cfg(test)]
mod tests {
    use super::may_be_asked;

    #[test]
    fn private_addresses_are_never_asked_for_a_policy() {
        let ip = |text: &str| text.parse().unwrap();
        let all = vec![
            ip("127.0.0.1"),
            ip("10.0.0.1"),
            ip("8.8.8.8"),
            ip("::1"),
            ip("169.254.169.254"),
        ];
        assert_eq!(may_be_asked(all.clone(), false), [ip("8.8.8.8")]);
        assert_eq!(may_be_asked(all, true), [ip("127.0.0.1"), ip("10.0.0.1")]);
    }
}
