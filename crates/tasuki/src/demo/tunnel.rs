//! The tunnel engine's proof: a server behind an agent, and what a player sees of it at the front door.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::time::timeout;

use super::programs::{Gateway, Running};
use super::report::{self, Parcel, Proof, Watch, rounded};
use super::show::Part;
use super::{ARRIVES_WITHIN, Stage, minecraft};

impl Stage {
    pub(super) async fn tunnel(&self, gateway: &Gateway) -> Proof {
        let part = self.show.part("tunnel");
        let mut proof = Proof::default();
        let mut agent = None;
        let done = self.prove_tunnel(gateway, &part, &mut proof, &mut agent).await;
        let words = match (&done, &agent) {
            (Err(_), Some(agent)) => agent.last_words(),
            _ => String::new(),
        };
        let done = done.map_err(|e| {
            if words.is_empty() {
                e
            } else {
                anyhow::anyhow!("{e:#}{words}")
            }
        });
        self.ended(&part, proof, done, "the server at home answers at the front door")
    }

    async fn prove_tunnel(
        &self,
        gateway: &Gateway,
        part: &Part,
        proof: &mut Proof,
        agent: &mut Option<Running>,
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        let status = json!({
            "version": {"name": "Tasuki demo", "protocol": 767},
            "players": {"max": 20, "online": 3},
            "description": {"text": format!("Home server {}", self.clock.wall())},
        })
        .to_string();
        let home = minecraft::server(status.clone()).await?;
        proof.sent = Some(Parcel::new("server at home", "status", status.as_bytes()));
        part.step("enrolling the agent `home`");
        let enrolled = gateway
            .command(&["tunnel", "enroll", "home", "--default", "--json"])
            .await?;
        watch.step(proof, "code made");
        let arguments = agent_arguments(gateway, &enrolled, home)?;
        *agent = Some(gateway.agent(&arguments)?);
        part.step("waiting until the agent has dialled out");
        let door = gateway.address("tunnel.minecraft")?;
        let ping = timeout(ARRIVES_WITHIN, async {
            loop {
                // Until the agent is there, the gateway answers with a page of its own.
                match minecraft::ping(&self.clock, door, "mc.demo.test").await {
                    Ok(ping) if ping.status == status.as_bytes() => return ping,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
        .context("the server behind the agent did not answer at the front door within 15 s")?;
        watch.step(proof, "agent up, status through the tunnel");
        proof.received.push(Parcel::new("player", "status", &ping.status));
        proof.steps.push(report::Step {
            name: "ping and pong",
            seconds: rounded(ping.round_trip),
        });
        Ok(())
    }
}

/// What `tasuki-agent` is started with for this server at home.
fn agent_arguments(
    gateway: &Gateway,
    enrolled: &serde_json::Value,
    home: std::net::SocketAddr,
) -> Result<Vec<String>> {
    let text = |key: &str| {
        enrolled[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("`tunnel enroll` printed no {key}"))
    };
    let mut arguments = vec!["run".to_owned()];
    for (option, value) in [
        ("--gateway", gateway.address("tunnel.quic")?.to_string()),
        ("--pin", text("pin")?),
        ("--code", text("code")?),
        ("--minecraft", home.to_string()),
        ("--dir", "agent".to_owned()),
    ] {
        arguments.push(option.to_owned());
        arguments.push(value);
    }
    Ok(arguments)
}
