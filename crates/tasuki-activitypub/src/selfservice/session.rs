//! The browser in which somebody began: what is proven counts for it alone.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// The cookie's name.
const NAME: &str = "tasuki-filter";
/// Longer than a challenge and the grant after it.
const MAX_AGE_SECONDS: u32 = 2 * 3600;
const CHARS: usize = 32;

/// A random name of one browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session(String);

impl Session {
    pub(super) fn new() -> Self {
        Self(crate::unique())
    }

    /// The one that the browser was given before.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|value| value.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .find(|(name, value)| *name == NAME && is_ours(value))
            .map(|(_, value)| Self(value.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the browser keeps; it sends it with no request that another site makes.
    pub(super) fn cookie(&self, is_https: bool) -> Option<HeaderValue> {
        let secure = if is_https { "; Secure" } else { "" };
        let text = format!(
            "{NAME}={}; Path=/filter; Max-Age={MAX_AGE_SECONDS}; HttpOnly; SameSite=Strict{secure}",
            self.0
        );
        HeaderValue::from_str(&text).ok()
    }
}

fn is_ours(value: &str) -> bool {
    value.len() == CHARS && value.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether another site made the browser send this (Fetch Metadata; a browser that does not say is held by its cookie).
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::header::COOKIE;
    use http::{HeaderMap, HeaderValue};

    use super::{Session, is_from_elsewhere};

    #[test]
    fn only_a_cookie_of_our_form_is_taken() {
        let own = Session::new();
        let cookie = own.cookie(true).unwrap();
        let text = cookie.to_str().unwrap();
        assert!(text.contains("; Secure") && text.contains("SameSite=Strict") && text.contains("HttpOnly"));
        assert!(!own.cookie(false).unwrap().to_str().unwrap().contains("Secure"));
        let pair = text.split(';').next().unwrap();
        for (sent, is_known) in [
            (format!("a=b; {pair}; c=d"), true),
            ("a=b".to_owned(), false),
            ("tasuki-filter=short".to_owned(), false),
            (format!("tasuki-filter={}", "<".repeat(32)), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, HeaderValue::from_str(&sent).unwrap());
            assert_eq!(Session::of(&headers), is_known.then(|| own.clone()), "{sent}");
        }
    }

    #[test]
    fn what_another_site_sends_is_known_as_such() {
        for (site, is_foreign) in [
            (None, false),
            (Some("same-origin"), false),
            (Some("none"), false),
            (Some("same-site"), true),
            (Some("cross-site"), true),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(site) = site {
                headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            }
            assert_eq!(is_from_elsewhere(&headers), is_foreign, "{site:?}");
        }
    }
}
