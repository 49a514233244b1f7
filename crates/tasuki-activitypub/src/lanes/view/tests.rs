#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tasuki_proto::backoff::Backoff;

use super::*;
use crate::lanes::machine::End;

const NOW: Timestamp = Timestamp(3_600_000);

fn due(seq: i64, object: u64) -> Due {
    Due {
        seq: LogSeq(seq),
        after: None,
        object,
        is_letter: false,
        at: NOW,
    }
}

/// A lane that has its backlog from 1 to 99 still to read, and a machine with a host that is well.
fn returned() -> (View, Machine) {
    let backoff = Backoff::try_new(vec![Duration::from_secs(10)], 0).unwrap();
    (
        View::new(Some(Some(LogSeq(0)))),
        Machine::new(1000, 10, backoff, 1),
    )
}

fn deliver(view: &mut View, machine: &mut Machine) -> Vec<i64> {
    let mut sent = Vec::new();
    view.feed(machine, NOW);
    while let Some(tried) = machine.poll_attempt(NOW, false) {
        machine.handle_end(tried.seq, End::Done, NOW);
        sent.push(tried.seq.0);
        view.feed(machine, NOW);
    }
    sent
}

#[test]
fn what_is_new_goes_before_what_is_still_to_be_read_and_is_not_sent_again() {
    let (mut view, mut machine) = returned();
    for seq in 100..150 {
        view.push(due(seq, seq.unsigned_abs()), EntryKind::Activity);
    }
    assert_eq!(deliver(&mut view, &mut machine), (100..150).collect::<Vec<_>>());
    assert_eq!(
        view.settled,
        [(LogSeq(100), LogSeq(149))],
        "one span, however many"
    );
    assert_eq!(
        view.oldest(),
        Some((LogSeq(1), None)),
        "a restart reads from there"
    );
    // Reading comes to the new ones in the end.
    for seq in 1..100 {
        machine.handle_due(Due {
            at: Timestamp(0),
            ..due(seq, seq.unsigned_abs())
        });
    }
    view.was_read(LogSeq(99), &mut machine);
    assert_eq!(deliver(&mut view, &mut machine).len(), 11, "the pace of a second");
    for seq in 100..150 {
        assert!(
            !machine.handle_due(due(seq, seq.unsigned_abs())),
            "{seq} was sent"
        );
    }
}

#[test]
fn a_change_overtakes_only_after_what_it_changes() {
    let (mut view, mut machine) = returned();
    view.push(due(100, 7), EntryKind::Change);
    view.push(due(101, 8), EntryKind::Activity);
    view.push(due(102, 8), EntryKind::Change);
    view.push(due(103, 9), EntryKind::Delete);
    assert_eq!(deliver(&mut view, &mut machine), [101, 102, 103]);
    assert!(machine.handle_due(due(100, 7)), "reading comes to it");
}

#[test]
fn letters_overtake_unless_an_earlier_one_may_wait() {
    let letter = |seq| Due {
        is_letter: true,
        ..due(seq, 1)
    };
    let (mut after_restart, mut machine) = returned();
    after_restart.push(letter(100), EntryKind::Control);
    assert!(deliver(&mut after_restart, &mut machine).is_empty());

    let (_, mut machine) = returned();
    let mut view = View::new(None);
    for seq in 1..=256 {
        view.push(due(seq, seq.unsigned_abs()), EntryKind::Activity);
    }
    view.push(due(257, 257), EntryKind::Change);
    assert!(
        view.reading_after.is_some(),
        "what waits is more than is kept in memory"
    );
    view.push(letter(258), EntryKind::Control);
    assert_eq!(deliver(&mut view, &mut machine).last(), Some(&258));
}

#[test]
fn what_was_new_and_waited_is_left_to_reading_with_all_that_depends_on_it() {
    let (mut view, mut machine) = returned();
    view.push(
        Due {
            at: Timestamp(0),
            ..due(100, 7)
        },
        EntryKind::Activity,
    );
    view.push(due(101, 7), EntryKind::Change);
    view.push(due(102, 8), EntryKind::Activity);
    view.push(due(103, 7), EntryKind::Change);
    assert_eq!(deliver(&mut view, &mut machine), [102]);
    // And when more comes than is kept, all of it is.
    for seq in 200..200 + 3 * 256 {
        view.push(due(seq, 9), EntryKind::Change);
        view.push(due(1000 + seq, 1000 + seq.unsigned_abs()), EntryKind::Activity);
    }
    assert!(view.new.len() <= MAX_NEW && view.new_objects.len() <= MAX_NEW_OBJECTS);
}
