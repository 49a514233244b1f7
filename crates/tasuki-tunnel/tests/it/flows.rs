//! Bytes, ends and resets through a TCP port.

use tasuki_tunnel::agent::{LocalDoor, LocalEndpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{ANY_PORT, World, echo, exchange, listener, nowhere, soon, tcp_to};

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|place| (place * 31 + place / 251 + seed) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_visitors_get_their_own_bytes_back_and_a_clean_end() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let visits: Vec<_> = (0..64)
        .map(|seed| {
            tokio::spawn(async move {
                let bytes = pattern(200_000 + seed, seed);
                assert!(
                    exchange(port, &bytes).await == bytes,
                    "visitor {seed} got other bytes"
                );
            })
        })
        .collect();
    for visit in visits {
        visit.await.unwrap();
    }
    let text = world.metrics.encode();
    assert!(
        text.contains(r#"tasuki_tunnel_connections_opened_total{door="tcp"} 64"#),
        "{text}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    let (mut home, _) = soon("the visitor at home", server.accept()).await.unwrap();
    visitor.write_all(b"question").await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon("the question's end", home.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question");
    home.write_all(b"answer after the end of the question")
        .await
        .unwrap();
    drop(home);
    let mut answer = Vec::new();
    soon("the answer's end", visitor.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer after the end of the question");
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_on_the_other_side() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let port = agent.open_port().await;
    for visitor_resets in [true, false] {
        let mut visitor = TcpStream::connect(port).await.unwrap();
        let (mut home, _) = soon("the visitor at home", server.accept()).await.unwrap();
        visitor.write_all(b"x").await.unwrap();
        home.write_all(b"y").await.unwrap();
        let mut byte = [0];
        soon("a byte", home.read_exact(&mut byte)).await.unwrap();
        soon("a byte", visitor.read_exact(&mut byte)).await.unwrap();
        let (resets, mut sees) = if visitor_resets {
            (visitor, home)
        } else {
            (home, visitor)
        };
        resets.set_zero_linger().unwrap();
        drop(resets);
        let error = soon("the reset", sees.read(&mut byte))
            .await
            .expect_err("an end instead of a reset");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "visitor resets: {visitor_resets}"
        );
    }
}

#[tokio::test]
async fn a_reset_is_seen_after_the_other_direction_ended() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    let (mut home, _) = soon("the visitor at home", server.accept()).await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut byte = [0];
    assert_eq!(soon("the end", home.read(&mut byte)).await.unwrap(), 0);
    // The visitor goes for good while the home side says nothing.
    visitor.set_zero_linger().unwrap();
    drop(visitor);
    soon("the reset at home", async {
        while home.write_all(b"still there?").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_without_a_server_behind_it_resets() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(nowhere().await)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    let mut byte = [0];
    assert!(soon("the reset", visitor.read(&mut byte)).await.is_err());
}

#[tokio::test]
async fn a_visitor_that_reads_nothing_does_not_hold_the_others() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let mut stuck = TcpStream::connect(port).await.unwrap();
    // Writes until everything on the way is full.
    let block = vec![0; 256 * 1024];
    while tokio::time::timeout(std::time::Duration::from_millis(300), stuck.write_all(&block))
        .await
        .is_ok()
    {}
    let bytes = pattern(500_000, 3);
    assert!(exchange(port, &bytes).await == bytes);
}

#[tokio::test]
async fn the_drain_tells_agents_waits_for_visitors_and_cuts_them_after_the_grace() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let mut visitor = TcpStream::connect(port).await.unwrap();
    let mut byte = [0];
    visitor.write_all(b"x").await.unwrap();
    soon("an echo", visitor.read_exact(&mut byte)).await.unwrap();
    let stopping = tokio::spawn(world.stop());
    agent
        .notice("the warning", |notice| {
            matches!(notice, tasuki_tunnel::agent::Notice::GoingAway { .. }).then_some(())
        })
        .await;
    // Still served within the grace.
    visitor.write_all(b"y").await.unwrap();
    soon("an echo", visitor.read_exact(&mut byte)).await.unwrap();
    let drained = stopping.await.unwrap();
    assert_eq!(drained.late, 1);
    assert!(soon("the cut", visitor.read(&mut byte)).await.is_err());
    assert!(TcpStream::connect(port).await.is_err());
}

#[tokio::test]
async fn who_comes_to_the_first_port_while_others_are_still_being_opened_is_served() {
    let world = World::start().await;
    let (ports, target) = (world.settings.tcp.ports, echo().await.to_string());
    let endpoint = |port: u16| LocalEndpoint::new(port.to_string(), LocalDoor::Tcp(port), target.clone());
    let _agent = world
        .agent(&[ANY_PORT], (ports.from..=ports.to).map(endpoint).collect())
        .await;
    let coming = async {
        loop {
            match TcpStream::connect(("127.0.0.1", ports.from)).await {
                Ok(visitor) => return visitor,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut visitor = soon("the first port", coming).await;
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'x');
}
