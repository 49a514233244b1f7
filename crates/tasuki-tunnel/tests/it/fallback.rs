//! Agents whose network lets no UDP out travel in TLS connections at the front door, and come back to UDP when it passes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::tunnel::HttpProxy;
use tasuki_tunnel::Transport;
use tasuki_tunnel::agent::{AgentConfig, LocalEndpoint, Notice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::path::Router;
use crate::udp::{ANY_UDP, ask, named_echo, udp_to, visitor_of};
use crate::world::{ANY_PORT, Running, World, echo, exchange, new_key, soon, tcp_to};

async fn connected(agent: &mut Running) -> Transport {
    agent
        .notice("a session", |notice| match notice {
            Notice::Connected { transport, .. } => Some(transport),
            _ => None,
        })
        .await
}

/// An agent behind a router that passes UDP or not.
async fn behind(router: &Router, world: &World, endpoints: Vec<LocalEndpoint>) -> AgentConfig {
    let mut config = world.config(endpoints);
    config.gateway = router.addr.to_string();
    // Packets in batches are cut apart by a real network, not by this router.
    config.gso = false;
    config
}

#[tokio::test]
async fn where_no_udp_passes_the_session_travels_in_tls_and_returns_to_udp_later() {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    router.cut(true);
    let code = world.code("home", &[ANY_PORT]).await;
    let config = behind(&router, &world, vec![tcp_to(echo().await)]).await;
    let mut agent = Running::start(config, new_key(), Some(code));
    assert_eq!(connected(&mut agent).await, Transport::Tls);
    let known = agent.control.networks();
    assert_eq!(known, [("127.0.0.0/24".to_owned(), Transport::Tls)]);
    let port = agent.open_port().await;
    assert_eq!(exchange(port, b"over tls").await, b"over tls");
    assert_eq!(world.handle.agents()[0].transport, Transport::Tls);
    // A visitor who was there before stays while the session moves.
    let mut visitor = TcpStream::connect(port).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'x');
    router.cut(false);
    assert_eq!(connected(&mut agent).await, Transport::Quic);
    // Known when the session is told, so that whoever keeps it for the next start keeps this.
    assert_eq!(agent.control.networks(), [], "UDP is tried first again");
    assert_eq!(world.handle.agents()[0].transport, Transport::Quic);
    visitor.write_all(b"y").await.unwrap();
    assert_eq!(soon("a byte", visitor.read_u8()).await.unwrap(), b'y');
    let told = agent.stop_and_tell().await;
    assert!(!told.iter().any(|notice| matches!(notice, Notice::Lost { .. })));
}

/// How long after `lose` began the agent dials anew, if that happens while it tries UDP in vain.
async fn dials_anew_after(lose: impl AsyncFnOnce(World) -> World) -> Duration {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    router.cut(true);
    let code = world.code("home", &[ANY_PORT]).await;
    let config = behind(&router, &world, vec![tcp_to(echo().await)]).await;
    let mut agent = Running::start(config, new_key(), Some(code));
    assert_eq!(connected(&mut agent).await, Transport::Tls);
    let before = router.dialled_from();
    soon("a try over UDP", async {
        while router.dialled_from() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let lost = Instant::now();
    let (_world, took) = tokio::join!(lose(world), async {
        let dials = |notice| matches!(notice, Notice::Connecting).then_some(());
        agent.notice("a new dial", dials).await;
        lost.elapsed()
    });
    assert_eq!(connected(&mut agent).await, Transport::Tls);
    agent.stop().await;
    took
}

#[tokio::test]
async fn a_try_over_udp_holds_nothing_up_when_the_session_is_lost() {
    let (lost, handed_over) = tokio::join!(
        dials_anew_after(async |world: World| {
            let agent = world.handle.agents()[0].agent;
            assert!(world.handle.disconnect(agent));
            world
        }),
        dials_anew_after(async |world: World| world.hand_over().await.0),
    );
    // The try itself would take 4 s.
    for took in [lost, handed_over] {
        assert!(took < Duration::from_millis(2500), "{took:?}");
    }
}

#[tokio::test]
async fn every_byte_arrives_once_when_udp_is_blocked_under_a_visitor() {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    let code = world.code("home", &[ANY_PORT]).await;
    let config = behind(&router, &world, vec![tcp_to(echo().await)]).await;
    let mut agent = Running::start(config, new_key(), Some(code));
    assert_eq!(connected(&mut agent).await, Transport::Quic);
    let port = agent.open_port().await;
    let mut bytes = vec![0; 6 << 20];
    StdRng::seed_from_u64(5).fill_bytes(&mut bytes);
    let mut visitor = TcpStream::connect(port).await.unwrap();
    let (mut read, mut write) = visitor.split();
    let mut back = vec![0; bytes.len()];
    let (sent, ()) = soon("the echo", async {
        tokio::join!(
            async {
                write.write_all(&bytes).await?;
                write.shutdown().await
            },
            async {
                let (first, rest) = back.split_at_mut(1 << 20);
                read.read_exact(first).await.unwrap();
                router.cut(true);
                read.read_exact(rest).await.unwrap();
                assert_eq!(read.read(&mut [0]).await.unwrap(), 0, "and then the end");
            }
        )
    })
    .await;
    sent.unwrap();
    assert!(back == bytes, "byte for byte");
    assert_eq!(world.handle.agents()[0].transport, Transport::Tls);
    drop(agent);
}

#[tokio::test]
async fn datagrams_of_udp_ports_travel_in_tls_too() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT, ANY_UDP]).await;
    let mut config = world.config(vec![udp_to(named_echo().await)]);
    config.transport = Some(Transport::Tls);
    let mut agent = Running::start(config, new_key(), Some(code));
    let port = agent.open_port().await;
    for length in [1, 200, 1400] {
        let question = vec![b'q'; length];
        let answer = ask(&visitor_of(port).await, &question).await;
        assert!(answer.ends_with(&question), "{length} bytes");
    }
    agent.stop().await;
}

