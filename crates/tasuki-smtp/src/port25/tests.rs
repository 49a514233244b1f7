#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::*;

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 25))
}

#[test]
fn several_silent_sites_and_open_other_ports_are_a_block_until_one_answers() {
    let (port, now) = (Port25::default(), Instant::now());
    assert!(port.silent("site:a", addr(1), now).is_none());
    assert!(
        port.silent("site:a", addr(1), now).is_none(),
        "one site counts once"
    );
    assert!(port.silent("site:b", addr(2), now).is_none());
    assert_eq!(port.silent("site:c", addr(3), now).unwrap().len(), 3);
    assert!(port.silent("site:d", addr(4), now).is_none(), "asked once");
    assert!(port.probed(true) && port.is_blocked());
    assert!(port.answered(now) && !port.is_blocked());
    assert!(!port.answered(now));
}

#[test]
fn silence_is_no_block_when_everything_is_silent_or_something_answered() {
    let (port, now) = (Port25::default(), Instant::now());
    let sites = ["site:a", "site:b", "site:c"];
    let asked = |port: &Port25, now| {
        sites
            .iter()
            .filter_map(|site| port.silent(site, addr(1), now))
            .count()
    };
    // Our line is down: the other ports are as silent.
    assert_eq!(asked(&port, now), 1);
    assert!(!port.probed(false));
    assert_eq!(
        asked(&port, now),
        1,
        "asked again with a further silence, one at a time"
    );
    assert!(!port.probed(false));
    port.answered(now);
    assert_eq!(asked(&port, now + Duration::from_secs(60)), 0);
    // Old silence counts no more.
    let later = now + 2 * COUNTS_FOR;
    assert!(port.silent("site:d", addr(1), later).is_none());
    assert!(port.silent("site:e", addr(1), later).is_none());
    assert!(port.silent("site:f", addr(1), later).is_some());
}

#[tokio::test]
async fn a_server_that_takes_a_connection_answers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = listener.local_addr().unwrap();
    assert!(any_answers(&[addr_on_loopback()], &[open.port()]).await);
    drop(listener);
    assert!(!any_answers(&[addr_on_loopback()], &[open.port()]).await);
}

fn addr_on_loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 25))
}
