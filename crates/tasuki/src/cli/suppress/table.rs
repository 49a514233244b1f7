//! Lists of addresses as files: CSV (RFC 4180, a field on one line), one address a line, or JSON objects.

use serde_json::{Map, Value, json};

#[cfg(test)]
mod tests;

/// The heading of an export.
pub(super) const HEAD: &str = "address,principal,until,reason,origin,since";

/// An entry as a line under [`HEAD`].
pub(super) fn line(entry: &Value) -> String {
    let fields = HEAD.split(',').map(|key| {
        let text = entry[key].as_str().unwrap_or_default();
        if text.contains([',', '"']) || text.starts_with(' ') {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    });
    fields.collect::<Vec<_>>().join(",")
}

/// The fields of a line.
fn fields(line: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let last = all.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                all[last].push('"');
            }
            '"' if quoted || all[last].is_empty() => quoted = !quoted,
            ',' if !quoted => all.push(String::new()),
            c => all[last].push(c),
        }
    }
    all
}

/// What the columns of a heading are; `None` if it is no heading.
fn heading(line: &str) -> Option<Vec<Option<&'static str>>> {
    let columns: Vec<_> = fields(line)
        .iter()
        .map(|name| match name.trim().to_lowercase().as_str() {
            "address" | "email" | "email address" | "emailaddress" | "recipient" => Some("address"),
            "principal" => Some("principal"),
            "until" => Some("until"),
            "reason" => Some("reason"),
            _ => None,
        })
        .collect();
    columns.contains(&Some("address")).then_some(columns)
}

/// The entries of a file with their lines, for the gateway; those that name no principal get this one.
pub(super) fn read(text: &str, principal: Option<&str>) -> Result<Vec<Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text
        .lines()
        .zip(1_u64..)
        .filter(|(line, _)| !line.trim().is_empty())
        .peekable();
    let columns = lines.peek().and_then(|(line, _)| heading(line));
    if columns.is_some() {
        lines.next();
    }
    let columns = columns.unwrap_or_else(|| vec![Some("address")]);
    let mut entries = Vec::new();
    for (line, number) in lines {
        let mut entry = if line.trim_start().starts_with('{') {
            of_json(line)
        } else {
            let named = columns.iter().zip(fields(line));
            let named = named.filter_map(|(name, value)| Some(((*name)?.to_owned(), json!(value.trim()))));
            Some(named.filter(|(_, value)| value != "").collect::<Map<_, _>>())
        }
        .filter(|entry| entry.get("address").is_some_and(Value::is_string))
        .ok_or_else(|| format!("line {number} names no address"))?;
        if let (None, Some(principal)) = (entry.get("principal"), principal) {
            entry.insert("principal".to_owned(), json!(principal));
        }
        entry.insert("line".to_owned(), json!(number));
        entries.push(Value::Object(entry));
    }
    Ok(entries)
}

/// The keys of an exported object that say what to add.
fn of_json(line: &str) -> Option<Map<String, Value>> {
    let Ok(Value::Object(all)) = serde_json::from_str(line) else {
        return None;
    };
    let wanted = ["address", "principal", "until", "reason"];
    let is_wanted = |(key, value): &(String, Value)| wanted.contains(&key.as_str()) && value.is_string();
    Some(all.into_iter().filter(is_wanted).collect())
}
