//! A client that speaks line by line.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use tasuki_core::tls::Tls;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// A client that sends lines and reads replies.
pub(crate) struct Talk<S> {
    stream: S,
    input: BytesMut,
}

impl Talk<TcpStream> {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let mut talk = Self {
            stream: TcpStream::connect(addr).await.unwrap(),
            input: BytesMut::new(),
        };
        let banner = talk.reply().await;
        assert!(banner.starts_with("220"), "{banner}");
        talk
    }

    pub(crate) async fn start_tls_by(
        self,
        config: Arc<rustls::ClientConfig>,
    ) -> Talk<tokio_rustls::client::TlsStream<TcpStream>> {
        Talk::by(self.stream, config).await
    }

    pub(crate) async fn start_tls(self, tls: &Tls) -> Talk<tokio_rustls::client::TlsStream<TcpStream>> {
        Talk::over_tls(self.stream, tls).await
    }
}

impl Talk<tokio_rustls::client::TlsStream<TcpStream>> {
    /// The group in which the keys were agreed on.
    pub(crate) fn group(&self) -> Option<rustls::NamedGroup> {
        let group = self.stream.get_ref().1.negotiated_key_exchange_group();
        group.map(|group| group.name())
    }

    /// The banner, if one is due, is left to be read.
    pub(crate) async fn over_tls(stream: TcpStream, tls: &Tls) -> Self {
        Self::by(stream, tls.client()).await
    }

    /// The same as a client of this configuration.
    pub(crate) async fn by(stream: TcpStream, config: Arc<rustls::ClientConfig>) -> Self {
        let name = rustls_pki_types::ServerName::try_from("relay.example").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap();
        Self {
            stream,
            input: BytesMut::new(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Whoever is at the other end has said nothing yet.
    pub(crate) fn on(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
        }
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.send_octets(text.as_bytes()).await;
    }

    pub(crate) async fn send_octets(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what may not be taken any more.
    pub(crate) async fn try_send(&mut self, octets: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(octets).await?;
        self.stream.flush().await
    }

    /// The reply, if one comes in this time.
    pub(crate) async fn reply_within(&mut self, time: Duration) -> Option<String> {
        let waits = tokio::time::timeout(time, self.stream.read_buf(&mut self.input)).await;
        if waits.is_err() {
            return None;
        }
        Some(self.reply().await)
    }

    /// No more will be sent; replies are still read.
    pub(crate) async fn close_half(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// One whole reply, its lines joined by `\n`; empty at the end.
    pub(crate) async fn reply(&mut self) -> String {
        let read = async {
            let mut lines: Vec<String> = Vec::new();
            loop {
                while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                    let line = self.input.split_to(end + 1);
                    let line = String::from_utf8(line.to_vec()).unwrap().trim_end().to_owned();
                    let last = line.as_bytes().get(3) != Some(&b'-');
                    lines.push(line);
                    if last {
                        return lines.join("\n");
                    }
                }
                if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                    return lines.join("\n");
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("a reply in time")
    }

    pub(crate) async fn ask(&mut self, line: &str) -> String {
        self.send(&format!("{line}\r\n")).await;
        self.reply().await
    }

    pub(crate) async fn expect(&mut self, line: &str, start: &str) -> String {
        let reply = self.ask(line).await;
        assert!(reply.starts_with(start), "{line} was answered by {reply}");
        reply
    }

    /// Sends a mail in one transaction; the final reply.
    pub(crate) async fn mail(&mut self, from: &str, to: &[&str], text: &str) -> String {
        self.expect(&format!("MAIL FROM:<{from}>"), "250").await;
        for to in to {
            self.expect(&format!("RCPT TO:<{to}>"), "250").await;
        }
        self.expect("DATA", "354").await;
        self.send(&format!("{text}\r\n.\r\n")).await;
        self.reply().await
    }
}
