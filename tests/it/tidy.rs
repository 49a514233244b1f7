//! The shape of the house, proved from what cargo says about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::root;

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Package names to the names they depend on.
pub(crate) struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    dev: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn of_the_workspace() -> Self {
        let metadata: Value = serde_json::from_str(&cargo(&[
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
        ]))
        .unwrap();
        let names: BTreeMap<&str, &str> = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
            .collect();
        let mut graph = Self {
            normal: BTreeMap::new(),
            dev: BTreeMap::new(),
        };
        for node in metadata["resolve"]["nodes"].as_array().unwrap() {
            let from = names[node["id"].as_str().unwrap()].to_owned();
            for dependency in node["deps"].as_array().unwrap() {
                let to = names[dependency["pkg"].as_str().unwrap()].to_owned();
                for kind in dependency["dep_kinds"].as_array().unwrap() {
                    let edges = if kind["kind"] == "dev" {
                        &mut graph.dev
                    } else {
                        &mut graph.normal
                    };
                    edges.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        graph
    }

    /// Our own crates that `package` names in its manifest, those for tests left out.
    fn ours(&self, package: &str) -> BTreeSet<&str> {
        ours(self.normal.get(package))
    }

    fn ours_for_tests(&self, package: &str) -> BTreeSet<&str> {
        ours(self.dev.get(package))
    }

    /// Everything that `package` links, however far away.
    pub(crate) fn tree(&self, package: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package];
        while let Some(next) = open.pop() {
            for dependency in self.normal.get(next).into_iter().flatten() {
                if seen.insert(dependency.as_str()) {
                    open.push(dependency);
                }
            }
        }
        seen
    }
}

fn ours(dependencies: Option<&BTreeSet<String>>) -> BTreeSet<&str> {
    dependencies
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|name| name.starts_with("tasuki") || ["e2e", "bench"].contains(name))
        .collect()
}

const ENGINES: [&str; 3] = ["tasuki-smtp", "tasuki-activitypub", "tasuki-tunnel"];

#[test]
fn binaries_need_engines_engines_need_core_and_core_needs_proto() {
    let graph = Graph::of_the_workspace();
    let allowed: &[(&str, &[&str])] = &[
        ("tasuki-proto", &[]),
        ("tasuki-core", &["tasuki-proto"]),
        ("tasuki-store", &["tasuki-core", "tasuki-proto"]),
        ("tasuki-smtp", &["tasuki-core", "tasuki-proto"]),
        ("tasuki-activitypub", &["tasuki-core", "tasuki-proto"]),
        ("tasuki-tunnel", &["tasuki-core", "tasuki-proto"]),
        ("tasuki-agent", &["tasuki-tunnel", "tasuki-core", "tasuki-proto"]),
        (
            "tasuki",
            &[
                // The gateway's program can act as the agent too.
                "tasuki-agent",
                "tasuki-smtp",
                "tasuki-activitypub",
                "tasuki-tunnel",
                "tasuki-store",
                "tasuki-core",
                "tasuki-proto",
            ],
        ),
        ("e2e", &[]),
    ];
    for (package, may) in allowed {
        let may: BTreeSet<&str> = may.iter().copied().collect();
        let does = graph.ours(package);
        assert!(
            does.is_subset(&may),
            "{package} depends on {:?}",
            does.difference(&may)
        );
    }
    for package in graph.normal.keys().filter(|name| name.starts_with("tasuki")) {
        assert!(
            allowed.iter().any(|(known, _)| known == package),
            "{package} is new: say here what it may depend on"
        );
    }
}

#[test]
fn engines_link_neither_each_other_nor_the_store() {
    let graph = Graph::of_the_workspace();
    for engine in ENGINES {
        let tree = graph.tree(engine);
        for other in ENGINES
            .iter()
            .chain(&["tasuki-store", "sqlx"])
            .filter(|other| **other != engine)
        {
            assert!(!tree.contains(other), "{engine} links {other}");
        }
        for other in ENGINES {
            assert!(
                !graph.ours_for_tests(engine).contains(other),
                "the tests of {engine} link {other}"
            );
        }
    }
}

