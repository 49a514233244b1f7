//! Our own outage is not theirs: when many hosts fail together, or our clock is wrong, nobody is suspended or removed, what
//! waits does not grow old, and only a few of those that fail are tried until they answer.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::HostNo;
use tasuki_core::store::fedi::Standstill;

/// Hosts that answered within this time are believed to be well in general.
const LATELY: Duration = Duration::from_secs(3600);
/// From this many such hosts on a fifth of them is enough; of fewer all must fail.
const MANY: usize = 5;
/// How far a clock may be off.
const MAX_SKEW_S: i64 = 30;
/// Hosts with a date that are asked at least about our clock.
const CLOCKS: usize = 3;
/// Hosts tried while the fault seems to be ours.
const PROBES: usize = 3;

/// How a host looks from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) host: HostNo,
    /// It fails now.
    pub(crate) is_failing: bool,
    /// When it last answered.
    pub(crate) answered_at: Option<Timestamp>,
    /// By how many seconds its clock is ahead of ours.
    pub(crate) skew_s: Option<i64>,
}

/// What seems to be wrong here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// So many of the hosts that answered lately fail together.
    Away { failing: usize, of: usize },
    /// Our clock differs from most others by so much.
    Clock { seconds: i64 },
    /// It was there before the start, and no instance has answered since.
    Before,
}

impl Fault {
    pub(crate) fn in_words(self) -> String {
        match self {
            Self::Away { failing, of } => format!(
                "{failing} of {of} instances that answered within the hour fail together: is the network here in order?"
            ),
            Self::Clock { seconds } => format!(
                "the clock here differs by {} s from those of most instances: set it (NTP), or they refuse what is sent",
                seconds.abs()
            ),
            Self::Before => {
                "there was a fault here before the start, and no instance has answered since".to_owned()
            }
        }
    }
}

/// What a look changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Began(Fault),
    Ended(Duration),
}

#[derive(Debug, Default)]
struct State {
    fault: Option<(Fault, Timestamp)>,
    probes: HashSet<HostNo>,
    /// What waits is younger by this much, until then.
    stood_still: Option<(Duration, Timestamp)>,
    /// The fault was there before the start: until then it is believed to last if nobody answers.
    believed_until: Option<Timestamp>,
    /// Somebody was told of the fault.
    is_told: bool,
    /// What the store knows of it.
    kept: Standstill,
}

impl State {
    fn standstill(&self) -> Standstill {
        Standstill {
            since: self.fault.map(|(_, at)| at),
            span_ms: self
                .stood_still
                .map_or(0, |(span, _)| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
            until: self.stood_still.map(|(_, until)| until),
        }
    }
}

/// What is known about our own fault; shared.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    state: Mutex<State>,
}

impl Outage {
    /// Looks at all hosts.
    pub(crate) fn look(&self, looks: &[Look], retention: Duration, now: Timestamp) -> Option<Turn> {
        let mut state = self.lock();
        let began = state.fault.map(|(_, at)| at);
        let is_before = state.believed_until.is_some_and(|until| now < until)
            && looks.iter().all(|look| look.answered_at.is_none());
        let fault = fault_of(looks, began.unwrap_or(now).minus(LATELY))
            .or_else(|| is_before.then_some(Fault::Before));
        let away = matches!(fault, Some(Fault::Away { .. } | Fault::Before));
        state.probes.clear();
        if away {
            let failing = looks.iter().filter(|look| look.is_failing).map(|look| look.host);
            let failing: Vec<HostNo> = failing.collect();
            // Others each time: one of them may really be dead.
            let start = usize::try_from(now.0 / 1000).unwrap_or_default() % failing.len().max(1);
            let probes = failing.iter().cycle().skip(start).take(PROBES.min(failing.len()));
            state.probes.extend(probes);
        }
        match (fault, began) {
            (Some(fault), None) => {
                state.fault = Some((fault, now));
                state.is_told = true;
                Some(Turn::Began(fault))
            }
            (Some(fault), Some(at)) => {
                state.fault = Some((fault, at));
                let is_told = std::mem::replace(&mut state.is_told, true);
                (!is_told).then_some(Turn::Began(fault))
            }
            (None, Some(at)) => {
                state.fault = None;
                let lasted = now.since(at);
                let before = state.stood_still.filter(|(_, until)| *until > now);
                let before = before.map_or(Duration::ZERO, |(span, _)| span);
                state.stood_still = Some((before + lasted, now.plus(retention)));
                Some(Turn::Ended(lasted))
            }
            (None, None) => None,
        }
    }

