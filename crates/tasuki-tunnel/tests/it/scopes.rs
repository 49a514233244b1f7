//! What an agent's grants say beside names and ports: whom it shares with, how much it may move.

use std::net::SocketAddr;
use std::time::Duration;

use tasuki_core::acl::{Origin, RuleSpec};
use tasuki_proto::tunnel::{EndpointState, RefusedEndpoint};
use tasuki_tunnel::agent::{LocalDoor, LocalEndpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use crate::players::join;
use crate::world::{ANY_PORT, Running, World, echo, exchange, listener, minecraft_to, new_key, soon, tcp_to};

/// A server that says `name` to everybody and keeps them.
async fn greeter(name: u8) -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(&[name]).await;
            kept.push(socket);
        }
    });
    addr
}

/// A visitor, and the name of the server that took them.
async fn visit(port: SocketAddr) -> (TcpStream, u8) {
    soon("a visitor", async {
        loop {
            let mut socket = TcpStream::connect(port).await.unwrap();
            // While a port changes hands, a visitor may be turned away.
            if let Ok(name) = socket.read_u8().await {
                return (socket, name);
            }
        }
    })
    .await
}

async fn member(world: &World, name: &str, grants: &[&str], endpoint: LocalEndpoint) -> Running {
    let code = world.code(name, grants).await;
    Running::start(world.config(vec![endpoint]), new_key(), Some(code))
}

fn at(port: u16, target: SocketAddr) -> LocalEndpoint {
    let mut endpoint = tcp_to(target);
    endpoint.door = LocalDoor::Tcp(port);
    endpoint
}

#[tokio::test]
async fn agents_of_one_group_share_a_port_by_the_fewest_visitors_and_one_that_leaves_gets_none() {
    let world = World::start().await;
    let grants = [ANY_PORT, "tunnel:share:guild"];
    let wanted = world.settings.tcp.ports.from;
    let mut one = member(&world, "one", &grants, at(wanted, greeter(1).await)).await;
    let port = one.open_port().await;
    let mut two = member(&world, "two", &grants, at(wanted, greeter(2).await)).await;
    assert_eq!(two.open_port().await, port);
    let mut visitors = Vec::new();
    for _ in 0..6 {
        visitors.push(visit(port).await);
    }
    let of = |visitors: &[(TcpStream, u8)], name| visitors.iter().filter(|(_, of)| *of == name).count();
    assert_eq!((of(&visitors, 1), of(&visitors, 2)), (3, 3));
    // A third one who is not of the group gets nothing of it.
    let mut other = member(&world, "other", &[ANY_PORT], at(wanted, greeter(3).await)).await;
    match other.endpoint().await {
        EndpointState::Refused { reason, .. } => assert_eq!(reason, RefusedEndpoint::Taken),
        state => panic!("{state:?}"),
    }
    one.stop().await;
    for _ in 0..4 {
        assert_eq!(visit(port).await.1, 2);
    }
    // Those who were with the other one are still there.
    let (kept, _) = visitors.iter_mut().find(|(_, of)| *of == 2).unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(100), kept.read_u8()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn datagrams_of_a_visitor_go_on_with_another_agent_of_the_group() {
    let world = World::start().await;
    let wanted = world.settings.tcp.ports.from;
    let grants = ["tunnel:udp:20000-29999", "tunnel:share:guild"];
    let server = async |name: u8| {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&[name], from).await;
            }
        });
        let mut endpoint = tcp_to(addr);
        endpoint.door = LocalDoor::Udp(wanted);
        endpoint
    };
    let mut one = member(&world, "one", &grants, server(1).await).await;
    let port = one.open_port().await;
    let mut two = member(&world, "two", &grants, server(2).await).await;
    two.open_port().await;
    let visitor = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    visitor.connect(port).await.unwrap();
    let asks = async || {
        soon("an answer", async {
            let mut name = [0];
            loop {
                let _ = visitor.send(b"who").await;
                let heard = tokio::time::timeout(Duration::from_millis(200), visitor.recv(&mut name)).await;
                if let Ok(Ok(1)) = heard {
                    return name[0];
                }
            }
        })
        .await
    };
    let first = asks().await;
    let (gone, left) = if first == 1 { (one, 2) } else { (two, 1) };
    gone.stop().await;
    soon("the other server", async { while asks().await != left {} }).await;
}

