//! What a post is like, as far as topics and filters ask: hashtags, languages, reply, media, warning.

use serde_json::{Map, Value};

use super::activity::{is_content, type_of};
use super::topic::language;
use super::words::Words;

/// Most languages looked at.
const MAX_LANGUAGES: usize = 16;

/// A post in its traits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traits {
    /// It is a post: not an account, and not something about a post.
    pub is_post: bool,
    /// Hashtags in lower case, without `#`.
    pub tags: Vec<String>,
    /// Languages in lower case; empty if neither the post nor its letters say.
    pub languages: Vec<String>,
    /// It answers another post.
    pub is_reply: bool,
    /// It has pictures, sound or film.
    pub has_media: bool,
    /// It, or something in it, is to be shown only when asked for.
    pub is_sensitive: bool,
}

impl Traits {
    /// Reads them from an activity with its object embedded, or from a post.
    pub fn of(document: &Value) -> Self {
        let post = match document.get("object") {
            Some(Value::Object(object)) => Some(object),
            _ => document.as_object(),
        };
        let Some(post) = post.filter(|post| type_of(post).is_some_and(is_content)) else {
            return Self::default();
        };
        let words = Words::of(document);
        let attachments = match post.get("attachment") {
            Some(Value::Array(items)) => items.as_slice(),
            Some(one @ Value::Object(_)) => std::slice::from_ref(one),
            _ => &[],
        };
        let is_true = |value: Option<&Value>| value == Some(&Value::Bool(true));
        Self {
            is_post: true,
            languages: languages_of(post, &words),
            tags: words.tags,
            is_reply: post.get("inReplyTo").is_some_and(is_named),
            has_media: matches!(type_of(post), Some("Image" | "Video" | "Audio"))
                || attachments.iter().any(is_media),
            is_sensitive: is_true(post.get("sensitive"))
                || attachments.iter().any(|one| is_true(one.get("sensitive"))),
        }
    }
}

fn is_named(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Object(_) => true,
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Lemmy and Friendica attach links too.
fn is_media(attachment: &Value) -> bool {
    matches!(
        attachment.get("type").and_then(Value::as_str),
        Some("Document" | "Image" | "Video" | "Audio")
    )
}

/// Mastodon, Akkoma: the keys of `contentMap`. Lemmy: `language`. Where neither is there (Misskey sends none), kana means
/// Japanese and hangul Korean: no other language is written in them.
fn languages_of(post: &Map<String, Value>, words: &Words) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for key in ["contentMap", "nameMap", "summaryMap"] {
        if let Some(Value::Object(map)) = post.get(key) {
            found.extend(map.keys().take(MAX_LANGUAGES).filter_map(|code| language(code)));
        }
    }
    let named = post
        .get("language")
        .and_then(|one| one.get("identifier").unwrap_or(one).as_str());
    found.extend(named.and_then(language));
    found.retain(|code| code != "und");
    if found.is_empty() {
        found.extend(by_letters(&words.text).map(str::to_owned));
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_LANGUAGES);
    found
}

fn by_letters(text: &str) -> Option<&'static str> {
    text.chars().find_map(|c| match c {
        '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{ff66}'..='\u{ff9d}' => Some("ja"),
        '\u{ac00}'..='\u{d7a3}' => Some("ko"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Traits;

    #[test]
    fn a_post_is_read_from_the_activity_and_on_its_own() {
        let note = json!({"type": "Note", "content": "<p>neko</p>", "contentMap": {"ja-JP": "<p>neko</p>"}, "sensitive": true,
            "inReplyTo": "https://b.example/1", "attachment": [{"type": "Document", "url": "x"}],
            "tag": [{"type": "Hashtag", "name": "#Cats"}, {"type": "Mention", "name": "@x"}]});
        let expected = Traits {
            is_post: true,
            tags: vec!["cats".into()],
            languages: vec!["ja-jp".into()],
            is_reply: true,
            has_media: true,
            is_sensitive: true,
        };
        assert_eq!(Traits::of(&note), expected);
        assert_eq!(Traits::of(&json!({"type": "Create", "object": note})), expected);
    }

    #[test]
    fn what_says_nothing_has_no_traits() {
        let plain = Traits::of(
            &json!({"type": "Note", "content": "x", "inReplyTo": null, "attachment": [{"type": "Link"}]}),
        );
        assert_eq!(
            plain,
            Traits {
                is_post: true,
                ..Traits::default()
            }
        );
        for other in [
            json!({"type": "Update", "object": {"type": "Person", "name": "x"}}),
            json!({"type": "Delete", "object": "https://a.example/1"}),
            json!([1]),
            json!(null),
        ] {
            assert_eq!(Traits::of(&other), Traits::default(), "{other}");
        }
    }

    #[test]
    fn letters_say_the_language_where_nothing_else_does() {
        let language = |content: &str| Traits::of(&json!({"type": "Note", "content": content})).languages;
        assert_eq!(language("今日はいい天気"), ["ja"]);
        assert_eq!(language("안녕하세요"), ["ko"]);
        assert!(language("天気 weather 11・22").is_empty());
        let said = json!({"type": "Note", "content": "ねこ", "contentMap": {"en": "ねこ"}});
        assert_eq!(Traits::of(&said).languages, ["en"]);
        let lemmy = json!({"type": "Page", "name": "x", "language": {"identifier": "de", "name": "Deutsch"}});
        assert_eq!(Traits::of(&lemmy).languages, ["de"]);
    }
}
