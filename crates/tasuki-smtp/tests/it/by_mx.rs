//! Mail that goes by its domains' MX records.

use std::time::Duration;

use tasuki_smtp::MxAnswer;

use crate::{
    sink::Sink,
    support::{House, Names},
};

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
