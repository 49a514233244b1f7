//! What a post says in words, for filters: text without markup, and hashtags.

use serde_json::{Map, Value};

/// Most text looked at, in bytes: longer posts are judged by their beginning.
const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Most hashtags looked at.
const MAX_TAGS: usize = 200;

/// The words of a post, in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Title, warning, text, descriptions of media and choices of a poll, a line each.
    pub text: String,
    /// Hashtags without `#`.
    pub tags: Vec<String>,
}

impl Words {
    /// Reads them from an activity with its object embedded, or from a post.
    pub fn of(document: &Value) -> Self {
        let mut words = Self::default();
        let post = match document.get("object") {
            Some(Value::Object(object)) => Some(object),
            _ => document.as_object(),
        };
        if let Some(post) = post {
            words.read(post);
        }
        words
    }

    /// The plain text of a piece of HTML, in lower case.
    pub fn of_html(html: &str) -> String {
        let mut words = Self::default();
        words.add(html);
        words.text
    }

    fn read(&mut self, post: &Map<String, Value>) {
        for key in ["name", "summary", "content"] {
            if let Some(text) = post.get(key).and_then(Value::as_str) {
                self.add(text);
            }
            if let Some(Value::Object(languages)) = post.get(&format!("{key}Map")) {
                languages
                    .values()
                    .filter_map(Value::as_str)
                    .for_each(|text| self.add(text));
            }
        }
        for key in ["attachment", "oneOf", "anyOf"] {
            for item in list(post.get(key)) {
                if let Some(text) = item.get("name").and_then(Value::as_str) {
                    self.add(text);
                }
            }
        }
        for tag in list(post.get("tag")) {
            let is_hashtag = tag.get("type").and_then(Value::as_str) == Some("Hashtag");
            if let (true, Some(name)) = (
                is_hashtag && self.tags.len() < MAX_TAGS,
                tag.get("name").and_then(Value::as_str),
            ) {
                self.tags.push(tag_of(name));
            }
        }
    }

    fn add(&mut self, html: &str) {
        let mut is_markup = false;
        let mut plain = String::new();
        for c in html.chars() {
            match c {
                '<' => is_markup = true,
                '>' if is_markup => is_markup = false,
                c if !is_markup => plain.push(c),
                _ => {}
            }
            if self.text.len() + plain.len() >= MAX_TEXT_BYTES {
                break;
            }
        }
        for (entity, c) in [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&#39;", "'"),
            ("&nbsp;", " "),
            ("&amp;", "&"),
        ] {
            plain = plain.replace(entity, c);
        }
        self.text.push_str(&plain.to_lowercase());
        self.text.push('\n');
    }
}

/// A hashtag as it is compared: lower case, without `#`.
pub fn tag_of(text: &str) -> String {
    text.trim()
        .trim_start_matches('#')
        .to_lowercase()
        .chars()
        .take(200)
        .collect()
}

fn list(value: Option<&Value>) -> &[Value] {
    match value {
        Some(Value::Array(items)) => items,
        Some(one @ Value::Object(_)) => std::slice::from_ref(one),
        _ => &[],
    }
}
