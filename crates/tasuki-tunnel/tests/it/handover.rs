//! Visitors stay while another process of the gateway takes over: their bytes go on, each once and in order.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_core::acl::Origin;
use tasuki_tunnel::agent::Notice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{ANY_PORT, World, echo, exchange, listener, minecraft_to, soon, tcp_to};

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test]
async fn every_byte_arrives_once_while_one_process_after_the_other_takes_over() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let (mut running, mut visitors) = (Some(world), 0);
    let bytes = noise(16 << 20);
    let mut socket = TcpStream::connect(port).await.unwrap();
    let (mut read, mut write) = socket.split();
    let mut back = vec![0; bytes.len()];
    let moving = async {
        let sent = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let received = async {
            for part in back.chunks_mut(bytes.len() / 4) {
                read.read_exact(part).await.unwrap();
                let (next, given) = running.take().unwrap().hand_over().await;
                running = Some(next);
                visitors += given - 1;
            }
            assert_eq!(read.read(&mut [0]).await.unwrap(), 0, "everything, then the end");
        };
        tokio::join!(sent, received)
    };
    tokio::time::timeout(Duration::from_secs(90), moving)
        .await
        .unwrap();
    assert!(back == bytes, "byte for byte");
    // After the last part there may be nobody left to be given.
    assert!(visitors >= 3, "the visitor was given {visitors} times");
    let world = running.unwrap();
    world.counted("tasuki_tunnel_connections_open 0").await;
}

#[tokio::test]
async fn the_agent_comes_back_at_once_and_new_visitors_wait_for_it() {
    let world = World::start().await;
    let endpoints = vec![tcp_to(echo().await), minecraft_to(None, echo().await)];
    let mut agent = world.agent(&[ANY_PORT, "tunnel:default"], endpoints).await;
    let port = agent.open_port().await;
    agent.endpoint().await;
    let (world, _) = world.hand_over().await;
    assert_eq!(exchange(port, b"by the port").await, b"by the port");
    let (retry_in, reason) = agent
        .notice("the loss", |notice| match notice {
            Notice::Lost { retry_in, reason } => Some((retry_in, reason)),
            _ => None,
        })
        .await;
    assert!(retry_in < Duration::from_millis(100), "{retry_in:?}: {reason}");
    drop(world);
}

#[tokio::test]
async fn a_direction_that_has_ended_stays_ended_and_the_other_goes_on() {
    let world = World::start().await;
    let (server, target) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(target)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    visitor.write_all(b"question").await.unwrap();
    visitor.shutdown().await.unwrap();
    let (mut served, _) = soon("the visit", server.accept()).await.unwrap();
    let mut question = Vec::new();
    soon("the question", served.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question");
    let (world, given) = world.hand_over().await;
    assert_eq!(given, 2);
    served.write_all(b"answer").await.unwrap();
    let (world, _) = world.hand_over().await;
    served.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", visitor.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    drop(served);
    world.counted("tasuki_tunnel_connections_open 0").await;
}

#[tokio::test]
async fn visitors_whose_agent_does_not_come_back_are_reset_and_its_port_is_closed() {
    let world = World::start().await;
    let (server, target) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(target)]).await;
    let port = agent.open_port().await;
    let mut visitor = TcpStream::connect(port).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    let (mut served, _) = soon("the visit", server.accept()).await.unwrap();
    assert_eq!(soon("a byte", served.read_u8()).await.unwrap(), b'x');
    let given = world.hand_over();
    let (given, ()) = tokio::join!(given, agent.stop());
    let end = soon("the visitor's end", visitor.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let closed = async {
        while TcpStream::connect(port).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the port is closed", closed).await;
    drop(given);
}

#[tokio::test]
async fn visitors_whom_the_rules_of_the_next_process_keep_out_are_cut() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'x');
    let rule = r#"{"effect":"deny","engine":"tunnel","action":"visit","from":["127.0.0.0/8"]}"#;
    let rules = vec![(Origin::File(1), serde_json::from_str(rule).unwrap())];
    let (world, given) = world.hand_over_under(rules).await;
    assert_eq!(given, 2);
    assert!(soon("the cut", visitor.read(&mut [0])).await.is_err());
    world
        .counted(r#"tasuki_tunnel_connections_closed_total{door="tcp",result="denied"} 1"#)
        .await;
}
