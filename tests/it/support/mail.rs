//! Mail by Python's smtplib, `smtp-sink` as a next hop, and what it got.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{self, Lines, Running, is_root, tool};
use super::{client, free_port, loopback, open_directory, wait_for_listener};

/// One message as a next hop wrote it down: lines end with LF there.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
}

impl Message {
    /// The id that `tests/clients/mail.py` gave it, if it arrived whole.
    pub(crate) fn whole_id(&self) -> Option<&str> {
        let id = self.header("X-Test-Id")?;
        self.text
            .trim_end()
            .ends_with(&format!("\nEND {id}"))
            .then_some(id)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (head, _) = self.text.split_once("\n\n")?;
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn body(&self) -> &str {
        self.text.split_once("\n\n").map_or("", |(_, body)| body)
    }
}

/// `smtp-sink`, which writes each message to a file.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    directory: TempDir,
    /// The ids in the files that were read and found whole.
    known: Mutex<BTreeMap<PathBuf, String>>,
    _running: Running,
}

impl Sink {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(loopback(free_port()), options)
    }

    pub(crate) fn start_at(address: SocketAddr, options: &[&str]) -> Self {
        let directory = open_directory();
        let mails = directory.path().join("mails");
        std::fs::create_dir(&mails).unwrap();
        std::fs::set_permissions(&mails, std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = tool("smtp-sink");
        if is_root() {
            command.args(["-u", "nobody"]);
        }
        command
            .arg("-d")
            .arg(mails.join("%H%M%S."))
            .args(options)
            .arg(address.to_string())
            .arg("200");
        let running = Running::start("smtp-sink", &mut command, &directory.path().join("log"));
        wait_for_listener("smtp-sink", address);
        Self {
            address,
            directory,
            known: Mutex::default(),
            _running: running,
        }
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        read_messages(&self.directory.path().join("mails"))
    }

    /// The files that it wrote, one for each message that is there whole: it names them when they are.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("mails")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    pub(crate) fn whole_ids(&self) -> BTreeSet<String> {
        self.arrivals().into_iter().collect()
    }

    /// The id of each message that arrived whole, as often as it came. Whole ones are read once.
    pub(crate) fn arrivals(&self) -> Vec<String> {
        let mut known = self.known.lock().unwrap();
        for entry in std::fs::read_dir(self.directory.path().join("mails")).unwrap() {
            let path = entry.unwrap().path();
            if known.contains_key(&path) {
                continue;
            }
            let id = read_message(&path).and_then(|message| message.whole_id().map(str::to_owned));
            known.extend(id.map(|id| (path, id)));
        }
        known.values().cloned().collect()
    }
}

pub(crate) fn read_messages(folder: &Path) -> Vec<Message> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| read_message(&entry.path())).collect()
}

fn read_message(file: &Path) -> Option<Message> {
    let bytes = std::fs::read(file).ok()?;
    Some(Message {
        text: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// What `tests/clients/mail.py` reports.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) accepted: BTreeSet<String>,
    pub(crate) refused: Vec<Value>,
    pub(crate) unanswered: Vec<Value>,
}

impl Report {
    /// Takes one event; true when it was the last.
    pub(crate) fn take(&mut self, event: Value) -> bool {
        if let Some(id) = event["accepted"].as_str() {
            self.accepted.insert(id.to_owned());
        } else if event["done"] == true {
            return true;
        } else if event.get("refused").is_some() {
            self.refused.push(event);
        } else {
            self.unanswered.push(event);
        }
        false
    }
}

/// Runs Python's smtplib to its end.
#[track_caller]
pub(crate) fn send(arguments: &[&str], directory: &Path) -> Report {
    let (mut running, lines) = send_in_background(arguments, directory);
    let mut report = Report::default();
    while !report.take(lines.next_json()) {}
    running.wait();
    report
}

/// With `--hold-after` it goes on when it is told so: see [`Running::tell`].
pub(crate) fn send_in_background(arguments: &[&str], directory: &Path) -> (Running, Lines) {
    let mut command = process::python(&client("mail.py"));
    command.args(arguments);
    Running::start_and_read("smtplib", &mut command, &directory.join("smtplib.log"))
}
