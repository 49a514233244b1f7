//! What senders are told of their mail: failures, expiry, success.

use std::time::Duration;

use crate::{sink::Sink, support::House};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_refusal_is_reported_to_the_sender_alone() {
    let sink = Sink::scripted(|line| {
        line.contains("<bad@y.org>")
            .then(|| "550 5.1.1 no such user".into())
    })
    .await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["good@y.org", "bad@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    let received = sink.wait(2).await;
    let notice = received.iter().find(|r| r.from.is_empty()).unwrap();
    assert_eq!(notice.to, ["a@x.org"]);
    assert!(
        notice
            .text
            .contains("Final-Recipient: rfc822; bad@y.org\r\nAction: failed\r\nStatus: 5.1.1\r\n")
    );
    assert!(
        notice
            .text
            .contains("Diagnostic-Code: smtp; 550 5.1.1 no such user")
    );
    assert!(
        !notice.text.contains("good@y.org")
            && notice.text.contains("Subject: hi")
            && !notice.text.contains("\r\nbody")
    );
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("bounced_recipients_total"), 1);
    assert_eq!(house.figure("delivered_recipients_total"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_automatic_or_list_mail_causes_no_notice_and_a_principals_does() {
    let sink = Sink::scripted(|line| {
        line.starts_with("RCPT TO:<no@")
            .then(|| "550 5.1.1 no such user".into())
    })
    .await;
    let house = House::with_sink(&sink, |c| c.relay_domains = vec!["y.org".parse().unwrap()]).await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for field in [
        "Auto-Submitted: auto-replied; owner=x",
        "Precedence: bulk",
        "List-Id: <l.bank.org>",
        "List-Unsubscribe: <https://bank.org/u>",
    ] {
        let reply = client
            .mail("s@bank.org", &["no@y.org"], &format!("{field}\r\n\r\nx"))
            .await;
        assert!(reply.starts_with("250"), "{reply}");
    }
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("bounced_recipients_total"), 4);
    assert!(sink.received().is_empty());
    // A person who writes is told, and so is our own service whatever it sends.
    client
        .mail("s@bank.org", &["no@y.org"], "Auto-Submitted: no\r\n\r\nx")
        .await;
    let mut app = house.submission().await;
    app.mail(
        "a@x.org",
        &["no@y.org"],
        "From: a@x.org\r\nList-Id: <l.x.org>\r\n\r\nx",
    )
    .await;
    let mut told: Vec<String> = sink.wait(2).await.iter().map(|mail| mail.to[0].clone()).collect();
    told.sort();
    assert_eq!(told, ["a@x.org", "s@bank.org"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_null_sender_never_gets_a_notice() {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "550 5.1.1 no".into())).await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.mail("", &["bad@y.org"], "Subject: hi\r\n\r\nbody").await;
    house
        .until("the settlement", |h| h.figure("dropped_recipients_total") == 1)
        .await;
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("accepted_mails_total"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_expires_with_a_notice_that_says_why() {
    let sink = Sink::scripted(|line| line.contains("TO:<b@y.org>").then(|| "450 4.2.1 full".into())).await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    // Five hours later the sender hears of the delay, six days later of the end.
    house.clock.advance(Duration::from_secs(5 * 3600));
    house.handle.retry_now();
    let delayed = sink.wait(1).await;
    assert!(
        delayed[0].text.contains("Action: delayed\r\nStatus: 4.2.1\r\n"),
        "{}",
        delayed[0].text
    );
    house.nothing_is_lost(1).await;
    house.clock.advance(Duration::from_secs(6 * 86_400));
    house.handle.retry_now();
    let all = sink.wait(2).await;
    assert!(
        all[1].text.contains("Action: failed\r\nStatus: 5.4.7\r\n"),
        "{}",
        all[1].text
    );
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn success_is_reported_where_it_was_asked_for() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org> ENVID=QQ1", "250").await;
    client
        .expect("RCPT TO:<b@y.org> NOTIFY=SUCCESS ORCPT=rfc822;other@y.org", "250")
        .await;
    client.expect("DATA", "354").await;
    client.send("Subject: hi\r\n\r\nx\r\n.\r\n").await;
    client.reply().await;
    let received = sink.wait(2).await;
    let notice = received.iter().find(|r| r.from.is_empty()).unwrap();
    assert!(notice.text.contains("Original-Envelope-Id: QQ1\r\n"));
    assert!(notice.text.contains("Original-Recipient: rfc822; other@y.org\r\nFinal-Recipient: rfc822; b@y.org\r\nAction: relayed\r\nStatus: 2.0.0\r\n"));
}