#[tokio::test]
async fn bandwidth_spreads_bytes_and_loses_none() {
    let world = World::start().await;
    let grants = [ANY_PORT, "tunnel:bandwidth:1MiB"];
    let mut agent = world.agent(&grants, vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 251) as u8).collect();
    let begun = Instant::now();
    assert!(
        exchange(port, &bytes).await == bytes,
        "bytes were lost or changed"
    );
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(2700),
        "3 MiB at 1 MiB/s took {took:?}"
    );
}

#[tokio::test]
async fn an_agents_own_limit_of_connections_holds() {
    let world = World::start().await;
    let grants = [ANY_PORT, "tunnel:connections:2"];
    let mut agent = world.agent(&grants, vec![tcp_to(greeter(1).await)]).await;
    let port = agent.open_port().await;
    let _kept = (visit(port).await, visit(port).await);
    let mut third = TcpStream::connect(port).await.unwrap();
    assert!(soon("the reset", third.read_u8()).await.is_err());
    world
        .counted(r#"tasuki_tunnel_connections_refused_total{reason="full"} 1"#)
        .await;
}

#[tokio::test]
async fn a_new_rule_for_a_name_cuts_those_who_came_by_it() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let name = "mc.example.org";
    let mut agent = world
        .agent(&["tunnel:name:example.org"], vec![minecraft_to(Some(name), addr)])
        .await;
    agent.endpoint().await;
    let mut player = TcpStream::connect(world.players).await.unwrap();
    player.write_all(&join(name)).await.unwrap();
    let (mut home, _) = soon("the player at home", server.accept()).await.unwrap();
    home.write_all(b"game").await.unwrap();
    let mut game = [0; 4];
    soon("the game", player.read_exact(&mut game)).await.unwrap();
    let deny = |domain: &str| -> RuleSpec {
        let rule = format!(r#"{{"effect":"deny","engine":"tunnel","action":"visit","domain":"{domain}"}}"#);
        serde_json::from_str(&rule).unwrap()
    };
    world.acl.replace(vec![(Origin::File(1), deny("other.example"))]);
    world.handle.look_again();
    home.write_all(b"more").await.unwrap();
    soon("the game goes on", player.read_exact(&mut game))
        .await
        .unwrap();
    world.acl.replace(vec![(Origin::File(1), deny("example.org"))]);
    world.handle.look_again();
    assert!(soon("the cut", player.read_exact(&mut game)).await.is_err());
    world
        .counted(r#"tasuki_tunnel_connections_closed_total{door="minecraft",result="denied"} 1"#)
        .await;
}

#[tokio::test]
async fn an_agent_that_drains_keeps_its_visitors_and_takes_no_new_ones() {
    let world = World::start().await;
    let wanted = world.settings.tcp.ports.from;
    let code = world.code("home", &[ANY_PORT]).await;
    let mut config = world.config(vec![at(wanted, echo().await)]);
    config.drain = Duration::from_secs(20);
    let mut agent = Running::start(config, new_key(), Some(code));
    let port = agent.open_port().await;
    let mut visitor = TcpStream::connect(port).await.unwrap();
    visitor.write_all(b"a").await.unwrap();
    assert_eq!(soon("an echo", visitor.read_u8()).await.unwrap(), b'a');
    let stopping = agent.begin_to_stop();
    soon("the closed port", async {
        while TcpStream::connect(port).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    visitor.write_all(b"b").await.unwrap();
    assert_eq!(soon("an echo", visitor.read_u8()).await.unwrap(), b'b');
    drop(visitor);
    // The last one has left: the rest of the time is not waited for.
    let begun = Instant::now();
    stopping.ended().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15));
}
