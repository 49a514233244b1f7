//! The agent has to compile where there is no Unix: what needs one is in `os.rs`, or in a module that only Unix has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::root;
use crate::tidy::Graph;

/// What only Unix has, or Linux.
const UNIX_ONLY: [&str; 9] = [
    "std::os::",
    "os::fd",
    "os::unix",
    "net::Unix",
    "UnixStream",
    "UnixListener",
    "signal::unix",
    "rustix",
    "libc::",
];

/// A module that a file declares, and whether every system compiles it.
struct Module<'a> {
    name: &'a str,
    is_everywhere: bool,
}

/// The name in `mod NAME;`.
fn declared(line: &str) -> Option<&str> {
    let name = line.strip_suffix(';')?;
    let (visibility, name) = name.split_once("mod ")?;
    ["", "pub ", "pub(crate) ", "pub(super) "]
        .contains(&visibility)
        .then_some(name)
}

/// Whether `item` is one behind which a whole module can be kept from other systems.
fn is_border(item: &str) -> bool {
    let words = item.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
    declared(item).is_some() || words.starts_with("use ")
}

/// The lines that are program, those of unit tests and comments left out.
fn program(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//") && !line.is_empty())
}

fn modules(text: &str) -> Vec<Module<'_>> {
    let mut found = Vec::new();
    let mut is_everywhere = true;
    for line in program(text) {
        if line == "#[cfg(unix)]" || line == "#[cfg(test)]" {
            is_everywhere = false;
        } else if !line.starts_with("#[") {
            found.extend(declared(line).map(|name| Module { name, is_everywhere }));
            is_everywhere = true;
        }
    }
    found
}

/// What is wrong with a file that every system compiles.
fn faults(file: &Path, text: &str) -> Vec<String> {
    if file.ends_with("os.rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut behind_a_border = false;
    for line in program(text) {
        let fault = |word: &str| format!("{}: {word} belongs into os.rs: {line}", file.display());
        if behind_a_border {
            if !is_border(line) {
                found.push(fault("cfg(unix)"));
            }
            behind_a_border = false;
        } else if line == "#[cfg(unix)]" {
            behind_a_border = true;
        } else {
            let words = UNIX_ONLY.into_iter().chain(["#[cfg(unix)]", "cfg!(unix)"]);
            found.extend(words.filter(|word| line.contains(word)).map(fault));
        }
    }
    found
}

/// The files of a crate that every system compiles.
fn files_everywhere(crate_name: &str) -> Vec<PathBuf> {
    let source = root().join("crates").join(crate_name).join("src");
    let mut open: Vec<PathBuf> = ["lib.rs", "main.rs"].map(|name| source.join(name)).to_vec();
    open.retain(|file| file.exists());
    let mut files = Vec::new();
    while let Some(file) = open.pop() {
        let text = std::fs::read_to_string(&file).unwrap();
        let is_top = ["lib.rs", "main.rs", "mod.rs"]
            .iter()
            .any(|name| file.ends_with(name));
        let folder = match is_top {
            true => file.with_file_name(""),
            false => file.with_extension(""),
        };
        for module in modules(&text).into_iter().filter(|module| module.is_everywhere) {
            let (beside, inside) = (
                folder.join(format!("{}.rs", module.name)),
                folder.join(module.name).join("mod.rs"),
            );
            open.push(if beside.exists() { beside } else { inside });
        }
        files.push(file);
    }
    files
}

#[test]
fn what_the_agent_links_needs_unix_only_behind_one_border() {
    let graph = Graph::of_the_workspace();
    let linked: BTreeSet<&str> = graph
        .tree("tasuki-agent")
        .into_iter()
        .filter(|name| name.starts_with("tasuki"))
        .chain(["tasuki-agent"])
        .collect();
    assert_eq!(
        linked.iter().copied().collect::<Vec<_>>(),
        ["tasuki-agent", "tasuki-core", "tasuki-proto", "tasuki-tunnel"]
    );
    let mut faulty = Vec::new();
    for name in linked {
        let files = files_everywhere(name);
        assert!(files.len() > 5, "{name}: {files:?}");
        for file in files {
            faulty.extend(faults(&file, &std::fs::read_to_string(&file).unwrap()));
        }
        let manifest = root().join("crates").join(name).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let everywhere = manifest
            .split("[target.'cfg(unix)'.dependencies]")
            .next()
            .unwrap();
        if everywhere.contains("rustix") {
            faulty.push(format!("{name}: rustix is a dependency on every system"));
        }
    }
    assert!(faulty.is_empty(), "{}", faulty.join("\n"));
    let of_the_tunnel = files_everywhere("tasuki-tunnel");
    let has = |file: &str| of_the_tunnel.iter().any(|path| path.ends_with(file));
    assert!(has("agent/session.rs") && has("splice/up.rs") && !has("gateway/http.rs"));
}

#[test]
fn the_border_is_where_it_is_looked_for() {
    let faults = |text: &str| faults(Path::new("a.rs"), text);
    let modules = |text| -> Vec<_> {
        let all = modules(text).into_iter();
        all.map(|module| (module.name.to_owned(), module.is_everywhere))
            .collect()
    };
    let text = "mod a;\n#[cfg(unix)]\npub(crate) mod b;\npub mod c;\n#[cfg(unix)]\npub use b::B;\n";
    let both = |name: &str, everywhere| (name.to_owned(), everywhere);
    assert_eq!(
        modules(text),
        [both("a", true), both("b", false), both("c", true)]
    );
    assert_eq!(faults(text).len(), 0);
    assert_eq!(faults("use std::os::fd::OwnedFd;").len(), 2);
    assert_eq!(faults("    #[cfg(unix)]\n    rest();").len(), 1);
    assert_eq!(faults("if cfg!(unix) {}").len(), 1);
    assert_eq!(
        faults("// rustix\n#[cfg(test)]\nmod tests {\nuse std::os::fd::AsFd;\n}").len(),
        0
    );
}