/// Passes TCP connections on, and can lose those of now.
struct Wire {
    addr: SocketAddr,
    lost: watch::Sender<()>,
    made: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Wire {
    async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (lost, made) = (watch::Sender::default(), Arc::new(AtomicUsize::new(0)));
        let (losing, count) = (lost.clone(), Arc::clone(&made));
        let task = tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let mut lost = losing.subscribe();
                let mut outside = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
                        _ = lost.changed() => {}
                    }
                });
            }
        });
        Self {
            addr,
            lost,
            made,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

#[tokio::test]
async fn a_visitor_stays_when_all_connections_of_a_way_break_and_new_ones_can_be_made() {
    let world = World::start().await;
    let wire = Wire::before(world.front).await;
    let code = world.code("home", &[ANY_PORT]).await;
    let mut config = world.config(vec![tcp_to(echo().await)]);
    config.transport = Some(Transport::Tls);
    config.tls = Some(wire.addr.to_string());
    let mut agent = Running::start(config, new_key(), Some(code));
    let mut visitor = TcpStream::connect(agent.open_port().await).await.unwrap();
    for word in 0..3_u32 {
        visitor.write_all(&word.to_be_bytes()).await.unwrap();
        assert_eq!(soon("a word", visitor.read_u32()).await.unwrap(), word);
        let before = wire.made.load(Ordering::Relaxed);
        wire.lost.send_replace(());
        visitor.write_all(b"late").await.unwrap();
        let mut late = [0; 4];
        soon("late words", visitor.read_exact(&mut late)).await.unwrap();
        assert_eq!(&late, b"late");
        assert!(wire.made.load(Ordering::Relaxed) > before, "on a new connection");
    }
    let told = agent.stop_and_tell().await;
    assert!(
        !told.iter().any(|notice| matches!(notice, Notice::Lost { .. })),
        "QUIC went on by itself: {told:?}"
    );
}

/// A proxy that wants a password.
async fn proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&passed);
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(inside.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                if !head.contains("Proxy-Authorization: Basic aGFuYTpzYWt1cmE=\r\n") {
                    let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                    return inside.write_all(refusal).await.unwrap();
                }
                let mut outside = TcpStream::connect(target).await.unwrap();
                inside.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    (addr, passed)
}

#[tokio::test]
async fn a_proxy_of_the_network_is_asked_with_its_password() {
    let world = World::start().await;
    let (addr, passed) = proxy().await;
    let code = world.code("home", &[ANY_PORT]).await;
    let mut config = world.config(vec![tcp_to(echo().await)]);
    config.transport = Some(Transport::Tls);
    config.proxy = Some(HttpProxy::parse(&format!("http://hana:wrong@{addr}")).unwrap());
    let (key, der) = {
        let der = tasuki_tunnel::agent::AgentKey::generate();
        (tasuki_tunnel::agent::AgentKey::from_pkcs8(&der).unwrap(), der)
    };
    let mut refused = Running::start(config.clone(), key, Some(code.clone()));
    let reason = refused
        .notice("a refusal", |notice| match notice {
            Notice::Lost { reason, .. } => Some(reason),
            _ => None,
        })
        .await;
    assert!(reason.contains("407 Proxy Authentication Required"), "{reason}");
    assert!(!reason.contains("wrong"), "{reason}");
    refused.stop().await;
    config.proxy = Some(HttpProxy::parse(&format!("http://hana:sakura@{addr}")).unwrap());
    let key = tasuki_tunnel::agent::AgentKey::from_pkcs8(&der).unwrap();
    let mut agent = Running::start(config, key, Some(code));
    let port = agent.open_port().await;
    assert_eq!(exchange(port, b"through the proxy").await, b"through the proxy");
    assert!(passed.load(Ordering::Relaxed) > 0);
    agent.stop().await;
}

#[tokio::test]
async fn what_is_no_agent_gets_nothing_at_the_front_door_and_harms_nobody() {
    let world = World::start().await;
    // Speaks TLS with the right ALPN, but has no key to show.
    let tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(crate::hostile::Anyone));
    let mut tls = tls.with_no_client_auth();
    tls.alpn_protocols = vec![b"tasuki/1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let tcp = TcpStream::connect(world.front).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("x.invalid").unwrap();
    let refused = match connector.connect(name, tcp).await {
        // TLS 1.3: a client hears of the refusal only when it reads.
        Ok(mut stream) => soon("the end", stream.read(&mut [0]))
            .await
            .map_or(true, |read| read == 0),
        Err(_) => true,
    };
    assert!(refused);
    world
        .counted("tasuki_tunnel_agent_sessions_refused_total{reason=\"handshake\"} 1")
        .await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    assert_eq!(exchange(port, b"well").await, b"well");
}
