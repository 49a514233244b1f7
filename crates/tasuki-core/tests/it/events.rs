use std::time::{Duration, Instant};

use tasuki_core::clock::Clock;
use tasuki_core::events::{EventBus, EventReader, What};

async fn read(reader: &mut EventReader) -> String {
    match reader.next().await.unwrap().what {
        What::HostSubscribed { host } => host,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reader_is_woken_once_for_many_events_and_gets_them_all_in_order() {
    let bus = EventBus::new(Clock::system());
    let say = |host: &str| bus.emit(What::HostSubscribed { host: host.into() });
    let mut reader = bus.reader();
    let (first, ()) = tokio::join!(read(&mut reader), async { say("first.example") });
    assert_eq!(first, "first.example");
    // It waited for the first one, so it does not wait for the next ones.
    let woken = Instant::now();
    for at in 0..100 {
        say(&format!("h{at}.example"));
    }
    for at in 0..100 {
        assert_eq!(read(&mut reader).await, format!("h{at}.example"));
    }
    // Nothing is there: what comes now is left to gather.
    let (next, ()) = tokio::join!(read(&mut reader), async { say("next.example") });
    assert_eq!(next, "next.example");
    assert!(
        woken.elapsed() >= Duration::from_millis(15),
        "each event woke its reader"
    );
}
