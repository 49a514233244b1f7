//! Addresses outside the grammar that carriers gave out.

use crate::{sink::Sink, support::House};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carriers_addresses_are_taken_in_listed_domains_only_and_quoted_on_the_wire() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let reply = client
        .mail(
            "from..me@docomo.ne.jp",
            &[
                "foo..bar@docomo.ne.jp",
                "foo.@ezweb.ne.jp",
                "\"already..quoted\"@docomo.ne.jp",
            ],
            "Subject: hi\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait(1).await;
    let commands = sink.commands();
    for wire in [
        "MAIL FROM:<\"from..me\"@docomo.ne.jp>",
        "RCPT TO:<\"foo..bar\"@docomo.ne.jp>",
        "RCPT TO:<\"foo.\"@ezweb.ne.jp>",
        "RCPT TO:<\"already..quoted\"@docomo.ne.jp>",
    ] {
        assert!(
            commands.iter().any(|c| c.starts_with(wire)),
            "{wire} in {commands:?}"
        );
    }
    client.expect("MAIL FROM:<a..b@y.org>", "501 5.1.7").await;
    client.expect("MAIL FROM:<a@y.org>", "250").await;
    client.expect("RCPT TO:<a..b@y.org>", "501 5.1.3").await;
    client.expect("RCPT TO:<a..b@notdocomo.ne.jp>", "501 5.1.3").await;
    client.expect("RCPT TO:<..@docomo.ne.jp>", "501 5.1.3").await;
}
