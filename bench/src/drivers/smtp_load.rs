//! Senders of mail that can do what `smtp-source` cannot: STARTTLS, and recipients in many domains.
//!
//! One command at a time, as `smtp-source` does; each sender keeps its connection.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

#[derive(Args)]
pub(crate) struct Load {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    senders: usize,
    #[arg(long)]
    messages: usize,
    /// Bytes of each body.
    #[arg(long)]
    size: usize,
    /// The recipients' domains: d0.sink.test, d1.sink.test, ...
    #[arg(long, default_value_t = 1)]
    domains: usize,
    /// STARTTLS, believing the certificates of this file.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Numbers the first message, so that no Message-ID comes twice.
    #[arg(long, default_value_t = 0)]
    from: usize,
}

/// Ends when every message has its reply.
pub(crate) fn run(load: &Load) -> Result<()> {
    let tls = load.tls.as_ref().map(connector).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let next = Arc::new(AtomicUsize::new(0));
        let body: Arc<[u8]> = body(load.size).into();
        let senders: Vec<_> = (0..load.senders)
            .map(|_| {
                let plan = Plan {
                    next: Arc::clone(&next),
                    messages: load.messages,
                    from: load.from,
                    domains: load.domains,
                    body: Arc::clone(&body),
                };
                let (to, tls) = (load.to, tls.clone());
                tokio::spawn(async move { sender(to, tls, plan).await })
            })
            .collect();
        for sender in senders {
            sender.await??;
        }
        Ok(())
    })
}

fn connector(ca: &PathBuf) -> Result<tokio_rustls::TlsConnector> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(ca)?)?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

fn body(size: usize) -> Vec<u8> {
    let line = [b'X'; 78];
    let mut body = Vec::with_capacity(size + 80);
    while body.len() < size {
        body.extend_from_slice(&line);
        body.extend_from_slice(b"\r\n");
    }
    body
}

struct Plan {
    next: Arc<AtomicUsize>,
    messages: usize,
    from: usize,
    domains: usize,
    body: Arc<[u8]>,
}

async fn sender(to: SocketAddr, tls: Option<tokio_rustls::TlsConnector>, plan: Plan) -> Result<()> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut plain = BufReader::new(stream);
    expect(&mut plain, "220").await?;
    say(&mut plain, "EHLO load.bench.test\r\n", "250").await?;
    let Some(tls) = tls else {
        return mails(plain, &plan).await;
    };
    say(&mut plain, "STARTTLS\r\n", "220").await?;
    let name = rustls_pki_types::ServerName::try_from("relay.bench.test")?;
    let mut sealed = BufReader::new(tls.connect(name, plain.into_inner()).await?);
    say(&mut sealed, "EHLO load.bench.test\r\n", "250").await?;
    mails(sealed, &plan).await
}

async fn mails<S: AsyncRead + AsyncWrite + Unpin>(mut stream: BufReader<S>, plan: &Plan) -> Result<()> {
    loop {
        let n = plan.next.fetch_add(1, Ordering::Relaxed);
        if n >= plan.messages {
            say(&mut stream, "QUIT\r\n", "221").await?;
            return Ok(());
        }
        let (number, domain) = (plan.from + n, n % plan.domains);
        say(&mut stream, "MAIL FROM:<sender@bench.test>\r\n", "250").await?;
        let recipient = format!("RCPT TO:<recipient@d{domain}.sink.test>\r\n");
        say(&mut stream, &recipient, "250").await?;
        say(&mut stream, "DATA\r\n", "354").await?;
        let header = format!(
            "From: <sender@bench.test>\r\nTo: <recipient@d{domain}.sink.test>\r\nDate: Tue, 24 Nov 2026 00:00:00 +0000\r\n\
             Message-ID: <{number}@load.bench.test>\r\nSubject: bench\r\n\r\n"
        );
        stream.write_all(header.as_bytes()).await?;
        stream.write_all(&plan.body).await?;
        say(&mut stream, ".\r\n", "250").await?;
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    command: &str,
    code: &str,
) -> Result<()> {
    stream.write_all(command.as_bytes()).await?;
    stream.flush().await?;
    expect(stream, code)
        .await
        .with_context(|| format!("after {}", command.trim_end()))
}

/// Reads one reply, all its lines.
async fn expect<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, code: &str) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the server closed the connection");
        }
        if !line.starts_with(code) {
            bail!("the server answered {}", line.trim_end());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

#[derive(Args)]
pub(crate) struct Idle {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    connections: usize,
}

/// Opens connections, each greeted and through EHLO; prints `ready` and holds them.
pub(crate) fn idle(idle: &Idle) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut held = Vec::with_capacity(idle.connections);
        for _ in 0..idle.connections {
            // Small buffers: only the server's memory is of interest.
            let mut stream = BufReader::with_capacity(512, TcpStream::connect(idle.to).await?);
            expect(&mut stream, "220").await?;
            say(&mut stream, "EHLO load.bench.test\r\n", "250").await?;
            held.push(stream);
        }
        println!("ready");
        std::future::pending().await
    })
}
