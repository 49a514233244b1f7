//! The independent instance of `tests/clients/instance`, one process each.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::process::{self, Running};
use super::{client, eventually, http};

pub(crate) struct Instance {
    pub(crate) base: String,
    address: SocketAddr,
    host: String,
    /// Ends the process when the test is over.
    _running: Running,
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
            address: host.parse().unwrap(),
            host,
            _running: running,
        }
    }

    #[track_caller]
    pub(crate) fn control(&self, command: &str, arguments: &Value) -> Value {
        let answer = http::post(
            self.address,
            &self.host,
            &format!("/control/{command}"),
            "Content-Type: application/json\r\n",
            arguments.to_string().as_bytes(),
        );
        assert_eq!(answer.status, 200, "{} {command}: {}", self.base, answer.text());
        answer.json()
    }

    #[track_caller]
    pub(crate) fn read(&self, what: &str) -> Value {
        http::get(self.address, &self.host, &format!("/control/{what}"), "").json()
    }

    /// What an admin pastes into the relay field, then waiting for the Accept.
    #[track_caller]
    pub(crate) fn subscribe(&self, relay: &str) {
        let answer = self.control("subscribe", &json!({"relay": relay}));
        assert!(
            [200, 202].contains(&answer["status"].as_u64().unwrap()),
            "{}: {answer}",
            self.base
        );
        eventually(&format!("the relay accepts the Follow of {}", self.base), || {
            (self.read("state")["subscription"] == "accepted").then_some(())
        });
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