    /// Goes on with what the store knows, of the time before the start or from the gateway that sent before.
    pub(crate) fn restore(&self, kept: Standstill, now: Timestamp) {
        *self.lock() = State {
            fault: kept.since.map(|at| (Fault::Before, at)),
            stood_still: kept
                .until
                .map(|until| (Duration::from_millis(kept.span_ms), until)),
            believed_until: kept.since.map(|_| now.plus(LATELY)),
            kept,
            ..State::default()
        };
    }

    /// What the store does not know yet.
    pub(crate) fn unkept(&self) -> Option<Standstill> {
        let state = self.lock();
        Some(state.standstill()).filter(|now| *now != state.kept)
    }

    /// The store knows it now.
    pub(crate) fn is_kept(&self, kept: Standstill) {
        self.lock().kept = kept;
    }

    /// What seems to be wrong here now.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.lock().fault.map(|(fault, _)| fault)
    }

    /// Whether a host that fails may be tried.
    pub(crate) fn lets_try(&self, host: HostNo) -> bool {
        let state = self.lock();
        !matches!(state.fault, Some((Fault::Away { .. } | Fault::Before, _))) || state.probes.contains(&host)
    }

    /// What was accepted before this is too old.
    pub(crate) fn age_from(&self, now: Timestamp, retention: Duration) -> Timestamp {
        let state = self.lock();
        let oldest = state.fault.map_or(now, |(_, at)| at).minus(retention);
        match state.stood_still {
            Some((span, until)) if until > now => oldest.minus(span),
            _ => oldest,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fault_of(looks: &[Look], since: Timestamp) -> Option<Fault> {
    let lately: Vec<&Look> = looks
        .iter()
        .filter(|look| look.answered_at.is_some_and(|at| at >= since))
        .collect();
    let (failing, of) = (lately.iter().filter(|look| look.is_failing).count(), lately.len());
    let is_away = match of {
        0 | 1 => false,
        2..MANY => failing == of,
        _ => failing * 5 > of,
    };
    if is_away {
        return Some(Fault::Away { failing, of });
    }
    let mut skews: Vec<i64> = lately.iter().filter_map(|look| look.skew_s).collect();
    skews.sort_unstable();
    let is_off = |skew: &&i64| skew.abs() > MAX_SKEW_S;
    (skews.len() >= CLOCKS && skews.iter().filter(is_off).count() * 2 > skews.len()).then(|| Fault::Clock {
        seconds: skews[skews.len() / 2],
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tasuki_core::clock::Timestamp;
    use tasuki_core::ids::HostNo;

    use super::{Fault, Look, Outage, PROBES, Turn};

    const MINUTE: i64 = 60_000;
    const RETENTION: Duration = Duration::from_secs(3 * 86_400);

    fn hosts(n: u32, failing: u32, answered_at: i64, skew_s: i64) -> Vec<Look> {
        (0..n)
            .map(|number| Look {
                host: HostNo(number),
                is_failing: number < failing,
                answered_at: Some(Timestamp(answered_at)),
                skew_s: Some(skew_s),
            })
            .collect()
    }

    #[test]
    fn many_that_fail_together_are_our_own_fault_until_they_answer() {
        let outage = Outage::default();
        let now = Timestamp(100 * MINUTE);
        let look =
            |looks: &[Look], minutes: i64| outage.look(looks, RETENTION, Timestamp((100 + minutes) * MINUTE));
        assert_eq!(
            look(&hosts(10, 2, now.0, 0), 0),
            None,
            "a fifth is no more than a fifth"
        );
        let fault = Fault::Away { failing: 3, of: 10 };
        assert_eq!(look(&hosts(10, 3, now.0, 0), 0), Some(Turn::Began(fault)));
        let tried = (0..10).filter(|number| outage.lets_try(HostNo(*number))).count();
        assert_eq!(tried, PROBES);
        // Hours later nobody has answered lately, and it is still the same outage.
        assert_eq!(look(&hosts(10, 10, now.0, 0), 300), None);
        assert!(outage.fault().is_some());
        let aged = outage.age_from(Timestamp(400 * MINUTE), RETENTION);
        assert_eq!(aged, now.minus(RETENTION), "nothing grew older");
        assert_eq!(
            look(&hosts(10, 1, now.0, 0), 301),
            Some(Turn::Ended(Duration::from_secs(301 * 60)))
        );
        let aged = outage.age_from(Timestamp(402 * MINUTE), RETENTION);
        assert_eq!(aged, Timestamp(101 * MINUTE).minus(RETENTION));
        assert!(outage.lets_try(HostNo(0)));
    }

    #[test]
    fn a_restart_forgets_neither_an_outage_nor_the_time_of_one_before() {
        let (outage, now) = (Outage::default(), Timestamp(1000 * MINUTE));
        let at = |minutes: i64| Timestamp((1000 + minutes) * MINUTE);
        outage.look(&hosts(10, 10, now.0, 0), RETENTION, now);
        let kept = outage.unkept().expect("it began");
        outage.is_kept(kept);
        assert_eq!(outage.unkept(), None);

        // Away for an hour, and nobody answers yet after the start.
        let next = Outage::default();
        next.restore(kept, at(60));
        assert_eq!(next.age_from(at(60), RETENTION), now.minus(RETENTION));
        let mut silent = hosts(10, 10, 0, 0);
        silent.iter_mut().for_each(|look| look.answered_at = None);
        assert_eq!(
            next.look(&silent, RETENTION, at(61)),
            Some(Turn::Began(Fault::Before))
        );
        assert_eq!(next.look(&silent, RETENTION, at(62)), None);
        let tried = (0..10).filter(|number| next.lets_try(HostNo(*number))).count();
        assert_eq!(tried, PROBES);
        let back = hosts(10, 0, at(70).0, 0);
        let ended = Some(Turn::Ended(Duration::from_secs(70 * 60)));
        assert_eq!(next.look(&back, RETENTION, at(70)), ended);

        // What waited then is younger by that time also after the next start.
        let last = Outage::default();
        last.restore(next.unkept().expect("it ended"), at(80));
        assert_eq!(last.fault(), None);
        assert_eq!(last.age_from(at(80), RETENTION), at(10).minus(RETENTION));
        let much_later = at(80).plus(RETENTION);
        assert_eq!(last.age_from(much_later, RETENTION), much_later.minus(RETENTION));

        // Who never answers again does not keep it open for ever.
        let dead = Outage::default();
        dead.restore(kept, at(60));
        assert!(matches!(
            dead.look(&silent, RETENTION, at(121)),
            Some(Turn::Ended(_))
        ));
    }

    #[test]
    fn hosts_that_have_long_been_dead_and_few_hosts_say_nothing() {
        let outage = Outage::default();
        let now = Timestamp(1000 * MINUTE);
        let mut looks = hosts(10, 10, 0, 0);
        assert_eq!(
            outage.look(&looks, RETENTION, now),
            None,
            "none of them answered lately"
        );
        looks = hosts(4, 3, now.0, 0);
        assert_eq!(outage.look(&looks, RETENTION, now), None);
        looks = hosts(1, 1, now.0, 0);
        assert_eq!(outage.look(&looks, RETENTION, now), None);
        looks = hosts(4, 4, now.0, 0);
        assert!(outage.look(&looks, RETENTION, now).is_some());
    }

    #[test]
    fn a_clock_that_most_others_contradict_is_wrong() {
        let outage = Outage::default();
        let now = Timestamp(1000 * MINUTE);
        let mut looks = hosts(5, 0, now.0, 31);
        looks[0].skew_s = Some(0);
        looks[1].skew_s = Some(0);
        let turn = outage.look(&looks, RETENTION, now);
        assert_eq!(turn, Some(Turn::Began(Fault::Clock { seconds: 31 })));
        assert!(outage.lets_try(HostNo(0)));
        looks[2].skew_s = Some(30);
        assert!(matches!(
            outage.look(&looks, RETENTION, now),
            Some(Turn::Ended(_))
        ));
        assert_eq!(
            outage.look(&hosts(2, 0, now.0, 500), RETENTION, now),
            None,
            "two are too few"
        );
    }
}
