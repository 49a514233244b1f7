#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::LogSeq;
use tasuki_proto::backoff::Backoff;

use super::{Due, End, Machine, Settled};

fn machine() -> Machine {
    let steps: Vec<Duration> = [10, 30, 60].map(Duration::from_secs).to_vec();
    Machine::new(4, 1_000_000, Backoff::try_new(steps, 0).unwrap(), 1)
}

fn due(seq: i64, object: u64) -> Due {
    Due {
        seq: LogSeq(seq),
        after: Some(LogSeq(seq - 1)),
        object,
        is_letter: false,
        at: at(0),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1000)
}

fn failed() -> End {
    End::Failed {
        why: "500".into(),
        retry_after: None,
    }
}

/// A machine whose host is known to be alive.
fn warm() -> Machine {
    let mut machine = machine();
    for seq in -4..0 {
        machine.handle_due(due(seq, 1000 + seq.unsigned_abs()));
        let tried = machine.poll_attempt(at(0), false).unwrap();
        assert_eq!(machine.handle_end(tried.seq, End::Done, at(0)), Settled::Over);
    }
    machine
}

fn attempts(machine: &mut Machine, now: Timestamp) -> Vec<i64> {
    std::iter::from_fn(|| machine.poll_attempt(now, false).map(|due| due.seq.0)).collect()
}

#[test]
fn what_is_void_says_nothing_about_the_host() {
    let mut machine = machine();
    machine.handle_due(due(1, 1));
    machine.handle_due(due(2, 2));
    let first = machine.poll_attempt(at(0), false).unwrap();
    machine.handle_end(first.seq, failed(), at(0));
    assert_eq!(machine.failures(), 1);
    let later = at(1_000_000);
    let next = machine.poll_attempt(later, false).unwrap();
    assert_eq!(machine.handle_end(next.seq, End::Void, later), Settled::Over);
    assert_eq!(machine.failures(), 1, "it was cut or taken out, not delivered");
}

#[test]
fn with_the_brake_pulled_only_letters_are_tried() {
    let mut machine = machine();
    machine.handle_due(due(1, 1));
    machine.handle_due(Due {
        is_letter: true,
        ..due(2, 2)
    });
    assert_eq!(
        machine.poll_attempt(at(0), true).map(|due| due.seq),
        Some(LogSeq(2))
    );
    assert_eq!(machine.poll_attempt(at(0), true), None);
}

#[test]
fn a_new_host_begins_with_one_and_gains_with_each_success() {
    let mut machine = machine();
    for seq in 1..=9 {
        machine.handle_due(due(seq, seq.unsigned_abs()));
    }
    assert_eq!(attempts(&mut machine, at(0)), [1]);
    machine.handle_end(LogSeq(1), End::Done, at(0));
    assert_eq!(attempts(&mut machine, at(0)), [2, 3]);
    machine.handle_end(LogSeq(2), End::Done, at(0));
    machine.handle_end(LogSeq(3), End::Done, at(0));
    assert_eq!(attempts(&mut machine, at(0)), [4, 5, 6, 7]);
    assert_eq!(machine.first_open().unwrap().0, LogSeq(4));
}

#[test]
fn entries_of_one_object_keep_their_order() {
    let mut machine = warm();
    machine.handle_due(due(1, 7));
    machine.handle_due(due(2, 7));
    machine.handle_due(due(3, 8));
    assert_eq!(attempts(&mut machine, at(0)), [1, 3]);
    machine.handle_end(LogSeq(3), End::Done, at(0));
    machine.handle_end(LogSeq(1), failed(), at(0));
    // 1 waits for its own retry; 2 waits for 1.
    assert!(attempts(&mut machine, at(1)).is_empty());
    assert_eq!(attempts(&mut machine, at(10)), [1]);
    machine.handle_end(LogSeq(1), End::Done, at(10));
    assert_eq!(attempts(&mut machine, at(10)), [2]);
}

