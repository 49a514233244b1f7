//! The older process's end of an upgrade: it starts the newer one, gives it what it has, and goes on by itself if anything
//! fails before that one has it all.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tasuki_core::handover::{Item, Link, LinkError, Word};
use tokio::sync::oneshot;

use super::predecessor::ENVIRONMENT;
use crate::admin::Caller;
use crate::exit::{self, Fail, Outcome, chain};

/// How long a process may take until it says that it could serve.
const HELLO: Duration = Duration::from_secs(30);
/// How long it may take to open the store and build everything, with all that it was given.
const READY: Duration = Duration::from_secs(60);
/// How long it may take from there until it serves.
const SERVING: Duration = Duration::from_secs(30);
/// How often, and how many times, is looked whether a process that is about to end has ended.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 200;

/// What a command asks for.
pub(crate) struct Order {
    /// The program to start.
    pub(crate) binary: PathBuf,
    /// How long what is under way may take to finish.
    pub(crate) drain: Duration,
    /// Who asks.
    pub(crate) caller: Caller,
    /// Where the answer goes.
    pub(crate) answer: oneshot::Sender<Outcome<Upgraded>>,
}

/// What an upgrade did.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Upgraded {
    /// The process that served before.
    pub(crate) from_pid: u32,
    /// Its program's version.
    pub(crate) from_version: &'static str,
    /// The process that serves now.
    pub(crate) pid: u32,
    /// Its program's version.
    pub(crate) version: String,
    /// Listeners that it has taken over.
    pub(crate) listeners: usize,
    /// Visitors of the tunnel that it has taken over.
    pub(crate) connections: usize,
    /// How long the tunnel's visitors rested in this process and on the way; their agents come back after that.
    pub(crate) rested_ms: u64,
}

/// A process that could serve. It is ended when this is dropped, unless it has taken over.
pub(super) struct Successor {
    child: Child,
    link: Link,
    pub(super) version: String,
    /// It has everything and lives, but did not say in time that it serves.
    pub(super) doubt: Option<Fail>,
    has_taken_over: bool,
}

impl Order {
    /// Gives the answer; a command that was broken off hears none.
    pub(super) fn answer(self, answer: Outcome<Upgraded>) {
        let _ = self.answer.send(answer);
    }
}

impl Successor {
    /// Starts the program with the arguments of this one, and waits until it could serve.
    pub(super) async fn start(binary: &Path) -> Outcome<Self> {
        let binary = binary.to_owned();
        blocking(move || Self::start_now(&binary)).await
    }

    fn start_now(binary: &Path) -> Outcome<Self> {
        let cannot = |error: &std::io::Error| {
            Fail::new(
                exit::USAGE,
                format!(
                    "{} cannot be started: {error}. Nothing was changed, the gateway goes on",
                    binary.display()
                ),
            )
        };
        let (link, theirs) = Link::pair().map_err(|error| cannot(&error))?;
        let child = Command::new(binary)
            .args(std::env::args_os().skip(1))
            .env(ENVIRONMENT, "1")
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| cannot(&error))?;
        let mut successor = Self {
            child,
            link,
            version: String::new(),
            doubt: None,
            has_taken_over: false,
        };
        match successor.hear(HELLO)? {
            Word::Hello { version } => successor.version = version,
            other => return Err(successor.misunderstood(&other)),
        }
        Ok(successor)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives everything; on success the other process has taken over and serves. Otherwise it has ended, and the items that
    /// come back are as they were. When it ended after the commit, those are the ones of which `is_left` is true.
    pub(super) async fn give(
        mut self,
        items: Vec<Item>,
        is_left: fn(&Item) -> bool,
    ) -> Result<Self, (Vec<Item>, Fail)> {
        let given = tokio::task::spawn_blocking(move || match self.give_now(&items) {
            Ok(()) => Ok((self, items)),
            Err(fail) => {
                self.end();
                Err((items, fail))
            }
        });
        let (mut successor, mut items) = match given.await {
            Ok(given) => given?,
            Err(error) => return Err((Vec::new(), Fail::new(exit::SOFTWARE, error.to_string()))),
        };
        // From here on only the other process moves anything, as long as it lives.
        items.retain(is_left);
        let serving = tokio::task::spawn_blocking(move || match successor.commit() {
            Ok(()) => Ok(successor),
            Err(fail) => Err((items, fail)),
        });
        match serving.await {
            Ok(served) => served,
            Err(error) => Err((Vec::new(), Fail::new(exit::SOFTWARE, error.to_string()))),
        }
    }

