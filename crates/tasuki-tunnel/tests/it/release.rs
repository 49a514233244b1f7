//! Names and ports that are given up.

use tasuki_tunnel::NotReleased;
use tasuki_tunnel::agent::{LocalDoor, LocalEndpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{ANY_PORT, Running, World, echo, exchange, new_key, soon};

async fn endpoint(world: &World) -> LocalEndpoint {
    let port = world.settings.tcp.ports.from;
    LocalEndpoint::new("tcp", LocalDoor::Tcp(port), echo().await.to_string())
}

#[tokio::test]
async fn what_is_served_is_not_given_up_and_what_is_not_can_go_to_another() {
    let world = World::start().await;
    let endpoint = endpoint(&world).await;
    let mut agent = world.agent(&[ANY_PORT], vec![endpoint.clone()]).await;
    let port = agent.open_port().await;
    let id = world.handle.agents()[0].agent;
    let refused = world.release(id, "tcp").await;
    assert!(matches!(refused, Err(NotReleased::Served)), "{refused:?}");
    assert_eq!(exchange(port, b"still open").await, b"still open");
    agent.stop().await;
    soon("the agent's end", async {
        while world.handle.is_connected(id) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.release(id, "tcp").await.unwrap();
    assert!(world.owned().await.is_empty());
    let again = world.release(id, "tcp").await;
    assert!(matches!(again, Err(NotReleased::Missing)), "{again:?}");
    let code = world.code("other", &[ANY_PORT]).await;
    let config = world.config(vec![endpoint]);
    let mut other = Running::start(config, new_key(), Some(code));
    assert_eq!(other.open_port().await, port);
}

#[tokio::test]
async fn what_another_gateway_gave_up_is_served_only_when_it_is_owned_again() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![endpoint(&world).await]).await;
    let port = agent.open_port().await;
    let mut visitor = TcpStream::connect(port).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'x');
    let before = world.release_elsewhere().await;
    world.handle.read_owners().await;
    assert_eq!(agent.open_port().await, port, "declared anew");
    let after = world.owned().await;
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    // Who was there stays, and a second look changes nothing.
    world.handle.read_owners().await;
    visitor.write_all(b"y").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'y');
    let told = agent.stop_and_tell().await;
    assert!(told.is_empty(), "{told:?}");
}
