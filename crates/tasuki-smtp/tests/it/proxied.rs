//! Load balancers in front: PROXY headers, only from those that are listed.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use tasuki_smtp::NetworkConfig;

use crate::{sink::Sink, support::House};

/// All that the gateway says to these octets until it waits or hangs up.
async fn first_words(house: &House, octets: &[u8]) -> String {
    let mut stream = TcpStream::connect(house.addrs.relay[0]).await.unwrap();
    stream.write_all(octets).await.unwrap();
    let mut said = vec![0; 4096];
    let read = tokio::time::timeout(std::time::Duration::from_secs(20), stream.read(&mut said));
    let length = read.await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&said[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_load_balancer_says_who_the_client_is() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.proxy_protocol_from = vec!["127.0.0.1/32".parse().unwrap()];
        c.relay.greet_pause = std::time::Duration::ZERO;
        c.mynetworks = vec![NetworkConfig {
            net: "198.51.100.9/32".parse().unwrap(),
            service: "office".into(),
        }];
    })
    .await;
    // Without its header, or with a broken one, the connection ends without a word.
    assert_eq!(first_words(&house, b"EHLO c\r\n").await, "");
    assert_eq!(first_words(&house, b"PROXY NONSENSE\r\n").await, "");
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([198, 51, 100, 9, 192, 0, 2, 1, 0, 77, 0, 25]);
    for header in [b"PROXY TCP4 198.51.100.9 192.0.2.1 77 25\r\n".to_vec(), v2] {
        let mut client = house.proxied(&header).await;
        client.expect("EHLO c", "250").await;
        let reply = client.mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nx").await;
        assert!(reply.starts_with("250"), "{reply}");
    }
    let mails = sink.wait(2).await;
    assert!(
        mails.iter().all(|m| m.text.contains("from c ([198.51.100.9])")),
        "{mails:?}"
    );
    // Another client behind the same balancer has no rights of the first.
    let mut client = house
        .proxied(b"PROXY TCP4 198.51.100.10 192.0.2.1 77 25\r\n")
        .await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "550 5.7.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_say_who_it_is() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |c| {
        c.proxy_protocol_from = vec!["192.0.2.1/32".parse().unwrap()];
        c.mynetworks = vec![NetworkConfig {
            net: "198.51.100.9/32".parse().unwrap(),
            service: "office".into(),
        }];
    })
    .await;
    let mut client = house.relay().await;
    client
        .expect("PROXY TCP4 198.51.100.9 192.0.2.1 77 25", "500 5.5.1")
        .await;
    client.expect("EHLO c", "250").await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<b@y.org>", "550 5.7.1").await;
}
