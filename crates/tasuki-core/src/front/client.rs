//! Who the client is, when proxies stand between: PROXY headers and forwarding headers, from trusted peers alone.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::net::{ClientAddr, unmapped};

/// The header that most proxies set.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Hops that are looked at, from the nearest.
const MAX_HOPS: usize = 16;
/// Longest PROXY header that is taken: version 2 with the TLVs of large providers stays far below.
pub(super) const MAX_PROXY_HEADER_BYTES: usize = 2048;

/// Whether `ip` lies in one of `nets`.
pub(super) fn is_in(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = unmapped(ip);
    nets.iter().any(|net| net.contains(&ip))
}

/// Whether the request says that it came through a proxy.
pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED)
}

/// The client of a request: `peer`, or the last hop that is not a trusted proxy itself.
///
/// `X-Forwarded-For` is believed before `Forwarded` (RFC 7239): most proxies set the former and hand on the latter as
/// the client wrote it.
pub(super) fn of_request(peer: ClientAddr, headers: &HeaderMap, trusted: &[IpNet]) -> ClientAddr {
    let mut client = peer;
    if !is_in(trusted, peer.0.ip()) {
        return client;
    }
    let hops = if headers.contains_key(X_FORWARDED_FOR) {
        hops(headers, &X_FORWARDED_FOR, node)
    } else {
        hops(headers, &FORWARDED, forwarded_for)
    };
    for hop in hops {
        // An unknown or hidden hop: what lies behind it is not vouched for by anybody we trust.
        let Some(hop) = hop else { break };
        client = ClientAddr(hop);
        if !is_in(trusted, hop.ip()) {
            break;
        }
    }
    client
}

/// The elements of all lines of a list header, the last one first.
fn hops(
    headers: &HeaderMap,
    name: &HeaderName,
    read: fn(&str) -> Option<SocketAddr>,
) -> Vec<Option<SocketAddr>> {
    let lines: Vec<&str> = headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().unwrap_or(""))
        .collect();
    lines
        .iter()
        .rev()
        .flat_map(|line| line.rsplit(','))
        .take(MAX_HOPS)
        .map(|element| read(element.trim()))
        .collect()
}

/// RFC 7239 4: the `for` parameter of one element.
fn forwarded_for(element: &str) -> Option<SocketAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| node(value.trim().trim_matches('"')))?
    })
}

/// An address with or without port, IPv6 with or without brackets.
fn node(text: &str) -> Option<SocketAddr> {
    let with_port = |addr: SocketAddr| SocketAddr::new(unmapped(addr.ip()), addr.port());
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(with_port(addr));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .ok()
        .map(|ip| SocketAddr::new(unmapped(ip), 0))
}

/// What the first bytes of a connection say by PROXY.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// More bytes are needed.
    Incomplete,
    /// The header takes so many bytes; the client, unless the proxy speaks for itself (LOCAL, UNKNOWN).
    Header(usize, Option<ClientAddr>),
    /// No PROXY header.
    Malformed,
}

/// Reads a PROXY header of version 1 or 2.
pub(super) fn read_proxy_header(bytes: &[u8]) -> Proxied {
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((header, size)) => {
            let client = header
                .proxied_address()
                .map(|addr| ClientAddr(SocketAddr::new(unmapped(addr.source.ip()), addr.source.port())));
            Proxied::Header(size, client)
        }
        Err(Error::BufferTooShort) if bytes.len() < MAX_PROXY_HEADER_BYTES => Proxied::Incomplete,
        Err(_) => Proxied::Malformed,
    }
}

