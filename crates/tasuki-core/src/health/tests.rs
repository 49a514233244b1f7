#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use super::looks::{ClockLook, DiskSpace, is_full, reserve_bytes};
use super::{Code, Condition, Health};
use crate::clock::Timestamp;

const GIB: u64 = 1 << 30;

#[test]
fn readiness_ends_with_a_critical_condition_and_comes_back_without_it() {
    let health = Health::new();
    assert!(health.is_ready());
    health.set(
        "mail.queue",
        Some(Condition::warning(
            Code::QueueAge,
            "the oldest mail waits for 2 h",
        )),
    );
    assert!(health.is_ready(), "a warning does not stop work");
    health.set(
        "store",
        Some(Condition::critical(Code::Store, "the store does not answer")),
    );
    assert!(!health.is_ready());
    assert_eq!(health.conditions().len(), 2);
    health.set("store", None);
    assert!(health.is_ready());
    assert_eq!(health.conditions()[0].0, "mail.queue");
}

#[test]
fn made_up_keys_do_not_fill_the_memory() {
    let health = Health::new();
    for n in 0..super::MAX_CONDITIONS + 10 {
        let condition = Condition::warning(Code::AgentAway, "away");
        health.set(&format!("tunnel.agent.{n}"), Some(condition));
    }
    assert_eq!(health.conditions().len(), super::MAX_CONDITIONS);
}

fn disk(free_bytes: u64, size_bytes: u64) -> DiskSpace {
    DiskSpace {
        free_bytes,
        size_bytes,
        free_inodes: 0,
        inodes: 0,
    }
}

#[test]
fn the_disk_is_full_below_the_smaller_reserve_and_stays_so_until_there_is_room() {
    assert_eq!(reserve_bytes(5 * GIB), GIB / 2);
    assert_eq!(reserve_bytes(500 * GIB), GIB);
    assert!(!is_full(disk(GIB, 500 * GIB), false));
    assert!(is_full(disk(GIB - 1, 500 * GIB), false));
    assert!(is_full(disk(GIB + 1, 500 * GIB), true), "hysteresis");
    assert!(!is_full(disk(GIB + GIB / 4, 500 * GIB), true));
    let no_inodes = DiskSpace {
        free_inodes: 9,
        inodes: 1000,
        ..disk(400 * GIB, 500 * GIB)
    };
    assert!(is_full(no_inodes, false));
}

#[test]
fn a_clock_that_jumps_or_is_far_back_is_reported_for_a_while() {
    let start = Instant::now();
    let wall = Timestamp(1_800_000_000_000);
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut clock = ClockLook::default();
    assert_eq!(clock.look(at(0), wall), None);
    assert_eq!(clock.look(at(15), wall.plus(Duration::from_secs(16))), None);
    let jumped = clock.look(at(30), wall.plus(Duration::from_secs(3630))).unwrap();
    assert!(
        jumped.sentence.contains("jumped by 3599 s"),
        "{}",
        jumped.sentence
    );
    assert!(clock.look(at(45), wall.plus(Duration::from_secs(3645))).is_some());
    assert_eq!(clock.look(at(700), wall.plus(Duration::from_secs(4300))), None);
    let mut clock = ClockLook::default();
    assert_eq!(clock.look(at(0), Timestamp(5)).unwrap().code, Code::Clock);
}
