//! Code blocks of the README that tests run. An HTML comment on the line before a block says what it is:
//! `<!-- run: NAME -->` commands, `<!-- config: NAME -->` a piece of `tasuki.toml`, `<!-- nginx -->`, `<!-- caddy -->`.
//! Commands that a test cannot run (they need another machine, or are the tests) are marked `<!-- run: none -->`.

use super::root;

/// Every code block with its mark, in order. A block without a mark fails the test: nobody would notice that it rots.
#[track_caller]
pub(crate) fn blocks(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut found = Vec::new();
    let mut before = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            let mark = before
                .strip_prefix("<!-- ")
                .and_then(|rest| rest.strip_suffix(" -->"));
            let mark =
                mark.unwrap_or_else(|| panic!("{file}: a code block without a mark, after {before:?}"));
            let block: Vec<&str> = lines
                .by_ref()
                .take_while(|line| !line.starts_with("```"))
                .collect();
            found.push((mark.to_owned(), block.join("\n") + "\n"));
        }
        before = line;
    }
    found
}

/// The text of the one block with this mark.
#[track_caller]
pub(crate) fn block(mark: &str) -> String {
    let found = blocks("README.md").into_iter().find(|(found, _)| found == mark);
    found
        .unwrap_or_else(|| panic!("README.md has no block marked <!-- {mark} -->"))
        .1
}

/// The line that the README tells to add when a proxy on the same machine stands in front.
#[track_caller]
pub(crate) fn trusted_proxies() -> String {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let start = text
        .find("server.trusted_proxies = [")
        .expect("README.md names server.trusted_proxies");
    let line: String = text[start..]
        .chars()
        .take_while(|character| *character != '`')
        .collect();
    line + "\n"
}

/// The rows of a README's tables whose header has this column, and which column it is.
pub(crate) fn rows_of_tables_with(file: &str, column: &str) -> Vec<(usize, Vec<String>)> {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut found = Vec::new();
    let mut at = None;
    for line in text.lines() {
        if !line.starts_with('|') {
            at = None;
        } else if let Some(at) = at {
            if !line.starts_with("|---") {
                found.push((at, cells(line)));
            }
        } else {
            at = cells(line).iter().position(|cell| cell == column);
            if at.is_none() {
                // Not one of them: its other rows are no headers.
                at = Some(usize::MAX);
            }
        }
    }
    found.retain(|(at, _)| *at != usize::MAX);
    found
}

/// What stands between backticks.
pub(crate) fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}
