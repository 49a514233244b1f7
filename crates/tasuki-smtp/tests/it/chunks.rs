//! Mail in chunks (BDAT), over a real socket.

use crate::{sink::Sink, support::House};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_in_chunks_arrives_whole() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    let offers = client.expect("EHLO c", "250").await;
    assert!(
        offers.contains("CHUNKING") && offers.contains("LIMITS RCPTMAX=100"),
        "{offers}"
    );
    let line = format!(".{}\r\n", "x".repeat(69));
    for lines in [1, 2_000, 40_000] {
        client.expect("MAIL FROM:<a@x.org>", "250").await;
        client.expect("RCPT TO:<b@y.org>", "250").await;
        let text = format!("Subject: {lines}\r\n\r\n{}", line.repeat(lines));
        let mut rest = text.as_str();
        while rest.len() > 100_000 {
            let (chunk, tail) = rest.split_at(99_999);
            client.send(&format!("BDAT {}\r\n{chunk}", chunk.len())).await;
            assert!(client.reply().await.starts_with("250 2.0.0 99999 octets"));
            rest = tail;
        }
        client.send(&format!("BDAT {} LAST\r\n{rest}", rest.len())).await;
        let reply = client.reply().await;
        assert!(reply.starts_with("250 2.0.0 queued"), "{reply}");
        let subject = format!("Subject: {lines}\r\n");
        house
            .until("the delivery", |_| {
                sink.received().iter().any(|r| r.text.contains(&subject))
            })
            .await;
        let received = sink.received();
        let got = received.iter().find(|r| r.text.contains(&subject)).unwrap();
        assert!(got.text.ends_with(&text), "{} of {}", got.text.len(), text.len());
    }
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_are_given_up_free_their_memory() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "250").await;
    let text = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(10_000));
    client.send(&format!("BDAT {}\r\n{text}", text.len())).await;
    assert!(client.reply().await.starts_with("250"));
    assert!(house.budget.used_bytes() > 0);
    client.expect("RSET", "250").await;
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
    client.expect("BDAT 0 LAST", "503").await;
    assert_eq!(house.figure("accepted_mails_total"), 0);
}
