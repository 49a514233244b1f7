//! What to tell friends, and what to write where: the addresses of an agent's endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::accounts::PrincipalKind;
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::names::Domain;

use super::Admin;
use super::engines::switched_off;
use super::problem::Answer;

/// The port that Minecraft clients take when none is typed.
const JAVA: u16 = 25565;

pub(super) async fn agent(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Answer<Json<Value>> {
    let agent = admin.of_kind(&name, PrincipalKind::Agent).await?;
    let tunnel = admin.engines.tunnel.as_ref();
    let tunnel = tunnel.ok_or_else(|| switched_off(EngineKind::Tunnel))?;
    let (host, minecraft) = tunnel.doors();
    let mut endpoints = admin.store.endpoints().await?;
    endpoints.retain(|endpoint| endpoint.agent == agent.id);
    endpoints.sort_by(|a, b| a.label.cmp(&b.label));
    let shown: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| match &endpoint.kind {
            EndpointKind::Minecraft { name } => {
                let name = name.as_ref().map(ToString::to_string);
                java(&endpoint.label, name, &host, minecraft)
            }
            EndpointKind::Tcp { port } => json!({
                "label": endpoint.label, "kind": "tcp", "address": format!("{host}:{port}"),
            }),
            EndpointKind::Udp { port } => udp(&endpoint.label, &host, *port),
            EndpointKind::Https { name } => web(
                &endpoint.label,
                "https",
                name,
                &host,
                tunnel.web_url(&endpoint.kind),
            ),
            EndpointKind::Http { name } => web(
                &endpoint.label,
                "http",
                name,
                &host,
                tunnel.web_url(&endpoint.kind),
            ),
        })
        .collect();
    Ok(Json(json!({
        "name": agent.name,
        "connected": tunnel.is_connected(agent.id),
        "endpoints": shown,
    })))
}

/// A Java edition server: the address to type, and the DNS that the name needs.
fn java(label: &str, name: Option<String>, host: &str, port: Option<u16>) -> Value {
    let port = port.unwrap_or(JAVA);
    let typed = name.clone().unwrap_or_else(|| host.to_owned());
    let mut shown = json!({"label": label, "kind": "minecraft"});
    // With an SRV record nobody has to type the port.
    let srv = name
        .as_ref()
        .map(|name| format!("_minecraft._tcp.{name}. 3600 IN SRV 0 5 {port} {host}."));
    shown["java"] = match port {
        JAVA => json!(typed),
        port => json!(format!("{typed}:{port}")),
    };
    shown["dns"] = json!(
        name.filter(|name| name != host)
            .map(|name| format!("{name}. 3600 IN CNAME {host}."))
    );
    shown["srv"] = json!(srv.filter(|_| port != JAVA));
    shown
}

/// A web server: the address to type, and the DNS that the name needs.
fn web(label: &str, kind: &str, name: &Domain, host: &str, url: Option<String>) -> Value {
    json!({
        "label": label,
        "kind": kind,
        "address": url,
        "dns": (name.as_str() != host).then(|| format!("{name}. 3600 IN CNAME {host}.")),
    })
}

/// A UDP port: what a Bedrock player types, what Geyser and Simple Voice Chat have to be told.
fn udp(label: &str, host: &str, port: u16) -> Value {
    json!({
        "label": label,
        "kind": "udp",
        "address": format!("{host}:{port}"),
        "bedrock": {"address": host, "port": port},
        // GeyserMC/Geyser, AdvancedConfig: `advanced.bedrock`; before its configuration of 2025 it stood in `bedrock`.
        "geyser": {"broadcast-port": port},
        "voice_host": format!("{host}:{port}"),
    })
}

#[cfg(test)]
mod tests {
    use super::{java, udp};

    #[test]
    fn a_name_needs_dns_and_another_port_an_srv_record() {
        let shown = java("mc", Some("mc.test".into()), "relay.test", Some(25565));
        assert_eq!(shown["java"], "mc.test");
        assert_eq!(shown["dns"], "mc.test. 3600 IN CNAME relay.test.");
        assert!(shown["srv"].is_null());
        let shown = java("mc", Some("mc.test".into()), "relay.test", Some(4711));
        assert_eq!(shown["java"], "mc.test:4711");
        assert_eq!(
            shown["srv"],
            "_minecraft._tcp.mc.test. 3600 IN SRV 0 5 4711 relay.test."
        );
        let shown = java("mc", None, "relay.test", Some(25565));
        assert_eq!(shown["java"], "relay.test");
        assert!(shown["dns"].is_null());
    }

    #[test]
    fn a_udp_port_is_told_to_bedrock_players_geyser_and_voice_chat() {
        let shown = udp("bedrock", "relay.test", 19132);
        assert_eq!(shown["bedrock"]["port"], 19132);
        assert_eq!(shown["geyser"]["broadcast-port"], 19132);
        assert_eq!(shown["voice_host"], "relay.test:19132");
    }
}
