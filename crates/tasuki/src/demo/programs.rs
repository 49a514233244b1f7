//! The real programs, started as a person would start them: in a temporary directory, on free loopback ports.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const READY_WITHIN: Duration = Duration::from_secs(20);
const COMMAND_WITHIN: Duration = Duration::from_secs(15);
/// Lines of a program's log that are kept for the case that it fails.
const KEPT_LINES: usize = 40;

/// The two programs on this machine.
#[derive(Clone)]
pub(super) struct Programs {
    tasuki: PathBuf,
    agent: PathBuf,
    agent_arguments: Vec<OsString>,
}

impl Programs {
    /// This program, and `tasuki-agent` beside it. Where only this one was built (`cargo run` builds one program), the
    /// same agent code is run from it as `tasuki agent`.
    pub(super) fn find() -> Result<Self> {
        let tasuki = std::env::current_exe().context("where this program is cannot be told")?;
        let beside = tasuki.with_file_name("tasuki-agent");
        Ok(if beside.is_file() {
            Self {
                tasuki,
                agent: beside,
                agent_arguments: Vec::new(),
            }
        } else {
            Self {
                agent: tasuki.clone(),
                tasuki,
                agent_arguments: vec!["agent".into()],
            }
        })
    }

    /// What runs, for the report.
    pub(super) fn names(&self) -> Vec<String> {
        let agent = if self.agent_arguments.is_empty() {
            self.agent.display().to_string()
        } else {
            format!("{} agent", self.agent.display())
        };
        vec![format!("{} serve", self.tasuki.display()), agent]
    }

    fn tasuki(&self, place: &Path) -> Command {
        let mut command = Command::new(&self.tasuki);
        command
            .env_remove("TASUKI_CONFIG")
            .env_remove("RUST_LOG")
            .current_dir(place)
            .arg("--config")
            .arg(place.join("tasuki.toml"))
            .stdin(Stdio::null());
        command
    }
}

/// A running gateway.
pub(super) struct Gateway {
    programs: Programs,
    place: PathBuf,
    child: Running,
    /// Every listener by its name.
    pub(super) addresses: BTreeMap<String, SocketAddr>,
}

impl Gateway {
    /// `tasuki init` and `tasuki serve` in `place`, with `config` as the configuration file.
    pub(super) async fn start(programs: &Programs, place: &Path, config: &str, host: &str) -> Result<Self> {
        std::fs::write(place.join("tasuki.toml"), config)?;
        run(
            programs.tasuki(place).args(["init", "--host", host]),
            "tasuki init",
        )
        .await?;
        let mut child = Running::start(programs.tasuki(place).arg("serve"), "tasuki serve")?;
        let data = place.join("data");
        let addresses = match timeout(READY_WITHIN, ready(&data, &mut child)).await {
            Ok(addresses) => addresses?,
            Err(_) => bail!("the gateway was not ready within 20 s{}", child.last_words()),
        };
        Ok(Self {
            programs: programs.clone(),
            place: place.to_owned(),
            child,
            addresses,
        })
    }

    /// Runs a command of the command line against this gateway; its output as JSON.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<Value> {
        let name = format!(
            "tasuki {}",
            arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ")
        );
        let output = run(self.programs.tasuki(&self.place).args(arguments), &name).await?;
        serde_json::from_slice(&output).with_context(|| format!("{name} printed no JSON"))
    }

    /// The listener of this name.
    pub(super) fn address(&self, name: &str) -> Result<SocketAddr> {
        self.addresses.get(name).copied().with_context(|| {
            format!(
                "the gateway has no listener {name:?}; it has {:?}",
                self.addresses.keys()
            )
        })
    }

    /// The private CA's certificate.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.place.join("data/keys/ca.pem")
    }

    /// Starts an agent with these arguments after `run`.
    pub(super) fn agent(&self, arguments: &[String]) -> Result<Running> {
        let mut command = Command::new(&self.programs.agent);
        command
            .args(&self.programs.agent_arguments)
            .args(arguments)
            .env_remove("RUST_LOG")
            .current_dir(&self.place)
            .stdin(Stdio::null());
        Running::start(&mut command, "tasuki-agent")
    }

    /// What the gateway said last.
    pub(super) fn last_words(&self) -> String {
        self.child.last_words()
    }

    /// Asks the gateway to stop, and waits until it has.
    pub(super) async fn stop(self) {
        self.child.stop().await;
    }
}

/// Waits until the gateway has written its addresses and answers on its control socket.
async fn ready(data: &Path, child: &mut Running) -> Result<BTreeMap<String, SocketAddr>> {
    loop {
        if let Some(status) = child.child.try_wait()? {
            bail!("the gateway ended at once ({status}){}", child.last_words());
        }
        if let Ok(text) = std::fs::read_to_string(data.join("addresses.json"))
            && tokio::net::UnixStream::connect(data.join("control.sock"))
                .await
                .is_ok()
        {
            return serde_json::from_str(&text).context("data/addresses.json");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run(command: &mut Command, name: &str) -> Result<Vec<u8>> {
    let output = timeout(COMMAND_WITHIN, command.kill_on_drop(true).output())
        .await
        .with_context(|| format!("{name} did not end within 15 s"))?
        .with_context(|| format!("{name} cannot be started"))?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// A program that runs in the background. Dropping it kills it.
pub(super) struct Running {
    child: Child,
    log: std::sync::Arc<std::sync::Mutex<std::collections::VecDeque<String>>>,
}

impl Running {
    fn start(command: &mut Command, name: &str) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let log = std::sync::Arc::default();
        if let Some(out) = child.stdout.take() {
            tokio::spawn(keep(out, std::sync::Arc::clone(&log)));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(keep(err, std::sync::Arc::clone(&log)));
        }
        Ok(Self { child, log })
    }

    /// The end of what it printed, to be put after an error.
    pub(super) fn last_words(&self) -> String {
        let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if log.is_empty() {
            return String::new();
        }
        format!(
            "; it said last:\n{}",
            log.iter().cloned().collect::<Vec<_>>().join("\n")
        )
    }

    /// SIGTERM, then patience, then SIGKILL.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if timeout(Duration::from_secs(10), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

async fn keep(
    from: impl tokio::io::AsyncRead + Unpin,
    log: std::sync::Arc<std::sync::Mutex<std::collections::VecDeque<String>>>,
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if log.len() == KEPT_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}
