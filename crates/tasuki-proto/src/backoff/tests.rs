#![allow(clippy::unwrap_used)]

use super::*;

fn minutes(m: u64) -> Duration {
    Duration::from_secs(60 * m)
}

#[test]
fn the_last_delay_repeats() {
    let backoff = Backoff::try_new([minutes(1), minutes(5), minutes(240)], 0).unwrap();
    let delays: Vec<_> = (0..6).map(|n| backoff.delay(n, 7)).collect();
    assert_eq!(
        delays,
        [
            minutes(1),
            minutes(1),
            minutes(5),
            minutes(240),
            minutes(240),
            minutes(240)
        ]
    );
    assert_eq!(backoff.delay(u32::MAX, 7), minutes(240));
}

#[test]
fn jitter_stays_in_its_bounds_and_uses_them() {
    let (mut low, mut high) = (Duration::MAX, Duration::ZERO);
    for seed in 0..10_000 {
        let delay = jittered(minutes(100), 15, seed);
        assert!(delay >= minutes(85) && delay <= minutes(115), "{delay:?}");
        assert_eq!(delay, jittered(minutes(100), 15, seed));
        (low, high) = (low.min(delay), high.max(delay));
    }
    assert!(low < minutes(86) && high > minutes(114), "{low:?} {high:?}");
    assert!(jittered(Duration::MAX, 99, 1) <= Duration::from_nanos(u64::MAX));
}

#[test]
fn a_table_that_would_spin_is_refused() {
    assert_eq!(Backoff::try_new([], 0), Err(BackoffError::Empty));
    assert_eq!(
        Backoff::try_new([Duration::ZERO], 0),
        Err(BackoffError::ZeroDelay)
    );
    assert_eq!(Backoff::try_new([minutes(1)], 100), Err(BackoffError::Jitter));
}
