//! A share of what is published, for a host that takes only so many posts a minute: fair between authors.
//!
//! Time is cut into minutes. What the authors offered in one minute says how many posts each author may have in the next: the
//! level at which those who offer less get all of it through and the rest is shared equally (max-min fairness). The level is
//! the same for everybody, so who posts once a day is not worse off than who was seen a minute ago. Where there are more
//! authors than posts that may go, chance decides about each of them, not who is first in the minute.
//!
//! Each gateway of a store counts for itself.
//!
//! **Invariant:** never more than the limit in one minute, and memory is bounded whoever publishes.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use tasuki_core::clock::Timestamp;

const MINUTE_MS: i64 = 60_000;
/// Authors told apart in one minute; each post of one more counts as an author's only one.
const MAX_AUTHORS: usize = 1024;

/// The share of one host.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    minute: i64,
    /// Posts that each author may have in this minute; `None`: nothing is known of the one before.
    level: Option<f64>,
    /// Posts that each author offered in this minute, by the hash of its id.
    offered: HashMap<u64, u32>,
    offered_by_others: u32,
    /// What is left of the parts of a post that authors may have: when it is a whole one, that post goes. It begins by chance.
    credit: f64,
    taken: u32,
}

impl Sampler {
    /// Whether a post of `author` gets through when `limit` may in a minute; `chance` is evenly spread from 0 to 1.
    pub(crate) fn takes(&mut self, limit: u32, author: &str, at: Timestamp, chance: f64) -> bool {
        self.turn(limit, at.0.div_euclid(MINUTE_MS), chance);
        let before = f64::from(self.count(author));
        let left = self.level.unwrap_or_else(|| f64::from(limit)) - before;
        let is_within = left >= 1.0 || (left > 0.0 && self.is_drawn(left));
        let takes = is_within && self.taken < limit;
        self.taken += u32::from(takes);
        takes
    }

    /// Whether who may have this part of a post has a whole one. Each has it with this probability, and all of them together
    /// have as many as their parts add up to.
    fn is_drawn(&mut self, part: f64) -> bool {
        self.credit += part;
        let is_drawn = self.credit >= 1.0;
        if is_drawn {
            self.credit -= 1.0;
        }
        is_drawn
    }

    /// Counts a post; how many of the author came before it.
    fn count(&mut self, author: &str) -> u32 {
        let mut hasher = DefaultHasher::new();
        author.hash(&mut hasher);
        let author = hasher.finish();
        if self.offered.len() >= MAX_AUTHORS && !self.offered.contains_key(&author) {
            self.offered_by_others = self.offered_by_others.saturating_add(1);
            return 0;
        }
        let offered = self.offered.entry(author).or_default();
        *offered = offered.saturating_add(1);
        *offered - 1
    }

    fn turn(&mut self, limit: u32, minute: i64, chance: f64) {
        if minute == self.minute {
            return;
        }
        let is_next = minute == self.minute + 1;
        self.level = is_next.then(|| level(limit, self.offered.values().copied(), self.offered_by_others));
        self.minute = minute;
        self.credit = chance;
        self.offered.clear();
        self.offered_by_others = 0;
        self.taken = 0;
    }
}

