#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::ids::PrincipalId;

use super::{Charged, Guard, HOUR_MS};

const WHO: PrincipalId = PrincipalId(7);

#[test]
fn an_hour_has_its_cap_and_the_next_one_again() {
    let guard = Guard::default();
    let at = |hour: i64| Timestamp(hour * HOUR_MS + 1234);
    for _ in 0..150 {
        assert_eq!(guard.charge(WHO, 150, at(5)), Charged::Fine);
    }
    for _ in 0..149 {
        assert_eq!(guard.charge(WHO, 150, at(5)), Charged::Over);
    }
    assert_eq!(guard.charge(WHO, 150, at(5)), Charged::FarOver);
    assert_eq!(
        guard.charge(PrincipalId(8), 150, at(5)),
        Charged::Fine,
        "others have their own"
    );
    assert_eq!(guard.charge(WHO, 150, at(6)), Charged::Fine);
    // Once it is locked nothing more goes, until the store says that it is switched on.
    guard.with(WHO, |watched| watched.locked = true);
    assert_eq!(guard.charge(WHO, 150, at(7)), Charged::Locked);
    guard.welcome(WHO);
    assert_eq!(guard.charge(WHO, 150, at(7)), Charged::Fine);
}

#[test]
fn addresses_count_by_their_network_and_for_an_hour() {
    let guard = Guard::default();
    let clock = Clock::adjustable();
    let start = clock.now();
    let seen =
        |ip: &str, after: u64| guard.seen(WHO, 2, ip.parse().unwrap(), start + Duration::from_secs(after));
    assert_eq!(seen("192.0.2.1", 0), None);
    assert_eq!(seen("2001:db8:0:1::1", 10), None);
    assert_eq!(seen("2001:db8:0:1::2", 20), None, "one /64 is one place");
    assert_eq!(seen("192.0.2.2", 30), Some(3));
    assert_eq!(
        seen("192.0.2.3", 3631),
        None,
        "an hour later the others are forgotten"
    );
}