    /// Says that it is this process's turn, and waits until it serves. On failure it has ended.
    fn commit(&mut self) -> Outcome {
        let heard = self
            .link
            .say(&Word::Commit)
            .and_then(|()| self.link.hear(Some(SERVING)));
        let why = match heard {
            Ok(Word::Serving) => {
                self.has_taken_over = true;
                return Ok(());
            }
            // It lives and has everything: ending it would end all whom it serves.
            Err(LinkError::Silent) => {
                let pid = self.pid();
                let text = format!(
                    "process {pid} has taken everything over, and has not said within {SERVING:?} that it serves: look at the log"
                );
                tracing::error!("{text}");
                self.has_taken_over = true;
                self.doubt = Some(Fail::new(exit::UNAVAILABLE, text));
                return Ok(());
            }
            Ok(Word::Failed { message, .. }) => message,
            Ok(other) => format!("it said something unexpected: {other:?}"),
            Err(error) => match self.status() {
                Some(status) => format!("it ended ({status})"),
                None => chain(&error),
            },
        };
        self.end();
        Err(Fail::new(
            exit::UNAVAILABLE,
            format!(
                "the new process had everything and did not serve: {why}. The old one goes on with its listeners; those who \
                 visited the tunnel have to come again"
            ),
        ))
    }

    fn give_now(&mut self, items: &[Item]) -> Outcome {
        let count = items.len() as u64;
        let given = self
            .link
            .say(&Word::Take { items: count })
            .and_then(|()| self.link.give(items));
        // Why it takes nothing it may have said before.
        let heard = self.hear(READY);
        match (heard, given) {
            (Ok(Word::Ready), Ok(())) => Ok(()),
            (Err(fail), _) => Err(fail),
            (Ok(_), Err(error)) => Err(self.ended_or(&error)),
            (Ok(other), Ok(())) => Err(self.misunderstood(&other)),
        }
    }

    /// The next word; that the process failed is a failure here, with its own code and words.
    fn hear(&mut self, limit: Duration) -> Outcome<Word> {
        match self.link.hear(Some(limit)) {
            Ok(Word::Failed { code, message }) => Err(Fail::new(
                code,
                format!("the new process does not start: {message}. The old one goes on"),
            )),
            Ok(word) => Ok(word),
            Err(error) => Err(self.ended_or(&error)),
        }
    }

    fn ended_or(&mut self, error: &LinkError) -> Fail {
        let why = match (error, self.status()) {
            (LinkError::Ended, Some(status)) => {
                format!("the new process ended ({status}) before it could serve; what it said is in the log")
            }
            (LinkError::Silent, _) => "the new process did not get ready in time and was ended".to_owned(),
            _ => format!("the new process cannot take over: {}", chain(error)),
        };
        Fail::new(exit::UNAVAILABLE, format!("{why}. The old one goes on"))
    }

    fn misunderstood(&mut self, word: &Word) -> Fail {
        Fail::new(
            exit::UNAVAILABLE,
            format!("the new process said something unexpected: {word:?}. The old one goes on"),
        )
    }

    /// How the process ended, if it does so soon.
    fn status(&mut self) -> Option<ExitStatus> {
        for _ in 0..LOOKS {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => std::thread::sleep(LOOK),
                Err(_) => return None,
            }
        }
        None
    }

    /// Tells it to stop, as this process was told.
    pub(super) fn stop(&self) {
        let told = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        if let Err(error) = told {
            tracing::warn!(%error, "the new process cannot be told to stop");
        }
    }

    /// Ends the process; it is gone when this returns.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.has_taken_over {
            self.end();
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fail::new(exit::SOFTWARE, error.to_string())),
    }
}
