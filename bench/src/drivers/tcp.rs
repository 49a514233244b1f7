//! The local server behind a tunnel, and the loads on its public side.
//!
//! The first byte of a connection says what it is for: `E` echoes, `S` swallows, `D` sends without end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BLOCK: usize = 64 * 1024;

/// Serves until it is ended; prints its port.
pub(crate) fn serve() -> Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'E' => {
            // Small: thousands of these are held open at once.
            let mut buffer = [0; 512];
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..n]).await?;
            }
        }
        b'S' => {
            let mut buffer = vec![0; BLOCK];
            while stream.read(&mut buffer).await? > 0 {}
        }
        b'D' => {
            let buffer = vec![b'x'; BLOCK];
            loop {
                stream.write_all(&buffer).await?;
            }
        }
        other => bail!("unknown wish {other}"),
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Moves bytes from visitors to the local server.
    Up,
    /// Moves bytes from the local server to visitors.
    Down,
    /// 64 bytes there and back, one at a time.
    Rtt,
    /// As `rtt`, while another connection moves bytes down.
    RttLoaded,
    /// 64 bytes there and back on each connection, 20 times a second.
    Players,
    /// New connections: connect, one byte there and back, close.
    Connect,
    /// Opens connections, one byte there and back on each, prints `ready` and holds them.
    Hold,
}

#[derive(Args)]
pub(crate) struct Load {
    #[arg(value_enum)]
    mode: Mode,
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

pub(crate) fn load(load: &Load) -> Result<()> {
    let figure = runtime()?.block_on(async {
        match load.mode {
            Mode::Up | Mode::Down => bulk(load).await,
            Mode::Rtt => rtt(load).await,
            Mode::RttLoaded => {
                let busy = tokio::spawn(download(load.addr, Arc::new(AtomicU64::new(0))));
                tokio::time::sleep(Duration::from_millis(500)).await;
                let figure = rtt(load).await;
                busy.abort();
                figure
            }
            Mode::Players => players(load).await,
            Mode::Connect => connects(load).await,
            Mode::Hold => hold(load).await,
        }
    })?;
    println!("{figure}");
    Ok(())
}

async fn open(addr: SocketAddr, wish: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(wish).await?;
    Ok(stream)
}

async fn bulk(load: &Load) -> Result<serde_json::Value> {
    let moved = Arc::new(AtomicU64::new(0));
    let up = matches!(load.mode, Mode::Up);
    let tasks: Vec<_> = (0..load.connections)
        .map(|_| {
            let moved = Arc::clone(&moved);
            if up {
                tokio::spawn(upload(load.addr, moved))
            } else {
                tokio::spawn(download(load.addr, moved))
            }
        })
        .collect();
    // The first half second is slow start; it does not count.
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!("begin");
    let (start, begin) = (moved.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(load.seconds)).await;
    let (bytes, seconds) = (
        moved.load(Ordering::Relaxed) - start,
        begin.elapsed().as_secs_f64(),
    );
    println!("end");
    for task in tasks {
        if task.is_finished() {
            task.await?.context("a bulk connection ended early")?;
        } else {
            task.abort();
        }
    }
    Ok(serde_json::json!({ "bytes": bytes, "seconds": seconds }))
}

async fn upload(addr: SocketAddr, moved: Arc<AtomicU64>) -> Result<()> {
    let mut stream = open(addr, b'S').await?;
    let buffer = vec![b'x'; BLOCK];
    loop {
        stream.write_all(&buffer).await?;
        moved.fetch_add(BLOCK as u64, Ordering::Relaxed);
    }
}

async fn download(addr: SocketAddr, moved: Arc<AtomicU64>) -> Result<()> {
    let mut stream = open(addr, b'D').await?;
    let mut buffer = vec![0; BLOCK];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            bail!("the tunnel closed the connection");
        }
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn rtt(load: &Load) -> Result<serde_json::Value> {
    let mut stream = open(load.addr, b'E').await?;
    let mut buffer = [7; 64];
    let mut micros = Vec::new();
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < load.seconds {
        let sent = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        micros.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    // The first ones warm the path up.
    Ok(spread(micros.split_off(micros.len().min(100))))
}

fn spread(mut micros: Vec<f64>) -> serde_json::Value {
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros.get(((micros.len() as f64) * share) as usize).copied();
    serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99), "max_us": micros.last(), "samples": micros.len() })
}

/// Like people who play: little, often, and each at times of their own.
async fn players(load: &Load) -> Result<serde_json::Value> {
    const EVERY: Duration = Duration::from_millis(50);
    let mut joined = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        joined.push(once(load.addr).await?);
    }
    println!("begin");
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(load.seconds);
    let count = u32::try_from(joined.len())?.max(1);
    let tasks: Vec<_> = (0..)
        .zip(joined)
        .map(|(number, stream)| {
            let first = begin + EVERY * number / count;
            tokio::spawn(play(stream, first, EVERY, until))
        })
        .collect();
    let mut micros = Vec::new();
    for task in tasks {
        micros.extend(task.await??);
    }
    println!("end");
    let mut figure = spread(micros);
    figure["seconds"] = begin.elapsed().as_secs_f64().into();
    Ok(figure)
}

/// One player from `first` on, at this interval, until the end: round trips in microseconds.
async fn play(mut stream: TcpStream, first: Instant, every: Duration, until: Instant) -> Result<Vec<f64>> {
    let mut ticks = tokio::time::interval_at(first.into(), every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut buffer, mut micros) = ([7; 64], Vec::new());
    while Instant::now() < until {
        ticks.tick().await;
        let sent = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        micros.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(micros)
}

async fn once(addr: SocketAddr) -> Result<TcpStream> {
    let mut stream = open(addr, b'E').await?;
    stream.write_u8(b'.').await?;
    stream.read_u8().await?;
    Ok(stream)
}

async fn connects(load: &Load) -> Result<serde_json::Value> {
    let made = Arc::new(AtomicU64::new(0));
    println!("begin");
    let begin = Instant::now();
    let (addr, until) = (load.addr, begin + Duration::from_secs_f64(load.seconds));
    let tasks: Vec<_> = (0..load.connections)
        .map(|_| {
            let made = Arc::clone(&made);
            tokio::spawn(async move {
                while Instant::now() < until {
                    let stream = once(addr).await?;
                    // A reset in place of FIN, so that the client's ports do not run out in TIME_WAIT.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    drop(stream);
                    made.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    println!("end");
    Ok(
        serde_json::json!({ "connections": made.load(Ordering::Relaxed), "seconds": begin.elapsed().as_secs_f64() }),
    )
}

async fn hold(load: &Load) -> Result<serde_json::Value> {
    let mut held = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        held.push(once(load.addr).await?);
    }
    println!("ready");
    std::future::pending().await
}
