//! A real player stays in the game while the way between home and gateway is lost under them.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::figures::Figures;
use crate::support::gateway::Gateway;
use crate::support::loopback;
use crate::support::minecraft::{MinecraftServer, Player, wait_for_motd};

/// A firewall before the gateway that lets a connection through only if it saw how it began, and can lose its memory. One
/// socket of its own for each port of the agent.
struct Firewall {
    address: SocketAddr,
    table: Arc<Mutex<Vec<Way>>>,
}

struct Way {
    home: SocketAddr,
    outside: Arc<UdpSocket>,
    is_open: Arc<AtomicBool>,
}

impl Firewall {
    fn before(gateway: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind(loopback(0)).unwrap());
        let address = inside.local_addr().unwrap();
        let table = Arc::new(Mutex::new(Vec::new()));
        let of_thread = Arc::clone(&table);
        std::thread::spawn(move || forward(&inside, &of_thread, gateway));
        Self { address, table }
    }

    /// All connections that pass now are dead from here on, in both directions.
    fn forget_all(&self) {
        for way in self.table.lock().unwrap().iter() {
            way.is_open.store(false, Ordering::Relaxed);
        }
    }
}

fn forward(inside: &Arc<UdpSocket>, table: &Mutex<Vec<Way>>, gateway: SocketAddr) {
    let mut buffer = [0; 65_536];
    while let Ok((length, home)) = inside.recv_from(&mut buffer) {
        let mut table = table.lock().unwrap();
        let known = table.iter().find(|way| way.home == home);
        let (outside, is_open) = match known {
            Some(way) => (Arc::clone(&way.outside), way.is_open.load(Ordering::Relaxed)),
            // RFC 9000 17.2: packets of a handshake have a long header.
            None if buffer[0] & 0x80 == 0 => continue,
            None => {
                let outside = Arc::new(UdpSocket::bind(loopback(0)).unwrap());
                outside.connect(gateway).unwrap();
                let is_open = Arc::new(AtomicBool::new(true));
                table.push(Way {
                    home,
                    outside: Arc::clone(&outside),
                    is_open: Arc::clone(&is_open),
                });
                let (inside, back) = (Arc::clone(inside), Arc::clone(&outside));
                std::thread::spawn(move || answer(&inside, &back, &is_open, home));
                (outside, true)
            }
        };
        if is_open {
            let _ = outside.send(&buffer[..length]);
        }
    }
}

fn answer(inside: &UdpSocket, outside: &UdpSocket, is_open: &AtomicBool, home: SocketAddr) {
    let mut buffer = [0; 65_536];
    loop {
        match outside.recv(&mut buffer) {
            Ok(length) if is_open.load(Ordering::Relaxed) => {
                let _ = inside.send_to(&buffer[..length], home);
            }
            Ok(_) => {}
            // The gateway's port is closed for a moment.
            Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
        }
    }
}

#[test]
fn a_player_stays_in_the_game_when_the_session_is_lost_and_only_a_new_one_passes() {
    let gateway = Gateway::start("");
    let server = MinecraftServer::start(gateway.directory(), "home");
    let firewall = Firewall::before(gateway.address("tunnel.quic"));
    let made = gateway.json(&["tunnel", "enroll", "home", "--default", "--json"]);
    let (pin, code) = (made["pin"].as_str().unwrap(), made["code"].as_str().unwrap());
    // Packets in batches are cut apart by a real network, not by this firewall.
    let config = gateway.directory().join("agent.toml");
    std::fs::write(&config, "gso = false\n").unwrap();
    let agent = Agent::run_by(
        &gateway,
        firewall.address,
        "home",
        &["--config", config.to_str().unwrap(), "--pin", pin, "--code", code],
        &Agent::minecraft(server.address),
    );
    let door = gateway.address("tunnel.minecraft");
    wait_for_motd(door, "home");
    let mut player = Player::join(gateway.directory(), door, "Hanako");
    for round in 1..=2 {
        player.says(&format!("before loss {round}"));
        firewall.forget_all();
        // Said into the dead session; heard from home once the next one has taken over.
        player.says(&format!("during loss {round}"));
        for word in 0..20 {
            player.says(&format!("after loss {round}, word {word}"));
        }
    }
    let players = agent.json(&["players", "--json"]);
    assert_eq!(players["players"][0]["player"], "Hanako", "{players}");
    assert_eq!(server.events.next_json()["event"], "joined");
    assert_eq!(
        Figures::of(&gateway).value("tasuki_tunnel_connections_resumed_total"),
        2
    );
    gateway.assert_healthy();
}
