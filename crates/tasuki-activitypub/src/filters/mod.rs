//! What a host wants to be left out of what it is sent: set by the operator, or by the instance itself.
//!
//! Decided at the fan-out, from memory: a filter takes bits out of an audience and makes neither rows nor transactions.
//! Deletes, and what else takes something back, always go out.

mod orders;
mod sampling;
mod text;

use std::collections::HashMap;

use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{HostFilter, KeptFilter};
use tasuki_proto::activitypub::ids::{ActorId, Authority};
use tasuki_proto::activitypub::topic::is_language_within;
use tasuki_proto::activitypub::traits::Traits;

pub use self::orders::FilterStatus;
pub(crate) use self::sampling::Sampler;
use crate::subscribers::Table;

/// The language of posts that do not say theirs (ISO 639: undetermined).
const UNSAID: &str = "und";

/// The filters of all hosts, those of the same content together.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    by_host: HashMap<String, KeptFilter>,
}

/// The filters of those who receive.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    groups: Vec<(HostFilter, RoaringBitmap)>,
    /// Activities a minute, by host.
    limits: HashMap<u32, u32>,
}

/// What was left out, for `fedi why`.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    pub(crate) by_reason: Vec<(&'static str, RoaringBitmap)>,
}

impl Filters {
    pub(crate) fn of(kept: Vec<KeptFilter>) -> Self {
        Self {
            by_host: kept.into_iter().map(|one| (one.host.clone(), one)).collect(),
        }
    }

    /// The filter of a host.
    pub(crate) fn host(&self, host: &Authority) -> Option<&KeptFilter> {
        self.by_host.get(host.as_str())
    }

    /// For the hosts of a table: posts are asked once for each filter, however many hosts have it.
    pub(crate) fn sieve(&self, table: &Table) -> Sieve {
        let mut groups: HashMap<&HostFilter, RoaringBitmap> = HashMap::new();
        let mut limits = HashMap::new();
        for subscriber in table.by_host.values() {
            let Some(kept) = self.host(&subscriber.authority) else {
                continue;
            };
            groups
                .entry(&kept.filter)
                .or_default()
                .insert(subscriber.host_no.0);
            if kept.filter.per_minute > 0 {
                limits.insert(subscriber.host_no.0, kept.filter.per_minute);
            }
        }
        Sieve {
            groups: groups
                .into_iter()
                .map(|(filter, hosts)| (filter.clone(), hosts))
                .collect(),
            limits,
        }
    }
}

impl Sieve {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes out of `hosts` who does not want a post of these traits.
    pub(crate) fn leave_out(&self, hosts: &mut RoaringBitmap, traits: &Traits, is_bot: bool) -> LeftOut {
        let mut out = LeftOut::default();
        for (filter, own) in &self.groups {
            if let Some(reason) = refusal(filter, traits, is_bot) {
                let gone = &*hosts & own;
                *hosts -= own;
                out.add(reason, gone);
            }
        }
        out
    }

    /// Takes out of `hosts` whose minute is full, or whose share of it for this author is.
    pub(crate) fn sample(
        &self,
        hosts: &mut RoaringBitmap,
        samplers: &mut HashMap<u32, Sampler>,
        author: &ActorId,
        at: Timestamp,
    ) -> RoaringBitmap {
        if samplers.len() > self.limits.len() {
            samplers.retain(|host, _| self.limits.contains_key(host));
        }
        let mut gone = RoaringBitmap::new();
        for (host, limit) in &self.limits {
            if !hosts.contains(*host) {
                continue;
            }
            let sampler = samplers.entry(*host).or_default();
            if !sampler.takes(*limit, author.as_str(), at, rand::random()) {
                hosts.remove(*host);
                gone.insert(*host);
            }
        }
        gone
    }

    /// Hosts with a limit: an edit goes only to those of them that have the post.
    pub(crate) fn limited(&self) -> RoaringBitmap {
        self.limits.keys().copied().collect()
    }
}

impl LeftOut {
    pub(crate) fn add(&mut self, reason: &'static str, hosts: RoaringBitmap) {
        if hosts.is_empty() {
            return;
        }
        match self.by_reason.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, known)) => *known |= hosts,
            None => self.by_reason.push((reason, hosts)),
        }
    }
}

/// Why a host with this filter does not get a post of these traits.
fn refusal(filter: &HostFilter, traits: &Traits, is_bot: bool) -> Option<&'static str> {
    let speaks = |wanted: &String| match traits.languages.is_empty() {
        true => wanted == UNSAID,
        false => traits.languages.iter().any(|own| is_language_within(own, wanted)),
    };
    let has = |tag: &String| traits.tags.contains(tag);
    let rules = [
        (
            "language",
            !filter.languages.is_empty() && !filter.languages.iter().any(speaks),
        ),
        (
            "tags_in",
            !filter.tags_in.is_empty() && !filter.tags_in.iter().any(has),
        ),
        ("tags_out", filter.tags_out.iter().any(has)),
        ("bot", filter.no_bots && is_bot),
        ("reply", filter.no_replies && traits.is_reply),
        ("media", filter.media_only && !traits.has_media),
        ("sensitive", filter.no_sensitive && traits.is_sensitive),
    ];
    rules
        .into_iter()
        .find(|(_, refuses)| *refuses)
        .map(|(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tasuki_core::store::fedi::HostFilter;
    use tasuki_proto::activitypub::traits::Traits;

    use super::refusal;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn each_part_of_a_filter_leaves_out_what_it_says() {
        let post = Traits {
            is_post: true,
            tags: words(&["cats"]),
            languages: words(&["pt-br"]),
            is_reply: true,
            has_media: false,
            is_sensitive: true,
        };
        let none = HostFilter::default();
        let cases = [
            (none.clone(), None),
            (
                HostFilter {
                    languages: words(&["pt"]),
                    ..none.clone()
                },
                None,
            ),
            (
                HostFilter {
                    languages: words(&["ja", "und"]),
                    ..none.clone()
                },
                Some("language"),
            ),
            (
                HostFilter {
                    tags_in: words(&["cats", "x"]),
                    ..none.clone()
                },
                None,
            ),
            (
                HostFilter {
                    tags_in: words(&["dogs"]),
                    ..none.clone()
                },
                Some("tags_in"),
            ),
            (
                HostFilter {
                    tags_out: words(&["cats"]),
                    ..none.clone()
                },
                Some("tags_out"),
            ),
            (
                HostFilter {
                    no_bots: true,
                    ..none.clone()
                },
                Some("bot"),
            ),
            (
                HostFilter {
                    no_replies: true,
                    ..none.clone()
                },
                Some("reply"),
            ),
            (
                HostFilter {
                    media_only: true,
                    ..none.clone()
                },
                Some("media"),
            ),
            (
                HostFilter {
                    no_sensitive: true,
                    ..none.clone()
                },
                Some("sensitive"),
            ),
        ];
        for (filter, reason) in cases {
            assert_eq!(refusal(&filter, &post, true), reason, "{filter:?}");
        }
        let plain = Traits {
            is_post: true,
            ..Traits::default()
        };
        let all = HostFilter {
            languages: words(&["und"]),
            no_bots: true,
            no_replies: true,
            no_sensitive: true,
            ..none
        };
        assert_eq!(refusal(&all, &plain, false), None);
    }
}
