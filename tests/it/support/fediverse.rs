//! The independent instance of `tests/clients/instance`, one process each.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::certificate::Certificate;
use super::own_network::OwnNetwork;
use super::process::{self, Running};
use super::{client, eventually, http};

pub(crate) struct Instance {
    pub(crate) base: String,
    reach: Reach,
    /// Ends the process when the test is over.
    _running: Running,
}

/// How its control is reached.
enum Reach {
    Here {
        address: SocketAddr,
        host: String,
    },
    /// In a network of its own: by curl, with this command line.
    Within {
        curl: Vec<OsString>,
        url: String,
    },
}

impl Instance {
    /// Starts one on a loopback address of its own, so that its host differs from the others'.
    pub(crate) fn start(style: &str, bind: &str, directory: &Path, more: &[&str]) -> Self {
        let mut command = process::python(&client("instance/instance.py"));
        command.args(["--style", style, "--bind", bind]).args(more);
        let log = directory.join(format!("{style}-{bind}.log"));
        let (running, lines) = Running::start_and_read(&format!("{style} at {bind}"), &mut command, &log);
        let about = lines.next_json();
        let control = about["control"].as_str().unwrap();
        let host = control.split('/').nth(2).unwrap().to_owned();
        Self {
            base: about["base"].as_str().unwrap().to_owned(),
            reach: Reach::Here {
                address: host.parse().unwrap(),
                host,
            },
            _running: running,
        }
    }

    /// Starts one as the world knows it: with a name, on port 443 of an address of its own. It trusts the CAs in `trust`.
    pub(crate) fn start_in(
        network: &OwnNetwork,
        style: &str,
        (name, address): (&str, &str),
        certificate: &Certificate,
        trust: &Path,
    ) -> Self {
        let mut command = process::python_in(network, &client("instance/instance.py"));
        command.args([
            "--style", style, "--bind", address, "--port", "443", "--host", name,
        ]);
        command.arg("--certificate").arg(&certificate.both);
        command.arg("--ca-file").arg(trust);
        let log = network.directory().join(format!("{name}.log"));
        let (running, lines) = Running::start_and_read(name, &mut command, &log);
        let about = lines.next_json();
        let curl = network.tool("curl");
        Self {
            base: about["base"].as_str().unwrap().to_owned(),
            reach: Reach::Within {
                curl: std::iter::once(curl.get_program())
                    .chain(curl.get_args())
                    .map(OsString::from)
                    .collect(),
                url: about["control"].as_str().unwrap().to_owned(),
            },
            _running: running,
        }
    }

    /// Its name, with a port if there is one.
    pub(crate) fn host(&self) -> &str {
        self.base.split('/').nth(2).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn control(&self, command: &str, arguments: &Value) -> Value {
        let (path, body) = (format!("/control/{command}"), arguments.to_string());
        match &self.reach {
            Reach::Here { address, host } => {
                let kind = "Content-Type: application/json\r\n";
                let answer = http::post(*address, host, &path, kind, body.as_bytes());
                assert_eq!(answer.status, 200, "{} {command}: {}", self.base, answer.text());
                answer.json()
            }
            Reach::Within { curl, url } => by_curl(curl, &["--data", &body], &format!("{url}/{command}")),
        }
    }

    #[track_caller]
    pub(crate) fn read(&self, what: &str) -> Value {
        match &self.reach {
            Reach::Here { address, host } => {
                http::get(*address, host, &format!("/control/{what}"), "").json()
            }
            Reach::Within { curl, url } => by_curl(curl, &[], &format!("{url}/{what}")),
        }
    }

    /// Pastes a relay, without waiting for its answer.
    #[track_caller]
    pub(crate) fn ask(&self, relay: &str) {
        let answer = self.control("subscribe", &json!({"relay": relay}));
        assert!(
            [200, 202].contains(&answer["status"].as_u64().unwrap()),
            "{}: {answer}",
            self.base
        );
    }

    /// Waits for the Accept of its Follow.
    #[track_caller]
    pub(crate) fn is_accepted(&self) {
        eventually(&format!("the relay accepts the Follow of {}", self.base), || {
            (self.read("state")["subscription"] == "accepted").then_some(())
        });
    }

    /// What an admin pastes into the relay field, then waiting for the Accept.
    #[track_caller]
    pub(crate) fn subscribe(&self, relay: &str) {
        self.ask(relay);
        self.is_accepted();
    }

    /// Publishes `count` activities; each must be answered 202. Gives what was sent.
    #[track_caller]
    pub(crate) fn publish(&self, arguments: &Value) -> Vec<Value> {
        let sent = self.control("publish", arguments);
        let sent = sent.as_array().unwrap().clone();
        for one in &sent {
            assert_eq!(one["status"], 202, "{}: {one}", self.base);
        }
        sent
    }

    /// Everything that came to an inbox, what was refused too.
    pub(crate) fn received(&self) -> Vec<Value> {
        self.read("received").as_array().unwrap().clone()
    }

    /// Waits for an accepted request that `matches`.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let found = std::cell::RefCell::new(Vec::new());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("{} receives {what}", self.base), || {
                let all = self.received();
                let hit = all
                    .iter()
                    .find(|one| one["outcome"] == "accepted" && matches(one))
                    .cloned();
                *found.borrow_mut() = all;
                hit
            })
        }));
        result.unwrap_or_else(|error| {
            for one in found.borrow().iter() {
                eprintln!(
                    "{} received {} {} from {}: {}",
                    self.base, one["type"], one["id"], one["signer"], one["outcome"]
                );
            }
            std::panic::resume_unwind(error)
        })
    }
}

#[track_caller]
fn by_curl(curl: &[OsString], more: &[&str], url: &str) -> Value {
    let mut command = Command::new(&curl[0]);
    command
        .args(&curl[1..])
        .args(["--silent", "--show-error", "--fail-with-body"])
        .args(more)
        .arg(url);
    serde_json::from_str(&process::succeed(&mut command)).unwrap()
}
