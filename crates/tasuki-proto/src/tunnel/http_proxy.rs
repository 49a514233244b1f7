//! A way out through a network's HTTP proxy: `CONNECT` (RFC 9110 9.3.6), as the variable `HTTPS_PROXY` names it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest head of an answer that is read.
pub const MAX_PROXY_ANSWER: usize = 8 * 1024;
/// Where a proxy listens if its URL does not say.
const DEFAULT_PORT: u16 = 80;

/// An HTTP proxy. Its password is a secret: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// `HOST:PORT`.
    pub address: String,
    user: Option<(String, String)>,
}

/// The text is no proxy that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadProxy {
    /// Not a URL with a host.
    #[error("not a proxy's URL, for example http://proxy.example:3128")]
    Malformed,
    /// Another kind of proxy.
    #[error("{0}:// proxies are not supported, only http://")]
    Scheme(String),
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpProxy({})", self.address)
    }
}

impl HttpProxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]`; the scheme may be missing, as in many people's environments.
    ///
    /// # Errors
    /// See [`BadProxy`].
    pub fn parse(text: &str) -> Result<Self, BadProxy> {
        let text = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = url::Url::parse(&text).map_err(|_| BadProxy::Malformed)?;
        if url.scheme() != "http" {
            return Err(BadProxy::Scheme(url.scheme().to_owned()));
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(BadProxy::Malformed)?;
        let user = (!url.username().is_empty()).then(|| {
            let password = url.password().unwrap_or_default();
            (unescape(url.username()), unescape(password))
        });
        Ok(Self {
            address: format!("{host}:{}", url.port().unwrap_or(DEFAULT_PORT)),
            user,
        })
    }

    /// The request for a connection to `target`, `HOST:PORT`.
    #[must_use]
    pub fn request(&self, target: &str) -> Vec<u8> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some((user, password)) = &self.user {
            let both = STANDARD.encode(format!("{user}:{password}"));
            request.push_str(&format!("Proxy-Authorization: Basic {both}\r\n"));
        }
        request.push_str("\r\n");
        request.into_bytes()
    }
}

/// Undoes the percent-encoding of a URL's user and password.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a proxy answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyAnswer {
    /// The head is not complete yet.
    Incomplete,
    /// The connection stands; its bytes begin behind the head.
    Connected,
    /// The proxy refuses, in its own words, such as `407 Proxy Authentication Required`.
    Refused(String),
    /// Not an answer in HTTP.
    Malformed,
}

/// Reads the head of an answer.
#[must_use]
pub fn read_proxy_answer(head: &[u8]) -> ProxyAnswer {
    let is_whole = head.ends_with(b"\r\n\r\n");
    let text = String::from_utf8_lossy(head);
    let line = text.lines().next().unwrap_or_default();
    if !b"HTTP/1.".starts_with(&head[..head.len().min(7)]) && !line.starts_with("HTTP/1.") {
        return ProxyAnswer::Malformed;
    }
    if !is_whole {
        return if head.len() < MAX_PROXY_ANSWER {
            ProxyAnswer::Incomplete
        } else {
            ProxyAnswer::Malformed
        };
    }
    let words = line.split_once(' ').map_or("", |(_, words)| words);
    match words.get(..3).map(str::parse::<u16>) {
        Some(Ok(200..=299)) => ProxyAnswer::Connected,
        Some(Ok(_)) => {
            let words = words.chars().filter(|c| !c.is_control()).take(100);
            ProxyAnswer::Refused(words.collect())
        }
        Some(Err(_)) | None => ProxyAnswer::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_as_environments_name_it() {
        let address = |text| HttpProxy::parse(text).map(|proxy| proxy.address);
        assert_eq!(
            address("http://proxy.example:3128"),
            Ok("proxy.example:3128".into())
        );
        assert_eq!(address("http://proxy.example/"), Ok("proxy.example:80".into()));
        assert_eq!(address("proxy.example:8080"), Ok("proxy.example:8080".into()));
        assert_eq!(
            address("http://[2001:db8::1]:3128"),
            Ok("[2001:db8::1]:3128".into())
        );
        assert_eq!(address("socks5://x:1"), Err(BadProxy::Scheme("socks5".into())));
        assert_eq!(address("https://x"), Err(BadProxy::Scheme("https".into())));
        assert_eq!(address("http://"), Err(BadProxy::Malformed));
    }

    #[test]
    fn user_and_password_go_into_the_request_and_nowhere_else() {
        let proxy = HttpProxy::parse("http://hana%40home:p%3Ass@proxy.example:3128").unwrap();
        let request = String::from_utf8(proxy.request("gate.example:443")).unwrap();
        assert_eq!(
            request,
            "CONNECT gate.example:443 HTTP/1.1\r\nHost: gate.example:443\r\n\
             Proxy-Authorization: Basic aGFuYUBob21lOnA6c3M=\r\n\r\n"
        );
        assert_eq!(format!("{proxy:?}"), "HttpProxy(proxy.example:3128)");
        let plain = HttpProxy::parse("http://proxy.example").unwrap();
        assert!(
            !String::from_utf8(plain.request("a:1"))
                .unwrap()
                .contains("Authorization")
        );
    }

    #[test]
    fn an_answer_is_a_whole_head_with_a_status() {
        let check = |head: &[u8], expect| assert_eq!(read_proxy_answer(head), expect);
        check(b"", ProxyAnswer::Incomplete);
        check(b"HTT", ProxyAnswer::Incomplete);
        check(b"HTTP/1.1 200 OK\r\nVia: x\r\n", ProxyAnswer::Incomplete);
        check(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n", ProxyAnswer::Connected);
        check(
            b"HTTP/1.0 200 Connection established\r\n\r\n",
            ProxyAnswer::Connected,
        );
        check(
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            ProxyAnswer::Refused("407 Proxy Authentication Required".into()),
        );
        check(b"SSH-2.0-x\r\n", ProxyAnswer::Malformed);
        check(b"HTTP/1.1 \r\n\r\n", ProxyAnswer::Malformed);
        check(&[b'H'; 3], ProxyAnswer::Malformed);
        let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
        endless.resize(MAX_PROXY_ANSWER, b'x');
        check(&endless, ProxyAnswer::Malformed);
    }
}
