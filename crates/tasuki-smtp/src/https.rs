//! Requests to web servers that other domains' DNS names: over HTTPS with a certificate for the name, to public addresses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tasuki_core::net::is_special;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{config::Settings, context::Context, dns::LookupError};

/// For one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Most addresses tried.
const MAX_ADDRESSES: usize = 2;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpsError {
    #[error("{0}")]
    Lookup(#[from] LookupError),
    #[error("{0} has no address that may be asked")]
    Address(String),
    #[error("no connection: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no TLS with a certificate for {0}: {1}")]
    Certificate(String, #[source] std::io::Error),
    #[error("no proper answer: {0}")]
    Http(#[from] hyper::Error),
}

/// An answer whose body is still to be read; it ends with this.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    _driver: JoinSet<Result<(), hyper::Error>>,
}

/// Asks a server; redirects are the caller's to follow, who does not. The caller bounds the time.
pub(crate) async fn ask(
    context: &Context,
    settings: &Settings,
    (host, port): (&str, u16),
    request: Request<Full<Bytes>>,
) -> Result<Answer, HttpsError> {
    let found = context.resolver.addresses(host).await?;
    let allowed = may_be_asked(found, settings.delivery.danger_private_addresses);
    let nowhere = || HttpsError::Address(host.to_owned());
    let name = ServerName::try_from(host.to_owned()).map_err(|_| nowhere())?;
    let mut last = None;
    for ip in allowed {
        let dial = TcpStream::connect(SocketAddr::new(ip, port));
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let stream = match timeout(CONNECT_TIMEOUT, dial).await.map_err(late).flatten() {
            Ok(stream) => stream,
            Err(error) => {
                last = Some(HttpsError::Connect(error));
                continue;
            }
        };
        let connector = TlsConnector::from(context.deps.tls.client());
        match connector.connect(name.clone(), stream).await {
            Ok(tls) => {
                let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
                let mut driver = JoinSet::new();
                driver.spawn(connection);
                let response = sender.send_request(request).await?;
                return Ok(Answer {
                    response,
                    _driver: driver,
                });
            }
            Err(error) => last = Some(HttpsError::Certificate(host.to_owned(), error)),
        }
    }
    Err(last.unwrap_or_else(nowhere))
}

/// Anybody's DNS names these addresses: ours, and those behind us, are none of their business.
fn may_be_asked(mut addresses: Vec<IpAddr>, private_too: bool) -> Vec<IpAddr> {
    addresses.retain(|ip| private_too || !is_special(*ip));
    addresses.truncate(MAX_ADDRESSES);
    addresses
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
