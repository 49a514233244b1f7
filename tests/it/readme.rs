//! The README's commands, run as they are written.

mod fediverse;
mod mail;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::own_network::OwnNetwork;
use crate::support::process::{self, Running};
use crate::support::{eventually, open_directory, readme};

#[test]
fn both_readmes_show_the_same_commands() {
    let (english, japanese) = (readme::blocks("README.md"), readme::blocks("README.ja.md"));
    let marks = |blocks: &[(String, String)]| blocks.iter().map(|(mark, _)| mark.clone()).collect::<Vec<_>>();
    assert_eq!(marks(&english), marks(&japanese));
    for ((mark, ours), (_, theirs)) in english.iter().zip(&japanese) {
        assert_eq!(without_comments(ours), without_comments(theirs), "{mark}");
    }
}

/// Comments may be translated.
fn without_comments(block: &str) -> Vec<&str> {
    let bare = block.lines().filter(|line| !line.trim_start().starts_with('#'));
    bare.map(|line| line.split(" #").next().unwrap_or_default().trim_end())
        .collect()
}

/// A place with the default ports free, our programs on the path, and a stand-in for cargo.
struct Place {
    network: OwnNetwork,
    path: String,
}

impl Place {
    fn new() -> Self {
        Self::within(OwnNetwork::start())
    }

    fn within(network: OwnNetwork) -> Self {
        let programs = network.directory().join("programs");
        std::fs::create_dir(&programs).unwrap();
        write_cargo(&programs.join("cargo"));
        let ours = process::ours("tasuki");
        let system = std::env::var("PATH").unwrap();
        let path = format!(
            "{}:{}:{system}",
            programs.display(),
            ours.parent().unwrap().display()
        );
        Self { network, path }
    }

    fn shell(&self, script: &str) -> Command {
        self.shell_in(self.network.directory(), script)
    }

    fn shell_in(&self, directory: &Path, script: &str) -> Command {
        let mut command = self.network.command(&process::find("sh"));
        command
            .args(["-e", "-c", &format!("cd '{}'\n{script}", directory.display())])
            .env("PATH", &self.path)
            .env_remove("TASUKI_CONFIG");
        command
    }

    /// Runs a block's commands, each of which must succeed, and gives what they said.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        process::succeed(&mut self.shell(script))
    }

    /// `tasuki serve` in a directory of the place, until it is up.
    fn serve_in(&self, directory: &Path, command: &str) -> Running {
        let addresses = directory.join("data/addresses.json");
        // What an earlier one left says nothing of this one.
        let _ = std::fs::remove_file(&addresses);
        let mut shell = self.shell_in(directory, &format!("exec {command}"));
        let mut gateway = Running::start(command, &mut shell, &directory.join("serve.log"));
        eventually("the gateway is up", || {
            gateway.assert_runs();
            addresses.exists().then_some(())
        });
        gateway
    }

    fn serve(&self) -> Running {
        self.serve_in(self.network.directory(), "tasuki serve")
    }

    /// The id of a mail that waits, the oldest first.
    #[track_caller]
    fn waiting_mail(&self) -> Option<String> {
        let listed: serde_json::Value = serde_json::from_str(&self.run("tasuki mail queue --json")).unwrap();
        Some(listed["queue"][0]["mail"].as_str()?.to_owned())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.network.directory().join(name)
    }
}

/// The programs are built already, and a release build of its own would take minutes.
fn write_cargo(file: &Path) {
    let script = r#"#!/bin/sh
program=tasuki
while [ $# -gt 0 ]; do
    case $1 in
        run | --release | --locked) shift ;;
        -p) program=$2; shift 2 ;;
        --) shift; exec "$program" "$@" ;;
        *) echo "not a command of the README: cargo $*" >&2; exit 64 ;;
    esac
done
"#;
    std::fs::write(file, script).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_first_steps_of_the_readme_work_as_written() {
    let place = Place::new();
    let serve = readme::block("run: serve");
    let mut gateway = place.serve_in(place.network.directory(), serve.trim());
    for (mark, script) in readme::blocks("README.md") {
        match mark.as_str() {
            "run: first-mail" => {
                first_mail(&place, &script);
            }
            "run: queue-read" => {
                let id = place
                    .waiting_mail()
                    .expect("the first mail waits: there is no network");
                let said = place.run(&script.replace("ID", &id));
                assert!(said.contains("you@example.net"), "{said}");
            }
            "run: queue" | "run: suppress" | "run: enroll" | "run: subscribers" | "run: status"
            | "run: backup" | "run: restore" => {
                place.run(&script);
            }
            "run: demo" | "run: serve" | "run: init" | "run: none" | "nginx" | "caddy" => {}
            // In `upgrade`, where players stay meanwhile.
            "run: upgrade" => {}
            // The mail chapter: in the order of a newcomer, in `mail`.
            mark if mail::BLOCKS.contains(&mark) => {}
            // The fediverse chapter, in `fediverse`.
            mark if fediverse::BLOCKS.contains(&mark) => {}
            other if other.starts_with("config: ") => {}
            other => panic!("README.md has a block {other:?} that no test runs"),
        }
    }
    assert!(gateway.terminate().success());
}

/// The first command prints the password that the second needs; gives the second with it.
fn first_mail(place: &Place, script: &str) -> String {
    let (add, rest) = script.split_once('\n').unwrap();
    let printed = place.run(add);
    let password = printed
        .lines()
        .find_map(|line| line.strip_prefix("password: "))
        .unwrap_or_else(|| panic!("{printed}"));
    let rest = rest.replace("PASSWORD", password);
    let said = place.run(&rest);
    assert!(said.contains("you@example.net"), "the mail is told of: {said}");
    rest
}

#[test]
fn the_public_setup_of_the_readme_makes_a_configuration_without_mistakes() {
    let place = Place::new();
    place.run(&readme::block("run: init"));
    assert!(place.file("tasuki.toml").exists());
}

#[test]
fn the_pieces_of_configuration_in_the_readme_have_no_mistakes() {
    let directory = open_directory();
    let file = directory.path().join("tasuki.toml");
    let mut pieces = 0;
    for (mark, text) in readme::blocks("README.md") {
        if mark.starts_with("config: ") {
            std::fs::write(&file, text).unwrap();
            process::succeed(
                Command::new(process::ours("tasuki"))
                    .arg("check")
                    .arg("--config")
                    .arg(&file),
            );
            pieces += 1;
        }
    }
    std::fs::write(&file, readme::trusted_proxies()).unwrap();
    process::succeed(
        Command::new(process::ours("tasuki"))
            .arg("check")
            .arg("--config")
            .arg(&file),
    );
    assert!(pieces > 0, "README.md shows no configuration");
}

#[test]
fn the_demo_of_the_readme_runs_and_ends_by_itself_with_once() {
    let place = Place::new();
    let demo = readme::block("run: demo");
    let said = place.run(&format!("{} --once --json", demo.trim()));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    for engine in ["mail", "fediverse", "tunnel"] {
        assert!(report.to_string().contains(engine), "{report}");
    }
}
