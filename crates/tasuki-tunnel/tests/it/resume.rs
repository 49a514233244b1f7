//! Players stay when the session is lost: their bytes go on in the next one, each once and in order.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_core::events::What;
use tasuki_tunnel::agent::{AgentKey, Notice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::path::Router;
use crate::world::{ANY_PORT, Running, World, echo, listener, new_key, soon, tcp_to};

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    bytes
}

async fn agent_of(world: &World, target: SocketAddr) -> (Running, SocketAddr) {
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(target)]).await;
    let port = agent.open_port().await;
    (agent, port)
}

/// Loses the session again and again while an echo of `bytes` runs; how often it was lost.
async fn echo_with_losses(world: &World, port: SocketAddr, bytes: Vec<u8>) -> usize {
    let mut socket = TcpStream::connect(port).await.unwrap();
    let (mut read, mut write) = socket.split();
    let mut back = vec![0; bytes.len()];
    let mut losses = 0;
    let (sent, received) = tokio::join!(
        async {
            write.write_all(&bytes).await?;
            write.shutdown().await
        },
        async {
            let mut at = 0;
            for part in back.chunks_mut(bytes.len() / 8) {
                read.read_exact(part).await?;
                at += part.len();
                if let [line] = &world.handle.agents()[..] {
                    losses += usize::from(world.handle.disconnect(line.agent));
                }
            }
            let more = read.read(&mut [0]).await?;
            Ok::<_, std::io::Error>((at, more))
        }
    );
    sent.unwrap();
    assert_eq!(received.unwrap(), (bytes.len(), 0), "everything, then the end");
    assert!(back == bytes, "byte for byte");
    losses
}

#[tokio::test]
async fn every_byte_of_an_echo_arrives_once_while_the_session_is_lost_again_and_again() {
    let world = World::start().await;
    let (_agent, port) = agent_of(&world, echo().await).await;
    let echoing = echo_with_losses(&world, port, noise(24 << 20));
    let losses = tokio::time::timeout(Duration::from_secs(60), echoing)
        .await
        .unwrap();
    assert!(losses >= 3, "the session was lost {losses} times");
    world.counted("tasuki_tunnel_connections_open 0").await;
}

#[tokio::test]
async fn with_little_memory_for_all_flows_it_is_slower_and_nothing_is_lost() {
    let world = World::with(|config| config.memory = 1 << 20).await;
    let (_agent, port) = agent_of(&world, echo().await).await;
    let echoing = echo_with_losses(&world, port, noise(4 << 20));
    let losses = tokio::time::timeout(Duration::from_secs(60), echoing)
        .await
        .unwrap();
    assert!(losses >= 1);
}

#[tokio::test]
async fn a_player_stays_when_only_a_new_session_can_pass() {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    let code = world.code("home", &[ANY_PORT]).await;
    let mut config = world.config(vec![tcp_to(echo().await)]);
    config.gateway = router.addr.to_string();
    // Packets in batches are cut apart by a real network, not by this router.
    config.gso = false;
    let mut agent = Running::start(config, new_key(), Some(code));
    let mut player = TcpStream::connect(agent.open_port().await).await.unwrap();
    let mut heard = [0; 5];
    player.write_all(b"first").await.unwrap();
    soon("an answer", player.read_exact(&mut heard)).await.unwrap();
    let mut events = world.events.reader();
    router.forget_connections();
    player.write_all(b"again").await.unwrap();
    soon("an answer in a new session", player.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(&heard, b"again");
    world.counted("tasuki_tunnel_connections_resumed_total 1").await;
    soon("the event", async {
        while !matches!(
            events.next().await.unwrap().what,
            What::AgentResumed { visitors: 1, .. }
        ) {}
    })
    .await;
    // The new session came beside the old one, before that was given up.
    let told = agent.stop_and_tell().await;
    assert!(
        !told.iter().any(|notice| matches!(notice, Notice::Lost { .. })),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_new_start_of_the_agent_knows_no_flows_and_resets_its_visitors_at_once() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT]).await;
    let der = AgentKey::generate();
    let key = || AgentKey::from_pkcs8(&der).unwrap();
    let (server, target) = listener().await;
    let config = world.config(vec![tcp_to(target)]);
    let mut old = Running::start(config.clone(), key(), Some(code));
    let mut player = TcpStream::connect(old.open_port().await).await.unwrap();
    player.write_all(b"x").await.unwrap();
    let (mut served, _) = soon("the visit", server.accept()).await.unwrap();
    assert_eq!(soon("a byte", served.read_u8()).await.unwrap(), b'x');
    let mut new = Running::start(config, key(), None);
    new.open_port().await;
    let end = soon("the player's end", player.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let end = soon("the server's end", served.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    drop(old);
}

#[tokio::test]
async fn without_a_new_session_in_time_both_ends_are_reset() {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    let code = world.code("home", &[ANY_PORT]).await;
    let (server, target) = listener().await;
    let mut config = world.config(vec![tcp_to(target)]);
    config.gateway = router.addr.to_string();
    config.gso = false;
    // The router carries UDP only, and the agent is to find no other way.
    config.transport = Some(tasuki_tunnel::Transport::Quic);
    let mut agent = Running::start(config, new_key(), Some(code));
    let mut player = TcpStream::connect(agent.open_port().await).await.unwrap();
    player.write_all(b"x").await.unwrap();
    let (mut served, _) = soon("the visit", server.accept()).await.unwrap();
    assert_eq!(soon("a byte", served.read_u8()).await.unwrap(), b'x');
    assert!(world.handle.disconnect(world.handle.agents()[0].agent));
    agent
        .notice("the loss", |notice| {
            matches!(notice, Notice::Lost { .. }).then_some(())
        })
        .await;
    router.cut(true);
    for socket in [&mut player, &mut served] {
        let end = soon("the end", socket.read(&mut [0])).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn flows_of_one_start_of_an_agent_are_never_given_to_another() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT]).await;
    let (server, target) = listener().await;
    let stored = AgentKey::generate();
    let start = |code| {
        let key = AgentKey::from_pkcs8(&stored).unwrap();
        Running::start(world.config(vec![tcp_to(target)]), key, code)
    };
    let mut first = start(Some(code));
    let mut player = TcpStream::connect(first.open_port().await).await.unwrap();
    player.write_all(b"x").await.unwrap();
    let (mut served, _) = soon("the visit", server.accept()).await.unwrap();
    assert_eq!(soon("a byte", served.read_u8()).await.unwrap(), b'x');
    // A stolen or copied key: the session is taken over, the player's connection is not.
    let mut second = start(None);
    second.open_port().await;
    let end = soon("the end", player.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let ended = soon("the end at home", served.read(&mut [0])).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let resumed = world.metrics.encode();
    assert!(
        resumed.contains("tasuki_tunnel_connections_resumed_total 0"),
        "{resumed}"
    );
}

#[tokio::test]
async fn visitors_of_a_revoked_agent_do_not_wait_for_it() {
    let world = World::start().await;
    let (agent, port) = agent_of(&world, echo().await).await;
    let mut player = TcpStream::connect(port).await.unwrap();
    player.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", player.read_u8()).await.unwrap(), b'x');
    assert!(world.handle.revoke(world.handle.agents()[0].agent));
    let end = tokio::time::timeout(Duration::from_secs(5), player.read(&mut [0])).await;
    assert_eq!(
        end.unwrap().unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    drop(agent);
}
