//! `tasuki tunnel doctor`: what keeps agents and their visitors away, as far as the gateway can see it, and what helps.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures_util::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::front::FrontDoor;
use tasuki_core::health::Code;
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_tunnel::{AgentLine, JAVA, Leads, Published, Transport};

use super::Admin;
use super::engines::switched_off;
use super::problem::{Answer, Params};

/// UDP payloads below this are less than any usual home line passes.
const SMALL_BYTES: u16 = 1350;
/// Packets that must have been sent before their loss means something.
const ENOUGH_PACKETS: u64 = 200;
/// Loss in percent that players feel.
const LOSS: f64 = 2.0;
/// Names looked up at a time, and how long all may take.
const AT_ONCE: usize = 64;
const LOOK: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The name server to ask for visitors' names, in place of the system's.
    nameserver: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// Works, but not as well as it could.
    Note,
    Bad,
}

/// One finding, with what helps.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    text: String,
}

impl Finding {
    fn ok(text: String) -> Self {
        let level = Level::Ok;
        Self { level, text }
    }

    fn note(text: String) -> Self {
        let level = Level::Note;
        Self { level, text }
    }

    fn bad(text: String) -> Self {
        let level = Level::Bad;
        Self { level, text }
    }
}

pub(super) async fn look(
    State(admin): State<Arc<Admin>>,
    Params(asked): Params<Asked>,
) -> Answer<Json<Value>> {
    let tunnel = admin.engines.tunnel.as_ref();
    let tunnel = tunnel.ok_or_else(|| switched_off(EngineKind::Tunnel))?;
    let agents = tunnel.agents();
    let mut found = Vec::new();
    if let Some(quic) = admin.listeners.get("tunnel.quic") {
        found.extend(door(*quic, &agents));
    }
    let wanted = admin.live.load().config.tunnel.quic.socket_buffer;
    found.extend(socket_buffer(wanted, largest_buffer()));
    for (_, condition) in admin.health.conditions() {
        if matches!(condition.code, Code::Clock | Code::AgentAway | Code::Network) {
            found.push(Finding::bad(condition.sentence));
        }
    }
    found.extend(admin.front.iter().flat_map(FrontDoor::warnings).map(Finding::bad));
    for agent in &agents {
        found.extend(session(agent));
    }
    let kinds: Vec<EndpointKind> = admin
        .store
        .endpoints()
        .await?
        .into_iter()
        .map(|e| e.kind)
        .collect();
    let (host, door) = tunnel.doors();
    found.extend(names(asked.nameserver, &host, door.unwrap_or(JAVA), kinds).await);
    Ok(Json(json!({"findings": found})))
}

/// Whether agents elsewhere can come, and whether they can by UDP.
fn door(quic: SocketAddr, agents: &[AgentLine]) -> Vec<Finding> {
    let port = quic.port();
    if quic.ip().is_loopback() {
        return vec![Finding::note(format!(
            "agents on other machines cannot come: tunnel.quic.listen is {quic}; set it to \"[::]:{port}\""
        ))];
    }
    let by_tls = agents
        .iter()
        .filter(|agent| agent.transport == Transport::Tls)
        .count();
    vec![match (agents.len(), by_tls) {
        (0, _) => Finding::note(format!(
            "no agent is connected; if one cannot come, open UDP port {port} in this machine's firewall and at its provider"
        )),
        (all, tls) if all == tls => Finding::bad(format!(
            "every agent comes over TLS and none over UDP: open UDP port {port} in this machine's firewall and at its provider"
        )),
        _ => Finding::ok(format!("agents come over UDP on port {port}")),
    }]
}

/// What the kernel grants a socket at most, in bytes; `None` where it does not say.
fn largest_buffer() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/net/core/rmem_max")
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn socket_buffer(wanted: u64, largest: Option<u64>) -> Option<Finding> {
    let largest = largest.filter(|largest| *largest < wanted)?;
    Some(Finding::note(format!(
        "the kernel gives UDP sockets {largest} bytes of buffer in place of {wanted}, so bursts are lost: sysctl -w \
         net.core.rmem_max={wanted} net.core.wmem_max={wanted}"
    )))
}

