//! Lists of blocked hosts as instances exchange them: Mastodon's export (`#domain,#severity,...`), the same without `#`, and
//! one host on each line.

use super::ids::Authority;

/// Most lines read.
const MAX_LINES: usize = 200_000;

/// How hard a host is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing comes from it, nothing goes to it.
    Suspend,
    /// It is not shown to everybody: it may not publish here.
    Silence,
}

/// One line that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The host.
    pub host: String,
    /// How hard.
    pub severity: Severity,
    /// The public comment.
    pub comment: String,
}

/// One line that cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its number, from 1.
    pub line: usize,
    /// Why, in words.
    pub why: String,
}

/// Reads a list. Lines that cannot be used are told, not fatal: lists in the wild have them.
pub fn read(text: &str) -> (Vec<Listed>, Vec<Skipped>) {
    let (mut listed, mut skipped) = (Vec::new(), Vec::new());
    let mut columns = Columns::default();
    for (index, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = index + 1;
        let mut skip = |why: String| skipped.push(Skipped { line, why });
        if line > MAX_LINES {
            skip(format!(
                "the list has more than {MAX_LINES} lines; the rest is not read"
            ));
            break;
        }
        if raw.trim().is_empty() {
            continue;
        }
        let Some(cells) = cells(raw) else {
            skip("a quotation mark is not closed".to_owned());
            continue;
        };
        if let Some(found) = Columns::of(&cells) {
            columns = found;
            continue;
        }
        if raw.trim_start().starts_with('#') {
            continue;
        }
        match columns.listed(&cells) {
            Ok(Some(one)) => listed.push(one),
            Ok(None) => {}
            Err(why) => skip(why),
        }
    }
    (listed, skipped)
}

/// Writes a list in Mastodon's form.
pub fn write(list: &[Listed]) -> String {
    let mut text =
        String::from("#domain,#severity,#reject_media,#reject_reports,#public_comment,#obfuscate\n");
    for one in list {
        let severity = match one.severity {
            Severity::Suspend => "suspend",
            Severity::Silence => "silence",
        };
        let comment = one.comment.replace('"', "\"\"").replace(['\r', '\n'], " ");
        text.push_str(&format!(
            "{},{severity},false,false,\"{comment}\",false\n",
            one.host
        ));
    }
    text
}

/// Where the columns stand.
#[derive(Debug, Clone, Copy, Default)]
struct Columns {
    domain: usize,
    severity: Option<usize>,
    comment: Option<usize>,
}

impl Columns {
    /// Reads a line with headings, if it is one.
    fn of(cells: &[String]) -> Option<Self> {
        let place = |name: &str| {
            cells
                .iter()
                .position(|cell| cell.trim_start_matches('#').trim() == name)
        };
        let domain = place("domain")
            .or_else(|| place("instance"))
            .or_else(|| place("host"))?;
        Some(Self {
            domain,
            severity: place("severity"),
            comment: place("public_comment")
                .or_else(|| place("comment"))
                .or_else(|| place("reason")),
        })
    }

    fn listed(self, cells: &[String]) -> Result<Option<Listed>, String> {
        let cell = |place: Option<usize>| place.and_then(|at| cells.get(at)).map(|text| text.trim());
        let host = cell(Some(self.domain)).unwrap_or_default();
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if bare.contains('*') || bare.contains('?') {
            return Err(format!(
                "{host:?} is obfuscated: ask the list's owner which host it is"
            ));
        }
        let severity = match cell(self.severity).unwrap_or("suspend") {
            "suspend" | "reject" | "block" | "" => Severity::Suspend,
            "silence" | "limit" => Severity::Silence,
            "noop" | "none" => return Ok(None),
            other => return Err(format!("the severity {other:?} is not known")),
        };
        let authority = Authority::parse(bare).map_err(|_| format!("{host:?} is not a host"))?;
        if !authority.host().contains('.') {
            return Err(format!("{host:?} is not a host"));
        }
        Ok(Some(Listed {
            host: authority.host().to_owned(),
            severity,
            comment: cell(self.comment).unwrap_or_default().chars().take(300).collect(),
        }))
    }
}

/// The cells of one line (RFC 4180, without line breaks inside); `None` when a quotation does not end.
fn cells(line: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    let mut cell = String::new();
    let mut is_quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => all.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    all.push(cell);
    (!is_quoted).then_some(all)
}
