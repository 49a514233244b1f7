//! Rates, patience, memory and settings that change while the gateway runs.

use std::sync::Arc;
use std::time::Duration;

use tasuki_core::{Shared, Snapshot};
use tasuki_proto::minecraft::Page;
use tasuki_tunnel::TunnelConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::players::{join, said, status, text};
use crate::world::{ANY_PORT, World, echo, exchange, listener, soon, tcp_to};

#[tokio::test]
async fn joins_and_server_list_requests_of_an_address_are_limited_apart() {
    let world = World::with(|config| {
        config.minecraft.login_burst = 2;
        config.minecraft.login_per_second = 1;
        config.minecraft.status_burst = 3;
        config.minecraft.status_per_second = 1;
    })
    .await;
    let unknown = text(Page::UnknownHost);
    // Some seconds may have passed since the first: the wait is one or two.
    let is_told = |said: String| {
        [1, 2].iter().any(|seconds| {
            let text = text(Page::TooMany).replace("{seconds}", &seconds.to_string());
            said.contains(&text)
        })
    };
    // Just after a start it is three times as many.
    let mut joins = 0;
    while said(world.players, &join("a.example")).await.contains(&unknown) {
        joins += 1;
    }
    assert!((6..=12).contains(&joins), "{joins}");
    assert!(is_told(said(world.players, &join("a.example")).await));
    // The joins have not used up the list's share.
    for _ in 0..3 {
        assert!(said(world.players, &status("a.example")).await.contains(&unknown));
    }
    let mut refused = 2;
    while !is_told(said(world.players, &status("a.example")).await) {
        assert!(refused < 12, "the list has no limit");
        refused += 1;
    }
    assert!(world.metrics.encode().contains("reason=\"too_many\""));
}

#[tokio::test]
async fn who_plays_here_has_a_larger_budget_than_a_flood_from_the_same_address() {
    let few = |config: &mut TunnelConfig| {
        config.minecraft.login_burst = 2;
        config.minecraft.login_per_second = 1;
    };
    let joins = async |world: &World| {
        let unknown = text(Page::UnknownHost);
        let mut joins = 0;
        while joins < 200 && said(world.players, &join("a.example")).await.contains(&unknown) {
            joins += 1;
        }
        joins
    };
    let world = World::with(few).await;
    let stranger = joins(&world).await;
    let asleep = world.pause().await;
    asleep.note_regular("127.0.0.1".parse().unwrap()).await;
    let world = asleep.wake().await;
    let regular = joins(&world).await;
    assert!(regular >= 30 && stranger <= 15, "{regular} against {stranger}");
}

/// Sends until nothing more goes, and then until the flow is cut.
async fn send_until_cut(socket: &mut TcpStream) {
    let block = vec![7; 256 * 1024];
    soon("the cut", async {
        while socket.write_all(&block).await.is_ok() {}
    })
    .await;
}

#[tokio::test]
async fn a_visitor_who_takes_nothing_is_cut_after_the_time() {
    let world = World::with(|config| config.stall_timeout = Duration::from_millis(500)).await;
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let _visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    let (mut home, _) = soon("the visitor at home", server.accept()).await.unwrap();
    send_until_cut(&mut home).await;
    world
        .counted(r#"tasuki_tunnel_connections_closed_total{door="tcp",result="stalled"} 1"#)
        .await;
    assert_eq!(world.budget.used_bytes(), 0);
}

#[tokio::test]
async fn a_local_server_that_takes_nothing_is_cut_after_the_time() {
    let world = World::with(|config| config.stall_timeout = Duration::from_millis(500)).await;
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    let (_home, _) = soon("the visitor at home", server.accept()).await.unwrap();
    // The agent would wait for 30 s.
    send_until_cut(&mut visitor).await;
    world
        .counted(r#"tasuki_tunnel_connections_closed_total{door="tcp",result="stalled"} 1"#)
        .await;
    assert_eq!(world.budget.used_bytes(), 0);
}

#[tokio::test]
async fn visitors_that_fill_the_byte_budget_make_the_next_one_wait_and_lose_nothing() {
    let world = World::start().await;
    // Room for four. The agent's patience with eight stuck visitors would be short.
    let limit_bytes = 4 * 64 * 1024;
    world.budget.set_limit(limit_bytes);
    let (server, addr) = listener().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(addr)]).await;
    let port = agent.open_port().await;
    let mut stuck = tokio::task::JoinSet::new();
    let mut homes = Vec::new();
    // Visitors whose server takes nothing hold a buffer each.
    for _ in 0..4 {
        let mut visitor = TcpStream::connect(port).await.unwrap();
        homes.push(soon("the visitor at home", server.accept()).await.unwrap().0);
        stuck.spawn(async move {
            let block = vec![7; 256 * 1024];
            while visitor.write_all(&block).await.is_ok() {}
        });
    }
    // Full for half a second without a break: nothing moves any more.
    soon("the full budget", async {
        let mut full = 0;
        while full < 25 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(world.budget.used_bytes() <= limit_bytes);
            full = if world.budget.used_bytes() == limit_bytes {
                full + 1
            } else {
                0
            };
        }
    })
    .await;
    let mut next = TcpStream::connect(port).await.unwrap();
    let (mut home, _) = soon("the visitor at home", server.accept()).await.unwrap();
    next.write_all(b"waits").await.unwrap();
    let mut word = [0; 5];
    let early = tokio::time::timeout(Duration::from_millis(200), home.read_exact(&mut word)).await;
    assert!(early.is_err(), "read although nothing fits");
    assert!(world.budget.refused() > 0);
    stuck.abort_all();
    drop(homes);
    soon("the word", home.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"waits");
    drop((next, home));
    soon("the budget", async {
        while world.budget.used_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn new_settings_are_in_force_at_once_and_the_rest_is_named() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    let mut visitor = TcpStream::connect(port).await.unwrap();
    visitor.write_all(b"a").await.unwrap();
    let mut byte = [0];
    soon("an echo", visitor.read_exact(&mut byte)).await.unwrap();
    let mut new = world.settings.clone();
    new.minecraft.texts.unknown_host = "no such world".into();
    new.tcp.max_connections_per_address = 1;
    new.quic.gso = !new.quic.gso;
    new.minecraft.max_connections += 1;
    let snapshot = |engine| Snapshot {
        shared: Arc::new(Shared::default()),
        engine,
    };
    let applied = world.handle.apply(&snapshot(new));
    assert_eq!(applied.changed, ["tunnel.minecraft", "tunnel.tcp"]);
    assert_eq!(
        applied.needs_restart,
        ["tunnel.quic", "tunnel.minecraft.max_connections"]
    );
    assert!(
        said(world.players, &join("a.example"))
            .await
            .contains("no such world")
    );
    // The visitor who was there stays; a second one from the same address is one too many now.
    let mut second = TcpStream::connect(port).await.unwrap();
    assert!(soon("the reset", second.read(&mut byte)).await.is_err());
    visitor.write_all(b"b").await.unwrap();
    soon("an echo", visitor.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"b");
    drop(visitor);
    world.handle.apply(&snapshot(world.settings.clone()));
    assert_eq!(exchange(port, b"back").await, b"back");
}
