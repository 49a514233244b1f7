//! Which of our addresses mail goes out from.

use std::net::IpAddr;

use tasuki_smtp::{MxAnswer, RouteConfig, SourceAddressConfig, SourceConfig};

use crate::{
    sink::Sink,
    support::{House, Names},
};

fn pool(name: &str, ip: &str, helo: Option<&str>) -> SourceConfig {
    SourceConfig {
        name: name.into(),
        addresses: vec![SourceAddressConfig {
            ip: ip.parse().unwrap(),
            helo: helo.map(|name| name.parse().unwrap()),
            weight: None,
        }],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_out_from_the_pool_of_its_route_with_that_addresss_name() {
    let sink = Sink::start().await;
    let names = Names(
        vec![("y.org", MxAnswer::Implicit)],
        vec![("y.org", [127, 0, 0, 1].into())],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
        c.delivery.connections_per_site = 1;
        c.sources = vec![
            pool("usual", "127.0.0.2", None),
            pool("news", "127.0.0.3", Some("news.relay.example")),
            pool("six", "::1", None),
        ];
        c.default_source = "usual".into();
        let route = |sender: &str, source: &str| RouteConfig {
            sender: Some(sender.into()),
            via: "direct".into(),
            source: Some(source.into()),
            ..RouteConfig::default()
        };
        c.routes = vec![route("news.example", "news"), route("six.example", "six")];
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    // One site and one connection at a time; it is not used for mail of another pool.
    for (n, from) in ["a@x.org", "a@news.example", "a@news.example", "a@x.org"]
        .iter()
        .enumerate()
    {
        client.mail(from, &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        sink.wait(n + 1).await;
    }
    let from = |last: u8| IpAddr::from([127, 0, 0, last]);
    assert_eq!(sink.peers(), [from(2), from(3), from(2)]);
    let hellos: Vec<String> = sink
        .commands()
        .into_iter()
        .filter(|line| line.starts_with("EHLO"))
        .collect();
    assert_eq!(
        hellos,
        [
            "EHLO relay.example",
            "EHLO news.relay.example",
            "EHLO relay.example"
        ]
    );
    house.nothing_is_lost(0).await;
    // A pool without an address of the server's family never goes out from another one.
    client
        .mail("a@six.example", &["b@y.org"], "Subject: hi\r\n\r\nx")
        .await;
    house
        .until("the deferral", |h| {
            h.errors()
                .iter()
                .any(|e| e.contains("the pool \"six\" has no IPv4 address"))
        })
        .await;
    assert_eq!(sink.peers().len(), 3);
    house.nothing_is_lost(1).await;
}
