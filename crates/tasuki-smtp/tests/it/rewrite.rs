//! What is changed of mail on its way: aliases, senders, header fields.

use tasuki_smtp::{AliasConfig, MailConfig, NetworkConfig, SenderConfig};

use crate::{sink::Sink, support::House};

fn alias(config: &mut MailConfig, address: &str, to: &[&str]) {
    config.rewrite.aliases.push(AliasConfig {
        address: address.to_owned().try_into().unwrap(),
        to: to.iter().map(|t| t.parse().unwrap()).collect(),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_reaches_those_behind_it_and_opens_nothing_else() {
    let sink = Sink::with(&["PIPELINING", "DSN"], None, std::sync::Arc::new(|_| None)).await;
    let house = House::with_sink(&sink, |c| {
        alias(c, "info@ours.example", &["a@y.org", "b@y.org"]);
        alias(c, "@all.example", &["c@y.org"]);
    })
    .await;
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for (to, expect) in [
        ("other@ours.example", "550 5.7.1"),
        ("a@y.org", "550 5.7.1"),
        ("info%y.org@all.example", "550 5.7.1"),
    ] {
        client.expect("MAIL FROM:<s@bank.org>", "250").await;
        client.expect(&format!("RCPT TO:<{to}>"), expect).await;
        client.expect("RSET", "250").await;
    }
    // Who is reached in two ways gets one copy.
    let reply = client
        .mail(
            "s@bank.org",
            &["INFO@ours.example", "anybody@all.example", "info@ours.example"],
            "Subject: hi\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    // Each alias has a transaction of its own, so that nobody reads by which other name somebody else was reached.
    let mut mails = sink.wait(2).await;
    assert!(mails.iter().all(|mail| mail.from == "s@bank.org"));
    mails.sort_by(|a, b| a.to.cmp(&b.to));
    let to: Vec<Vec<&str>> = mails
        .iter()
        .map(|mail| mail.to.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(to, [vec!["a@y.org", "b@y.org"], vec!["c@y.org"]]);
    for (mail, name) in mails.iter().zip(["INFO@ours.example", "anybody@all.example"]) {
        let text = &mail.text;
        assert!(text.starts_with(&format!("Delivered-To: {name}\r\n")), "{text}");
        assert_eq!(text.matches("Delivered-To:").count(), 1, "{text}");
    }
    // RFC 3461 5.2.1: notices name what the sender wrote.
    let named = |to: &str, orcpt: &str| {
        sink.commands().iter().any(|c| {
            c.starts_with(&format!("RCPT TO:<{to}>")) && c.contains(&format!("ORCPT=rfc822;{orcpt}"))
        })
    };
    assert!(named("a@y.org", "INFO@ours.example") && named("c@y.org", "anybody@all.example"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_of_a_network_become_what_it_may_send_as() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.mynetworks = vec![NetworkConfig {
            net: "127.0.0.0/8".parse().unwrap(),
            service: "office".into(),
        }];
        c.rewrite.hide_client = true;
        for (from, to) in [
            ("@host.internal", "ops@x.org"),
            ("bad@host.internal", "ops@bank.org"),
        ] {
            c.rewrite.senders.push(SenderConfig {
                from: from.to_owned().try_into().unwrap(),
                to: to.parse().unwrap(),
            });
        }
    })
    .await;
    let mut client = house.relay().await;
    client.expect("EHLO inner.host", "250").await;
    client.expect("MAIL FROM:<bad@host.internal>", "550 5.7.1").await;
    client.expect("MAIL FROM:<a@bank.org>", "550 5.7.1").await;
    let reply = client
        .mail(
            "root@host.internal",
            &["b@y.org"],
            "From: Root <root@host.internal>\r\nBcc: c@y.org\r\n\r\nx",
        )
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    let mail = sink.wait(1).await[0].clone();
    assert_eq!(mail.from, "ops@x.org");
    assert!(
        mail.text.starts_with("Received: by relay.example"),
        "{}",
        mail.text
    );
    assert!(
        mail.text.contains("\r\nFrom: Root <ops@x.org>\r\n"),
        "{}",
        mail.text
    );
    assert!(
        !mail.text.contains("inner.host") && !mail.text.contains("Bcc"),
        "{}",
        mail.text
    );
    // A network's From is judged like a login's.
    let reply = client
        .mail("a@x.org", &["b@y.org"], "From: boss@bank.org\r\n\r\nx")
        .await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
}
