//! A filter as an operator or an instance writes it, as it is kept, and in words.

use std::collections::HashSet;

use tasuki_core::store::fedi::HostFilter;
use tasuki_proto::activitypub::topic::{Topic, language};

use crate::handle::HandleError;

/// Languages and hashtags of one filter, of each kind.
const MAX_WORDS: usize = 100;

/// A filter as it is kept: languages and hashtags in the form in which they are compared.
pub(crate) fn read(filter: HostFilter) -> Result<HostFilter, HandleError> {
    let refuse = |why: String| HandleError::NotARule(why);
    if [&filter.languages, &filter.tags_in, &filter.tags_out]
        .iter()
        .any(|list| list.len() > MAX_WORDS)
    {
        return Err(refuse(format!(
            "a filter has at most {MAX_WORDS} languages or hashtags of a kind"
        )));
    }
    let mut languages = Vec::new();
    for text in &filter.languages {
        match language(text) {
            Some(code) => languages.push(code),
            None => {
                return Err(refuse(format!(
                    "{text:?} is not a language: write its code, such as ja or pt-br"
                )));
            }
        }
    }
    let tags = |list: &[String]| -> Result<Vec<String>, HandleError> {
        let mut tags = Vec::new();
        for text in list {
            match Topic::parse(&format!("tag/{text}")) {
                Ok(Topic::Tag(tag)) => tags.push(tag.to_string()),
                _ => return Err(refuse(format!("{text:?} is not a hashtag"))),
            }
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    };
    languages.sort_unstable();
    languages.dedup();
    let (tags_in, tags_out) = (tags(&filter.tags_in)?, tags(&filter.tags_out)?);
    let (wanted, unwanted): (HashSet<_>, HashSet<_>) = (tags_in.iter().collect(), tags_out.iter().collect());
    if let Some(both) = wanted.intersection(&unwanted).next() {
        return Err(refuse(format!("#{both} cannot be both wanted and unwanted")));
    }
    Ok(HostFilter {
        languages,
        tags_in,
        tags_out,
        ..filter
    })
}

/// A filter in words: what is left out, or nothing.
pub(crate) fn in_words(filter: &HostFilter) -> String {
    let list = |what: &str, words: &[String]| match words.is_empty() {
        true => String::new(),
        false => format!("{what} {}", words.join(" ")),
    };
    let flag = |is_set: bool, what: &str| if is_set { what.to_owned() } else { String::new() };
    let parts = [
        list("languages", &filter.languages),
        list("only hashtags", &filter.tags_in),
        list("no hashtags", &filter.tags_out),
        flag(filter.no_bots, "no bots"),
        flag(filter.no_replies, "no replies"),
        flag(filter.media_only, "only with media"),
        flag(filter.no_sensitive, "nothing sensitive"),
        match filter.per_minute {
            0 => String::new(),
            n => format!("at most {n} a minute"),
        },
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tasuki_core::store::fedi::HostFilter;

    use super::{in_words, read};

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_filter_is_kept_in_the_form_in_which_it_is_compared() {
        let filter = HostFilter {
            languages: words(&["JA", "ja", "pt_BR"]),
            tags_in: words(&["#Cats"]),
            per_minute: 30,
            ..HostFilter::default()
        };
        let kept = read(filter).unwrap();
        assert_eq!(
            (&kept.languages, &kept.tags_in),
            (&words(&["ja", "pt-br"]), &words(&["cats"]))
        );
        assert_eq!(
            in_words(&kept),
            "languages ja pt-br, only hashtags cats, at most 30 a minute"
        );
        for (filter, why) in [
            (
                HostFilter {
                    languages: words(&["english"]),
                    ..HostFilter::default()
                },
                "not a language",
            ),
            (
                HostFilter {
                    tags_out: words(&["a b"]),
                    ..HostFilter::default()
                },
                "not a hashtag",
            ),
            (
                HostFilter {
                    tags_out: vec!["a".into(); 101],
                    ..HostFilter::default()
                },
                "at most 100",
            ),
            (
                HostFilter {
                    tags_in: words(&["A"]),
                    tags_out: words(&["a"]),
                    ..HostFilter::default()
                },
                "both wanted and unwanted",
            ),
        ] {
            assert!(read(filter).unwrap_err().to_string().contains(why), "{why}");
        }
    }
}
