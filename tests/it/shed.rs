//! A gateway that may open no more files: who plays goes on, who is new is shed.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::agent::game;
use crate::support::eventually;
use crate::support::minecraft::{Player, play};

/// Files that the process may open beyond those it has.
const MORE: u64 = 4;

#[test]
fn when_files_run_out_new_players_are_shed_and_running_ones_play_on() {
    let (gateway, _server, _agent, door) = game("home");
    let mut hanako = Player::join(gateway.directory(), door, "Hanako");

    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap();
    let open: Vec<u64> = open
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let limit = open.iter().max().unwrap() + 1 + MORE;
    let process = Pid::from_raw(i32::try_from(gateway.id()).unwrap());
    let both = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    prlimit(process, Resource::Nofile, both).unwrap();

    let free = usize::try_from(limit).unwrap() - open.len();
    let mut crowd: Vec<TcpStream> = (0..free + 20)
        .map(|_| TcpStream::connect(door).unwrap())
        .collect();
    let last = crowd.last_mut().unwrap();
    // Far less than a client may take to say what it wants.
    last.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    match last.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("not shed: {other:?}"),
    }
    for word in 0..20 {
        hanako.says(&format!("word {word}"));
    }
    drop(crowd);
    eventually("a new player gets in again", || {
        (play(door, "Taro", &[])["joined"] == true).then_some(())
    });
    hanako.says("still here");
    gateway.assert_never_panicked();
}
