//! Visitors of UDP ports: each a flow of its own, nothing for strangers, and TCP and UDP of one number.

use std::net::SocketAddr;
use std::time::Duration;

use tasuki_proto::tunnel::{EndpointState, RefusedEndpoint};
use tasuki_tunnel::agent::{LocalDoor, LocalEndpoint, Notice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::world::{ANY_PORT, World, echo, soon, tcp_to};

pub(crate) const ANY_UDP: &str = "tunnel:udp:20000-29999";

pub(crate) fn udp_to(target: SocketAddr) -> LocalEndpoint {
    LocalEndpoint::new("udp", LocalDoor::Udp(0), target.to_string())
}

async fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

pub(crate) async fn visitor_of(port: SocketAddr) -> UdpSocket {
    let visitor = socket().await;
    visitor.connect(port).await.unwrap();
    visitor
}

/// Sends until something comes back: a datagram may be lost anywhere.
pub(crate) async fn ask(visitor: &UdpSocket, question: &[u8]) -> Vec<u8> {
    soon("an answer", async {
        let mut buffer = [0; 2048];
        loop {
            visitor.send(question).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(500), visitor.recv(&mut buffer)).await;
            if let Ok(Ok(length)) = answer {
                return buffer[..length].to_vec();
            }
        }
    })
    .await
}

/// A local server that answers with the name by which it knows the asker, and the question.
pub(crate) async fn named_echo() -> SocketAddr {
    let server = socket().await;
    let addr = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let mut answer = format!("{from} ").into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = server.send_to(&answer, from).await;
        }
    });
    addr
}

fn name_and_question(answer: &[u8]) -> (String, String) {
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let (name, question) = text.split_once(' ').unwrap();
    (name.to_owned(), question.to_owned())
}

#[tokio::test]
async fn every_visitor_is_a_flow_of_its_own_and_keeps_it() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_UDP], vec![udp_to(named_echo().await)]).await;
    let port = agent.open_port().await;
    let (one, two) = (visitor_of(port).await, visitor_of(port).await);
    let (first, question) = name_and_question(&ask(&one, b"one").await);
    assert_eq!(question, "one");
    let (second, question) = name_and_question(&ask(&two, b"two").await);
    assert_eq!(question, "two");
    assert_ne!(first, second, "the server at home cannot tell them apart");
    // Later datagrams take the short way.
    for _ in 0..5 {
        assert_eq!(
            name_and_question(&ask(&one, b"again").await),
            (first.clone(), "again".into())
        );
    }
    world
        .counted(r#"tasuki_tunnel_connections_opened_total{door="udp"} 2"#)
        .await;
    agent.stop().await;
    world
        .counted(r#"tasuki_tunnel_connections_closed_total{door="udp",result="clean"} 2"#)
        .await;
    world.counted("tasuki_tunnel_connections_open 0").await;
}

#[tokio::test]
async fn tcp_and_udp_that_ask_for_any_port_get_one_number() {
    let world = World::start().await;
    let endpoints = vec![tcp_to(echo().await), udp_to(named_echo().await)];
    let mut agent = world.agent(&[ANY_PORT, ANY_UDP], endpoints).await;
    let tcp = agent.open_port().await;
    let udp = agent.open_port().await;
    assert_eq!(tcp, udp);
    assert_eq!(crate::world::exchange(tcp, b"tcp").await, b"tcp");
    assert!(ask(&visitor_of(udp).await, b"udp").await.ends_with(b" udp"));
    // Neither half is another agent's to take.
    let code = world.code("other", &[ANY_PORT]).await;
    let mut half = tcp_to(echo().await);
    half.door = LocalDoor::Tcp(udp.port());
    agent.stop().await;
    let mut other =
        crate::world::Running::start(world.config(vec![half]), crate::world::new_key(), Some(code));
    match other.endpoint().await {
        EndpointState::Refused { reason, .. } => assert_eq!(reason, RefusedEndpoint::Taken),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn a_grant_of_tcp_ports_opens_no_udp_port() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![udp_to(named_echo().await)]).await;
    match agent.endpoint().await {
        EndpointState::Refused { reason, text } => {
            assert_eq!(reason, RefusedEndpoint::NotGranted);
            assert!(text.contains("tunnel:udp:"), "{text}");
        }
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn visitors_go_on_after_the_agent_came_back() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_UDP], vec![udp_to(named_echo().await)]).await;
    let port = agent.open_port().await;
    let visitor = visitor_of(port).await;
    ask(&visitor, b"before").await;
    assert!(world.handle.disconnect(world.handle.agents()[0].agent));
    agent
        .notice("the loss", |notice| {
            matches!(notice, Notice::Lost { .. }).then_some(())
        })
        .await;
    assert_eq!(agent.open_port().await, port);
    let (_, question) = name_and_question(&ask(&visitor, b"after").await);
    assert_eq!(question, "after");
}

