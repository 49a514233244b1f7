//! A list of subscribers: a line of names, then one subscriber a line.

use tasuki_core::store::fedi::{ForeignSubscriber, SubscriptionStyle};

use crate::exit::{self, Fail, Outcome};

/// Reads the list; a mistake is named with its line, and nothing is taken.
pub(super) fn read(text: &str) -> Outcome<Vec<ForeignSubscriber>> {
    let bad = |line: usize, why: &str| Fail::new(exit::DATA, format!("line {line}: {why}"));
    let mut lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let (_, head) = lines.next().ok_or_else(|| bad(1, "the list is empty"))?;
    let names: Vec<String> = cells(head)
        .map(|name| name.trim_start_matches('#').to_lowercase())
        .collect();
    let place = |wanted: &str| names.iter().position(|name| name == wanted);
    let (Some(actor), Some(inbox)) = (place("actor"), place("inbox")) else {
        return Err(bad(1, "the first line must name the columns actor and inbox"));
    };
    let (style, follow_id) = (place("style"), place("follow_id"));
    let mut all = Vec::new();
    for (number, line) in lines {
        let cells: Vec<String> = cells(line).collect();
        let cell = |at: Option<usize>| {
            let text = at.and_then(|at| cells.get(at)).map(String::as_str);
            text.filter(|text| !text.is_empty())
        };
        let needed = |at, name: &str| {
            let missing = format!("no {name}");
            cell(Some(at))
                .map(str::to_owned)
                .ok_or_else(|| bad(number + 1, &missing))
        };
        all.push(ForeignSubscriber {
            actor: needed(actor, "actor")?,
            inbox: needed(inbox, "inbox")?,
            style: match cell(style) {
                None => None,
                Some("mastodon") => Some(SubscriptionStyle::Mastodon),
                Some("litepub") => Some(SubscriptionStyle::LitePub),
                Some(_) => return Err(bad(number + 1, "the style is neither mastodon nor litepub")),
            },
            follow_id: cell(follow_id).map(str::to_owned),
            is_pending: false,
        });
    }
    Ok(all)
}

/// URLs have no commas that matter here: quotes are taken off and that is all.
fn cells(line: &str) -> impl Iterator<Item = String> {
    line.split(',')
        .map(|cell| cell.trim().trim_matches('"').to_owned())
}
