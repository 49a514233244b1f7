//! The demo proves the three main jobs, with the real programs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::gateway::{run, tasuki};

#[test]
fn the_demo_delivers_unchanged_in_all_three_engines() {
    let directory = TempDir::new().unwrap();
    let said = run(directory.path(), &["demo", "--once", "--json"]);
    let report = said.json();
    assert_eq!(said.code, 0, "{report:#}\n{}", said.err);
    assert_eq!(report["ok"], true, "{report:#}");
    let engines = &report["engines"];
    for engine in ["mail", "tunnel"] {
        let proof = &engines[engine];
        assert_eq!(
            proof["sent"]["sha256"], proof["received"][0]["sha256"],
            "{engine}: {proof:#}"
        );
    }
    let fediverse = &engines["fediverse"];
    let received = fediverse["received"].as_array().unwrap();
    assert_eq!(received.len(), 3, "{fediverse:#}");
    let forwarded = received
        .iter()
        .filter(|r| r["sha256"] == fediverse["sent"]["sha256"])
        .count();
    assert_eq!(
        forwarded, 2,
        "two get the bytes, LitePub gets an Announce: {fediverse:#}"
    );
    assert!(report["seconds"].as_f64().unwrap() < 30.0, "{report:#}");
}

/// Ctrl-C on a terminal reaches the children as well; `kill` reaches the demo alone.
#[derive(Clone, Copy)]
enum End {
    CtrlC,
    Kill,
}

#[test]
fn ctrl_c_while_everything_stands_leaves_no_process_and_no_directory() {
    interrupted("Ctrl-C ends it.", End::CtrlC);
}

#[test]
fn kill_while_everything_stands_leaves_no_process_and_no_directory() {
    interrupted("Ctrl-C ends it.", End::Kill);
}

#[test]
fn ctrl_c_in_the_middle_leaves_no_process_and_no_directory() {
    interrupted("mail", End::CtrlC);
}

#[test]
fn kill_in_the_middle_leaves_no_process_and_no_directory() {
    interrupted("gateway", End::Kill);
}

/// Starts the demo, ends it after it has printed a line that contains `at`, and looks for what is left.
fn interrupted(at: &str, end: End) {
    use std::os::unix::process::CommandExt as _;
    let directory = TempDir::new().unwrap();
    let mut child = tasuki(directory.path())
        .arg("demo")
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let (send, lines) = std::sync::mpsc::channel();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let also = send.clone();
    std::thread::spawn(move || {
        BufReader::new(out)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|l| send.send(l))
    });
    std::thread::spawn(move || {
        BufReader::new(err)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|l| also.send(l))
    });
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.contains(at)) {
        said.push(
            lines
                .recv_timeout(Duration::from_secs(60))
                .unwrap_or_else(|e| panic!("{e}: {said:#?}")),
        );
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    match end {
        End::CtrlC => rustix::process::kill_process_group(pid, Signal::INT).unwrap(),
        End::Kill => rustix::process::kill_process(pid, Signal::TERM).unwrap(),
    }
    let until = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the demo does not end: {said:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_in(directory.path()), Vec::<String>::new());
}

/// Command lines of the processes that were started with this directory for temporary files.
fn processes_in(directory: &Path) -> Vec<String> {
    let mark = format!("TMPDIR={}", directory.display());
    let has_mark = |environment: &[u8]| environment.split(|b| *b == 0).any(|v| v == mark.as_bytes());
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|p| std::fs::read(p.path().join("environ")).is_ok_and(|e| has_mark(&e)))
        .filter_map(|p| std::fs::read(p.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}
