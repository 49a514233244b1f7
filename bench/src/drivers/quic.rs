//! A bare QUIC copy: what a tunnel costs at least when each connection is one stream of quinn.
//!
//! The server takes visitors by TCP and opens a stream for each; the client joins each stream to the local server.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use quinn::{Endpoint, EndpointConfig, TransportConfig, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Args)]
pub(crate) struct Server {
    /// Where to write the certificate that the client trusts.
    #[arg(long)]
    certificate: PathBuf,
}

#[derive(Args)]
pub(crate) struct Client {
    #[arg(long)]
    certificate: PathBuf,
    #[arg(long)]
    gateway: SocketAddr,
    #[arg(long)]
    local: SocketAddr,
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(16_384));
    transport.stream_receive_window(VarInt::from_u32(4 << 20));
    transport.receive_window(VarInt::from_u32(32 << 20));
    transport.send_window(8 << 20);
    Arc::new(transport)
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(4 << 20)?;
    options.set_send_buffer_size(4 << 20)?;
    Ok(socket)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Prints `{"quic":PORT,"tcp":PORT}` and serves until it is ended.
pub(crate) fn server(server: &Server) -> Result<()> {
    runtime()?.block_on(async {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(&server.certificate, made.cert.der())?;
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut config = quinn::ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into())?;
        config.transport_config(transport());
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            Some(config),
            socket()?,
            Arc::new(quinn::TokioRuntime),
        )?;
        let visitors = TcpListener::bind("127.0.0.1:0").await?;
        println!(
            "{{\"quic\":{},\"tcp\":{}}}",
            endpoint.local_addr()?.port(),
            visitors.local_addr()?.port()
        );
        let home = endpoint.accept().await.context("endpoint closed")?.await?;
        loop {
            let (visitor, _) = visitors.accept().await?;
            let home = home.clone();
            tokio::spawn(async move {
                visitor.set_nodelay(true)?;
                let (send, receive) = home.open_bi().await?;
                join(visitor, send, receive).await
            });
        }
    })
}

/// Serves until it is ended.
pub(crate) fn client(client: &Client) -> Result<()> {
    runtime()?.block_on(async {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(std::fs::read(&client.certificate)?.into())?;
        let mut config = quinn::ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(transport());
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket()?,
            Arc::new(quinn::TokioRuntime),
        )?;
        let gateway = endpoint
            .connect_with(config, client.gateway, "localhost")?
            .await?;
        println!("joined");
        loop {
            let (send, receive) = gateway.accept_bi().await?;
            let local = client.local;
            tokio::spawn(async move {
                let local = TcpStream::connect(local).await?;
                local.set_nodelay(true)?;
                join(local, send, receive).await
            });
        }
    })
}

async fn join(tcp: TcpStream, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<()> {
    let (mut read, mut write) = tcp.into_split();
    let out = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = read.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            send.write_all(&buffer[..n]).await?;
        }
        send.finish()?;
        anyhow::Ok(())
    };
    let back = async {
        while let Some(chunk) = receive.read_chunk(64 * 1024, true).await? {
            write.write_all(&chunk.bytes).await?;
        }
        write.shutdown().await?;
        anyhow::Ok(())
    };
    tokio::try_join!(out, back)?;
    Ok(())
}
