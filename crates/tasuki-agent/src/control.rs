//! The control socket: the home host's commands ask the running agent through it. One line of JSON each way; the
//! socket's permission is the authority.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_tunnel::agent::{Control, Rules, Status, VisitorLine, Who};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::home::Home;
use crate::os::{ControlListener, ControlStream, connect_control};
use crate::{Fail, IO, UNAVAILABLE};

/// The longest question.
const MAX_QUESTION_BYTES: u64 = 4096;
/// The longest answer: a listing of all the visitors that an agent may have.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// How long either side may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries of each list of rules.
const MAX_RULES: usize = 10_000;
/// After an error of the listener, so that one that stays does not spin.
const BACK_OFF: Duration = Duration::from_millis(200);

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", content = "who", rename_all = "snake_case")]
pub(crate) enum Question {
    Status,
    Players,
    Rules,
    Kick(Who),
    Ban(Who),
    Unban(Who),
    Allow(Who),
    Disallow(Who),
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Status),
    Players(Vec<VisitorLine>),
    Rules(Rules),
    /// Whether a list was changed, and how many connections were cut.
    Done {
        changed: bool,
        cut: usize,
    },
    Problem(String),
}

/// The agent's end.
pub(crate) struct Server {
    control: Control,
    home: Home,
    /// Changes of the rules, one after another.
    changing: Mutex<()>,
}

impl Server {
    pub(crate) fn new(control: Control, home: Home) -> Self {
        Self {
            control,
            home,
            changing: Mutex::default(),
        }
    }

    /// Answers one command after another; each has its time.
    pub(crate) async fn serve(&self, listener: ControlListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::time::timeout(PATIENCE, self.talk(stream)).await),
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            }
        }
    }

    async fn talk(&self, mut stream: ControlStream) -> io::Result<()> {
        let mut line = String::new();
        let mut input = BufReader::new((&mut stream).take(MAX_QUESTION_BYTES));
        input.read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line) {
            Ok(question) => self.answer(question),
            Err(error) => Answer::Problem(format!("the question is not understood: {error}")),
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    }

    fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Status => Answer::Status(self.control.status()),
            Question::Players => Answer::Players(self.control.visitors()),
            Question::Rules => Answer::Rules(self.control.rules()),
            Question::Kick(who) => Answer::Done {
                changed: false,
                cut: self.control.kick(&who),
            },
            Question::Ban(who) => self.change(|rules| add(&mut rules.banned, who)),
            Question::Unban(who) => self.change(|rules| remove(&mut rules.banned, &who)),
            Question::Allow(who) => self.change(|rules| add(&mut rules.allowed, who)),
            Question::Disallow(who) => self.change(|rules| remove(&mut rules.allowed, &who)),
        }
    }

    /// Changes the rules: kept first, then in force.
    fn change(&self, change: impl FnOnce(&mut Rules) -> bool) -> Answer {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rules = self.control.rules();
        if !change(&mut rules) {
            return Answer::Done {
                changed: false,
                cut: 0,
            };
        }
        if rules.banned.len() > MAX_RULES || rules.allowed.len() > MAX_RULES {
            return Answer::Problem(format!(
                "a list has at most {MAX_RULES} entries; use networks like 192.0.2.0/24"
            ));
        }
        match self.home.keep_rules(&rules) {
            Ok(()) => Answer::Done {
                changed: true,
                cut: self.control.set_rules(rules),
            },
            Err(fail) => Answer::Problem(fail.text),
        }
    }
}

fn add(list: &mut Vec<Who>, who: Who) -> bool {
    let is_new = !list.contains(&who);
    if is_new {
        list.push(who);
    }
    is_new
}

fn remove(list: &mut Vec<Who>, who: &Who) -> bool {
    let before = list.len();
    list.retain(|known| known != who);
    list.len() < before
}

/// Asks the agent that runs from one of these directories.
pub(crate) fn ask(homes: &[Home], question: &Question) -> Result<Answer, Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new(IO, format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let mut last = Fail::new(UNAVAILABLE, "no directory to look for a running agent: say --dir DIR");
        for home in homes {
            let path = home.socket();
            match connect_control(&path).await {
                Ok(stream) => return exchange(stream, question).await,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let text = format!(
                        "{}: permission denied; run this as the user that runs the agent, or as root",
                        path.display()
                    );
                    return Err(Fail::new(UNAVAILABLE, text));
                }
                Err(error) => {
                    let text = format!(
                        "no agent is running here: it was looked for at {} ({error}). Start one with `tasuki-agent run`, or \
                         name its directory with --dir DIR",
                        path.display()
                    );
                    last = Fail::new(UNAVAILABLE, text);
                }
            }
        }
        Err(last)
    })
}

async fn exchange(mut stream: ControlStream, question: &Question) -> Result<Answer, Fail> {
    let broken = |error: io::Error| Fail::new(UNAVAILABLE, format!("the agent does not answer: {error}"));
    let talk = async {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        (&mut stream)
            .take(MAX_ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    match tokio::time::timeout(PATIENCE, talk).await {
        Ok(Ok(Answer::Problem(text))) => Err(Fail::new(IO, text)),
        Ok(answer) => answer.map_err(broken),
        Err(_) => Err(broken(io::ErrorKind::TimedOut.into())),
    }
}