#[tokio::test]
async fn an_address_that_sent_once_gets_little_and_one_that_goes_on_gets_all() {
    let world = World::start().await;
    // Answers every datagram with fifty of a thousand bytes.
    let server = socket().await;
    let addr = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = server.recv_from(&mut buffer).await {
            for _ in 0..50 {
                let _ = server.send_to(&[7; 1000], from).await;
            }
        }
    });
    let mut agent = world.agent(&[ANY_UDP], vec![udp_to(addr)]).await;
    let visitor = visitor_of(agent.open_port().await).await;
    visitor.send(b"once").await.unwrap();
    // One answer fits; the counter tells that the others were held back.
    soon("what is held back", async {
        while !world
            .metrics
            .encode()
            .contains(r#"datagrams_dropped_total{reason="unproven"}"#)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut buffer = [0; 2048];
    let mut got = 0;
    while let Ok(Ok(length)) =
        tokio::time::timeout(Duration::from_millis(500), visitor.recv(&mut buffer)).await
    {
        got += length;
    }
    assert!(got <= 3 * 4 + 1200, "{got} bytes for 4");
    soon("the rest", async {
        while got < 50_000 {
            visitor.send(b"more").await.unwrap();
            while let Ok(Ok(length)) =
                tokio::time::timeout(Duration::from_millis(100), visitor.recv(&mut buffer)).await
            {
                got += length;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_with_a_connection_to_the_agent_gets_all_for_one_question() {
    let world = World::start().await;
    let server = socket().await;
    let addr = server.local_addr().unwrap();
    let endpoints = vec![tcp_to(echo().await), udp_to(addr)];
    let mut agent = world.agent(&[ANY_PORT, ANY_UDP], endpoints).await;
    let mut connection = TcpStream::connect(agent.open_port().await).await.unwrap();
    connection.write_all(b"x").await.unwrap();
    soon("an echo", connection.read_exact(&mut [0])).await.unwrap();
    let visitor = visitor_of(agent.open_port().await).await;
    visitor.send(b"once").await.unwrap();
    let mut buffer = [0; 2048];
    let (_, from) = soon("the question", server.recv_from(&mut buffer)).await.unwrap();
    for _ in 0..10 {
        server.send_to(&[7; 1000], from).await.unwrap();
        assert_eq!(soon("a part", visitor.recv(&mut buffer)).await.unwrap(), 1000);
    }
}

#[tokio::test]
async fn what_fits_into_no_packet_is_dropped_and_counted() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_UDP], vec![udp_to(named_echo().await)]).await;
    let visitor = visitor_of(agent.open_port().await).await;
    for length in [1900, 9000] {
        visitor.send(&vec![1; length]).await.unwrap();
    }
    // In order on loopback: when this is answered, the others were looked at.
    assert!(ask(&visitor, b"small").await.ends_with(b" small"));
    world
        .counted(r#"tasuki_tunnel_datagrams_dropped_total{reason="too_large"} 1"#)
        .await;
    world
        .counted(r#"tasuki_tunnel_datagrams_dropped_total{reason="queue"} 1"#)
        .await;
}

#[tokio::test]
async fn a_visitor_who_says_nothing_is_forgotten_and_welcome_again() {
    let world = World::with(|config| {
        config.udp.idle_timeout = Duration::from_millis(300);
        config.udp.max_visitors = 1;
    })
    .await;
    let mut agent = world.agent(&[ANY_UDP], vec![udp_to(named_echo().await)]).await;
    let port = agent.open_port().await;
    ask(&visitor_of(port).await, b"first").await;
    // No place for a second one until the first is forgotten.
    let (_, question) = name_and_question(&ask(&visitor_of(port).await, b"second").await);
    assert_eq!(question, "second");
    let text = world.metrics.encode();
    assert!(
        text.contains(r#"connections_closed_total{door="udp",result="clean"}"#),
        "{text}"
    );
}

#[tokio::test]
async fn the_visitors_address_goes_before_the_first_datagram_or_before_each() {
    for each in [false, true] {
        let world = World::start().await;
        let server = socket().await;
        let mut endpoint = udp_to(server.local_addr().unwrap());
        (endpoint.proxy_protocol, endpoint.proxy_each_datagram) = (true, each);
        let mut agent = world.agent(&[ANY_UDP], vec![endpoint]).await;
        let port = agent.open_port().await;
        let visitor = visitor_of(port).await;
        let head = tasuki_proto::proxy_protocol::encode_v2_udp(visitor.local_addr().unwrap(), port);
        let mut buffer = [0; 256];
        for (round, word) in [b"one", b"two"].into_iter().enumerate() {
            visitor.send(word).await.unwrap();
            let (length, _) = soon("the datagram", server.recv_from(&mut buffer)).await.unwrap();
            let expected = match round == 0 || each {
                true => [&head[..], word].concat(),
                false => word.to_vec(),
            };
            assert_eq!(&buffer[..length], expected, "{each} {round}");
        }
    }
}
