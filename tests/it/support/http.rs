//! HTTP/1.1 by hand: exactly the bytes a test wants, and answers of any kind.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Sends `request` as it is and reads one answer.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    // A server may answer and close before it read everything: the answer counts.
    let sent = stream.write_all(request);
    let answer = read_answer(&mut stream);
    if answer.is_err() {
        sent?;
    }
    answer
}

pub(crate) fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                String::from_utf8_lossy(&bytes).into_owned(),
            ));
        }
        bytes.extend_from_slice(&chunk[..n]);
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let mut answer = Answer {
        status,
        head,
        body: bytes.split_off(head_end),
    };
    if let Some(length) = answer
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok())
    {
        while answer.body.len() < length {
            let mut chunk = [0; 65536];
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            answer.body.extend_from_slice(&chunk[..n]);
        }
    } else if answer
        .header("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        stream.read_to_end(&mut answer.body)?;
        answer.body = unchunk(&answer.body);
    } else {
        stream.read_to_end(&mut answer.body)?;
    }
    Ok(answer)
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&bytes[..at]).trim(), 16).unwrap_or(0);
        if size == 0 || bytes.len() < at + 2 + size + 2 {
            break;
        }
        body.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        bytes = &bytes[at + 2 + size + 2..];
    }
    body
}

/// A GET with a `Host`; more header lines each end with CRLF.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str, headers: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    exchange(address, request.as_bytes()).unwrap_or_else(|error| panic!("GET {path} at {address}: {error}"))
}

pub(crate) fn post(address: SocketAddr, host: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    exchange(address, &request).unwrap_or_else(|error| panic!("POST {path} at {address}: {error}"))
}