/// What a session's packets meet.
fn session(agent: &AgentLine) -> Vec<Finding> {
    let name = &agent.name;
    let mut found = Vec::new();
    let ms = agent.rtt_us as f64 / 1000.0;
    if agent.transport == Transport::Tls {
        found.push(Finding::note(format!(
            "{name} comes over TLS, since no UDP passes from {}: let UDP out there, players then wait less",
            agent.address.ip()
        )));
    } else {
        found.push(Finding::ok(format!(
            "{name} comes over UDP from {}, {ms:.1} ms away",
            agent.address
        )));
        if agent.payload_bytes < SMALL_BYTES {
            found.push(Finding::note(format!(
                "packets above {} bytes to {name} are lost on the way, and larger datagrams with them: is there a VPN, or an \
                 MTU too high? Set it to {} or lower at that end",
                agent.payload_bytes,
                u32::from(agent.payload_bytes) + 28
            )));
        }
        if agent.address != agent.came_from {
            found.push(Finding::note(format!(
                "{name} moved from {} to {} during the session: if its network did not change, raise its router's UDP timeout \
                 to 30 s or more",
                agent.came_from, agent.address
            )));
        }
    }
    let percent = agent.lost_packets as f64 * 100.0 / agent.sent_packets.max(1) as f64;
    if agent.sent_packets >= ENOUGH_PACKETS && percent >= LOSS {
        found.push(Finding::bad(format!(
            "{percent:.0}% of the packets to {name} are lost ({} of {}): a cable in place of Wi-Fi there, or \
             `tasuki tunnel enroll {name} --bandwidth` below the line's speed",
            agent.lost_packets, agent.sent_packets
        )));
    }
    for endpoint in &agent.endpoints {
        if let Some(problem) = &endpoint.problem {
            found.push(Finding::bad(format!("{name}, {}: {problem}", endpoint.label)));
        }
    }
    found
}

/// Whether the names that visitors type lead here. Without a name of its own the gateway cannot say what to publish.
async fn names(server: Option<SocketAddr>, host: &str, door: u16, kinds: Vec<EndpointKind>) -> Vec<Finding> {
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return vec![Finding::note(
            "set server.host to the gateway's public name: without it, nobody can be told which names to publish".into(),
        )];
    }
    let unusable = |problem: &str| {
        vec![Finding::bad(format!(
            "{host} cannot be looked up: {problem}; does this machine reach a DNS server?"
        ))]
    };
    let published = Published::new(server);
    let here = match published.addresses(host).await {
        Ok(here) => here,
        Err(problem) => return unusable(&problem),
    };
    let mut found = vec![match here.as_slice() {
        [] => Finding::bad(format!(
            "the gateway's own name {host} leads nowhere: publish `{host}. IN A ADDRESS` with its address (server.host)"
        )),
        here => Finding::ok(format!("{host} leads to {}", list(here))),
    }];
    let mut asked = Vec::new();
    for kind in kinds {
        let (name, port) = match kind {
            EndpointKind::Minecraft { name: Some(name) } => (name, Some(door)),
            EndpointKind::Https { name } | EndpointKind::Http { name } => (name, None),
            _ => continue,
        };
        if name.as_str() == host || asked.contains(&(name.clone(), port)) {
            continue;
        }
        asked.push((name, port));
    }
    let (known, wanted) = (found.len(), asked.len());
    let looks = asked.into_iter().map(|(name, port)| {
        let (published, here) = (&published, &here);
        async move {
            let leads = match port {
                Some(port) => published.game(name.as_str(), here, port).await,
                None => published.web(name.as_str(), here).await,
            };
            name_finding(name.as_str(), host, here, door, leads)
        }
    });
    let looks = stream::iter(looks).buffered(AT_ONCE);
    let mut looks = std::pin::pin!(looks.take_until(tokio::time::sleep(LOOK)));
    while let Some(finding) = looks.next().await {
        found.push(finding);
    }
    let left = wanted - (found.len() - known);
    if left > 0 {
        found.push(Finding::bad(format!(
            "the DNS answers too slowly: within {} s {left} names more could not be looked up",
            LOOK.as_secs()
        )));
    }
    found
}

