//! Clients that write in strange ways, over a real socket.

use crate::{sink::Sink, support::House};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_in_single_octets_is_a_mail() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    for (text, expect) in [
        ("EHLO c\r\n", "250"),
        ("MAIL FROM:<a@x.org>\r\n", "250"),
        ("RCPT TO:<b@y.org>\r\n", "250"),
        ("DATA\r\n", "354"),
        ("Subject: slow\r\n\r\n..dot\r\n.\r\n", "250 2.0.0 queued"),
    ] {
        for octet in text.as_bytes() {
            client.send_octets(&[*octet]).await;
        }
        let reply = client.reply().await;
        assert!(reply.starts_with(expect), "{text}: {reply}");
    }
    assert!(
        sink.wait(1).await[0]
            .text
            .ends_with("Subject: slow\r\n\r\n.dot\r\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_closed_its_half_still_hears_its_replies() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "250").await;
    client.expect("DATA", "354").await;
    client.send("Subject: last\r\n\r\nx\r\n.\r\nNOOP\r\n").await;
    client.close_half().await;
    for expect in ["250 2.0.0 queued", "250 2.0.0 ok", ""] {
        let reply = client.reply().await;
        assert!(reply.starts_with(expect), "{expect}: {reply}");
    }
    assert!(sink.wait(1).await[0].text.contains("Subject: last"));
    // In the middle of a message there is nothing to hear, and nothing is kept.
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "250").await;
    client.expect("DATA", "354").await;
    client.send("Subject: half\r\n\r\nx\r\n").await;
    client.close_half().await;
    assert_eq!(client.reply().await, "");
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("accepted_mails_total"), 1);
    house
        .until("the budget is free again", |_| house.budget.used_bytes() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn octets_that_are_no_command_are_refused_and_the_session_goes_on() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for line in [
        b"MAIL FROM:<\xff@x.org>\r\n".as_slice(),
        b"MAIL FROM:<a\0@x.org>\r\n",
        b"\x80\x81\r\n",
        b"NOOP\n",
        b"RCPT TO:<a@x.org>\rQUIT\r\n",
    ] {
        client.send_octets(line).await;
        let reply = client.reply().await;
        assert!(reply.starts_with("500 5.5.2"), "{line:?}: {reply}");
        assert!(reply.is_ascii(), "nothing is echoed: {reply}");
    }
    // A line without an end is cut off, not kept.
    for _ in 0..64 {
        client.send(&"x".repeat(64 * 1024)).await;
    }
    client.expect("", "500 5.5.2 the command line is too long").await;
    client.expect("NOOP", "250").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_injected_behind_starttls_ends_the_session() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    for injected in ["NOOP\r\n", "EHLO evil\r\nMAIL FROM:<evil@x.org>\r\n", "\n"] {
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        client.send(&format!("STARTTLS\r\n{injected}")).await;
        assert!(client.reply().await.starts_with("554 5.5.1"));
        assert_eq!(client.reply().await, "", "nothing else is answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_nested_too_deeply_is_refused_and_the_next_one_is_taken() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.limits.max_mime_depth = 1).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let outer = "Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n";
    let inner = "Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\nx";
    let reply = client
        .mail("a@x.org", &["b@y.org"], &format!("{outer}{inner}"))
        .await;
    assert!(reply.starts_with("554 5.6.0"), "{reply}");
    let reply = client
        .mail("a@x.org", &["b@y.org"], &format!("{outer}\r\nx\r\n--a--"))
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    assert_eq!(sink.wait(1).await.len(), 1);
}
