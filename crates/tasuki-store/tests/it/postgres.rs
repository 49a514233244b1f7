//! A throw-away PostgreSQL for this test binary: Unix socket only, stopped when the binary ends.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

/// A server in a directory of its own.
pub(crate) struct Server {
    /// A shell that stops the server when its standard input closes, that is when this process is gone.
    keeper: Option<Child>,
    dir: TempDir,
    settings: &'static [&'static str],
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

/// Set where root is nobody outside: a user namespace, in which PostgreSQL's user does not exist.
pub(crate) const OWN_ROOT: &str = "TASUKI_TEST_OWN_ROOT";

pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

/// A command of PostgreSQL, which refuses root.
fn command(name: &str) -> Command {
    if !is_root() {
        return Command::new(binary(name));
    }
    if std::env::var_os(OWN_ROOT).is_some() {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-user=65534", "--map-group=65534", "--"])
            .arg(binary(name));
        return command;
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

fn give_to_postgres(dir: &Path) {
    if is_root() && std::env::var_os(OWN_ROOT).is_none() {
        run(Command::new("chown").arg("postgres:postgres").arg(dir));
    }
}

impl Server {
    /// A new server, running.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings, each as `name=value`.
    pub(crate) fn start_with(settings: &'static [&'static str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tasuki-pg")
            .tempdir_in("/tmp")
            .unwrap();
        give_to_postgres(dir.path());
        run(command("initdb").arg("-D").arg(dir.path().join("data")).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--no-locale",
        ]));
        let mut server = Self {
            keeper: None,
            dir,
            settings,
        };
        server.start_again();
        server
    }

    /// Runs again on the same data.
    pub(crate) fn start_again(&mut self) {
        let dir = self.dir.path();
        let mut server = command("postgres");
        server
            .arg("-D")
            .arg(dir.join("data"))
            .args(["-c", "listen_addresses=", "-c", "max_connections=300"])
            .arg("-k")
            .arg(dir);
        for setting in self.settings {
            server.args(["-c", setting]);
        }
        // The keeper outlives a test binary that is killed, and takes the server and its directory with it.
        let mut keeper = Command::new("sh");
        keeper
            .arg("-c")
            .arg(
                "\"$@\" >/dev/null 2>&1 </dev/null & pid=$!; read word; signal=INT
                 [ \"$word\" = crash ] && signal=QUIT
                 kill -$signal $pid; wait $pid
                 [ -n \"$word\" ] || rm -rf \"$0\"",
            )
            .arg(dir)
            .arg(server.get_program())
            .args(server.get_args())
            .stdin(Stdio::piped())
            .process_group(0);
        self.keeper = Some(keeper.spawn().unwrap());
        wait_for(dir);
    }

    /// Ends the server; all its connections break.
    pub(crate) fn stop(&mut self) {
        self.end("stop");
    }

    /// Ends the server at once: what it has not written is lost, as when it crashes.
    pub(crate) fn crash(&mut self) {
        self.end("crash");
    }

    fn end(&mut self, how: &str) {
        let mut keeper = self.keeper.take().unwrap();
        let mut words = keeper.stdin.take().unwrap();
        words.write_all(format!("{how}\n").as_bytes()).unwrap();
        keeper.wait().unwrap();
    }

    /// The URL of a new, empty database.
    pub(crate) fn new_database(&self) -> String {
        let dir = self.dir.path().display();
        let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.ask("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://postgres:secret-word@localhost/{name}?host={dir}")
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    /// The URL of a new, empty database whose tables are in `dir`.
    pub(crate) fn new_database_in(&self, dir: &Path) -> String {
        std::fs::create_dir(dir).unwrap();
        give_to_postgres(dir);
        let url = self.new_database();
        let name = name_of(&url);
        self.ask(
            "postgres",
            &format!("CREATE TABLESPACE small LOCATION '{}'", dir.display()),
        );
        self.ask("postgres", &format!("ALTER DATABASE {name} SET TABLESPACE small"));
        url
    }

    /// What the server says to a statement.
    pub(crate) fn ask(&self, database: &str, sql: &str) -> String {
        let output = command("psql")
            .args([
                "-U",
                "postgres",
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
                "-h",
            ])
            .arg(self.dir.path())
            .arg(database)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// The name of a URL's database.
pub(crate) fn name_of(url: &str) -> &str {
    let path = url.split('?').next().unwrap();
    path.rsplit('/').next().unwrap()
}

/// The server that the suite shares.
pub(crate) fn shared() -> &'static Server {
    SERVER.get_or_init(Server::start)
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

/// The URL of a new, empty database of the shared server.
pub(crate) fn new_database() -> String {
    shared().new_database()
}
