//! Load balancers that say by PROXY headers whom they bring.

use std::net::SocketAddr;

use tasuki_proto::minecraft::Page;
use tasuki_proto::proxy_protocol::{encode_v1, encode_v2, encode_v2_local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::players::{join, said, text};
use crate::world::{ANY_PORT, World, listener, minecraft_to, soon, tcp_to};

/// Who the headers speak of.
const VISITOR: &str = "203.0.113.9:50123";

fn visitor() -> SocketAddr {
    VISITOR.parse().unwrap()
}

async fn world() -> World {
    let listed = || vec!["127.0.0.2/32".parse().unwrap()];
    World::with(|config| {
        config.minecraft.proxy_protocol_from = listed();
        config.tcp.proxy_protocol_from = listed();
    })
    .await
}

/// A connection that comes from `from`, with these first bytes.
async fn sends(from: &str, to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Whatever is said until the end; a reset is an end too.
async fn ends(mut stream: TcpStream) -> Vec<u8> {
    let mut words = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut words)).await;
    words
}

/// What the local server gets first.
async fn at_home(server: &TcpListener, length: usize) -> Vec<u8> {
    let (mut home, _) = soon("a visitor at home", server.accept()).await.unwrap();
    let mut seen = vec![0; length];
    soon("the first bytes", home.read_exact(&mut seen)).await.unwrap();
    seen
}

#[tokio::test]
async fn a_listed_load_balancer_says_who_the_player_is_in_both_versions() {
    let world = world().await;
    let (server, addr) = listener().await;
    let mut endpoint = minecraft_to(None, addr);
    endpoint.proxy_protocol = true;
    let mut agent = world.agent(&["tunnel:default"], vec![endpoint]).await;
    agent.endpoint().await;
    let door = world.players;
    let mut expected = encode_v2(visitor(), door);
    expected.extend(join("mc.example.org"));
    for header in [encode_v1(visitor(), door), encode_v2(visitor(), door)] {
        let bytes = [header, join("mc.example.org")].concat();
        let _player = sends("127.0.0.2", door, &bytes).await;
        assert_eq!(at_home(&server, expected.len()).await, expected);
    }
    // It may speak for itself too.
    let bytes = [encode_v2_local(), join("mc.example.org")].concat();
    let own = sends("127.0.0.2", door, &bytes).await;
    let mut expected = encode_v2(own.local_addr().unwrap(), door);
    expected.extend(join("mc.example.org"));
    assert_eq!(at_home(&server, expected.len()).await, expected);
}

#[tokio::test]
async fn a_header_is_asked_of_the_listed_and_refused_from_others() {
    let world = world().await;
    let door = world.players;
    let header = encode_v2(visitor(), door);
    for (from, bytes) in [
        ("127.0.0.2", join("mc.example.org")),
        ("127.0.0.3", [header, join("mc.example.org")].concat()),
        (
            "127.0.0.3",
            [encode_v1(visitor(), door), join("mc.example.org")].concat(),
        ),
    ] {
        let words = ends(sends(from, door, &bytes).await).await;
        assert_eq!(words, b"", "{from}: {bytes:x?}");
    }
    assert!(
        said(door, &join("mc.example.org"))
            .await
            .contains(&text(Page::UnknownHost)),
        "others need none"
    );
}

#[tokio::test]
async fn limits_count_who_is_named_and_not_the_load_balancer() {
    let world = World::with(|config| {
        config.minecraft.proxy_protocol_from = vec!["127.0.0.2/32".parse().unwrap()];
        config.minecraft.max_connections_per_address = 1;
    })
    .await;
    let (server, addr) = listener().await;
    let mut agent = world
        .agent(&["tunnel:default"], vec![minecraft_to(None, addr)])
        .await;
    agent.endpoint().await;
    let door = world.players;
    let join_as = |ip: &str| {
        let header = encode_v2(SocketAddr::new(ip.parse().unwrap(), 50_000), door);
        [header, join("mc.example.org")].concat()
    };
    let length = join("mc.example.org").len();
    let mut playing = Vec::new();
    for ip in ["203.0.113.9", "203.0.113.10", "2001:db8::9"] {
        playing.push(sends("127.0.0.2", door, &join_as(ip)).await);
        let (mut home, _) = soon("the player at home", server.accept()).await.unwrap();
        soon("the opening", home.read_exact(&mut vec![0; length]))
            .await
            .unwrap();
        playing.push(home);
    }
    let words = ends(sends("127.0.0.2", door, &join_as("203.0.113.9")).await).await;
    assert_eq!(words, b"", "a second one of the same address");
}

#[tokio::test]
async fn ports_of_agents_take_headers_from_the_listed_alone() {
    let world = world().await;
    let (server, addr) = listener().await;
    let mut endpoint = tcp_to(addr);
    endpoint.proxy_protocol = true;
    let mut agent = world.agent(&[ANY_PORT], vec![endpoint]).await;
    let port = agent.open_port().await;
    let expected = [encode_v2(visitor(), port), b"hello".to_vec()].concat();
    for header in [encode_v1(visitor(), port), encode_v2(visitor(), port)] {
        let bytes = [header, b"hello".to_vec()].concat();
        let _visitor = sends("127.0.0.2", port, &bytes).await;
        assert_eq!(at_home(&server, expected.len()).await, expected);
    }
    let words = ends(sends("127.0.0.2", port, b"GET / HTTP/1.1\r\n\r\n").await).await;
    assert_eq!(words, b"", "no header");
    // From anybody else it is nothing but bytes, behind our own header.
    let bytes = [encode_v1(visitor(), port), b"hello".to_vec()].concat();
    let stranger = sends("127.0.0.3", port, &bytes).await;
    let expected = [encode_v2(stranger.local_addr().unwrap(), port), bytes].concat();
    assert_eq!(at_home(&server, expected.len()).await, expected);
}
