//! `tests/traps.md` names the tests that watch each known trap; here it is checked that they exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Names of test functions in all Rust files below `folder`.
fn tests_below(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut marked = false;
            for line in fs::read_to_string(&path).unwrap().lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    marked = true;
                } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
                    names.insert(rest.split(['(', '<']).next().unwrap().to_owned());
                    marked = false;
                }
            }
        }
    }
}

#[test]
fn each_trap_names_tests_that_exist() {
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traps.md")).unwrap();
    let mut names = BTreeSet::new();
    for folder in ["crates", "tests"] {
        tests_below(&root().join(folder), &mut names);
    }
    let dialogues = root().join("crates/tasuki-proto/tests/it/data/smtp");
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("| tests |"))
        .collect();
    let number = |row: &&str| {
        row[2..]
            .split(' ')
            .next()
            .and_then(|word| word.parse::<usize>().ok())
    };
    let (traps, musts): (Vec<&str>, Vec<&str>) = rows.iter().partition(|row| number(row).is_some());
    let numbers: Vec<usize> = traps.iter().filter_map(number).collect();
    assert_eq!(numbers, (1..=32).collect::<Vec<_>>(), "every trap has its row");
    assert!(musts.len() >= 15, "{musts:?}");
    for row in traps.iter().chain(&musts) {
        let named: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(
            !named.is_empty() || row.contains("| not offered: "),
            "no test: {row}"
        );
        for name in named {
            let exists = names.contains(name) || name.ends_with(".txt") && dialogues.join(name).is_file();
            assert!(exists, "{name} is no test: {row}");
        }
    }
}
