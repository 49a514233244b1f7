//! Programs as child processes: they end when the test does, and their words are kept for a failing test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::own_network::OwnNetwork;
use super::{PATIENCE, root};

/// One of our own programs, as cargo built it beside this test.
pub(crate) fn ours(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` before `cargo test -p e2e`",
        path.display()
    );
    path
}

/// The same command again: a program that runs where the test does.
pub(crate) fn clone_of(command: &Command) -> Command {
    let mut same = Command::new(command.get_program());
    same.args(command.get_args());
    copy_surroundings(command, &mut same);
    same
}

/// Gives a command the variables and the directory of another.
pub(crate) fn copy_surroundings(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    if let Some(directory) = from.get_current_dir() {
        to.current_dir(directory);
    }
}

/// One of our own programs, to be given arguments.
pub(crate) fn command(name: &str) -> Command {
    Command::new(ours(name))
}

/// Where a third-party tool is; its absence fails the test by name.
pub(crate) fn find(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `scripts/test --install`"))
}

pub(crate) fn tool(name: &str) -> Command {
    Command::new(find(name))
}

/// The same tool as root, when we are not.
pub(crate) fn tool_as_root(name: &str) -> Command {
    if is_root() {
        return tool(name);
    }
    let mut command = tool("sudo");
    command.arg("-n").arg(find(name));
    command
}

pub(crate) fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Python with the packages of `tests/clients/requirements.txt`.
pub(crate) fn python(script: &Path) -> Command {
    let mut command = Command::new(python_program("python"));
    command.arg("-u").arg(script);
    command
}

/// The same in a network of its own.
pub(crate) fn python_in(network: &OwnNetwork, script: &Path) -> Command {
    let mut command = network.command(&python_program("python"));
    command.arg("-u").arg(script);
    command
}

/// A program that those packages brought.
pub(crate) fn python_program(name: &str) -> PathBuf {
    let program = root().join(".tools/python/bin").join(name);
    assert!(
        program.exists(),
        "{name} is not installed: run `scripts/test --install`"
    );
    program
}

/// Node with the packages of `tests/clients/node/package-lock.json`.
pub(crate) fn node(script: &Path) -> Command {
    let modules = root().join(".tools/node/node_modules");
    assert!(
        modules.exists(),
        "the Node clients are not installed: run `scripts/test --install`"
    );
    let mut command = tool("node");
    command.arg(script).env("NODE_PATH", modules);
    command
}

/// Runs to the end, at most [`PATIENCE`] long, and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let id = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    match receive.recv_timeout(PATIENCE * 2) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            signal(Signal::KILL, id);
            panic!("{command:?} did not end within {:?}", PATIENCE * 2);
        }
    }
}

/// Runs to the end, must succeed, and gives its standard output.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Like [`succeed`], with `bytes` on its standard input.
pub(crate) fn feed(command: &mut Command, bytes: &[u8]) -> String {
    String::from_utf8(exchange(command, bytes)).unwrap()
}

/// What a program that must succeed makes of `bytes`.
pub(crate) fn exchange(command: &mut Command, bytes: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", output.status);
        output.stdout
    })
}

/// Sends a signal to a process that we started; one that is gone is no error.
pub(crate) fn signal(signal: Signal, process: u32) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(process, signal);
    }
}

/// A program that runs until it is dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    input: Option<ChildStdin>,
}

impl Running {
    /// Starts a program whose output goes to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let input = child.stdin.take();
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            input,
        }
    }

    /// Starts a program that tells its address in the first line of its output.
    pub(crate) fn start_and_read(name: &str, command: &mut Command, log: &Path) -> (Self, Lines) {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let (send, receive) = mpsc::channel();
        let reader = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        let lines = Lines {
            name: name.to_owned(),
            receive,
            log: log.to_owned(),
        };
        (
            Self {
                name: name.to_owned(),
                child,
                log: log.to_owned(),
                input,
            },
            lines,
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// One line on its standard input.
    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it has a standard input");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        tail(&self.log)
    }

    /// Fails the test when the program has ended.
    #[track_caller]
    pub(crate) fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended: {status}\n{}", self.name, self.log());
        }
    }

    /// `kill -9`, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, then the end is awaited.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        signal(Signal::TERM, self.child.id());
        self.wait()
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let ended = self.ended_within(PATIENCE);
        ended.unwrap_or_else(|| panic!("{} does not end\n{}", self.name, self.log()))
    }

    /// How it ended, if it did.
    pub(crate) fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            let status = self.child.try_wait().unwrap();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Some end by themselves when their input does, and take their children along.
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} said last:\n{}", self.name, tail(&self.log));
        }
    }
}

/// A program that one of ours started and left behind; ended when dropped.
pub(crate) struct Adopted(u32);

impl Adopted {
    pub(crate) fn new(id: u64) -> Self {
        Self(u32::try_from(id).unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0
    }

    /// Whether it ends by itself.
    pub(crate) fn ends(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.runs() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        true
    }

    /// One that has ended may be shown for as long as its parent does not ask for it (proc(5), state Z).
    fn runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| {
            let state = rest.trim_start();
            !state.is_empty() && !state.starts_with('Z') && !state.starts_with('X')
        })
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        if self.runs() {
            signal(Signal::KILL, self.0);
            self.ends();
        }
    }
}

/// The lines of a program's output, as they come.
pub(crate) struct Lines {
    name: String,
    receive: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Lines {
    /// The next line that is a JSON object; programs' libraries print other things between them.
    #[track_caller]
    pub(crate) fn next_json(&self) -> serde_json::Value {
        loop {
            match self.receive.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with('{') => return serde_json::from_str(&line).unwrap(),
                Ok(_) => {}
                Err(_) => panic!("{} says nothing more\n{}", self.name, tail(&self.log)),
            }
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Runs a command to its end for its exit status and words.
pub(crate) fn run<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Output {
    output(Command::new(program).args(arguments))
}
