//! Processes of a run: started, watched (CPU seconds and resident memory of the whole tree), ended by their own pid.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A started process; ended when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with its standard output readable line by line and its errors in `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let errors = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self {
            child,
            stdout,
            log: log.to_owned(),
        })
    }

    /// Starts a part of this program.
    pub(crate) fn part(arguments: &[String], log: &Path) -> Result<Self> {
        Self::start(Command::new(std::env::current_exe()?).args(arguments), log)
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let reader = self.stdout.as_mut().context("its output was read to the end")?;
        if reader.read_line(&mut line)? == 0 {
            bail!(
                "the process ended without the expected line: {:?}",
                self.child.try_wait()?
            );
        }
        Ok(line.trim_end().to_owned())
    }

    /// Lets its output run on unread.
    pub(crate) fn drain(&mut self) {
        if let Some(mut reader) = self.stdout.take() {
            thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end and returns its last line.
    pub(crate) fn result(mut self) -> Result<String> {
        let mut last = String::new();
        if let Some(reader) = self.stdout.take() {
            for line in reader.lines() {
                last = line?;
            }
        }
        let status = self.child.wait()?;
        if !status.success() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!(
                "a part of the run failed: {status}; last line: {last}; end of the log:\n{}",
                tail.join("\n")
            );
        }
        Ok(last)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // SIGTERM first, so that a process with children of its own (Postfix's master) ends them too.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(8);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds used so far by these processes and all their descendants, ended ones included.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let ticks: u64 = tree(roots).values().map(|p| p.cpu_ticks).sum();
    ticks as f64 / 100.0
}

/// Resident memory of these processes and all their descendants now, in KiB.
pub(crate) fn resident_kib(roots: &[u32]) -> u64 {
    tree(roots).keys().map(|pid| rss_kib(*pid)).sum()
}

struct Stat {
    parent: u32,
    cpu_ticks: u64,
}

fn tree(roots: &[u32]) -> HashMap<u32, Stat> {
    let all: HashMap<u32, Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, stat(pid)?)))
        .collect();
    let belongs = |mut pid: u32| {
        for _ in 0..64 {
            if roots.contains(&pid) {
                return true;
            }
            match all.get(&pid) {
                Some(stat) if stat.parent > 1 => pid = stat.parent,
                _ => return false,
            }
        }
        false
    };
    let members: Vec<u32> = all.keys().copied().filter(|pid| belongs(*pid)).collect();
    all.into_iter().filter(|(pid, _)| members.contains(pid)).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything; the fields follow the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    let cpu_ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        cpu_ticks,
    })
}

fn rss_kib(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

/// Samples the peak of resident memory while it lives.
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    peak_kib: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl PeakMemory {
    pub(crate) fn watch(roots: Vec<u32>) -> Self {
        let (stop, peak_kib) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, peak_kib) = (Arc::clone(&stop), Arc::clone(&peak_kib));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    peak_kib.fetch_max(resident_kib(&roots), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(200));
                }
            }
        });
        Self {
            stop,
            peak_kib,
            thread: Some(thread),
        }
    }

    /// The peak in MiB.
    pub(crate) fn finish(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.peak_kib.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

/// A port of the loopback address that is free for TCP and UDP: below the range that the kernel gives to clients, and
/// one that Tasuki gives to agents.
pub(crate) fn free_port() -> Result<u16> {
    let seed = std::process::id().wrapping_mul(31);
    for step in 0..10_000u32 {
        let port = 20_000 + u16::try_from((seed + step * 7) % 9_999)?;
        let free = |kind: &str| match kind {
            "tcp" => std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(),
            _ => std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok(),
        };
        if free("tcp") && free("udp") && TAKEN.lock().is_ok_and(|mut taken| taken.insert(port)) {
            return Ok(port);
        }
    }
    bail!("no free port between 20000 and 29999")
}

static TAKEN: std::sync::Mutex<std::collections::BTreeSet<u16>> =
    std::sync::Mutex::new(std::collections::BTreeSet::new());

/// Waits until something listens on the port.
pub(crate) fn wait_for_port(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("nothing listens on port {port} after 30 s")
}

/// Polls `condition` until it holds.
pub(crate) fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if condition()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("{what}: not within {limit:?}")
}