#[test]
fn the_agent_links_no_database_and_no_web_framework() {
    let graph = Graph::of_the_workspace();
    let tree = graph.tree("tasuki-agent");
    for heavy in [
        "sqlx",
        "sqlx-core",
        "axum",
        "tasuki-store",
        "tasuki-smtp",
        "tasuki-activitypub",
    ] {
        assert!(!tree.contains(heavy), "tasuki-agent links {heavy}");
    }
}

/// Invariant 8: `tasuki-proto` has no IO, clock or randomness of its own.
#[test]
fn proto_has_no_io_clock_or_randomness() {
    let graph = Graph::of_the_workspace();
    let tree = graph.tree("tasuki-proto");
    for impure in [
        "tokio", "sqlx", "reqwest", "axum", "quinn", "hyper", "socket2", "mio", "tracing",
    ] {
        assert!(!tree.contains(impure), "tasuki-proto links {impure}");
    }
    let direct = &graph.normal["tasuki-proto"];
    for chance in ["rand", "getrandom", "aws-lc-rs"] {
        assert!(!direct.contains(chance), "tasuki-proto depends on {chance}");
    }
    let product = sources(&root().join("crates/tasuki-proto/src"))
        .into_iter()
        .filter(|file| !file.ends_with("tests.rs"));
    for file in product {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in [
            "std::fs",
            "std::net::Tcp",
            "std::net::Udp",
            "std::env",
            "std::process",
            "std::thread",
            "::now()",
            "::now_utc()",
            "async fn",
            ".await",
        ] {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                assert!(!has_word(line, word), "{} uses {word}: {line}", file.display());
            }
        }
    }
}

/// Whether `line` has `word` and not only a longer one that begins with it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        !after.is_some_and(|c| c == '_' || c.is_ascii_lowercase())
    })
}

/// The build graph itself: `cargo metadata` also lists optional packages that no feature turns on.
#[test]
fn aws_lc_rs_is_the_only_crypto_provider() {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--locked",
        "--offline",
        "-e",
        "normal,build",
        "--prefix",
        "none",
    ]);
    for line in tree.lines() {
        let package = line.split(' ').next().unwrap();
        assert!(
            ![
                "ring",
                "openssl",
                "openssl-sys",
                "native-tls",
                "boring",
                "boring-sys"
            ]
            .contains(&package),
            "{package} is in the build; see `cargo tree -i {package}`"
        );
    }
    assert!(tree.lines().any(|line| line.starts_with("aws-lc-rs ")));
}

#[test]
fn each_invariant_names_a_test_that_exists() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let tests: BTreeSet<String> = ["crates", "tests", "bench"]
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
        .flat_map(|file| test_names(&std::fs::read_to_string(file).unwrap()))
        .collect();
    for number in 1..=9 {
        let start = format!("**Invariant {number}:**");
        let line = text
            .lines()
            .find(|line| line.contains(&start))
            .unwrap_or_else(|| panic!("ARCHITECTURE.md has no line with {start}"));
        let named: Vec<&str> = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| is_test_name(word))
            .collect();
        assert!(!named.is_empty(), "invariant {number} names no test");
        for name in named {
            assert!(
                tests.contains(name),
                "invariant {number} names {name}, which is no test"
            );
        }
    }
}

/// Test names are sentences: at least three words. Paths and types in the same line are something else.
fn is_test_name(word: &str) -> bool {
    word.matches('_').count() >= 2
        && word
            .chars()
            .all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
}

fn test_names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
            names.push(rest.split(['(', '<']).next().unwrap().to_owned());
            marked = false;
        }
    }
    names
}

