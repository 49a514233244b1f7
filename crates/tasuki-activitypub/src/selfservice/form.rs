//! The form with the filter, as a browser sends it.

use serde::Deserialize;
use tasuki_core::store::fedi::HostFilter;

use super::words::Words;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewFilter {
    pub(super) host: String,
    pub(super) expires: i64,
    pub(super) grant: String,
    #[serde(default)]
    languages: String,
    #[serde(default)]
    tags_in: String,
    #[serde(default)]
    tags_out: String,
    no_bots: Option<String>,
    no_replies: Option<String>,
    media_only: Option<String>,
    no_sensitive: Option<String>,
    #[serde(default)]
    per_minute: String,
    clear: Option<String>,
}

impl NewFilter {
    /// `None` to take it away.
    pub(super) fn filter(&self) -> Result<Option<HostFilter>, Words> {
        if self.clear.is_some() {
            return Ok(None);
        }
        let words = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '、'));
            parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        Ok(Some(HostFilter {
            languages: words(&self.languages),
            tags_in: words(&self.tags_in),
            tags_out: words(&self.tags_out),
            no_bots: self.no_bots.is_some(),
            no_replies: self.no_replies.is_some(),
            media_only: self.media_only.is_some(),
            no_sensitive: self.no_sensitive.is_some(),
            per_minute: match self.per_minute.trim() {
                "" => 0,
                text => text.parse().map_err(|_| Words::NOT_UNDERSTOOD)?,
            },
        }))
    }
}
