//! The README's commands, run as they are written.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::gateway::OwnNetwork;
use crate::support::process::{self, Running};
use crate::support::{eventually, open_directory, readme, root};

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
        let network = OwnNetwork::start();
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

    fn shell(&self, script: &str, directory: &Path) -> Command {
        let mut command = self.network.command(&process::find("sh"));
        command
            .args(["-e", "-c", script])
            .current_dir(directory)
            .env("PATH", &self.path)
            .env_remove("TASUKI_CONFIG");
        command
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
    let here = place.network.directory();
    let serve = readme::block("run: serve");
    let mut command = place.shell(&format!("exec {}", serve.trim()), here);
    let mut gateway = Running::start(serve.trim(), &mut command, &place.file("serve.log"));
    eventually("the gateway of the README is up", || {
        gateway.assert_runs();
        place.file("data/addresses.json").exists().then_some(())
    });
    for (mark, script) in readme::blocks("README.md") {
        match mark.as_str() {
            "run: first-mail" => first_mail(&place, &script),
            "run: queue" | "run: dkim" | "run: enroll" | "run: subscribers" | "run: status" => {
                process::succeed(&mut place.shell(&script, here));
            }
            "run: demo" | "run: serve" | "run: init" | "run: none" | "nginx" | "caddy" => {}
            // The mail chapter: its own test.
            "run: sink" | "run: copier" => {}
            other if other.starts_with("config: ") => {}
            other => panic!("README.md has a block {other:?} that no test runs"),
        }
    }
    assert!(gateway.terminate().success());
}

/// The first command prints the password that the second needs.
fn first_mail(place: &Place, script: &str) {
    let (add, rest) = script.split_once('\n').unwrap();
    let printed = process::succeed(&mut place.shell(add, place.network.directory()));
    let password = printed
        .lines()
        .find_map(|line| line.strip_prefix("password: "))
        .unwrap_or_else(|| panic!("{printed}"));
    let rest = rest.replace("PASSWORD", password);
    let said = process::succeed(&mut place.shell(&rest, place.network.directory()));
    assert!(
        said.contains("you@example.net"),
        "the mail is in the queue: {said}"
    );
}

/// `tasuki serve` in the place, until it is up.
fn serve(place: &Place) -> Running {
    let here = place.network.directory();
    let mut command = place.shell("exec tasuki serve", here);
    let mut gateway = Running::start("tasuki serve", &mut command, &place.file("serve.log"));
    eventually("the gateway is up", || {
        gateway.assert_runs();
        place.file("data/addresses.json").exists().then_some(())
    });
    gateway
}

#[test]
fn the_mail_chapter_of_the_readme_works_as_written() {
    let place = Place::new();
    let here = place.network.directory();
    assert!(serve(&place).terminate().success());
    std::fs::write(place.file("tasuki.toml"), readme::block("config: sink")).unwrap();
    // Nobody lets it run as root.
    let sink = readme::block("run: sink");
    let sink = if process::is_root() {
        sink.replace("smtp-sink", "smtp-sink -u nobody")
    } else {
        sink
    };
    let path = std::env::var("PATH").unwrap() + ":/usr/sbin";
    let mut command = place.shell(&format!("exec {}", sink.trim()), here);
    let sink = Running::start("smtp-sink", command.env("PATH", path), &place.file("sink.log"));
    let mut gateway = serve(&place);
    first_mail(
        &place,
        &readme::block("run: first-mail").replace("tasuki mail queue", "echo you@example.net"),
    );
    eventually("the sink counts the mail", || {
        sink.log().contains("mesg=1").then_some(())
    });
    eventually("the queue is empty", || {
        let said = process::succeed(&mut place.shell("tasuki mail queue", here));
        said.starts_with("the queue is empty").then_some(())
    });
    process::succeed(&mut place.shell(&readme::block("run: copier"), here));
    let listed = process::succeed(&mut place.shell("tasuki service list", here));
    assert!(listed.contains("copier"), "{listed}");
    assert!(gateway.terminate().success());
}

/// What stands beside a `main.cf` parameter in the table is a key of `config/tasuki.toml`, in both languages.
#[test]
fn every_key_in_the_table_for_postfix_users_exists() {
    let keys: toml::Table = std::fs::read_to_string(root().join("config/tasuki.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let text = std::fs::read_to_string(root().join("config/tasuki.toml")).unwrap();
    for file in ["README.md", "README.ja.md"] {
        let readme = std::fs::read_to_string(root().join(file)).unwrap();
        let rows = readme
            .lines()
            .skip_while(|line| !line.starts_with("| main.cf |"))
            .skip(2);
        let mut seen = 0;
        for row in rows.take_while(|line| line.starts_with('|')) {
            let ours = row.split('|').nth(2).unwrap();
            for key in ours.split('`').skip(1).step_by(2) {
                let (sections, last) = key.rsplit_once('.').unwrap();
                let table = sections
                    .split('.')
                    .try_fold(&keys, |table, name| table.get(name)?.as_table());
                let table = table.unwrap_or_else(|| panic!("{file}: no section {sections}"));
                // Keys without a default are there as comments.
                let there = table.contains_key(last) || text.contains(&format!("\n# {last} = "));
                assert!(there, "{file}: no key {key}");
                seen += 1;
            }
        }
        assert!(seen > 15, "{file} has no table for Postfix users");
    }
}

#[test]
fn the_public_setup_of_the_readme_makes_a_configuration_without_mistakes() {
    let place = Place::new();
    process::succeed(&mut place.shell(&readme::block("run: init"), place.network.directory()));
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
    let said = process::succeed(&mut place.shell(
        &format!("{} --once --json", demo.trim()),
        place.network.directory(),
    ));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    for engine in ["mail", "fediverse", "tunnel"] {
        assert!(report.to_string().contains(engine), "{report}");
    }
}
