//! The two far ends of a mail: a sender that uses STARTTLS and AUTH, and a sink that keeps what it is given.
//!
//! They are small on purpose and share nothing with the mail engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_LINE_BYTES: u64 = 4096;
const MAX_MAIL_BYTES: usize = 1 << 20;

/// A mail as the sink got it.
pub(super) struct Caught {
    /// MAIL FROM and RCPT TO, as sent.
    pub(super) envelope: Vec<String>,
    /// The message after taking out dot-stuffing.
    pub(super) message: Vec<u8>,
}

/// Binds the sink; its mails come out of the receiver.
pub(super) async fn sink() -> Result<(SocketAddr, mpsc::Receiver<Caught>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("the mail sink cannot listen")?;
    let addr = listener.local_addr()?;
    let (caught, mails) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let caught = caught.clone();
            tokio::spawn(async move {
                let _ = receive(stream, caught).await;
            });
        }
    });
    Ok((addr, mails))
}

async fn receive(stream: TcpStream, caught: mpsc::Sender<Caught>) -> Result<()> {
    let mut io = BufReader::new(stream);
    say(&mut io, "220 sink.demo.test ESMTP").await?;
    let mut envelope = Vec::new();
    loop {
        let line = read_line(&mut io).await?;
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => say(&mut io, "250-sink.demo.test\r\n250-8BITMIME\r\n250 SIZE 1048576").await?,
            "HELO" | "NOOP" => say(&mut io, "250 sink.demo.test").await?,
            "RSET" => {
                envelope.clear();
                say(&mut io, "250 2.0.0 as new").await?;
            }
            "MAIL" | "RCPT" => {
                envelope.push(line);
                say(&mut io, "250 2.1.0 well").await?;
            }
            "DATA" => {
                say(&mut io, "354 go on").await?;
                let message = read_data(&mut io).await?;
                caught
                    .send(Caught {
                        envelope: std::mem::take(&mut envelope),
                        message,
                    })
                    .await?;
                say(&mut io, "250 2.0.0 caught").await?;
            }
            "QUIT" => return say(&mut io, "221 2.0.0 bye").await,
            _ => say(&mut io, "502 5.5.1 a sink knows little").await?,
        }
    }
}

async fn read_data<S: AsyncRead + AsyncWrite + Unpin>(io: &mut BufReader<S>) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let mut line = Vec::new();
        timeout(
            PATIENCE,
            io.take(MAX_MAIL_BYTES as u64).read_until(b'\n', &mut line),
        )
        .await??;
        ensure!(line.ends_with(b"\r\n"), "a line of the message has no CRLF");
        if line == b".\r\n" {
            return Ok(message);
        }
        // RFC 5321 4.5.2: the sender doubled a dot at a line's start.
        message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        ensure!(message.len() <= MAX_MAIL_BYTES, "the message is too long");
    }
}

/// What the sender needs to know.
pub(super) struct Sender<'a> {
    pub(super) submission: SocketAddr,
    /// The gateway's private CA.
    pub(super) trust: Arc<rustls::ClientConfig>,
    /// The name in the gateway's certificate.
    pub(super) server_name: String,
    pub(super) login: &'a str,
    pub(super) password: &'a str,
}

/// Hands `message` in: EHLO, STARTTLS, AUTH PLAIN, one transaction. Returns the final reply.
pub(super) async fn send(sender: &Sender<'_>, from: &str, to: &str, message: &[u8]) -> Result<String> {
    let stream = TcpStream::connect(sender.submission)
        .await
        .with_context(|| format!("cannot connect to {}", sender.submission))?;
    let mut io = BufReader::new(stream);
    expect(&mut io, "220").await?;
    let offers = ask(&mut io, "EHLO client.demo.test", "250").await?;
    ensure!(
        offers.contains("STARTTLS"),
        "the gateway offers no STARTTLS: {offers}"
    );
    ensure!(!offers.contains("AUTH"), "the gateway offers AUTH without TLS");
    ask(&mut io, "STARTTLS", "220").await?;
    let name = rustls::pki_types::ServerName::try_from(sender.server_name.clone())?;
    let tls = tokio_rustls::TlsConnector::from(Arc::clone(&sender.trust))
        .connect(name, io.into_inner())
        .await
        .context("the TLS handshake failed")?;
    let mut io = BufReader::new(tls);
    let offers = ask(&mut io, "EHLO client.demo.test", "250").await?;
    ensure!(
        offers.contains("AUTH"),
        "the gateway offers no AUTH under TLS: {offers}"
    );
    let plain = STANDARD.encode(format!("\0{}\0{}", sender.login, sender.password));
    ask(&mut io, &format!("AUTH PLAIN {plain}"), "235").await?;
    ask(&mut io, &format!("MAIL FROM:<{from}>"), "250").await?;
    ask(&mut io, &format!("RCPT TO:<{to}>"), "250").await?;
    ask(&mut io, "DATA", "354").await?;
    let mut stuffed = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    io.get_mut().write_all(&stuffed).await?;
    io.get_mut().flush().await?;
    let accepted = expect(&mut io, "250").await?;
    let _ = ask(&mut io, "QUIT", "221").await;
    Ok(accepted)
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut BufReader<S>,
    line: &str,
    code: &str,
) -> Result<String> {
    say(io, line).await?;
    // A secret must not come back in an error.
    let what = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    expect(io, code).await.with_context(|| what)
}

async fn expect<S: AsyncRead + AsyncWrite + Unpin>(io: &mut BufReader<S>, code: &str) -> Result<String> {
    let mut all = String::new();
    loop {
        let line = read_line(io).await?;
        let last = line.as_bytes().get(3) != Some(&b'-');
        all.push_str(&line);
        all.push('\n');
        if !line.starts_with(code) {
            bail!("{code} was expected, the answer is: {line}");
        }
        if last {
            return Ok(all.trim_end().to_owned());
        }
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(io: &mut BufReader<S>, line: &str) -> Result<()> {
    let text = format!("{line}\r\n");
    timeout(PATIENCE, async {
        io.get_mut().write_all(text.as_bytes()).await?;
        io.get_mut().flush().await
    })
    .await??;
    Ok(())
}

async fn read_line<S: AsyncRead + Unpin>(io: &mut BufReader<S>) -> Result<String> {
    let mut line = Vec::new();
    let n = timeout(PATIENCE, io.take(MAX_LINE_BYTES).read_until(b'\n', &mut line))
        .await
        .context("no answer within 10 s")??;
    ensure!(n > 0, "the other end closed the connection");
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
