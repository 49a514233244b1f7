//! What names and servers of the world outside do to a delivery: aliases, families of addresses, lookups that fail, replies
//! that are none.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tasuki_core::tls::TlsConfig;
use tasuki_smtp::{MailConfig, MxAnswer};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use crate::{
    knot::Knot,
    sink::Sink,
    support::{House, Names},
    tls_policy::send,
    world::{Servers, plain_plan, same_port},
};

fn by_mx(config: &mut MailConfig, knot: &Knot, port: u16) {
    config.dns.server = Some(knot.addr);
    config.dns.trust_anchor = Some(knot.anchor.clone());
    config.delivery.mx_port = port;
    config.delivery.danger_private_addresses = true;
    config.delivery.mta_sts = false;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_server_that_is_an_alias_is_followed() {
    let servers = Servers::start(vec![plain_plan(None)]).await;
    let zone = "a.y.org. 300 MX 10 alias.y.org.\nalias.y.org. 300 CNAME next.y.org.\nnext.y.org. 300 CNAME mx.y.org.\n\
                mx.y.org. 300 A 127.0.0.2\n";
    let knot = Knot::start(zone).await;
    let house = House::resolving(TlsConfig::default(), |c| by_mx(c, &knot, servers.port)).await;
    send(&house, "b@a.y.org").await;
    house
        .until("the delivery", |l| l.figure("delivered_recipients_total") == 1)
        .await;
    assert_eq!(servers.sinks[0].wait(1).await[0].to, ["b@a.y.org"]);
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_that_fails_among_the_mail_servers_is_no_missing_server() {
    let servers = Servers::start(vec![plain_plan(None)]).await;
    let zone = "half.y.org. 300 MX 10 mx.broken.org.\nhalf.y.org. 300 MX 20 mx.y.org.\nmx.y.org. 300 A 127.0.0.2\n\
                gone.y.org. 300 MX 10 nowhere.y.org.\ngone.y.org. 300 MX 20 mx.broken.org.\n\
                none.y.org. 300 MX 10 nowhere.y.org.\n";
    let knot = Knot::start(zone).await;
    let house = House::resolving(TlsConfig::default(), |c| by_mx(c, &knot, servers.port)).await;
    // The other server is known, and takes it.
    send(&house, "b@half.y.org").await;
    servers.sinks[0].wait(1).await;
    // It may have an address, so the mail waits.
    send(&house, "b@gone.y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    assert!(house.look().await.errors()[0].contains("mx.broken.org"));
    assert_eq!(house.figure("bounced_recipients_total"), 0);
    // It has none, and that is certain.
    send(&house, "b@none.y.org").await;
    house
        .until("the bounce", |l| l.figure("bounced_recipients_total") == 1)
        .await;
}

/// One server with an address of each family.
async fn two_families() -> (u16, Sink, Sink) {
    let addrs = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    let (port, mut listeners) = same_port(&addrs);
    let sink = |listener| Sink::on(listener, &["PIPELINING"], None, Arc::new(|_: &str| None));
    let v6 = sink(listeners.pop().unwrap());
    (port, sink(listeners.pop().unwrap()), v6)
}

fn names_of(addresses: &[&str]) -> Names {
    let at = MxAnswer::Hosts(vec![(10, "mx.y.org".to_owned())]);
    let addresses = addresses.iter().map(|ip| ("mx.y.org", ip.parse().unwrap()));
    Names(vec![("y.org", at)], addresses.collect(), Arc::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_family_of_addresses_is_tried_in_the_order_that_is_configured() {
    for ipv4_first in [true, false] {
        let (port, v4, v6) = two_families().await;
        let house = House::start(names_of(&["::1", "127.0.0.9", "127.0.0.1"]), |c| {
            c.delivery.mx_port = port;
            c.delivery.danger_private_addresses = true;
            c.delivery.ipv4_first = ipv4_first;
        })
        .await;
        send(&house, "b@y.org").await;
        // Nobody is at 127.0.0.9, the first IPv4 address: then it is the other family's turn.
        v6.wait(1).await;
        assert_eq!(v4.connections(), 0);
        drop(house);
        let house = House::start(names_of(&["::1", "127.0.0.1"]), |c| {
            c.delivery.mx_port = port;
            c.delivery.danger_private_addresses = true;
            c.delivery.ipv4_first = ipv4_first;
        })
        .await;
        send(&house, "c@y.org").await;
        let (first, other) = if ipv4_first { (&v4, &v6) } else { (&v6, &v4) };
        let before = usize::from(!ipv4_first);
        first.wait(1 + before).await;
        assert_eq!(other.received().len(), usize::from(ipv4_first));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_asks_no_more_than_five_servers_at_two_addresses_each() {
    let busy: crate::sink::Script = Arc::new(|line| (line == "banner").then(|| "421 4.3.2 busy".into()));
    let plan = || -> crate::world::Plan { (&[], None, Arc::clone(&busy)) };
    let servers = Servers::start(vec![plan(), plan(), plan()]).await;
    let hosts = ["a", "b", "c", "d", "e", "f", "g"];
    let full = ["a.mx", "b.mx", "c.mx", "d.mx", "e.mx", "f.mx", "g.mx"];
    let answer = (10..)
        .zip(full)
        .map(|(preference, host)| (preference, host.to_owned()));
    let addresses = full.iter().flat_map(|host| {
        ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|ip| (*host, ip.parse::<IpAddr>().unwrap()))
    });
    let names = Names(
        vec![("y.org", MxAnswer::Hosts(answer.take(hosts.len()).collect()))],
        addresses.collect(),
        Arc::default(),
    );
    let house = House::start(names, |c| {
        c.delivery.mx_port = servers.port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    let connections: Vec<usize> = servers.sinks.iter().map(Sink::connections).collect();
    assert_eq!(connections, [5, 5, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_whose_250_was_lost_is_sent_again() {
    let sink = Sink::start().await;
    let losses = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&losses);
    // It took the mail, and the connection broke before it could say so.
    sink.script(move |line| {
        (line == "end" && count.fetch_add(1, Ordering::SeqCst) == 0).then(|| "close".into())
    });
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    let text = "Subject: hi\r\nMessage-ID: <1@x.org>\r\n\r\nx";
    client.mail("a@x.org", &["b@y.org"], text).await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    assert_eq!(house.figure("delivered_recipients_total"), 0);
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    let received = sink.wait(1).await;
    assert!(received[0].text.contains("Message-ID: <1@x.org>\r\n"));
    house.nothing_is_lost(0).await;
    assert_eq!(losses.load(Ordering::SeqCst), 2, "sent twice");
    // Once it was heard, never again.
    house.clock.advance(Duration::from_secs(600));
    house.handle.retry_now();
    client.mail("a@x.org", &["c@y.org"], text).await;
    let received = sink.wait(2).await;
    assert_eq!(received[1].to, ["c@y.org"]);
    assert_eq!(losses.load(Ordering::SeqCst), 3);
}

/// A server that says these octets as often as they are taken, and hears nothing; and how many were taken.
async fn babbler(octets: &'static [u8]) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, sent) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                while stream.write_all(octets).await.is_ok() {
                    count.fetch_add(octets.len(), Ordering::SeqCst);
                }
            });
        }
    });
    (addr, sent)
}

/// A server that has one reply to each line.
async fn parrot(replies: &'static [&'static [u8]]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            tokio::spawn(async move {
                let mut line = String::new();
                for reply in replies {
                    if stream.write_all(reply).await.is_err()
                        || stream.read_line(&mut line).await.unwrap_or(0) == 0
                    {
                        return;
                    }
                }
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_never_end_are_cut_off_and_the_mail_waits() {
    // A reply of ever new lines, and one line without end.
    for octets in [b"220-still here\r\n".as_slice(), &[b'2'; 1024]] {
        let (addr, sent) = babbler(octets).await;
        let hop = crate::support::plain_smarthost(addr);
        let house = House::start(Names::default(), |c| {
            c.smarthosts = vec![hop];
            c.default_route = "hop".into();
        })
        .await;
        send(&house, "b@y.org").await;
        house.until("the deferral", |l| l.errors().len() == 1).await;
        house
            .until("the end", |l| l.figure("connections_out_open") == 0)
            .await;
        let total = sent.load(Ordering::SeqCst);
        // What the kernel's buffers hold is out of our hands.
        assert!(total < 16 << 20, "{total} octets were taken");
        assert_eq!(house.figure("bounced_recipients_total"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_octets_that_are_no_text_is_told_in_ascii() {
    const REPLIES: &[&[u8]] = &[
        b"220 x\r\n",
        b"250 x\r\n",
        b"250 ok\r\n",
        b"550 5.1.1 Benutzer \xfcnbekannt \x1b[31m \xe3\x81\x82\r\n",
    ];
    let addr = parrot(REPLIES).await;
    let sink = Sink::start().await;
    let mut hop = crate::support::plain_smarthost(addr);
    hop.name = "odd".into();
    let house = House::with_sink(&sink, |c| {
        c.smarthosts.push(hop);
        c.routes = vec![tasuki_smtp::RouteConfig {
            domain: Some("odd.example".parse().unwrap()),
            via: "odd".into(),
            ..tasuki_smtp::RouteConfig::default()
        }];
    })
    .await;
    send(&house, "b@odd.example").await;
    house
        .until("the bounce", |l| l.figure("bounced_recipients_total") == 1)
        .await;
    let notice = sink.wait(1).await.remove(0);
    assert_eq!(notice.to, ["a@x.org"]);
    assert!(notice.text.is_ascii(), "{}", notice.text);
    let line = notice
        .text
        .lines()
        .find(|line| line.starts_with("Diagnostic-Code: "))
        .unwrap();
    assert!(
        line.starts_with("Diagnostic-Code: smtp; 550 5.1.1 Benutzer ?"),
        "{line}"
    );
    assert!(!line.contains('\x1b'));
    house.nothing_is_lost(0).await;
}
