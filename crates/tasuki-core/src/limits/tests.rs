#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Inner, LOGINS, Limits, Rate, Who};
use crate::clock::Clock;
use crate::engine::EngineKind::{Mail, Tunnel};

fn at(inner: &Inner, now: u64, who: u32, rate: Rate) -> Result<(), Duration> {
    let who = Who::Address(IpAddr::V4(Ipv4Addr::from(who)));
    inner.take(now, (Some(Mail), "test"), who, rate)
}

#[test]
fn never_more_than_burst_plus_rate_times_time_passes() {
    for seed in 0..300 {
        let mut dice = StdRng::seed_from_u64(seed);
        let limits = Limits::new(Clock::system());
        let rate = Rate {
            burst: dice.random_range(0..50),
            per_period: dice.random_range(0..200),
            period: Duration::from_millis(dice.random_range(1..5_000)),
        };
        let (mut now, mut passed) = (0_u64, Vec::new());
        for _ in 0..600 {
            now += match dice.random_range(0..4_u8) {
                0 => 0,
                1 => dice.random_range(0..rate.interval() * 2),
                2 => dice.random_range(0..1_000),
                _ => dice.random_range(0..rate.interval() * 20 / 10),
            };
            if at(&limits.inner, now, 1, rate).is_ok() {
                passed.push(now);
            }
        }
        // In every stretch of time, not only from the start.
        for first in 0..passed.len() {
            for (count, end) in passed[first..].iter().enumerate() {
                let stretch = end - passed[first];
                let allowed = u64::from(rate.burst) + stretch / rate.interval();
                assert!(
                    (count as u64) < allowed.max(1) && rate.burst > 0,
                    "seed {seed}: {} passed within {stretch} ns at {rate:?}",
                    count + 1
                );
            }
        }
    }
}

#[test]
fn after_the_wait_that_was_named_exactly_one_passes() {
    let limits = Limits::new(Clock::system());
    let rate = Rate::per_minute(5, 30);
    for _ in 0..5 {
        at(&limits.inner, 0, 1, rate).unwrap();
    }
    let wait = at(&limits.inner, 0, 1, rate).unwrap_err();
    assert_eq!(wait, Duration::from_secs(2));
    let later = u64::try_from(wait.as_nanos()).unwrap();
    assert!(at(&limits.inner, later - 1, 1, rate).is_err());
    assert!(at(&limits.inner, later, 1, rate).is_ok());
    assert!(at(&limits.inner, later, 1, rate).is_err());
}

#[test]
fn the_injected_clock_gives_the_time() {
    let clock = Clock::adjustable();
    let limits = Limits::new(clock.clone());
    let rate = Rate::per_minute(1, 1);
    assert!(limits.take(Mail, "x", Who::Engine, rate).is_ok());
    assert!(limits.take(Mail, "x", Who::Engine, rate).is_err());
    clock.advance(Duration::from_secs(60));
    assert!(limits.take(Mail, "x", Who::Engine, rate).is_ok());
}

#[test]
fn engines_kinds_of_work_and_names_do_not_share_a_limit() {
    let limits = Limits::new(Clock::system());
    let rate = Rate::per_minute(1, 1);
    let host = |h: &str| Who::Domain(h.to_owned());
    assert!(limits.take(Mail, "x", host("a.example"), rate).is_ok());
    assert!(limits.take(Mail, "x", host("a.example"), rate).is_err());
    assert!(limits.take(Mail, "y", host("a.example"), rate).is_ok());
    assert!(limits.take(Tunnel, "x", host("a.example"), rate).is_ok());
    assert!(limits.take(Mail, "x", host("b.example"), rate).is_ok());
    assert!(limits.take(Mail, "x", Who::Engine, rate).is_ok());
}

#[test]
fn an_ipv6_customer_is_one_address_and_a_mapped_address_is_its_ipv4() {
    let limits = Limits::new(Clock::system());
    let rate = Rate::per_minute(1, 1);
    let take = |ip: &str| limits.take(Mail, "x", Who::Address(ip.parse().unwrap()), rate);
    assert!(take("2001:db8:1:2::1").is_ok());
    assert!(take("2001:db8:1:2:ffff::9").is_err());
    assert!(take("192.0.2.1").is_ok());
    assert!(take("::ffff:192.0.2.1").is_err());
}

#[test]
fn a_flood_of_names_neither_grows_the_table_nor_frees_who_is_at_a_limit() {
    let limits = Limits::with_capacity(Clock::system(), 1_024);
    let rate = Rate::per_minute(20, 20);
    while at(&limits.inner, 0, 1, rate).is_ok() {}
    for other in 2..100_000 {
        let _ = at(&limits.inner, 0, other, rate);
    }
    assert!(limits.len() <= 1_024, "{}", limits.len());
    assert!(at(&limits.inner, 0, 1, rate).is_err());
}

#[test]
fn an_office_behind_one_address_logs_in_at_once() {
    let limits = Limits::new(Clock::system());
    for _ in 0..100 {
        limits
            .take_from(Mail, "login", "203.0.113.9".parse().unwrap(), LOGINS)
            .unwrap();
    }
}
