//! A real player stays in the game on real networks: UDP is blocked under them, the home's address changes, nothing passes
//! for ten seconds.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::minecraft::{MinecraftServer, Player};
use crate::support::networks::{Networks, OUTSIDE};
use crate::support::process::{Running, tool};

/// A gateway outside, a server at home behind an agent, and a player outside who is in the game.
struct Game {
    // In this order they end.
    player: Player,
    agent: Agent,
    server: MinecraftServer,
    gateway: Gateway,
    networks: Networks,
    said: u32,
}

impl Game {
    #[track_caller]
    fn start(agent_toml: &str) -> Self {
        Self::start_where(agent_toml, |_, _| {})
    }

    /// In networks that `prepare` changes before the agent starts.
    #[track_caller]
    fn start_where(agent_toml: &str, prepare: impl FnOnce(&Networks, &Gateway)) -> Self {
        let networks = Networks::start();
        let config =
            format!("[front]\ntls_listen = [\"{OUTSIDE}:0\"]\n[tunnel.quic]\nlisten = \"{OUTSIDE}:0\"\n");
        let gateway = Gateway::start_where(&config, |command| networks.outside(command));
        prepare(&networks, &gateway);
        let server =
            MinecraftServer::start_where(gateway.directory(), "home", |command| networks.home(command));
        let made = gateway.json(&["tunnel", "enroll", "home", "--default", "--json"]);
        let (pin, code) = (made["pin"].as_str().unwrap(), made["code"].as_str().unwrap());
        let file = gateway.directory().join("agent.toml");
        std::fs::write(&file, agent_toml).unwrap();
        let agent = Agent::run_where(
            &gateway,
            gateway.address("tunnel.quic"),
            "home",
            &["--config", file.to_str().unwrap(), "--pin", pin, "--code", code],
            &Agent::minecraft(server.address),
            |command| networks.home(command),
        );
        eventually("the world is open", || {
            agent.said().contains("open at").then_some(())
        });
        let door = gateway.address("tunnel.minecraft");
        let player = Player::join_where(gateway.directory(), door, "Hanako", |command| {
            networks.outside(command)
        });
        let mut game = Self {
            player,
            agent,
            server,
            gateway,
            networks,
            said: 0,
        };
        game.play(20);
        game
    }

    /// The player says words and hears each from home, all in order, on the connection that they joined on.
    #[track_caller]
    fn play(&mut self, words: u32) {
        for _ in 0..words {
            self.said += 1;
            self.player.says(&format!("word {}", self.said));
        }
    }

    fn transport(&self) -> String {
        let listed = self.gateway.json(&["tunnel", "agents", "--json"]);
        listed["agents"][0]["transport"]
            .as_str()
            .unwrap_or("none")
            .to_owned()
    }

    #[track_caller]
    fn wait_for(&self, transport: &str) {
        eventually(&format!("the session travels by {transport}"), || {
            (self.transport() == transport).then_some(())
        });
    }

    /// Nobody was lost, neither here nor at home.
    #[track_caller]
    fn end(mut self) {
        self.play(20);
        let players = self.agent.json(&["players", "--json"]);
        assert_eq!(players["players"].as_array().unwrap().len(), 1, "{players}");
        assert_eq!(self.server.events.next_json()["event"], "joined");
        self.gateway.assert_never_panicked();
    }
}

#[test]
fn a_player_joins_where_no_udp_passes_and_stays_when_it_does() {
    let mut game = Game::start_where("", |networks, gateway| {
        networks.block_udp(gateway.address("tunnel.quic"));
    });
    game.wait_for("tls");
    game.play(20);
    game.networks.let_udp_pass();
    game.wait_for("quic");
    game.end();
}

#[test]
fn a_player_stays_when_udp_is_blocked_under_them_and_when_it_passes_again() {
    let mut game = Game::start("");
    game.wait_for("quic");
    game.networks.block_udp(game.gateway.address("tunnel.quic"));
    game.play(20);
    game.wait_for("tls");
    game.play(20);
    game.networks.let_udp_pass();
    game.wait_for("quic");
    game.end();
}

