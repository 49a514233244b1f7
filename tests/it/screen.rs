//! The agent's live screen in a real terminal.

use std::process::Command;

use crate::support::agent::{Agent, game};
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, Player, wait_for_motd};
use crate::support::process::{copy_surroundings, python};
use crate::support::{client, eventually};

const COLUMNS: &str = "110";
const ROWS: &str = "24";
/// What a terminal is told before and after a program that wants all of it.
const ANOTHER_SCREEN: (&str, &str) = ("\x1b[?1049h", "\x1b[?1049l");

fn in_terminal(command: &Command, locale: &str) -> Command {
    let mut terminal = python(&client("in_terminal.py"));
    terminal.args([COLUMNS, ROWS]);
    terminal.arg(command.get_program()).args(command.get_args());
    copy_surroundings(command, &mut terminal);
    terminal.env("TERM", "xterm").env("LC_ALL", locale);
    terminal
}

/// The same as a job of a shell that obeys this script.
fn in_shell(command: &Command, script: &str) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash"]);
    shell.arg(command.get_program()).args(command.get_args());
    copy_surroundings(command, &mut shell);
    in_terminal(&shell, "C.UTF-8")
}

/// An agent that enrols and serves `server`, as `place` runs it.
fn run(gateway: &Gateway, server: &MinecraftServer, place: impl Fn(&Command) -> Command) -> Agent {
    let made = gateway.json(&["tunnel", "enroll", "home", "--default", "--json"]);
    let (pin, code) = (made["pin"].as_str().unwrap(), made["code"].as_str().unwrap());
    Agent::run_where(
        gateway,
        gateway.address("tunnel.quic"),
        "home",
        &["--pin", pin, "--code", code],
        &Agent::minecraft(server.address),
        place,
    )
}

/// What was drawn last.
fn frame(agent: &Agent) -> String {
    let said = agent.said();
    said.rsplit("\x1b[H").next().unwrap_or_default().to_owned()
}

#[test]
fn in_a_terminal_the_agent_shows_how_it_stands_in_english_and_japanese() {
    let english = [
        "connected for",
        "over QUIC",
        "ms away",
        "open at",
        "Players: 1",
        "Hanako",
        "Messages",
    ];
    let japanese = [
        "接続中",
        "QUIC、往復",
        "で公開中",
        "プレイヤー: 1",
        "Hanako",
        "メッセージ",
    ];
    // Ctrl-C and Ctrl-\, as they are typed.
    for (locale, parts, nothing_sent, stopped, key) in [
        ("C.UTF-8", &english[..], " 0 B sent", "stopped", "\x03"),
        ("ja_JP.UTF-8", &japanese[..], "送信 0 B", "停止しました", "\x1c"),
    ] {
        let gateway = Gateway::start("");
        let server = MinecraftServer::start(gateway.directory(), "home");
        let mut agent = run(&gateway, &server, |command| in_terminal(command, locale));
        let door = gateway.address("tunnel.minecraft");
        wait_for_motd(door, "home");
        let mut hanako = Player::join(gateway.directory(), door, "Hanako");
        eventually("the screen shows it all", || {
            let frame = frame(&agent);
            let is_all = parts.iter().all(|part| frame.contains(part)) && !frame.contains(nothing_sent);
            is_all.then_some(())
        });
        hanako.says("still here");
        agent.types(key);
        assert!(agent.ends().success(), "{}", agent.said());
        let said = agent.said();
        let (_, after) = said
            .rsplit_once(ANOTHER_SCREEN.1)
            .unwrap_or_else(|| panic!("{said}"));
        assert!(after.contains(stopped), "{after}");
    }
}

#[test]
fn a_suspended_agent_gives_the_terminal_back_and_takes_it_again() {
    let gateway = Gateway::start("");
    let server = MinecraftServer::start(gateway.directory(), "home");
    let script = "set -m; \"$@\"; echo the shell has it; fg";
    let mut agent = run(&gateway, &server, |command| in_shell(command, script));
    let (enter, leave) = ANOTHER_SCREEN;
    eventually("the screen is there", || {
        frame(&agent).contains("connected for").then_some(())
    });
    // Ctrl-Z.
    agent.types("\x1a");
    eventually("it is there again", || {
        let said = agent.said();
        let (_, after) = said.split_once("the shell has it")?;
        (after.contains(enter) && after.contains("connected for")).then_some(())
    });
    agent.types("\x03");
    assert!(agent.ends().success(), "{}", agent.said());
    let said = agent.said();
    let (before, after) = said.split_once("the shell has it").unwrap();
    for part in [before, after] {
        assert!(part.contains(enter), "{said}");
        assert!(part.rfind(leave) > part.rfind(enter), "{said}");
    }
}

#[test]
fn in_the_background_the_agent_leaves_the_terminal_to_the_shell() {
    let gateway = Gateway::start("");
    let server = MinecraftServer::start(gateway.directory(), "home");
    let script = "set -m; \"$@\" & read -r; kill $!; wait $!";
    let mut agent = run(&gateway, &server, |command| in_shell(command, script));
    eventually("plain lines", || agent.said().contains("open at").then_some(()));
    agent.types("\n");
    assert!(agent.ends().success(), "{}", agent.said());
    let said = agent.said();
    assert!(said.contains("stopped") && !said.contains('\x1b'), "{said}");
}

#[test]
fn without_a_terminal_the_agent_writes_plain_lines() {
    let (_gateway, _server, agent, _door) = game("home");
    let said = agent.said();
    assert!(said.lines().any(|line| line.contains("open at")), "{said}");
    assert!(
        !said.contains('\x1b') && !said.contains(ANOTHER_SCREEN.0),
        "{said}"
    );
}