#[test]
fn an_entry_that_fails_three_times_while_others_pass_is_parked() {
    let mut machine = warm();
    machine.handle_due(due(1, 1));
    let mut now = 0;
    for round in 1..=3 {
        machine.handle_due(due(10 + round, 100 + round.unsigned_abs()));
        assert_eq!(attempts(&mut machine, at(now)), [1, 10 + round]);
        machine.handle_end(LogSeq(10 + round), End::Done, at(now));
        let expected = if round == 3 {
            Settled::Parked
        } else {
            Settled::Again
        };
        assert_eq!(machine.handle_end(LogSeq(1), failed(), at(now)), expected);
        now += 100;
    }
    assert_eq!(machine.parked().collect::<Vec<_>>(), [(LogSeq(1), 3)]);
    assert_eq!(machine.open(), 0);
    assert_eq!(machine.failures(), 0);
    assert!(!machine.handle_due(due(1, 1)));
}

#[test]
fn a_dead_host_stops_its_lane_and_is_tried_with_two() {
    let mut machine = warm();
    for seq in 1..=9 {
        machine.handle_due(due(seq, seq.unsigned_abs()));
    }
    assert_eq!(attempts(&mut machine, at(0)), [1, 2, 3, 4]);
    for seq in 1..=4 {
        assert_eq!(machine.handle_end(LogSeq(seq), failed(), at(0)), Settled::Again);
    }
    // What failed together is one failure.
    assert_eq!((machine.failures(), machine.next_try()), (1, Some(at(10))));
    assert_eq!(machine.poll_timeout(at(0)), Some(at(10)));
    assert!(attempts(&mut machine, at(9)).is_empty());
    assert_eq!(attempts(&mut machine, at(10)), [1, 2]);
    machine.handle_end(LogSeq(1), failed(), at(10));
    machine.handle_end(LogSeq(2), failed(), at(10));
    assert_eq!((machine.failures(), machine.next_try()), (2, Some(at(40))));
    assert!(machine.parked().next().is_none());

    machine.handle_sign_of_life();
    assert_eq!(attempts(&mut machine, at(11)), [1, 2]);
    machine.handle_end(LogSeq(1), End::Done, at(11));
    assert_eq!(machine.failures(), 0);
    assert_eq!(attempts(&mut machine, at(11)), [3, 4, 5]);
}

#[test]
fn a_host_that_names_a_time_is_left_alone_until_then() {
    let mut machine = warm();
    machine.handle_due(due(1, 1));
    attempts(&mut machine, at(0));
    let end = End::Failed {
        why: "429".into(),
        retry_after: Some(Duration::from_secs(120)),
    };
    machine.handle_end(LogSeq(1), end, at(0));
    assert_eq!(machine.next_try(), Some(at(120)));
}

#[test]
fn a_refusal_settles_and_our_own_fault_blames_nobody() {
    let mut machine = warm();
    machine.handle_due(due(1, 1));
    machine.handle_due(due(2, 2));
    attempts(&mut machine, at(0));
    assert_eq!(
        machine.handle_end(LogSeq(1), End::Refused("400".into()), at(0)),
        Settled::Over
    );
    assert_eq!(
        machine.handle_end(LogSeq(2), End::OurFault("no descriptors".into()), at(0)),
        Settled::Again
    );
    assert_eq!(machine.failures(), 0);
    assert_eq!(machine.last_error(), Some("no descriptors"));
    assert_eq!(attempts(&mut machine, at(10)), [2]);
}

#[test]
fn what_was_settled_before_a_restart_is_not_due_again() {
    let mut machine = machine();
    machine.restore(
        &[(LogSeq(5), LogSeq(5))],
        &[(LogSeq(6), 3)],
        2,
        Some(at(30)),
        Some("500".into()),
    );
    assert!(machine.handle_due(due(4, 4)));
    assert!(!machine.handle_due(due(5, 5)));
    assert!(!machine.handle_due(due(6, 6)));
    assert!(attempts(&mut machine, at(0)).is_empty());
    assert_eq!(attempts(&mut machine, at(30)), [4]);
    machine.handle_end(LogSeq(4), End::Done, at(30));
    assert!(!machine.handle_due(due(5, 5)));
    machine.forget_below(LogSeq(7));
    assert_eq!(machine.settled().count(), 0);
}

