//! Players stay while the way between home and gateway changes under them.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tasuki_tunnel::agent::Notice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::world::{ANY_PORT, Running, World, echo, new_key, soon, tcp_to};

/// A router between home and gateway. Each of the home's ports has a port outside.
pub(crate) struct Router {
    pub(crate) addr: SocketAddr,
    table: Arc<Mutex<Table>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Table {
    /// By the home's port: the socket outside, and the task that brings answers.
    ways: HashMap<SocketAddr, (Arc<UdpSocket>, AbortOnDropHandle<()>)>,
    /// Ports at home of which nothing passes any more.
    dead: Vec<SocketAddr>,
    /// Nothing passes at all.
    cut: bool,
    /// Only what begins with a handshake gets a way.
    is_strict: bool,
    faults: Faults,
    /// Ports at home from which handshakes came.
    dialled_from: HashSet<SocketAddr>,
}

/// What is wrong with a router for good.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Of the packets from home, but for handshakes, each so manieth is lost.
    pub(crate) loses_every: Option<u32>,
    /// Larger packets are lost.
    pub(crate) largest: Option<usize>,
    /// A way that the home does not use for so long is forgotten.
    pub(crate) forgets_after: Option<Duration>,
}

impl Router {
    pub(crate) async fn before(gateway: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = inside.local_addr().unwrap();
        let table = Arc::new(Mutex::new(Table::default()));
        let task = tokio::spawn(forward(Arc::clone(&inside), Arc::clone(&table), gateway));
        Self {
            addr,
            table,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Forgets all ways: what comes next gets another port outside, as after a new address from the provider.
    fn renumber(&self) {
        self.table.lock().unwrap().ways.clear();
    }

    /// The ports at home in use now pass nothing any more, in either direction.
    pub(crate) fn kill_ways(&self) {
        let mut table = self.table.lock().unwrap();
        let dead: Vec<SocketAddr> = table.ways.keys().copied().collect();
        table.ways.clear();
        table.dead.extend(dead);
    }

    /// As after a restart of a firewall that must have seen a connection's handshake: the running ones are dead, also from
    /// new ports, and only new ones pass.
    pub(crate) fn forget_connections(&self) {
        self.kill_ways();
        self.table.lock().unwrap().is_strict = true;
    }

    pub(crate) fn has(&self, faults: Faults) {
        self.table.lock().unwrap().faults = faults;
    }

    /// How many ports at home handshakes came from, also those that were lost.
    pub(crate) fn dialled_from(&self) -> usize {
        self.table.lock().unwrap().dialled_from.len()
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.table.lock().unwrap().cut = cut;
    }
}

async fn forward(inside: Arc<UdpSocket>, table: Arc<Mutex<Table>>, gateway: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let mut count = 0_u32;
    let mut used: HashMap<SocketAddr, Instant> = HashMap::new();
    loop {
        let Ok((length, from)) = inside.recv_from(&mut buffer).await else {
            continue;
        };
        let known = {
            let mut table = table.lock().unwrap();
            let faults = table.faults;
            let last = used.insert(from, Instant::now());
            if let (Some(after), Some(last)) = (faults.forgets_after, last)
                && last.elapsed() >= after
            {
                table.ways.remove(&from);
            }
            // RFC 9000 17.2: packets of a handshake have a long header.
            count += u32::from(buffer[0] & 0x80 == 0);
            if buffer[0] & 0x80 != 0 {
                table.dialled_from.insert(from);
            }
            let is_lost =
                buffer[0] & 0x80 == 0 && faults.loses_every.is_some_and(|n| count.is_multiple_of(n));
            if is_lost || faults.largest.is_some_and(|largest| length > largest) {
                continue;
            }
            if table.cut || table.dead.contains(&from) {
                continue;
            }
            let way = table.ways.get(&from).map(|(outside, _)| Arc::clone(outside));
            // RFC 9000 17.2: packets of a handshake have a long header.
            if way.is_none() && table.is_strict && buffer[0] & 0x80 == 0 {
                continue;
            }
            way
        };
        let outside = match known {
            Some(outside) => outside,
            None => {
                let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                outside.connect(gateway).await.unwrap();
                let back = answers(
                    Arc::clone(&inside),
                    Arc::clone(&outside),
                    Arc::clone(&table),
                    from,
                );
                let task = AbortOnDropHandle::new(tokio::spawn(back));
                table
                    .lock()
                    .unwrap()
                    .ways
                    .insert(from, (Arc::clone(&outside), task));
                outside
            }
        };
        let _ = outside.send(&buffer[..length]).await;
    }
}

async fn answers(
    inside: Arc<UdpSocket>,
    outside: Arc<UdpSocket>,
    table: Arc<Mutex<Table>>,
    home: SocketAddr,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length) = outside.recv(&mut buffer).await else {
            continue;
        };
        if !table.lock().unwrap().cut {
            let _ = inside.send_to(&buffer[..length], home).await;
        }
    }
}

/// A player in game behind a router.
struct Game {
    world: World,
    router: Router,
    agent: Running,
    player: TcpStream,
    said: u32,
}

impl Game {
    async fn start() -> Self {
        let world = World::start().await;
        let router = Router::before(world.quic).await;
        let code = world.code("home", &[ANY_PORT]).await;
        let mut config = world.config(vec![tcp_to(echo().await)]);
        config.gateway = router.addr.to_string();
        // Packets in batches are cut apart by a real network, not by this router.
        config.gso = false;
        let mut agent = Running::start(config, new_key(), Some(code));
        let player = TcpStream::connect(agent.open_port().await).await.unwrap();
        let mut game = Self {
            world,
            router,
            agent,
            player,
            said: 0,
        };
        game.play().await;
        game
    }

    /// The player says something new and hears it from home on the same connection.
    async fn play(&mut self) {
        self.said += 1;
        let word = self.said.to_be_bytes();
        let mut heard = [0; 4];
        self.player.write_all(&word).await.unwrap();
        soon("an answer from home", self.player.read_exact(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, word);
    }

    fn address(&self) -> SocketAddr {
        self.world.handle.agents()[0].address
    }

    async fn end(self) {
        let told = self.agent.stop_and_tell().await;
        assert!(
            !told.iter().any(|notice| matches!(notice, Notice::Lost { .. })),
            "the session was lost: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_player_stays_when_the_home_gets_another_address() {
    let mut game = Game::start().await;
    let before = game.address();
    game.router.renumber();
    for _ in 0..5 {
        game.play().await;
    }
    assert_ne!(game.address(), before, "the gateway sees the old address");
    game.end().await;
}

#[tokio::test]
async fn a_player_stays_when_the_agents_port_is_dead_and_a_new_one_works() {
    let mut game = Game::start().await;
    game.router.kill_ways();
    game.play().await;
    game.play().await;
    game.agent
        .notice("the move", |notice| {
            matches!(notice, Notice::PathSilent).then_some(())
        })
        .await;
    game.end().await;
}

#[tokio::test]
async fn a_player_stays_through_ten_seconds_without_a_network() {
    let mut game = Game::start().await;
    game.router.cut(true);
    let word = b"into the void";
    game.player.write_all(word).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    game.router.cut(false);
    let mut heard = [0; 13];
    soon("an answer after the cut", game.player.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(&heard, word);
    game.play().await;
    game.end().await;
}
