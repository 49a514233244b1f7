//! What operators and home hosts see of their visitors while these are here.

use std::time::Duration;

use tasuki_core::events::What;
use tasuki_proto::minecraft::Edition;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::players::{join, status};
use crate::udp::{ANY_UDP, ask, named_echo, udp_to, visitor_of};
use crate::world::{World, listener, minecraft_to, soon};

/// Waits until `look` finds something.
async fn seen<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_player_is_seen_at_both_ends_with_the_delay_of_each_leg_and_bytes_that_move() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut agent = world
        .agent(
            &["tunnel:name:mc.example.org"],
            vec![minecraft_to(Some("mc.example.org"), addr)],
        )
        .await;
    agent.endpoint().await;
    let mut events = world.events.reader();
    let mut player = TcpStream::connect(world.players).await.unwrap();
    player.write_all(&join("mc.example.org")).await.unwrap();
    let (mut home, _) = soon("the player at home", server.accept()).await.unwrap();
    let mut opening = vec![0; join("mc.example.org").len()];
    soon("the opening", home.read_exact(&mut opening)).await.unwrap();
    let (own, ip) = (player.local_addr().unwrap(), player.local_addr().unwrap().ip());

    let line = seen("the player with both legs", || {
        let line = world.handle.visitors(None).pop()?;
        (line.visitor_rtt_us.is_some() && line.agent_rtt_us.is_some()).then_some(line)
    })
    .await;
    assert_eq!(line.player.as_deref(), Some("itzg"), "{line:?}");
    assert_eq!(
        (line.address, line.edition),
        (own, Some(Edition::Java)),
        "{line:?}"
    );
    assert_eq!(
        (
            line.agent.as_str(),
            line.endpoint.as_str(),
            line.door,
            line.host.as_deref()
        ),
        ("home", "mc", "minecraft", Some("mc.example.org")),
        "{line:?}"
    );
    assert_eq!((line.bytes_in, line.bytes_out), (opening.len() as u64, 0));
    let other = world.handle.visitors(Some("somebody"));
    assert!(other.is_empty(), "{other:?}");

    // The same connection, not over by far.
    home.write_all(&[7; 1000]).await.unwrap();
    soon("the game", player.read_exact(&mut [0; 1000])).await.unwrap();
    player.write_all(&[8; 500]).await.unwrap();
    soon("the moves", home.read_exact(&mut [0; 500])).await.unwrap();
    let bytes = (opening.len() as u64 + 500, 1000);
    seen("the bytes at the gateway", || {
        let line = world.handle.visitors(Some("home")).pop()?;
        ((line.bytes_in, line.bytes_out) == bytes).then_some(())
    })
    .await;

    let line = seen("what the gateway told the agent", || {
        let line = agent.control.visitors().pop()?;
        // What the home has read may not be counted yet.
        let has_all = line.visitor_rtt_us.is_some() && (line.bytes_in, line.bytes_out) == bytes;
        has_all.then_some(line)
    })
    .await;
    assert_eq!(
        (line.player.as_deref(), line.edition),
        (Some("itzg"), Some(Edition::Java))
    );
    assert!(
        line.gateway_rtt_us.is_some() && line.local_rtt_us.is_some(),
        "{line:?}"
    );

    let joined = soon("the beginning", async {
        loop {
            if let What::VisitorJoined {
                player,
                from,
                endpoint,
                ..
            } = events.next().await.unwrap().what
            {
                return (player, from, endpoint);
            }
        }
    })
    .await;
    assert_eq!(joined, (Some("itzg".to_owned()), ip, "mc".to_owned()));

    // Another process of the gateway knows who it is too.
    let (world, given) = world.hand_over().await;
    // The engine and the player.
    assert_eq!(given, 2);
    player.write_all(b"x").await.unwrap();
    soon("a move", home.read_exact(&mut [0])).await.unwrap();
    seen("the player in the other process", || {
        let line = world.handle.visitors(None).pop()?;
        (line.player.as_deref() == Some("itzg") && line.bytes_in == bytes.0 + 1).then_some(())
    })
    .await;

    let mut left = world.events.reader();
    drop((player, home));
    let event = soon("the end", async {
        loop {
            if let What::VisitorLeft { player, bytes_in, .. } = left.next().await.unwrap().what {
                return (player, bytes_in);
            }
        }
    })
    .await;
    assert_eq!(event, (Some("itzg".to_owned()), bytes.0 + 1));
    seen("nobody", || world.handle.visitors(None).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_look_at_the_server_list_has_no_name_and_others_have_no_edition() {
    let world = World::start().await;
    let (server, addr) = listener().await;
    let mut agent = world
        .agent(
            &["tunnel:default", ANY_UDP],
            vec![minecraft_to(None, addr), udp_to(named_echo().await)],
        )
        .await;
    let mut ports = Vec::new();
    for _ in 0..2 {
        ports.push(agent.endpoint().await);
    }
    let mut client = TcpStream::connect(world.players).await.unwrap();
    client.write_all(&status("mc.example.org")).await.unwrap();
    let home = soon("the client at home", server.accept()).await.unwrap();
    let line = seen("the look", || world.handle.visitors(None).pop()).await;
    assert_eq!((line.player, line.edition), (None, Some(Edition::Java)));
    drop((client, home));
    seen("its end", || world.handle.visitors(None).is_empty().then_some(())).await;

    let port = udp_port(&ports).unwrap();
    let voice = visitor_of(port).await;
    ask(&voice, b"voice").await;
    let bedrock = visitor_of(port).await;
    let magic = b"\x00\xff\xff\x00\xfe\xfe\xfe\xfe\xfd\xfd\xfd\xfd\x12\x34\x56\x78";
    ask(&bedrock, &[&b"\x05"[..], magic, &[11]].concat()).await;
    let lines = world.handle.visitors(None);
    let editions: Vec<_> = lines.iter().map(|line| (line.address, line.edition)).collect();
    let expected = [
        (voice.local_addr().unwrap(), None),
        (bedrock.local_addr().unwrap(), Some(Edition::Bedrock)),
    ];
    assert_eq!(editions, expected, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.door == "udp" && line.bytes_in > 0 && line.visitor_rtt_us.is_none())
    );
    let at_home = agent.control.visitors();
    let editions: Vec<_> = at_home.iter().map(|line| (line.address, line.edition)).collect();
    assert_eq!(editions, expected, "{at_home:?}");
}

fn udp_port(states: &[tasuki_proto::tunnel::EndpointState]) -> Option<std::net::SocketAddr> {
    states.iter().find_map(|state| match state {
        tasuki_proto::tunnel::EndpointState::Open { port: Some(port), .. } => {
            Some(([127, 0, 0, 1], *port).into())
        }
        _ => None,
    })
}