#[test]
fn whatever_happens_every_entry_is_in_exactly_one_place() {
    // A fixed walk over many states: each step offers, tries or ends something, by a scrambled counter.
    let mut machine = machine();
    let (mut offered, mut over, mut dice) = (0_i64, 0_usize, 1_u64);
    let mut running: Vec<LogSeq> = Vec::new();
    for step in 0..20_000_i64 {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        match (dice >> 33) % 6 {
            0 | 1 => {
                offered += 1;
                machine.handle_due(due(offered, (dice >> 40) % 20));
            }
            2 | 3 => running.extend(machine.poll_attempt(at(step), false).map(|due| due.seq)),
            _ => {
                if running.is_empty() {
                    continue;
                }
                let seq = running.swap_remove(usize::try_from((dice >> 45) % running.len() as u64).unwrap());
                let end = match (dice >> 50) % 4 {
                    0 => failed(),
                    1 => End::Refused("400".into()),
                    _ => End::Done,
                };
                if machine.handle_end(seq, end, at(step)) != Settled::Again {
                    over += 1;
                }
            }
        }
        assert_eq!(machine.open() + over, usize::try_from(offered).unwrap());
        assert!(running.len() <= 4);
    }
    assert!(over > 1000, "{over}");
}

#[test]
fn the_oldest_entry_moves_on_however_much_is_settled_beyond_it() {
    let mut machine = warm();
    machine.handle_due(due(1, 1));
    let stuck = machine.poll_attempt(at(0), false).unwrap();
    machine.handle_due(due(2, 2));
    let next = machine.poll_attempt(at(0), false).unwrap();
    machine.handle_end(next.seq, End::Done, at(0));
    // The host took another one: the failure is the entry's own, and it waits.
    assert_eq!(machine.handle_end(stuck.seq, failed(), at(0)), Settled::Again);
    for n in 0..600 {
        // Every other entry is open for another reason, so that spans do not join.
        machine.handle_due(Due {
            after: None,
            ..due(10 + 2 * n, 10 + n.unsigned_abs())
        });
        let Some(tried) = machine.poll_attempt(at(1), false) else {
            break;
        };
        machine.handle_end(tried.seq, End::Done, at(1));
    }
    assert!(machine.settled().count() <= 512);
    let later = at(1_000);
    assert_eq!(
        machine.poll_attempt(later, false).map(|due| due.seq),
        Some(stuck.seq)
    );
    machine.handle_end(stuck.seq, End::Done, later);
    assert!(machine.poll_attempt(later, false).is_some(), "the rest goes on");
}

#[test]
fn a_backlog_goes_out_at_its_pace_and_after_what_is_new() {
    let mut machine = warm();
    machine.set_pace(10);
    for seq in 1..=40 {
        machine.handle_due(due(seq, seq.unsigned_abs()));
    }
    let now = at(3_600);
    let done = |machine: &mut Machine, now| {
        let mut sent = Vec::new();
        while let Some(tried) = machine.poll_attempt(now, false) {
            machine.handle_end(tried.seq, End::Done, now);
            sent.push(tried.seq.0);
        }
        sent
    };
    // A second's worth at once, and then ten a second.
    assert_eq!(done(&mut machine, now), (1..=11).collect::<Vec<_>>());
    let soon = machine.poll_timeout(now).unwrap();
    assert_eq!(soon.since(now), Duration::from_millis(100));
    machine.handle_due(Due {
        at: now,
        ..due(1_000, 1_000)
    });
    assert_eq!(done(&mut machine, now), [1_000], "what is new does not wait");
    assert_eq!(done(&mut machine, soon), [12]);
    assert_eq!(
        done(&mut machine, soon.plus(Duration::from_millis(500))),
        (13..=17).collect::<Vec<_>>()
    );
    // A letter is never backlog, and an entry behind an older one of its object is not new before that one is gone.
    machine.handle_due(Due {
        at: now,
        ..due(1_001, 40)
    });
    machine.handle_due(Due {
        is_letter: true,
        ..due(1_002, 1_002)
    });
    assert_eq!(done(&mut machine, soon.plus(Duration::from_millis(500))), [1_002]);
}
