//! The header of a request on its way from a visitor to a web server at home, and of the answer on its way back.
//!
//! Each request travels on a connection of its own that carries nothing else, and its framing is written anew: there is no
//! next request in which smuggled bytes could end up.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};

/// RFC 9110 7.6.1, and what older clients use.
const HOP_BY_HOP: [&str; 6] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "http2-settings",
    // Servers that make it an environment variable would take it for their own outgoing proxy.
    "proxy",
];
/// What only a gateway may say of the visitor.
const OURS: [&str; 6] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
];

/// Who asks, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) from: SocketAddr,
    pub(super) secure: bool,
}

/// Why a request is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) detail: &'static str,
}

/// Whether the client wants to go on in another protocol, and may.
///
/// Only from HTTP/1.1 (RFC 9110 7.8), only without a body, and not to HTTP/2 in clear text: that would be a connection of
/// its own, past everything that is checked here.
pub(super) fn wants_upgrade(parts: &Parts, has_body: bool) -> bool {
    let mut protocols = parts.headers.get_all(UPGRADE).iter();
    let protocol = match (protocols.next(), protocols.next()) {
        (Some(protocol), None) => protocol.as_bytes(),
        _ => return false,
    };
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && !has_body
        && !protocol.to_ascii_lowercase().starts_with(b"h2c")
        && tokens(&parts.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Makes the request one of HTTP/1.1 for the server at home.
///
/// # Errors
/// It is one that a gateway does not carry.
pub(super) fn to_server(parts: &mut Parts, asker: Asker, upgrade: bool) -> Result<(), Refused> {
    if parts.method == Method::CONNECT {
        return Err(Refused {
            status: StatusCode::METHOD_NOT_ALLOWED,
            detail: "this gateway is no proxy",
        });
    }
    let host = host_of(parts)?;
    let path = match parts.uri.path_and_query() {
        Some(path) => path.clone(),
        // OPTIONS * (RFC 9110 7.1).
        None => PathAndQuery::from_static("/"),
    };
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    let headers = &mut parts.headers;
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgrade);
    let takes_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip(headers);
    // The front door has answered it by beginning to read the body.
    headers.remove(EXPECT);
    for name in OURS {
        headers.remove(name);
    }
    headers.remove(FORWARDED);
    join_cookies(headers);
    headers.insert(HOST, host.clone());
    let ip = asker.from.ip().to_canonical();
    let proto = if asker.secure { "https" } else { "http" };
    let mut put = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    put("x-forwarded-for", &ip.to_string());
    put("x-real-ip", &ip.to_string());
    put("x-forwarded-proto", proto);
    let host = host.to_str().unwrap_or_default();
    put("x-forwarded-host", host);
    put(
        "forwarded",
        &forwarded(SocketAddr::new(ip, asker.from.port()), host, proto),
    );
    match protocol {
        Some(protocol) => {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol);
        }
        None if takes_trailers => {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("close, te"));
        }
        None => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Ok(())
}

/// Takes out of an answer what was meant for the connection to home alone.
pub(super) fn to_visitor(headers: &mut HeaderMap, upgraded: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgraded);
    let length = headers.get(CONTENT_LENGTH).cloned();
    strip(headers);
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length);
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// The host as the client wrote it; in HTTP/2 it stands in the target.
fn host_of(parts: &Parts) -> Result<HeaderValue, Refused> {
    let bad = Refused {
        status: StatusCode::BAD_REQUEST,
        detail: "the request names no host",
    };
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).map_err(|_| bad),
        None => parts.headers.get(HOST).cloned().ok_or(bad),
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
}

/// RFC 9110 7.6.1: what a connection's own header fields are, the client says itself. The lengths go too: the body says
/// how long it is.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        UPGRADE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        CONTENT_LENGTH,
    ] {
        headers.remove(name);
    }
}

/// RFC 9113 8.2.3: HTTP/2 may send cookies in several lines, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// RFC 7239 4.
fn forwarded(from: SocketAddr, host: &str, proto: &str) -> String {
    let node = match from.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let host = host.replace(['"', '\\'], "");
    format!("for={node};host=\"{host}\";proto={proto}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::Request;

    use super::*;

    fn asked(lines: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("/a?b").header("host", "home.example:8443");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn sent(lines: &[(&str, &str)]) -> HeaderMap {
        let mut parts = asked(lines);
        let asker = Asker {
            from: "[2001:db8::7]:4711".parse().unwrap(),
            secure: true,
        };
        let upgrade = wants_upgrade(&parts, false);
        to_server(&mut parts, asker, upgrade).unwrap();
        assert_eq!(parts.uri, "/a?b");
        parts.headers
    }

    #[test]
    fn the_server_reads_who_asked_and_nothing_that_the_client_claims_about_it() {
        let headers = sent(&[
            ("x-forwarded-for", "192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("forwarded", "for=192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("connection", "X-Forwarded-For, x-secret"),
            ("x-secret", "for this connection alone"),
            ("keep-alive", "5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
        ]);
        assert_eq!(headers["x-forwarded-for"], "2001:db8::7");
        assert_eq!(headers["x-real-ip"], "2001:db8::7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "home.example:8443");
        assert_eq!(headers["host"], "home.example:8443");
        assert_eq!(
            headers["forwarded"],
            "for=\"[2001:db8::7]\";host=\"home.example:8443\";proto=https"
        );
        assert_eq!(headers["connection"], "close, te");
        assert_eq!(headers["te"], "trailers");
        for gone in ["x-secret", "keep-alive", "transfer-encoding", "expect"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn a_websocket_is_upgraded_and_http_2_in_clear_text_is_not() {
        let headers = sent(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (
                &HeaderValue::from_static("upgrade"),
                &HeaderValue::from_static("websocket")
            )
        );
        for lines in [
            &[
                ("connection", "upgrade, http2-settings"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABk"),
            ][..],
            &[("upgrade", "websocket")],
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("upgrade", "h2c"),
            ],
        ] {
            let headers = sent(lines);
            assert_eq!(headers["connection"], "close", "{lines:?}");
            assert!(!headers.contains_key("upgrade") && !headers.contains_key("http2-settings"));
        }
    }

    #[test]
    fn cookies_of_http_2_become_one_line() {
        let headers = sent(&[("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn a_gateway_is_no_proxy() {
        let mut parts = asked(&[]);
        parts.method = Method::CONNECT;
        let asker = Asker {
            from: "192.0.2.1:1".parse().unwrap(),
            secure: false,
        };
        let refused = to_server(&mut parts, asker, false).unwrap_err();
        assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