#[test]
fn lock_files_and_sources_name_no_machine_and_no_mirror() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for line in lock.lines().filter(|line| line.starts_with("source = ")) {
        assert_eq!(
            line,
            "source = \"registry+https://github.com/rust-lang/crates.io-index\""
        );
    }
    let python = std::fs::read_to_string(root().join("tests/clients/requirements.txt")).unwrap();
    for line in python.lines().filter(|line| !line.trim_start().starts_with('#')) {
        assert!(
            !line.contains("://") && !line.contains("index") && !line.contains("find-links"),
            "{line}"
        );
    }
    let node = std::fs::read_to_string(root().join("tests/clients/node/package-lock.json")).unwrap();
    for line in node.lines().filter(|line| line.contains("\"resolved\"")) {
        assert!(line.contains("\"https://registry.npmjs.org/"), "{line}");
    }
}

/// All Rust files below a folder, build output left out.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// A newcomer follows ARCHITECTURE.md: what it names must be where it says.
#[test]
fn each_path_module_and_function_that_the_architecture_names_exists() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut looked_at = 0;
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        // A row of the map: what it names without a folder is inside that crate.
        let crate_of_row = words
            .first()
            .filter(|first| line.starts_with("| `tasuki") && root().join("crates").join(first).is_dir());
        for word in words.iter().filter(|word| !is_made_at_run_time(word)) {
            let found = match crate_of_row.filter(|crate_name| !is_crate(word) && **crate_name != *word) {
                Some(crate_name) => has_module(crate_name, word.trim_end_matches('/')),
                None => match existence(word) {
                    Some(found) => found,
                    None => continue,
                },
            };
            assert!(found, "ARCHITECTURE.md:{}: `{word}` does not exist", number + 1);
            looked_at += 1;
        }
    }
    assert!(looked_at > 50, "only {looked_at} names were looked at");
}

/// Files of a gateway, not of the source tree.
fn is_made_at_run_time(word: &str) -> bool {
    word.starts_with("data/") || word.starts_with("keys/")
}

fn is_crate(word: &str) -> bool {
    root().join("crates").join(word).is_dir()
}

fn has_module(crate_name: &str, module: &str) -> bool {
    let sources = root().join("crates").join(crate_name).join("src");
    sources.join(module).is_dir() || sources.join(format!("{module}.rs")).is_file()
}

/// Whether a name exists; `None` for what is no name in the tree: a command, a reply code, a key.
fn existence(word: &str) -> Option<bool> {
    if word.contains(char::is_whitespace) {
        return None;
    }
    if let Some((owner, name)) = word.split_once("::") {
        if is_crate(owner) {
            return Some(has_module(owner, name));
        }
        let wanted = format!("fn {name}(");
        return Some(anywhere_in_crates(&|text| text.contains(&wanted)));
    }
    if let Some((folder, ending)) = word.split_once("/*.") {
        let files = std::fs::read_dir(root().join(folder))
            .into_iter()
            .flatten()
            .flatten();
        return Some(
            files
                .map(|f| f.path())
                .any(|f| f.extension().is_some_and(|e| e == ending)),
        );
    }
    if let Some(folder) = word
        .strip_suffix('/')
        .filter(|folder| !folder.is_empty() && !folder.starts_with('/'))
    {
        return Some(root().join(folder).is_dir());
    }
    if word.contains('/') && !word.starts_with('/') {
        return Some(root().join(word).is_file());
    }
    if is_test_name(word) {
        return Some(anywhere_in_tests(word));
    }
    None
}

fn anywhere_in_crates(found: &dyn Fn(&str) -> bool) -> bool {
    sources(&root().join("crates"))
        .iter()
        .any(|file| found(&std::fs::read_to_string(file).unwrap()))
}

fn anywhere_in_tests(name: &str) -> bool {
    let folders = ["crates", "tests", "bench"];
    folders
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
        .any(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            text.contains(name) && test_names(&text).iter().any(|found| found == name)
        })
}
