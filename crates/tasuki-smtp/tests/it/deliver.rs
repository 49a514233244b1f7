//! From a client to the next hop, and what happens when that does not go well.

use std::time::Duration;

use tasuki_smtp::{MxAnswer, RouteConfig};

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_goes_through_to_the_next_hop() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO client.example", "250").await;
    let reply = client
        .mail(
            "a@x.org",
            &["b@y.org", "c@z.org"],
            "Subject: hi\r\n\r\n..dot\r\nend",
        )
        .await;
    assert!(reply.starts_with("250 2.0.0 queued as "), "{reply}");
    let received = sink.wait(1).await;
    assert_eq!(received[0].from, "a@x.org");
    assert_eq!(received[0].to, ["b@y.org", "c@z.org"]);
    let (received_field, rest) = received[0].text.split_once("Subject: hi").unwrap();
    assert!(received_field.starts_with(
        "Received: from client.example ([127.0.0.1])\r\n\tby relay.example (Tasuki) with ESMTP id "
    ));
    assert!(
        !received_field.contains("b@y.org"),
        "recipients of a mail to several are not told"
    );
    assert_eq!(rest, "\r\n\r\n.dot\r\nend\r\n");
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reused_and_bounded() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(2)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 0..40 {
        client
            .mail("a@x.org", &["b@y.org"], &format!("Subject: {n}\r\n\r\nx"))
            .await;
    }
    let received = sink.wait(40).await;
    assert!(sink.connections() <= 2, "{}", sink.connections());
    assert!(received.iter().all(|r| r.connection <= 2));
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unused_connection_gives_way_to_another_destination() {
    let (first, second) = (Sink::start().await, Sink::start().await);
    let mut other = plain_smarthost(second.addr);
    other.name = "other".into();
    let house = House::with_sink(&first, move |c| {
        c.smarthosts.push(other);
        c.routes = vec![RouteConfig {
            domain: Some("z.org".parse().unwrap()),
            principal: None,
            sender: None,
            via: "other".into(),
            source: None,
        }];
        c.delivery.max_connections = 1;
        c.delivery.idle = Duration::from_secs(3600);
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 1..=3 {
        client.mail("a@x.org", &["b@y.org"], "Subject: 1\r\n\r\nx").await;
        first.wait(n).await;
        client.mail("a@x.org", &["b@z.org"], "Subject: 2\r\n\r\nx").await;
        second.wait(n).await;
    }
    house.nothing_is_lost(0).await;
}

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
async fn a_temporary_refusal_is_tried_again_when_it_is_due() {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "450 4.2.1 greylisted".into())).await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house
        .until("the deferral", |h| h.errors() == ["450 4.2.1 greylisted"])
        .await;
    house.nothing_is_lost(1).await;
    sink.script(|_| None);
    house.clock.advance(Duration::from_secs(120));
    house.handle.retry_now();
    let received = sink.wait(1).await;
    assert_eq!(received[0].to, ["b@y.org"]);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_route_never_bounce_and_rest_the_lane() {
    for script in [
        "banner 554 5.7.1 go away",
        "EHLO relay.example 421 4.3.2 busy",
        "MAIL FROM:<a@x.org> 530 5.7.0 login first",
    ] {
        let (key, reply) = script.split_at(if script.starts_with("banner") {
            6
        } else if script.starts_with("EHLO") {
            18
        } else {
            19
        });
        let (key, reply) = (key.to_owned(), reply.trim().to_owned());
        let sink = Sink::scripted(move |line| line.starts_with(&key).then(|| reply.clone())).await;
        let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
        house.allow_loopback();
        let mut client = house.relay().await;
        client.expect("EHLO c", "250").await;
        for _ in 0..5 {
            client
                .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
                .await;
        }
        house.until("the deferral", |h| h.errors().len() == 5).await;
        assert_eq!(house.figure("bounced_recipients_total"), 0, "{script}");
        house.nothing_is_lost(5).await;
        sink.script(|_| None);
        house.clock.advance(Duration::from_secs(200));
        house.handle.retry_now();
        sink.wait(5).await;
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_to_domains_goes_by_their_mx() {
    let sink = Sink::start().await;
    let hosts = |list: &[(u16, &str)]| MxAnswer::Hosts(list.iter().map(|(p, h)| (*p, (*h).into())).collect());
    let names = Names(
        vec![
            ("y.org", hosts(&[(10, "dead.y.org"), (20, "mx.y.org")])),
            ("loop.example", hosts(&[(10, "relay.example")])),
            ("bare.example", MxAnswer::Implicit),
        ],
        vec![
            ("dead.y.org", "127.0.0.2".parse().unwrap()),
            ("mx.y.org", "127.0.0.1".parse().unwrap()),
            ("bare.example", "127.0.0.1".parse().unwrap()),
            ("x.org", "127.0.0.1".parse().unwrap()),
        ],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let to = [
        "b@y.org",
        "b@loop.example",
        "b@bare.example",
        "b@servfail.example",
        "b@nowhere.example",
    ];
    client
        .mail("a@bare.example", &to, "Subject: hi\r\n\r\nbody")
        .await;
    // y.org and bare.example, and a notice for each of loop and nowhere.
    let received = sink.wait(4).await;
    let status = |to: &str| {
        let notice = received
            .iter()
            .find(|r| r.text.contains(&format!("Final-Recipient: rfc822; {to}")))
            .unwrap();
        notice
            .text
            .split("Status: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(status("b@loop.example"), "5.4.6");
    assert_eq!(status("b@nowhere.example"), "5.1.2");
    house
        .until("servfail waits", |h| {
            h.errors().iter().any(|e| e.contains("SERVFAIL"))
        })
        .await;
    house.nothing_is_lost(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_of_strangers_are_never_contacted() {
    let sink = Sink::start().await;
    let names = Names(
        vec![("evil.example", MxAnswer::Implicit)],
        vec![("evil.example", "127.0.0.1".parse().unwrap())],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| c.delivery.mx_port = port).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail(
            "",
            &["b@evil.example", "b@[127.0.0.1]"],
            "Subject: hi\r\n\r\nbody",
        )
        .await;
    house
        .until("both are refused", |h| h.figure("dropped_recipients_total") == 2)
        .await;
    assert_eq!(sink.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_recipients_for_the_next_hop_are_split() {
    let count = std::sync::Mutex::new(0);
    let sink = Sink::scripted(move |line| {
        let mut count = count.lock().unwrap();
        if line.starts_with("MAIL") {
            *count = 0;
        }
        *count += u32::from(line.starts_with("RCPT"));
        (line.starts_with("RCPT") && *count > 2).then(|| "452 4.5.3 too many".into())
    })
    .await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail(
            "a@x.org",
            &["b1@y.org", "b2@y.org", "b3@y.org", "b4@y.org", "b5@y.org"],
            "Subject: hi\r\n\r\nbody",
        )
        .await;
    let received = sink.wait(3).await;
    assert_eq!(received.iter().map(|r| r.to.len()).sum::<usize>(), 5);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_under_way_and_the_next_life_does_the_rest() {
    let sink = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 later".into())).await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nbody")
        .await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<c@y.org>", "250").await;
    client.expect("DATA", "354").await;
    let addr = sink.addr;
    let stop = tokio::spawn(house.stop());
    client.send("Subject: last\r\n\r\nx\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("250"));
    assert!(client.reply().await.starts_with("421 4.3.2"));
    let (drained, dir) = stop.await.unwrap();
    assert_eq!(drained.late, 0);
    sink.script(|_| None);
    let house = House::on(dir, Names::default(), |c| {
        c.smarthosts = vec![crate::support::plain_smarthost(addr)];
        c.default_route = "hop".into();
    })
    .await;
    house.clock.advance(Duration::from_secs(200));
    house.handle.retry_now();
    let received = sink.wait(2).await;
    assert_eq!(received.len(), 2);
    house.nothing_is_lost(0).await;
    assert_eq!(house.figure("inherited_recipients_total"), 2);
}

/// Domains at a sink, by the MX host `mx.shared.example`.
fn shared_names(domains: &[&'static str]) -> Names {
    let answer = MxAnswer::Hosts(vec![(10, "mx.shared.example".into())]);
    Names(
        domains.iter().map(|d| (*d, answer.clone())).collect(),
        vec![("mx.shared.example", [127, 0, 0, 1].into())],
        Default::default(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_with_the_same_mail_servers_share_connections_and_their_limit() {
    let sink = Sink::start().await;
    let port = sink.addr.port();
    let house = House::start(
        shared_names(&["one.example", "two.example", "three.example"]),
        |c| {
            c.delivery.mx_port = port;
            c.delivery.danger_private_addresses = true;
            c.delivery.connections_per_site = 1;
        },
    )
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 0..12 {
        let to = ["b@one.example", "b@two.example", "b@three.example"][n % 3];
        client.mail("a@x.org", &[to], "Subject: hi\r\n\r\nx").await;
    }
    sink.wait(12).await;
    assert_eq!(sink.connections(), 1);
    house.nothing_is_lost(0).await;
    let lanes: Vec<String> = house.handle.status().lanes.into_iter().map(|l| l.lane).collect();
    assert!(lanes.contains(&"site:mx.shared.example".to_owned()), "{lanes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_mail_of_domains_that_share_servers_comes_back_through_their_site() {
    let sink = Sink::scripted(|line| line.starts_with("RCPT").then(|| "450 4.2.1 later".into())).await;
    let port = sink.addr.port();
    let house = House::start(shared_names(&["one.example", "two.example"]), |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for n in 0..150 {
        let to = ["b@one.example", "b@two.example"][n % 2];
        client
            .mail("a@x.org", &[to], &format!("Subject: {n}\r\n\r\nx"))
            .await;
    }
    house.until("the deferral", |h| h.errors().len() == 150).await;
    sink.script(|_| None);
    house.clock.advance(Duration::from_secs(120));
    house.handle.retry_now();
    let received = sink.wait(150).await;
    house.nothing_is_lost(0).await;
    assert_eq!(received.len(), 150, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_one_mail_does_not_wait_behind_a_sender_of_many() {
    let sink = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 not yet".into())).await;
    let house = House::with_sink(&sink, |c| c.smarthosts[0].connections = Some(1)).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for _ in 0..60 {
        client
            .mail("many@many.example", &["b@y.org"], "Subject: m\r\n\r\nx")
            .await;
    }
    client
        .mail("one@one.example", &["b@y.org"], "Subject: 1\r\n\r\nx")
        .await;
    house.until("the deferral", |h| h.errors().len() == 61).await;
    sink.script(|_| None);
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    let received = sink.wait(61).await;
    let at = received.iter().position(|r| r.from == "one@one.example").unwrap();
    assert!(at < 40, "it was the {at}th");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_one_server_cannot_take_goes_to_another_of_the_same_domain() {
    let old = Sink::with(&["PIPELINING"], None, std::sync::Arc::new(|_| None)).await;
    let answer = MxAnswer::Hosts(vec![(10, "old.y.example".into()), (20, "old2.y.example".into())]);
    let names = Names(
        vec![("y.example", answer)],
        vec![
            ("old.y.example", [127, 0, 0, 1].into()),
            ("old2.y.example", [127, 0, 0, 1].into()),
        ],
        Default::default(),
    );
    let port = old.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<> BODY=8BITMIME", "250").await;
    client.expect("RCPT TO:<b@y.example>", "250").await;
    client.expect("DATA", "354").await;
    client
        .expect("Subject: caf\u{e9}\r\n\r\n\u{e9}\r\n.", "250")
        .await;
    // Both are asked, neither can take it, and it is never sent in another form.
    house
        .until("the end", |h| h.figure("dropped_recipients_total") == 1)
        .await;
    assert_eq!(old.connections(), 2);
    assert!(old.received().is_empty());
    house.nothing_is_lost(0).await;
}

/// A port on which nothing answers: its queue of connections is full. Lives as long as what it returns.
async fn silent_server(ip: [u8; 4]) -> (std::net::SocketAddr, Vec<Box<dyn Send>>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let addr = socket.local_addr().unwrap();
    let listener = socket.listen(0).unwrap();
    let mut held: Vec<Box<dyn Send>> = vec![Box::new(listener)];
    loop {
        let connect = tokio::net::TcpStream::connect(addr);
        match tokio::time::timeout(Duration::from_millis(300), connect).await {
            Ok(stream) => held.push(Box::new(stream)),
            Err(_) => return (addr, held),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_blocks_port_25_is_named_and_waiting_for_it_is_no_attempt() {
    let (addr, _silent) = silent_server([127, 0, 0, 1]).await;
    let probed = Sink::start().await;
    let domains = ["one.example", "two.example", "three.example", "four.example"];
    let names = Names(
        domains.iter().map(|d| (*d, MxAnswer::Implicit)).collect(),
        domains.iter().map(|d| (*d, addr.ip())).collect(),
        Default::default(),
    );
    let house = House::start(names, |c| {
        c.delivery.mx_port = addr.port();
        c.delivery.probe_ports = vec![probed.addr.port()];
        c.delivery.connect_timeout = Duration::from_millis(300);
        c.delivery.danger_private_addresses = true;
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for to in &domains[..3] {
        client
            .mail("a@x.org", &[&format!("b@{to}")], "Subject: hi\r\n\r\nx")
            .await;
    }
    house.until("the deferral", |h| h.errors().len() == 3).await;
    let conditions = house.health.conditions();
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert!(conditions[0].1.sentence.contains("OP25B"), "{conditions:?}");
    assert!(conditions[0].1.sentence.contains("mail.default_route"));
    // From now on it is known, and no fault of the mail.
    client
        .mail("a@x.org", &["b@four.example"], "Subject: hi\r\n\r\nx")
        .await;
    house.until("the fourth", |h| h.errors().len() == 4).await;
    let look = house.look().await;
    let fourth = look.rows.iter().find(|r| r.lane.0 == "mx:four.example").unwrap();
    assert_eq!(fourth.attempts, 0);
    house.nothing_is_lost(4).await;
}