/// Reads the PROXY header (version 1 or 2) with which `stream` must begin, and nothing behind it. The client that it
/// names; `None` if the proxy speaks for itself. The caller sets the deadline.
///
/// # Errors
/// The stream's; [`io::ErrorKind::InvalidData`] if it begins with anything else.
pub async fn read_proxied(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::with_capacity(128);
    loop {
        // One octet at a time, so that none of what follows is taken: the proxy may have sent more in the same segment.
        bytes.push(stream.read_u8().await?);
        match read_proxy_header(&bytes) {
            Proxied::Header(_, client) => return Ok(client.map(|client| client.0)),
            Proxied::Incomplete => {}
            Proxied::Malformed => {
                let problem = "a PROXY header was required";
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientAddr, HeaderMap, Proxied, of_request, read_proxy_header};

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn check(peer: &str, lines: &[(&'static str, &str)], expect: &str) {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let peer = ClientAddr(peer.parse().unwrap());
        let client = of_request(peer, &headers(lines), &trusted);
        assert_eq!(client.0.to_string(), expect, "{lines:?}");
    }

    #[test]
    fn only_a_trusted_peer_is_believed_and_only_up_to_the_last_untrusted_hop() {
        const XFF: &str = "x-forwarded-for";
        check("192.0.2.1:5", &[(XFF, "198.51.100.9")], "192.0.2.1:5");
        check("10.0.0.1:5", &[(XFF, "198.51.100.9")], "198.51.100.9:0");
        check(
            "10.0.0.1:5",
            &[(XFF, "1.1.1.1, 198.51.100.9, 10.2.2.2")],
            "198.51.100.9:0",
        );
        check(
            "10.0.0.1:5",
            &[(XFF, "1.1.1.1"), (XFF, "198.51.100.9:77")],
            "198.51.100.9:77",
        );
        check("10.0.0.1:5", &[(XFF, "1.1.1.1, unknown, 10.2.2.2")], "10.2.2.2:0");
        check("10.0.0.1:5", &[(XFF, "garbage")], "10.0.0.1:5");
        check("[::1]:5", &[(XFF, "2001:db8::7")], "[2001:db8::7]:0");
        check("[::1]:5", &[(XFF, "::ffff:198.51.100.9")], "198.51.100.9:0");
    }

    #[test]
    fn forwarded_is_read_when_the_other_header_is_absent() {
        const F: &str = "forwarded";
        check(
            "10.0.0.1:5",
            &[(F, "for=198.51.100.9;proto=https")],
            "198.51.100.9:0",
        );
        check(
            "10.0.0.1:5",
            &[(F, "proto=http; For=\"[2001:db8::7]:443\"")],
            "[2001:db8::7]:443",
        );
        check("10.0.0.1:5", &[(F, "for=1.1.1.1, for=_hidden")], "10.0.0.1:5");
        let both = [(F, "for=1.1.1.1"), ("x-forwarded-for", "198.51.100.9")];
        check("10.0.0.1:5", &both, "198.51.100.9:0");
    }

    #[test]
    fn proxy_headers_of_both_versions_are_read_and_others_refused() {
        let v1 = b"PROXY TCP4 198.51.100.9 192.0.2.1 77 443\r\nGET /";
        let client = Some(ClientAddr("198.51.100.9:77".parse().unwrap()));
        assert_eq!(read_proxy_header(v1), Proxied::Header(42, client));
        assert_eq!(read_proxy_header(&v1[..20]), Proxied::Incomplete);
        assert_eq!(read_proxy_header(b"PROXY UNKNOWN\r\n"), Proxied::Header(15, None));
        assert_eq!(read_proxy_header(b"GET / HTTP/1.1\r\n"), Proxied::Malformed);
        let mut long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
        long.resize(super::MAX_PROXY_HEADER_BYTES, 0);
        assert_eq!(read_proxy_header(&long), Proxied::Malformed);
    }

    #[tokio::test]
    async fn nothing_behind_the_header_is_taken() {
        let v1 = b"PROXY TCP4 198.51.100.9 192.0.2.1 77 25\r\n".to_vec();
        let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        v2.extend([198, 51, 100, 9, 192, 0, 2, 1, 0, 77, 0, 25]);
        for header in [v1, v2] {
            let wire = [header.as_slice(), b"EHLO c\r\n"].concat();
            let mut stream = wire.as_slice();
            let client = super::read_proxied(&mut stream).await.unwrap();
            assert_eq!(client, Some("198.51.100.9:77".parse().unwrap()));
            assert_eq!(stream, b"EHLO c\r\n");
        }
        let mut stream = b"EHLO c\r\n".as_slice();
        assert!(super::read_proxied(&mut stream).await.is_err());
        let mut stream = b"PROXY TC".as_slice();
        assert!(super::read_proxied(&mut stream).await.is_err());
    }
}
