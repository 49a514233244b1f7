//! A spawned gateway on free loopback ports, in a directory of its own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Everything on loopback, every port free.
pub(crate) const LISTENERS: &str = r#"
[front]
listen = ["127.0.0.1:0"]
tls_listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[mail.relay]
listen = ["127.0.0.1:0"]
[mail.submission]
listen = ["127.0.0.1:0"]
[mail.submissions]
listen = ["127.0.0.1:0"]
[tunnel.quic]
listen = "127.0.0.1:0"
[tunnel.minecraft]
listen = "127.0.0.1:0"
"#;

/// The name that tests give the gateway.
pub(crate) const HOST: &str = "relay.test";

/// What a command did.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// The program with nothing of this machine in its environment.
pub(crate) fn tasuki(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasuki"));
    command
        .current_dir(directory)
        .env_remove("TASUKI_CONFIG")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> Said {
    Said::new(tasuki(directory).args(arguments).output().unwrap())
}

/// A directory with a configuration file.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    /// With this configuration beside the name, the data directory and the listeners; not initialised.
    pub(crate) fn new(config: &str) -> Self {
        let place = Self {
            directory: TempDir::new().unwrap(),
        };
        place.write(&format!("{config}\n[server]\nhost = \"{HOST}\"\n{LISTENERS}"));
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("tasuki.toml")
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        run(self.path(), arguments)
    }

    #[track_caller]
    pub(crate) fn init(&self) -> Said {
        let said = self.run(&["init", "--host", HOST]);
        assert_eq!(said.code, 0, "{}", said.err);
        said
    }
}

/// A running gateway.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) place: Place,
    log: PathBuf,
}

impl Gateway {
    /// Initialised and started.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        let place = Place::new(config);
        place.init();
        Self::serve(place)
    }

    /// Started where everything is prepared.
    #[track_caller]
    pub(crate) fn serve(place: Place) -> Self {
        let log = place.path().join("serve.log");
        let file = std::fs::File::create(&log).unwrap();
        let child = tasuki(place.path())
            .arg("serve")
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut gateway = Self { child, place, log };
        let addresses = gateway.place.path().join("data/addresses.json");
        gateway.wait(|_| addresses.exists().then_some(()));
        gateway
    }

    /// Waits until `look` finds something; fails with the log when the gateway has ended or 20 s have passed.
    #[track_caller]
    pub(crate) fn wait<T>(&mut self, look: impl Fn(&Self) -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway ended ({status}):\n{}", self.log());
            }
            assert!(Instant::now() < until, "nothing within 20 s:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> Value {
        let text = std::fs::read_to_string(self.place.path().join("data/addresses.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let all = self.addresses();
        all[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {all}"))
            .parse()
            .unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        self.place.run(arguments)
    }

    /// A command that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(
            said.code,
            0,
            "{arguments:?}: {}{}\n{}",
            said.out,
            said.err,
            self.log()
        );
        said
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; the exit status and the place, for another start.
    pub(crate) fn stop(mut self) -> (ExitStatus, Place) {
        self.signal(rustix::process::Signal::TERM);
        let until = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        let empty = Place {
            directory: TempDir::new().unwrap(),
        };
        (status, std::mem::replace(&mut self.place, empty))
    }

    /// One request to the admin port.
    pub(crate) fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("admin")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if let Some(token) = token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            ));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process ended by itself, not by a signal.
pub(crate) fn ended_in_order(status: ExitStatus) -> bool {
    status.success() && status.signal().is_none()
}