/// How much each may have of `limit` when these offered so much and `ones` more offered one each. Who offered most is taken
/// to want all that is left.
fn level(limit: u32, offered: impl Iterator<Item = u32>, ones: u32) -> f64 {
    let mut offered: Vec<u32> = offered.collect();
    offered.sort_unstable();
    let mut left = f64::from(limit);
    let mut sharers = f64::from(ones) + f64::from(u32::try_from(offered.len()).unwrap_or(u32::MAX));
    if ones > 0 && left >= sharers {
        left -= f64::from(ones);
        sharers -= f64::from(ones);
    }
    for wanted in offered {
        if sharers <= 1.0 || f64::from(wanted) * sharers >= left {
            break;
        }
        left -= f64::from(wanted);
        sharers -= 1.0;
    }
    left / sharers.max(1.0)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use tasuki_core::clock::Timestamp;

    use super::{MAX_AUTHORS, Sampler, level};

    const NOBODY: std::iter::Empty<u32> = std::iter::empty();

    /// One minute in which authors offer in turn; how many of each get through.
    fn minute(sampler: &mut Sampler, limit: u32, number: i64, offers: &[(&str, u32)]) -> Vec<u32> {
        let mut random = StdRng::seed_from_u64(number.unsigned_abs());
        let mut taken = vec![0; offers.len()];
        let most = offers.iter().map(|(_, n)| *n).max().unwrap_or(0);
        for turn in 0..most {
            for (index, (author, n)) in offers.iter().enumerate() {
                let at = Timestamp(number * 60_000 + i64::from(turn));
                if turn < *n && sampler.takes(limit, author, at, random.random()) {
                    taken[index] += 1;
                }
            }
        }
        taken
    }

    #[test]
    fn who_offers_little_gets_all_through_and_the_others_share_the_rest() {
        let mut sampler = Sampler::default();
        let offers = [("loud", 1000), ("louder", 5000), ("quiet", 5)];
        minute(&mut sampler, 60, 1, &offers);
        for number in 2..10 {
            let taken = minute(&mut sampler, 60, number, &offers);
            assert_eq!(taken[2], 5);
            assert!(taken[0].abs_diff(taken[1]) <= 1 && taken[0] >= 27, "{taken:?}");
        }
    }

    #[test]
    fn whoever_posts_seldom_is_not_crowded_out_by_who_posts_all_the_time() {
        let mut sampler = Sampler::default();
        let mut got = 0;
        for number in 0..100_i64 {
            // Somebody else each time, and after the loud ones have offered more than the whole minute takes.
            let seldom = format!("somebody-{number}");
            let mut random = StdRng::seed_from_u64(number.unsigned_abs());
            for turn in 0..200 {
                let at = Timestamp(number * 60_000 + turn);
                sampler.takes(20, ["loud", "louder"][turn as usize % 2], at, random.random());
            }
            let at = Timestamp(number * 60_000 + 59_000);
            got += u32::from(sampler.takes(20, &seldom, at, random.random()));
        }
        // In the first minute nothing is known.
        assert!(got >= 99, "{got} of 100");
    }

    #[test]
    fn where_there_are_more_authors_than_places_chance_is_equal_at_both_ends_of_the_minute() {
        let mut sampler = Sampler::default();
        let (mut first, mut last, mut loud) = (0, 0, 0);
        for number in 0..200_i64 {
            let mut random = StdRng::seed_from_u64(number.unsigned_abs());
            for turn in 0..600 {
                let at = Timestamp(number * 60_000 + turn);
                let takes = sampler.takes(60, &format!("{number}-{turn}"), at, random.random());
                let is_counted = number > 0 && takes;
                first += u32::from(is_counted && turn < 100);
                last += u32::from(is_counted && turn >= 500);
                // One that posts with everybody else's one gets no more than one of them.
                loud += u32::from(sampler.takes(60, "loud", at, random.random()) && number > 0);
            }
        }
        // 199 minutes, 100 authors of each end, each with a chance of a tenth.
        assert!((1700..2200).contains(&first), "{first}");
        assert!((1500..2200).contains(&last), "{last}");
        assert!(loud <= 60, "{loud}");
    }

    #[test]
    fn the_limit_holds_in_each_minute_and_alone_one_gets_all_of_it() {
        let mut sampler = Sampler::default();
        for number in 1..5 {
            assert_eq!(minute(&mut sampler, 10, number, &[("a", 100)]), [10], "{number}");
        }
        let many: Vec<String> = (0..3000).map(|n| format!("u{n}")).collect();
        let offers: Vec<_> = many.iter().map(|author| (author.as_str(), 3)).collect();
        for number in 5..8 {
            let taken: u32 = minute(&mut sampler, 10, number, &offers).iter().sum();
            assert!(taken <= 10, "{taken}");
            assert!(sampler.offered.len() <= MAX_AUTHORS);
        }
        // After a pause nothing is remembered.
        assert_eq!(minute(&mut sampler, 10, 99, &[("b", 100)]), [10]);
    }

    #[test]
    fn the_level_shares_what_there_is() {
        assert_eq!(level(60, [5, 1000, 5000].into_iter(), 0), 27.5);
        assert_eq!(level(60, [3, 2].into_iter(), 0), 58.0);
        assert_eq!(level(60, [5].into_iter(), 0), 60.0);
        assert_eq!(level(10, [1; 100].into_iter(), 0), 0.1);
        assert_eq!(level(10, [1; 50].into_iter(), 50), 0.1);
        assert_eq!(level(60, [100].into_iter(), 10), 50.0);
        assert_eq!(level(10, NOBODY, 0), 10.0);
    }
}
