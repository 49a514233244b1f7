//! A throw-away PostgreSQL for this test binary: Unix socket only, stopped when the binary ends.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

struct Server {
    dir: TempDir,
    /// A shell that stops the server when its standard input closes, that is when this process is gone.
    _keeper: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

fn binary(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .chain(
            std::env::var_os("PATH")
                .iter()
                .flat_map(std::env::split_paths)
                .map(|dir| dir.join(name)),
        )
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install postgresql"))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

/// A command of PostgreSQL, which refuses root.
fn command(name: &str) -> Command {
    if !is_root() {
        return Command::new(binary(name));
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
        .arg(binary(name));
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn start() -> Server {
    let dir = tempfile::Builder::new()
        .prefix("tasuki-pg")
        .tempdir_in("/tmp")
        .unwrap();
    if is_root() {
        run(Command::new("chown").arg("postgres:postgres").arg(dir.path()));
    }
    let data = dir.path().join("data");
    run(command("initdb").arg("-D").arg(&data).args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-N",
        "-E",
        "UTF8",
        "--no-locale",
    ]));
    let mut server = command("postgres");
    server
        .arg("-D")
        .arg(&data)
        .args(["-c", "listen_addresses=", "-c", "max_connections=300"])
        .arg("-k")
        .arg(dir.path());
    // The keeper outlives a test binary that is killed, and takes the server with it.
    let mut keeper = Command::new("sh");
    keeper
        .arg("-c")
        .arg("\"$@\" >/dev/null 2>&1 </dev/null & pid=$!; cat >/dev/null; kill -INT $pid; wait $pid; rm -rf \"$0\"")
        .arg(dir.path())
        .arg(server.get_program())
        .args(server.get_args())
        .stdin(Stdio::piped())
        .process_group(0);
    let keeper = keeper.spawn().unwrap();
    wait_for(dir.path());
    Server { dir, _keeper: keeper }
}

fn wait_for(dir: &Path) {
    for _ in 0..600 {
        let ready = command("pg_isready")
            .args(["-q", "-U", "postgres", "-h"])
            .arg(dir)
            .status()
            .unwrap();
        if ready.success() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("PostgreSQL did not start within 30 s");
}

/// The URL of a new, empty database.
pub(crate) fn new_database() -> String {
    let dir = SERVER.get_or_init(start).dir.path().display().to_string();
    let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    run(command("createdb").args(["-U", "postgres", "-h", &dir, &name]));
    format!("postgres://postgres:secret-word@localhost/{name}?host={dir}")
}
