//! The real programs, started as a person would start them: in a temporary directory, on free loopback ports.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// What was started and not ended yet, in this order. It outlives whoever waits for a part of the demo, so that a
    /// demo that is interrupted leaves nothing behind.
    children: Arc<Mutex<Vec<(u32, Child)>>>,
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
                children: Arc::default(),
            }
        } else {
            Self {
                agent: tasuki.clone(),
                tasuki,
                agent_arguments: vec!["agent".into()],
                children: Arc::default(),
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

    /// Starts a program that runs in the background until [`Programs::end`].
    fn start(&self, command: &mut Command, name: &str) -> Result<Running> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let log = Log::default();
        if let Some(out) = child.stdout.take() {
            tokio::spawn(keep(out, log.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(keep(err, log.clone()));
        }
        let id = child.id().context("it ended at once")?;
        self.lock().push((id, child));
        Ok(Running {
            id,
            programs: self.clone(),
            log,
        })
    }

    /// Ends everything that runs, the last first, and waits until it has: SIGTERM, then patience, then SIGKILL.
    pub(super) async fn end(&self) {
        loop {
            let last = self.lock().pop();
            let Some((id, mut child)) = last else { return };
            let pid = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
            // One that has ended is still ours to wait for, so its number is nobody else's.
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, Child)>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
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
        let child = programs.start(programs.tasuki(place).arg("serve"), "tasuki serve")?;
        let data = place.join("data");
        let addresses = match timeout(READY_WITHIN, ready(&data, &child)).await {
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
        self.programs.start(&mut command, "tasuki-agent")
    }

    /// What the gateway said last.
    pub(super) fn last_words(&self) -> String {
        self.child.last_words()
    }
}

/// Waits until the gateway has written its addresses and answers on its control socket.
async fn ready(data: &Path, child: &Running) -> Result<BTreeMap<String, SocketAddr>> {
    loop {
        if let Some(status) = child.ended()? {
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

/// The end of what a program printed.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<std::collections::VecDeque<String>>>);

/// A program that runs in the background.
pub(super) struct Running {
    id: u32,
    programs: Programs,
    log: Log,
}

impl Running {
    fn ended(&self) -> std::io::Result<Option<ExitStatus>> {
        let mut children = self.programs.lock();
        match children.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, child)) => child.try_wait(),
            None => Ok(None),
        }
    }

    /// The end of what it printed, to be put after an error.
    pub(super) fn last_words(&self) -> String {
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_empty() {
            return String::new();
        }
        format!(
            "; it said last:\n{}",
            log.iter().cloned().collect::<Vec<_>>().join("\n")
        )
    }
}

async fn keep(from: impl tokio::io::AsyncRead + Unpin, log: Log) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == KEPT_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}
