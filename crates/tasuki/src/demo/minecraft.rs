//! The two far ends of the tunnel: a server that answers the server list's question, and a client that asks it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_PACKET_BYTES: usize = 32 << 10;
/// Protocol number of 1.21; any would do.
const PROTOCOL: i32 = 767;

/// Starts a server whose status is `status` (JSON).
pub(super) async fn server(status: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("the status server cannot listen")?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let status = status.clone();
            tokio::spawn(async move {
                let _ = timeout(PATIENCE * 4, serve(stream, &status)).await;
            });
        }
    });
    Ok(addr)
}

async fn serve(mut stream: TcpStream, status: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let handshake = read_packet(&mut stream).await?;
    ensure!(handshake.first() == Some(&0), "a handshake was expected");
    loop {
        let packet = read_packet(&mut stream).await?;
        match packet.first() {
            Some(0) => {
                let mut body = vec![0];
                write_string(&mut body, status);
                write_packet(&mut stream, &body).await?;
            }
            // Ping: the same eight bytes come back.
            Some(1) => write_packet(&mut stream, &packet).await?,
            _ => bail!("an unknown packet"),
        }
    }
}

/// What a server list shows of a server.
pub(super) struct Pinged {
    /// The status JSON, byte for byte.
    pub(super) status: Vec<u8>,
    /// The time of ping and pong.
    pub(super) round_trip: Duration,
}

/// Asks the server behind `door` as a player would who typed `host`.
pub(super) async fn ping(clock: &tasuki_core::clock::Clock, door: SocketAddr, host: &str) -> Result<Pinged> {
    timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(door)
            .await
            .with_context(|| format!("cannot connect to the Minecraft port at {door}"))?;
        stream.set_nodelay(true)?;
        let mut handshake = vec![0];
        write_varint(&mut handshake, PROTOCOL);
        write_string(&mut handshake, host);
        handshake.extend_from_slice(&door.port().to_be_bytes());
        write_varint(&mut handshake, 1);
        write_packet(&mut stream, &handshake).await?;
        write_packet(&mut stream, &[0]).await?;
        let answer = read_packet(&mut stream).await?;
        let status = status_of(&answer)?;
        let asked = clock.now();
        let payload = *b"\x01sashes!!";
        write_packet(&mut stream, &payload).await?;
        let pong = read_packet(&mut stream).await?;
        ensure!(pong == payload, "the pong is not the ping");
        Ok(Pinged {
            status,
            round_trip: clock.now().duration_since(asked),
        })
    })
    .await
    .context("no answer within 5 s")?
}

fn status_of(packet: &[u8]) -> Result<Vec<u8>> {
    let rest = packet.strip_prefix(&[0]).context("a status was expected")?;
    let mut length = 0_usize;
    for (place, byte) in rest.iter().enumerate().take(3) {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let text = &rest[place + 1..];
            ensure!(text.len() == length, "the status has another length than it says");
            return Ok(text.to_vec());
        }
    }
    bail!("the status is too long")
}

async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>> {
    let mut length = 0_usize;
    for place in 0..3 {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            ensure!(
                (1..=MAX_PACKET_BYTES).contains(&length),
                "a packet of {length} bytes"
            );
            let mut packet = vec![0; length];
            stream.read_exact(&mut packet).await?;
            return Ok(packet);
        }
    }
    bail!("a packet's length is too long")
}

async fn write_packet(stream: &mut TcpStream, body: &[u8]) -> Result<()> {
    let mut frame = Vec::with_capacity(body.len() + 3);
    write_varint(&mut frame, i32::try_from(body.len())?);
    frame.extend_from_slice(body);
    stream.write_all(&frame).await?;
    Ok(())
}

fn write_varint(out: &mut Vec<u8>, value: i32) {
    let mut rest = value.cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    write_varint(out, i32::try_from(text.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(text.as_bytes());
}
