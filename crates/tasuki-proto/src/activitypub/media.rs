//! Content types under which an ActivityStreams document may come.

/// What the relay serves and sends.
pub const ACTIVITY_JSON: &str = "application/activity+json";

/// The profile that makes `application/ld+json` an ActivityStreams document.
const PROFILE: &str = "https://www.w3.org/ns/activitystreams";

/// Whether a `Content-Type` names an ActivityStreams document: `application/activity+json`, or `application/ld+json`
/// with the ActivityStreams profile (ActivityPub 3.2).
///
/// Plain `application/json` and `text/html` are refused: a host that lets users upload files would otherwise serve forged
/// actors.
pub fn is_activity(content_type: &str) -> bool {
    let mut parts = split_parameters(content_type);
    let media = parts.next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case(ACTIVITY_JSON) {
        return true;
    }
    media.eq_ignore_ascii_case("application/ld+json")
        && parts.any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("profile")
                    && value
                        .trim()
                        .trim_matches('"')
                        .split_ascii_whitespace()
                        .any(|profile| profile == PROFILE)
            })
        })
}

/// Splits at `;` outside of quotes.
fn split_parameters(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ';' && !quoted
    })
}