fn name_finding(name: &str, host: &str, here: &[IpAddr], door: u16, leads: Leads) -> Finding {
    let record = format!("{name}. IN CNAME {host}.");
    let srv = format!("_minecraft._tcp.{name}. IN SRV 0 5 {door} {host}.");
    match leads {
        Leads::There => Finding::ok(format!("{name} leads here")),
        Leads::WithPort => Finding::note(format!(
            "{name} leads here, but players have to type the port {door}: publish `{srv}`"
        )),
        Leads::Nowhere => Finding::bad(format!("{name} leads nowhere: publish `{record}`")),
        Leads::Elsewhere(found) => Finding::bad(format!(
            "{name} leads to {}, the gateway is at {}: publish `{record}`",
            list(&found),
            list(here)
        )),
        Leads::BySrv { target, port } => Finding::bad(format!(
            "the SRV record of {name} sends players to {target}:{port}: publish `{srv}` in its place"
        )),
        Leads::Unknown(problem) => Finding::bad(format!(
            "{name} cannot be looked up: {problem}; does this machine reach a DNS server?"
        )),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_core::clock::Timestamp;
    use tasuki_core::ids::PrincipalId;

    fn agent() -> AgentLine {
        let from = SocketAddr::from(([192, 0, 2, 7], 5000));
        AgentLine {
            agent: PrincipalId(1),
            name: "home".into(),
            software: String::new(),
            since: Timestamp(0),
            address: from,
            transport: Transport::Quic,
            rtt_us: 9000,
            key: String::new(),
            came_from: from,
            payload_bytes: 1452,
            sent_packets: 1000,
            lost_packets: 1,
            connections: 0,
            sent_bytes: 0,
            received_bytes: 0,
            endpoints: Vec::new(),
        }
    }

    fn levels(found: &[Finding]) -> Vec<Level> {
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn each_fault_of_a_session_is_told_apart() {
        assert_eq!(levels(&session(&agent())), [Level::Ok]);
        let (mut small, mut lossy, mut moved, mut tls) = (agent(), agent(), agent(), agent());
        small.payload_bytes = 1280;
        lossy.lost_packets = 40;
        moved.address.set_port(6000);
        tls.transport = Transport::Tls;
        assert_eq!(levels(&session(&small)), [Level::Ok, Level::Note]);
        assert_eq!(levels(&session(&lossy)), [Level::Ok, Level::Bad]);
        assert_eq!(levels(&session(&moved)), [Level::Ok, Level::Note]);
        assert_eq!(levels(&session(&tls)), [Level::Note]);
        let public = SocketAddr::from(([0, 0, 0, 0], 7443));
        assert_eq!(levels(&door(public, &[agent(), tls.clone()])), [Level::Ok]);
        assert_eq!(levels(&door(public, &[tls])), [Level::Bad]);
        assert_eq!(levels(&door(public, &[])), [Level::Note]);
    }

    #[tokio::test]
    async fn without_a_public_name_the_gateway_says_to_set_it_and_nothing_of_records() {
        for host in ["[::]", "0.0.0.0", "192.0.2.1", "[2001:db8::1]"] {
            let kinds = vec![EndpointKind::Http {
                name: "map.test".parse().expect("a name"),
            }];
            let found = names(None, host, JAVA, kinds).await;
            assert_eq!(levels(&found), [Level::Note], "{host}");
            assert!(
                found
                    .iter()
                    .all(|finding| finding.text.contains("set server.host"))
            );
        }
    }

    #[test]
    fn a_kernel_that_gives_less_buffer_is_named_with_its_remedy() {
        assert!(socket_buffer(4 << 20, Some(8 << 20)).is_none());
        assert!(socket_buffer(4 << 20, None).is_none());
        let found = socket_buffer(4 << 20, Some(212_992));
        assert!(found.is_some_and(|found| found.text.contains("net.core.rmem_max=4194304")));
    }
}
