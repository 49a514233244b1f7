//! What commands print: a table for people, the gateway's own JSON for programs.

use std::io::Write as _;

use serde_json::Value;

use crate::exit::{self, Fail, Outcome};

/// Prints one line. A reader that went away (`| head`) is not an error.
pub(crate) fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Prints `value` as JSON, indented.
pub(crate) fn json(value: &Value) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|e| {
        Fail::new(
            exit::SOFTWARE,
            format!("the answer cannot be written as JSON: {e}"),
        )
    })?;
    line(text);
    Ok(())
}

/// A column: its heading, and the key of the value in each row (`a/b` goes down).
pub(crate) type Column = (&'static str, &'static str);

/// Prints the rows under `key` of `answer` as a table, or all of `answer` as JSON.
pub(crate) fn listing(answer: &Value, key: &str, columns: &[Column], as_json: bool, empty: &str) -> Outcome {
    if as_json {
        return json(answer);
    }
    let rows = answer
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        line(empty);
        return Ok(());
    }
    let head = columns.iter().map(|(h, _)| (*h).to_owned()).collect();
    let body = rows
        .iter()
        .map(|row| columns.iter().map(|(_, path)| cell(row, path)).collect())
        .collect();
    table(head, body);
    Ok(())
}

/// Prints aligned columns; `head` and each row have equal lengths.
pub(crate) fn table(head: Vec<String>, rows: Vec<Vec<String>>) {
    let mut all = vec![head];
    all.extend(rows);
    let columns = all.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            all.iter()
                .filter_map(|r| r.get(c))
                .map(|t| t.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in &all {
        let mut text = String::new();
        for (value, width) in row.iter().zip(&widths) {
            let pad = width - value.chars().count();
            text.push_str(value);
            text.extend(std::iter::repeat_n(' ', pad + 2));
        }
        line(text.trim_end());
    }
}

/// The value at `path` in a row, as a person reads it.
pub(crate) fn cell(row: &Value, path: &str) -> String {
    let mut keys = path.split('/').filter(|key| !key.is_empty());
    let value = keys.try_fold(row, |v, key| v.get(key));
    shown(value.unwrap_or(&Value::Null))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        Value::Number(n) => n.to_string(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| format!("{k}={}", shown(v)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}
