//! A local server behind a UDP port that notes when each datagram was sent, and visitors who send to it.
//!
//! A datagram is a letter, the time of its sending in nanoseconds of the wall clock (all programs of a run share one), and
//! filling. `E` comes back, `M` is measured.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

/// Asked of the kernel, so that what is lost is not lost here.
const BUFFER: usize = 16 << 20;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Serves until it is ended; prints `{"udp":PORT,"count":PORT}`. Whoever connects to the count port reads a JSON figure of
/// all that was measured so far.
pub(crate) fn serve() -> Result<()> {
    let (socket, count) = (UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    socket2::SockRef::from(&socket).set_recv_buffer_size(BUFFER)?;
    println!(
        "{{\"udp\":{},\"count\":{}}}",
        socket.local_addr()?.port(),
        count.local_addr()?.port()
    );
    let delays = Arc::new(Mutex::new(Vec::<f64>::new()));
    let seen = Arc::clone(&delays);
    std::thread::spawn(move || {
        for stream in count.incoming().flatten() {
            let mut micros = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let _ = (&stream).write_all(figure(&mut micros).to_string().as_bytes());
        }
    });
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        match buffer.first_chunk::<9>() {
            Some([b'E', ..]) => {
                // A visitor who is gone is no error of ours.
                let _ = socket.send_to(&buffer[..length], from);
            }
            Some([b'M', sent @ ..]) => {
                let delay = now().saturating_sub(u64::from_be_bytes(*sent));
                let mut delays = delays.lock().unwrap_or_else(PoisonError::into_inner);
                delays.push(delay as f64 / 1e3);
            }
            _ => {}
        }
    }
}

fn figure(micros: &mut [f64]) -> serde_json::Value {
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).copied();
    serde_json::json!({
        "datagrams": micros.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": micros.last(),
    })
}

#[derive(Args)]
pub(crate) struct Load {
    #[arg(long)]
    addr: SocketAddr,
    /// Datagrams of all visitors together, each second; 0 is as many as go.
    #[arg(long)]
    rate: u32,
    #[arg(long, default_value_t = 200)]
    size: usize,
    #[arg(long, default_value_t = 20)]
    visitors: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// How often a datagram is sent until it comes back, while the port is being opened.
const GREETINGS: usize = 100;

/// Prints `begin` and `end`, and how many datagrams were sent in how many seconds.
pub(crate) fn load(load: &Load) -> Result<()> {
    let mut datagram = vec![b'x'; load.size.max(9)];
    let mut visitors = Vec::with_capacity(load.visitors);
    for _ in 0..load.visitors {
        visitors.push(greeted(load.addr, &mut datagram)?);
    }
    datagram[0] = b'M';
    println!("begin");
    let (begin, mut sent) = (Instant::now(), 0_u64);
    loop {
        let elapsed = begin.elapsed().as_secs_f64();
        if elapsed >= load.seconds {
            break;
        }
        let due = match load.rate {
            0 => sent + 64,
            rate => (elapsed * f64::from(rate)) as u64,
        };
        if sent == due {
            std::thread::sleep(Duration::from_micros(500));
        }
        for number in sent..due {
            datagram[1..9].copy_from_slice(&now().to_be_bytes());
            visitors[number as usize % visitors.len()].send(&datagram)?;
        }
        sent = due;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("end");
    println!("{}", serde_json::json!({ "datagrams": sent, "seconds": seconds }));
    Ok(())
}

/// A visitor whom the server has answered.
fn greeted(addr: SocketAddr, datagram: &mut [u8]) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    datagram[0] = b'E';
    let mut back = [0; 2048];
    for _ in 0..GREETINGS {
        // Refused while nobody has the port.
        if socket.send(datagram).is_ok() && socket.recv(&mut back).is_ok() {
            return Ok(socket);
        }
    }
    bail!("no answer from {addr}")
}
