#![allow(clippy::unwrap_used)]

use super::*;

fn sender(name: &str) -> Sender {
    Sender::Domain(Domain::parse(name).unwrap())
}

fn order(queue: &mut FairQueue<&'static str>) -> Vec<&'static str> {
    queue.take().into_iter().collect()
}

#[test]
fn a_sender_with_many_mails_takes_turns_with_one_who_has_few() {
    let mut queue = FairQueue::default();
    for _ in 0..4 {
        queue.push(sender("many.example"), Class::Transactional, 1000, "many");
    }
    queue.push(sender("few.example"), Class::Transactional, 1000, "few");
    queue.push(sender("few.example"), Class::Transactional, 1000, "few");
    assert_eq!(queue.len(), 6);
    assert_eq!(queue.len_of(&sender("many.example"), Class::Transactional), 4);
    assert_eq!(order(&mut queue), ["many", "few", "many", "few", "many", "many"]);
    assert!(queue.is_empty());
}

#[test]
fn large_mails_cost_turns_unless_nobody_else_waits() {
    let mut queue = FairQueue::default();
    for _ in 0..2 {
        queue.push(
            sender("large.example"),
            Class::Transactional,
            3 * TURN_OCTETS,
            "large",
        );
    }
    for _ in 0..5 {
        queue.push(sender("small.example"), Class::Transactional, 10, "small");
    }
    assert_eq!(
        order(&mut queue),
        ["large", "small", "small", "small", "small", "large", "small"]
    );
    for _ in 0..3 {
        queue.push(sender("large.example"), Class::Transactional, u64::MAX, "large");
    }
    assert_eq!(order(&mut queue).len(), 3);
}

#[test]
fn transactional_mail_goes_first_and_bulk_still_moves() {
    let mut queue = FairQueue::default();
    for _ in 0..3 {
        queue.push(sender("news.example"), Class::Bulk, 10, "bulk");
    }
    for _ in 0..20 {
        queue.push(sender("shop.example"), Class::Transactional, 10, "now");
    }
    let order = order(&mut queue);
    assert!(order[..15].iter().all(|item| *item == "now"), "{order:?}");
    assert_eq!(order[15], "bulk");
    assert!(order[16..21].iter().all(|item| *item == "now"));
    assert_eq!(order[21..], ["bulk", "bulk"]);
}