#[test]
fn both_doctors_find_that_no_udp_passes_and_who_can_help() {
    let game = Game::start_where("", |networks, gateway| {
        networks.block_udp(gateway.address("tunnel.quic"));
    });
    let local = game.server.address.to_string();
    let said = game
        .agent
        .cli_where(&["doctor", "--minecraft", &local], |command| {
            game.networks.home(command)
        });
    let front = game.gateway.address("front.https");
    for line in [
        format!(
            "note no packet comes back from {}",
            game.gateway.address("tunnel.quic")
        ),
        format!("ok   {front} answers over TLS"),
    ] {
        assert!(said.contains(&line), "{line} in\n{said}");
    }
    let (_, said) = game.gateway.fails(&["tunnel", "doctor"]);
    let port = game.gateway.address("tunnel.quic").port();
    assert!(
        said.contains(&format!(
            "BAD  every agent comes over TLS and none over UDP: open UDP port {port}"
        )),
        "{said}"
    );
    assert!(
        said.contains("home comes over TLS, since no UDP passes from 10.77.0.2"),
        "{said}"
    );
}

#[test]
fn a_player_stays_when_the_home_gets_another_address_over_udp_and_over_tls() {
    for agent_toml in ["transport = \"quic\"\n", "transport = \"tls\"\n"] {
        let mut game = Game::start(agent_toml);
        let at = |game: &Game| -> SocketAddr {
            let listed = game.gateway.json(&["tunnel", "agents", "--json"]);
            listed["agents"][0]["from"].as_str().unwrap().parse().unwrap()
        };
        assert_eq!(at(&game).ip(), Ipv4Addr::new(10, 77, 0, 2), "{agent_toml}");
        game.networks.renumber_home(Ipv4Addr::new(10, 77, 0, 3));
        game.play(20);
        game.end();
    }
}

#[test]
fn a_player_stays_through_ten_seconds_in_which_nothing_passes() {
    for agent_toml in ["transport = \"quic\"\n", "transport = \"tls\"\n"] {
        let mut game = Game::start(agent_toml);
        game.networks.cut(true);
        // The length of the loss is what is tested.
        std::thread::sleep(Duration::from_secs(10));
        game.networks.cut(false);
        game.play(20);
        game.end();
    }
}

#[test]
fn an_agent_reaches_the_gateway_through_the_proxy_of_its_network() {
    let networks = Networks::start();
    let config =
        format!("[front]\ntls_listen = [\"{OUTSIDE}:0\"]\n[tunnel.quic]\nlisten = \"{OUTSIDE}:0\"\n");
    let gateway = Gateway::start_where(&config, |command| networks.outside(command));
    networks.block_udp(gateway.address("tunnel.quic"));
    let front = gateway.address("front.https");
    // Only the proxy reaches the gateway's front door.
    let proxy = gateway.directory().join("tinyproxy.conf");
    let settings = format!(
        "Port 3128\nListen {OUTSIDE}\nTimeout 600\nMaxClients 20\nAllow 10.77.0.0/24\nBasicAuth hana sakura\n\
         ConnectPort {}\n",
        front.port()
    );
    std::fs::write(&proxy, settings).unwrap();
    let mut tinyproxy = tool("tinyproxy");
    tinyproxy.arg("-d").arg("-c").arg(&proxy);
    let log = gateway.directory().join("tinyproxy.log");
    let _proxy = Running::start("tinyproxy", &mut networks.outside(&tinyproxy), &log);
    eventually("the proxy listens", || {
        let listening = networks.outside_runs("ss", &["-ltn"]);
        listening.contains(":3128").then_some(())
    });
    let rules = format!(
        "table inet only_proxy {{ chain in {{ type filter hook input priority 0; \
         iifname \"wire\" tcp dport {} drop; }}; }}",
        front.port()
    );
    networks.outside_runs("nft", &[&rules]);
    let server = MinecraftServer::start_where(gateway.directory(), "home", |command| networks.home(command));
    let made = gateway.json(&["tunnel", "enroll", "home", "--default", "--json"]);
    let (pin, code) = (made["pin"].as_str().unwrap(), made["code"].as_str().unwrap());
    let agent = Agent::run_where(
        &gateway,
        gateway.address("tunnel.quic"),
        "home",
        &["--pin", pin, "--code", code],
        &Agent::minecraft(server.address),
        |command| {
            let mut command = networks.home(command);
            command.env("HTTPS_PROXY", format!("http://hana:sakura@{OUTSIDE}:3128"));
            command
        },
    );
    eventually("the world is open", || {
        agent.said().contains("open at").then_some(())
    });
    let door = gateway.address("tunnel.minecraft");
    let mut player = Player::join_where(gateway.directory(), door, "Hanako", |command| {
        networks.outside(command)
    });
    player.says("through the proxy");
    assert!(!agent.said().contains("sakura"), "{}", agent.said());
    gateway.assert_never_panicked();
}
