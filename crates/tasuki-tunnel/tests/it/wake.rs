//! A local server that sleeps, and who wakes it; the port at home that adds the PROXY header.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tasuki_proto::minecraft::Page;
use tasuki_proto::proxy_protocol;
use tasuki_tunnel::agent::{LocalEndpoint, Start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::players::{join, said, status, text};
use crate::world::{Running, World, listener, minecraft_to, nowhere, soon};

/// A sleeping server at an address of its own; the command only leaves a mark.
struct Sleeper {
    address: SocketAddr,
    mark: PathBuf,
    _dir: tempfile::TempDir,
}

impl Sleeper {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            address: nowhere().await,
            mark: dir.path().join("started"),
            _dir: dir,
        }
    }

    fn endpoint(&self, wake_for: &[&str]) -> LocalEndpoint {
        let mut endpoint = minecraft_to(None, self.address);
        endpoint.start = Some(Start {
            command: vec!["touch".into(), self.mark.display().to_string()],
            wake_for: wake_for.iter().map(|name| (*name).to_owned()).collect(),
        });
        endpoint
    }

    async fn is_started(&self) {
        soon("the start command", async {
            while !self.mark.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// The server comes up: it answers who asks for its status, and says a word to who joins.
    async fn wake_up(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut opening = vec![0; 256];
                    let read = socket.read(&mut opening).await.unwrap_or(0);
                    let is_status = opening[..read].ends_with(&[1, 0]);
                    let word: &[u8] = if is_status { b"\x04\x00\x02{}" } else { b"game" };
                    let _ = socket.write_all(word).await;
                });
            }
        });
    }
}

async fn agent(world: &World, endpoint: LocalEndpoint) -> Running {
    let mut agent = world.agent(&["tunnel:default"], vec![endpoint]).await;
    agent.endpoint().await;
    agent
}

#[tokio::test]
async fn a_player_who_joins_wakes_the_server_and_is_held_until_it_is_there() {
    let world = World::start().await;
    let sleeper = Sleeper::new().await;
    let _agent = agent(&world, sleeper.endpoint(&[])).await;
    let sleeping = said(world.players, &status("any.example")).await;
    assert!(
        sleeping.contains(&text(Page::Sleeping)) && sleeping.contains("sleeping"),
        "{sleeping}"
    );
    assert!(!sleeper.mark.exists(), "a look at the list wakes nobody");
    let mut player = TcpStream::connect(world.players).await.unwrap();
    player.write_all(&join("any.example")).await.unwrap();
    sleeper.is_started().await;
    let starting = said(world.players, &status("any.example")).await;
    assert!(
        starting.contains(&text(Page::Starting)) && starting.contains("starting"),
        "{starting}"
    );
    // The player hears nothing, and is not sent away either.
    let mut word = [0; 4];
    let early = tokio::time::timeout(Duration::from_millis(300), player.read_exact(&mut word)).await;
    assert!(early.is_err(), "{early:?}");
    sleeper.wake_up().await;
    soon("the game", player.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"game");
}

#[tokio::test]
async fn only_who_is_named_wakes_the_server() {
    let world = World::start().await;
    let sleeper = Sleeper::new().await;
    let _agent = agent(&world, sleeper.endpoint(&["Somebody"])).await;
    // The client that joins calls itself itzg.
    let refused = said(world.players, &join("any.example")).await;
    assert!(refused.contains(&text(Page::Sleeping)), "{refused}");
    assert!(!sleeper.mark.exists());
}

#[tokio::test]
async fn a_start_command_that_fails_is_told_at_once() {
    let world = World::start().await;
    let sleeper = Sleeper::new().await;
    let mut endpoint = sleeper.endpoint(&["ITZG"]);
    endpoint.start.as_mut().unwrap().command = vec!["false".into()];
    let _agent = agent(&world, endpoint).await;
    let failed = said(world.players, &join("any.example")).await;
    assert!(failed.contains(&text(Page::ServerSilent)), "{failed}");
}

#[tokio::test]
async fn the_port_at_home_adds_the_header_that_the_server_wants() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let lan = nowhere().await;
    let mut endpoint = minecraft_to(None, addr);
    (endpoint.proxy_protocol, endpoint.lan_listen) = (true, Some(lan));
    let _agent = agent(&world, endpoint).await;
    let mut player = soon("the port at home", async {
        loop {
            match TcpStream::connect(lan).await {
                Ok(player) => return player,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    player.write_all(b"hello").await.unwrap();
    let (mut home, _) = soon("the player at home", server.accept()).await.unwrap();
    let mut expected = proxy_protocol::encode_v2(player.local_addr().unwrap(), lan);
    expected.extend(b"hello");
    let mut seen = vec![0; expected.len()];
    soon("the opening", home.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, expected);
    home.write_all(b"hi").await.unwrap();
    let mut back = [0; 2];
    soon("the answer", player.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"hi");
}
