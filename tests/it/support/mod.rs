//! What the tests stand on: programs as processes, addresses read back, waiting with a deadline.

pub(crate) mod activityrelay;
pub(crate) mod agent;
pub(crate) mod certificate;
pub(crate) mod fediverse;
pub(crate) mod figures;
pub(crate) mod gateway;
pub(crate) mod haproxy;
pub(crate) mod http;
pub(crate) mod mail;
pub(crate) mod minecraft;
pub(crate) mod networks;
pub(crate) mod nginx;
pub(crate) mod own_network;
pub(crate) mod pebble;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod readme;
pub(crate) mod servers;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen, on a machine with two busy cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file below `tests/clients`.
pub(crate) fn client(path: &str) -> PathBuf {
    root().join("tests/clients").join(path)
}

/// Asks `condition` until it answers `Some`; fails with `what` when it never does.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

#[track_caller]
pub(crate) fn within<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        // Only the far side of a wire can tell; there is nothing to be notified by.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A port for a program that can neither take port 0 nor say what it bound. Below the range from which the kernel
/// gives ports to others, and a new one at each call.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 97).unwrap() * 100;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until something accepts connections at `address`.
#[track_caller]
pub(crate) fn wait_for_listener(name: &str, address: SocketAddr) {
    eventually(&format!("{name} accepts connections at {address}"), || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
    });
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A temporary directory that other users' programs may enter.
pub(crate) fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new().prefix("tasuki-e2e-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// SHA-256 in hexadecimal, by the system's own tool: nothing of ours judges our bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut command = process::tool("sha256sum");
    let output = process::feed(&mut command, bytes);
    output.split(' ').next().unwrap().to_owned()
}
