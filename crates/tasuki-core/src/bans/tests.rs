#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::Offence;
use super::table::{Held, Table};
use super::tally::Tally;
use crate::clock::{Clock, Timestamp};
use crate::engine::EngineKind::Mail;
use crate::net;

fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n * 256))
}

#[test]
fn a_flood_of_offenders_keeps_the_counts_bounded() {
    let clock = Clock::adjustable();
    let mut tally = Tally::default();
    for n in 0..60_000 {
        let net = net::single(address(n));
        tally.note(clock.now(), Mail, net, Offence::WrongCode);
        tally.note_banned(clock.now(), net::prefix(address(n)), net, true);
    }
    let (counts, prefixes) = tally.sizes();
    assert!(
        counts <= 16_384 && prefixes <= 4_096,
        "{counts} counts, {prefixes} prefixes"
    );
}

#[test]
fn a_flood_of_bans_keeps_the_table_bounded_and_those_that_end_first_go() {
    let mut table = Table::default();
    let held = |until| Held {
        id: None,
        engine: None,
        until,
        reason: "test".into(),
        by_hand: false,
        repeats: 0,
    };
    let start = Timestamp(0);
    table.put(net::single(address(0)), held(None), start);
    for n in 1..150_000 {
        let until = start.plus(Duration::from_secs(u64::from(n)));
        table.put(net::single(address(n)), held(Some(until)), start);
    }
    assert!(table.len() <= 65_536, "{}", table.len());
    assert!(table.find(Mail, address(0), start).is_some());
    assert!(table.find(Mail, address(149_999), start).is_some());
    assert!(table.find(Mail, address(1), start).is_none());
}
