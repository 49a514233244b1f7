#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::*;

fn pace(connections: usize, gap_ms: u64) -> Pace {
    let mut pace = Pace::default();
    pace.set_limits(PaceLimits {
        connections,
        start: 2,
        gap: Duration::from_millis(gap_ms),
    });
    pace
}

#[test]
fn each_mail_that_is_taken_allows_one_more_connection_up_to_the_limit() {
    let mut pace = pace(5, 0);
    let mut seen = vec![pace.connections()];
    for _ in 0..5 {
        pace.succeeded();
        seen.push(pace.connections());
    }
    assert_eq!(seen, [2, 3, 4, 5, 5, 5]);
}

#[test]
fn a_site_that_says_too_fast_gets_half_and_wins_it_back_slowly() {
    let (mut pace, now) = (pace(8, 0), Instant::now());
    (0..8).for_each(|_| pace.succeeded());
    assert!(pace.slowed(now));
    assert_eq!(pace.connections(), 4);
    // The other connections hear it too.
    assert!(!pace.slowed(now + Duration::from_secs(1)));
    assert_eq!(pace.connections(), 4);
    (0..STEP - 1).for_each(|_| pace.succeeded());
    assert_eq!(pace.connections(), 4);
    pace.succeeded();
    assert_eq!(pace.connections(), 5);
    assert!(pace.is_slowed(now));
    assert!(!pace.is_slowed(now + REMEMBERED));
    (0..3 * STEP).for_each(|_| pace.succeeded());
    assert_eq!(pace.connections(), 8);
    assert!(!pace.is_slowed(now));
}

#[test]
fn a_single_connection_that_is_still_too_fast_makes_pauses() {
    let (mut pace, mut now) = (pace(1, 0), Instant::now());
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        pace.slowed(now);
        assert_eq!(pace.gap(), Duration::from_secs(seconds));
        now += SAME;
    }
    (0..10 * STEP).for_each(|_| pace.succeeded());
    assert_eq!(pace.gap(), Duration::ZERO);
}

#[test]
fn mails_are_as_far_apart_as_the_rate_says() {
    let (mut pace, now) = (pace(4, 500), Instant::now());
    let waits: Vec<_> = (0..3).map(|_| pace.turn(now).as_millis()).collect();
    assert_eq!(waits, [0, 500, 1000]);
    // What was not used is not saved up.
    let later = now + Duration::from_secs(60);
    assert_eq!(pace.turn(later), Duration::ZERO);
    assert_eq!(pace.turn(later).as_millis(), 500);
    pace.slowed(later);
    assert_eq!(pace.gap().as_millis(), 1000);
    (0..2 * STEP).for_each(|_| pace.succeeded());
    assert_eq!(pace.gap().as_millis(), 500, "never faster than the limit");
}

#[test]
fn new_limits_hold_at_once() {
    let (mut pace, now) = (pace(8, 0), Instant::now());
    (0..8).for_each(|_| pace.succeeded());
    pace.slowed(now);
    pace.set_limits(PaceLimits {
        connections: 3,
        start: 2,
        gap: Duration::from_secs(1),
    });
    assert_eq!((pace.connections(), pace.gap()), (3, Duration::from_secs(1)));
    assert_eq!(Pace::default().connections(), 1);
}
