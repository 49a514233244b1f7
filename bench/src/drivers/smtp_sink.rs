//! The next hop of the mail cases: takes everything, keeps nothing, counts distinct Message-IDs.
//!
//! Prints `{"smtp":PORT,"count":PORT}`. Whoever connects to the count port reads `DISTINCT TOTAL` and a line end.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use bytes::BytesMut;
use clap::Args;
use memchr::memmem;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[derive(Default)]
struct Seen {
    ids: HashSet<Box<[u8]>>,
    total: u64,
}

#[derive(Args)]
pub(crate) struct Sink {
    /// Offers STARTTLS with the certificate in this directory.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Where it takes mail; a free port if not said.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

pub(crate) fn run(sink: &Sink) -> Result<()> {
    let tls = sink.tls.as_deref().map(acceptor).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (smtp, count) = (
            TcpListener::bind(sink.listen).await?,
            TcpListener::bind("127.0.0.1:0").await?,
        );
        println!(
            "{{\"smtp\":{},\"count\":{}}}",
            smtp.local_addr()?.port(),
            count.local_addr()?.port()
        );
        let seen = Rc::new(RefCell::new(Seen::default()));
        loop {
            tokio::select! {
                accepted = smtp.accept() => {
                    let (stream, _) = accepted?;
                    tokio::task::spawn_local(connection(stream, tls.clone(), Rc::clone(&seen)));
                }
                accepted = count.accept() => {
                    let (mut stream, _) = accepted?;
                    let line = format!("{} {}\n", seen.borrow().ids.len(), seen.borrow().total);
                    let _ = stream.write_all(line.as_bytes()).await;
                }
            }
        }
    })
}

fn acceptor(directory: &Path) -> Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from_pem_file(directory.join("host.pem"))?];
    let key = PrivateKeyDer::from_pem_file(directory.join("host.key"))?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config).into())
}

async fn connection(mut stream: TcpStream, tls: Option<TlsAcceptor>, seen: Rc<RefCell<Seen>>) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink.test ESMTP\r\n").await?;
    if !session(&mut stream, tls.is_some(), &seen).await? {
        return Ok(());
    }
    let Some(tls) = tls else { return Ok(()) };
    let mut stream = tls.accept(stream).await?;
    session(&mut stream, false, &seen).await.map(drop)
}

/// One session; true when the client asked for TLS and may begin.
async fn session<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    offers_tls: bool,
    seen: &RefCell<Seen>,
) -> Result<bool> {
    let mut input = BytesMut::with_capacity(64 * 1024);
    // While in DATA: how much of the input was already searched for the final dot.
    let mut in_data = None;
    loop {
        let mut replies: Vec<u8> = Vec::new();
        loop {
            if let Some(searched) = in_data {
                let Some(end) = end_of_data(&input, searched) else {
                    in_data = Some(input.len());
                    break;
                };
                let mail = input.split_to(end);
                note(&mail, seen);
                in_data = None;
                replies.extend_from_slice(b"250 2.0.0 taken\r\n");
            } else {
                let Some(end) = memmem::find(&input, b"\r\n") else {
                    break;
                };
                let line = input.split_to(end + 2);
                match line.get(..4).map(<[u8]>::to_ascii_uppercase).as_deref() {
                    Some(b"EHLO") => {
                        replies.extend_from_slice(b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n");
                        if offers_tls {
                            replies.extend_from_slice(b"250-STARTTLS\r\n");
                        }
                        replies.extend_from_slice(b"250 SMTPUTF8\r\n");
                    }
                    Some(b"STAR") => {
                        stream.write_all(b"220 2.0.0 go on\r\n").await?;
                        return Ok(true);
                    }
                    Some(b"DATA") => {
                        in_data = Some(0);
                        replies.extend_from_slice(b"354 go on\r\n");
                    }
                    Some(b"QUIT") => {
                        replies.extend_from_slice(b"221 2.0.0 bye\r\n");
                        stream.write_all(&replies).await?;
                        stream.flush().await?;
                        return Ok(false);
                    }
                    _ => replies.extend_from_slice(b"250 2.0.0 ok\r\n"),
                }
            }
        }
        if !replies.is_empty() {
            stream.write_all(&replies).await?;
            stream.flush().await?;
        }
        input.reserve(64 * 1024);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(false);
        }
    }
}

/// Where the mail and its final dot end; the first `searched` bytes do not end one.
fn end_of_data(input: &[u8], searched: usize) -> Option<usize> {
    if input.starts_with(b".\r\n") {
        return Some(3);
    }
    let from = searched.saturating_sub(4);
    memmem::find(&input[from..], b"\r\n.\r\n").map(|at| from + at + 5)
}

fn note(mail: &[u8], seen: &RefCell<Seen>) {
    let mut seen = seen.borrow_mut();
    seen.total += 1;
    let header_end = memmem::find(mail, b"\r\n\r\n").unwrap_or(mail.len());
    for line in mail[..header_end].split(|b| *b == b'\n') {
        if line.len() > 11 && line[..11].eq_ignore_ascii_case(b"message-id:") {
            seen.ids.insert(line[11..].trim_ascii().into());
            return;
        }
    }
}
