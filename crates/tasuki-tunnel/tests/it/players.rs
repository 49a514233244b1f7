//! The Minecraft port: routed by name, answered by the gateway when nobody else does.

use std::net::SocketAddr;
use std::time::Duration;

use tasuki_proto::minecraft::{Handshake, NextState, Page};
use tasuki_tunnel::agent::Notice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, listener, minecraft_to, nowhere, soon};

fn handshake(host: &str, next: NextState) -> Vec<u8> {
    Handshake {
        protocol: 770,
        address: host.into(),
        port: 25565,
        next,
    }
    .encode_with(host)
}

/// A join as a client sends it: handshake and Login Start at once.
pub(crate) fn join(host: &str) -> Vec<u8> {
    let mut bytes = handshake(host, NextState::Login);
    bytes.extend_from_slice(
        b"\x16\x00\x04itzg\x5c\xdd\xfd\x26\xfc\x86\x49\x81\xb5\x2e\xc4\x2b\xb1\x0b\xfd\xef",
    );
    bytes
}

pub(crate) fn status(host: &str) -> Vec<u8> {
    let mut bytes = handshake(host, NextState::Status);
    bytes.extend_from_slice(b"\x01\x00\x09\x01\x00\x00\x01\x8b\xcf\xe5\x68\x00");
    bytes
}

/// Everything the gateway says until it closes.
pub(crate) async fn said(players: SocketAddr, bytes: &[u8]) -> String {
    soon("the gateway's words", async {
        let mut client = TcpStream::connect(players).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let mut words = Vec::new();
        client.read_to_end(&mut words).await.unwrap();
        String::from_utf8_lossy(&words).into_owned()
    })
    .await
}

/// A page's text as it stands in JSON.
pub(crate) fn text(page: Page) -> String {
    page.default_text().replace('\n', "\\n")
}

#[tokio::test]
async fn a_player_reaches_the_server_of_the_name_without_claims_of_identity() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut endpoint = minecraft_to(Some("mc.example.org"), addr);
    endpoint.proxy_protocol = true;
    let mut agent = world.agent(&["tunnel:name:mc.example.org"], vec![endpoint]).await;
    agent.endpoint().await;
    let mut player = TcpStream::connect(world.players).await.unwrap();
    let forged = "MC.Example.org\0FML2\x0010.0.0.1\x00069a79f444e94726a5befca90e38aaf5";
    player.write_all(&join(forged)).await.unwrap();
    let (mut home, _) = soon("the player at home", server.accept()).await.unwrap();
    let own = player.local_addr().unwrap();
    let mut expected = tasuki_proto::proxy_protocol::encode_v2(own, world.players);
    expected.extend(join("MC.Example.org\0FML2\0"));
    let mut seen = vec![0; expected.len()];
    soon("the opening", home.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, expected);
    home.write_all(b"game").await.unwrap();
    let mut game = [0; 4];
    soon("the game", player.read_exact(&mut game)).await.unwrap();
    assert_eq!(&game, b"game");
}

#[tokio::test]
async fn a_server_that_is_down_and_an_agent_that_is_away_are_told_apart() {
    let world = World::start().await;
    assert!(
        said(world.players, &join("mc.example.org"))
            .await
            .contains(&text(Page::UnknownHost))
    );
    let endpoint = minecraft_to(Some("mc.example.org"), nowhere().await);
    let mut agent = world.agent(&["tunnel:name:mc.example.org"], vec![endpoint]).await;
    agent.endpoint().await;
    assert!(
        said(world.players, &join("mc.example.org"))
            .await
            .contains(&text(Page::ServerRefused))
    );
    let page = said(world.players, &status("mc.example.org")).await;
    assert!(
        page.contains(&text(Page::ServerRefused)) && page.ends_with("\u{fffd}\u{fffd}h\0"),
        "{page:?}"
    );
    agent.stop().await;
    soon("the agent's leave", async {
        while !world.handle.agents().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(
        said(world.players, &join("mc.example.org"))
            .await
            .contains(&text(Page::AgentAway))
    );
    assert!(said(world.players, &[0xfe, 0x01]).await.starts_with('\u{fffd}'));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_after_the_time() {
    let world = World::with(|config| config.connect_timeout = Duration::from_millis(300)).await;
    // An address that swallows packets: a listener whose queue is full.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    silent.listen(1).unwrap();
    let addr = silent.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(socket)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(addr)).await
    {
        queued.push(socket);
    }
    let mut agent = world
        .agent(&["tunnel:default"], vec![minecraft_to(None, addr)])
        .await;
    agent.endpoint().await;
    assert!(
        said(world.players, &join("127.0.0.1"))
            .await
            .contains(&text(Page::ServerSilent))
    );
}

#[tokio::test]
async fn a_slow_handshake_and_a_promise_of_two_mebibytes_are_closed() {
    let world = World::with(|config| config.minecraft.handshake_timeout = Duration::from_millis(300)).await;
    for first in [&b"\x10\x00"[..], b"\xff\xff\x7f\x00"] {
        let mut client = TcpStream::connect(world.players).await.unwrap();
        client.write_all(first).await.unwrap();
        let mut byte = [0];
        assert!(!matches!(
            soon("the close", client.read(&mut byte)).await,
            Ok(1..)
        ));
    }
    let text = world.metrics.encode();
    for reason in ["slow_handshake", "bad_handshake"] {
        assert!(
            text.contains(&format!("connections_refused_total{{reason=\"{reason}\"}} 1")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_local_server_that_goes_and_comes_back_is_told_once_each() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    drop(server);
    let mut agent = world
        .agent(&["tunnel:default"], vec![minecraft_to(None, addr)])
        .await;
    agent.endpoint().await;
    for _ in 0..3 {
        said(world.players, &join("127.0.0.1")).await;
    }
    let server = tokio::net::TcpListener::bind(addr).await.unwrap();
    for _ in 0..2 {
        let mut player = TcpStream::connect(world.players).await.unwrap();
        player.write_all(&join("127.0.0.1")).await.unwrap();
        soon("the player at home", server.accept()).await.unwrap();
    }
    let told = agent.stop_and_tell().await;
    let of_the_server: Vec<&str> = told
        .iter()
        .filter_map(|notice| match notice {
            Notice::LocalDown { .. } => Some("down"),
            Notice::LocalUp { .. } => Some("up"),
            _ => None,
        })
        .collect();
    assert_eq!(of_the_server, ["down", "up"]);
}
