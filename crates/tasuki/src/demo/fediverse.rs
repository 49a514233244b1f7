//! The fediverse engine's proof: four instances join, one publishes, and what reaches the other three.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;
use url::Url;

use super::instances::{self, Instance, Relay, Style};
use super::programs::Gateway;
use super::report::{Parcel, Proof, Watch};
use super::show::Part;
use super::{ARRIVES_WITHIN, Stage, web};

impl Stage {
    pub(super) async fn fediverse(&self, gateway: &Gateway) -> (Proof, Vec<Arc<Instance>>) {
        let part = self.show.part("fediverse");
        let mut proof = Proof::default();
        let mut instances = Vec::new();
        let done = self
            .prove_fediverse(gateway, &part, &mut proof, &mut instances)
            .await;
        let proof = self.ended(&part, proof, done, "the note reached three instances");
        (proof, instances)
    }

    async fn prove_fediverse(
        &self,
        gateway: &Gateway,
        part: &Part,
        proof: &mut Proof,
        running: &mut Vec<Arc<Instance>>,
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        let base = format!("http://{}", gateway.address("front.http")?);
        let relay = Relay {
            inbox: Url::parse(&format!("{base}/inbox"))?,
            actor: Url::parse(&format!("{base}/actor"))?,
        };
        part.step("starting four instances: two like Mastodon, one like Misskey, one like LitePub");
        let mut inboxes = Vec::new();
        for (name, style) in [
            ("mastodon-1", Style::Mastodon),
            ("mastodon-2", Style::Mastodon),
            ("misskey", Style::Misskey),
            ("litepub", Style::LitePub),
        ] {
            let (instance, inbox) = Instance::start(name, style, &relay, &self.clock).await?;
            running.push(instance);
            inboxes.push(inbox);
        }
        watch.step(proof, "instances started");
        part.step("subscribing all four");
        let subscribing = running.iter().zip(&mut inboxes).map(|(instance, inbox)| async {
            timeout(ARRIVES_WITHIN, instance.subscribe(&relay, inbox))
                .await
                .context("no Accept within 15 s")?
                .with_context(|| format!("{} could not subscribe", instance.name))
        });
        futures_util::future::try_join_all(subscribing).await?;
        watch.step(proof, "four subscribed");
        part.step("publishing a note at mastodon-1");
        let publisher = running.first().context("no instance")?;
        let content = "<p>Hello from behind the relay. 襷をつなぐ。</p>";
        let (sent, note) = publisher.publish(&relay, content).await?;
        proof.sent = Some(Parcel::new(publisher.name, "activity", &sent));
        watch.step(proof, "accepted (committed)");
        part.step("waiting for it at the other three");
        let receiving = running.iter().zip(&mut inboxes).skip(1).map(|(instance, inbox)| {
            let (sent, note) = (&sent, note.as_str());
            async move {
                let arrival = timeout(ARRIVES_WITHIN, inbox.recv())
                    .await
                    .with_context(|| format!("nothing reached {} within 15 s", instance.name))?
                    .with_context(|| format!("{} has stopped", instance.name))?;
                received(instance, arrival, sent, note).await
            }
        });
        proof.received = futures_util::future::try_join_all(receiving).await?;
        watch.step(proof, "delivered to three");
        Ok(())
    }
}

/// Compares what an instance received with what was published. A forward is the same bytes; an Announce names the
/// object, which the instance then fetches from its origin.
async fn received(
    instance: &Instance,
    arrival: instances::Arrival,
    sent: &[u8],
    note: &str,
) -> Result<Parcel> {
    if arrival.activity["type"] == "Announce" {
        ensure!(
            arrival.activity["object"] == note,
            "{} was told of another object: {}",
            instance.name,
            arrival.activity["object"]
        );
        let fetched = web::get(&Url::parse(note)?).await?;
        let object: serde_json::Value = serde_json::from_slice(&fetched.body)?;
        ensure!(object["id"] == note, "the announced note has another id");
        return Ok(Parcel::new(
            instance.name,
            "announced, note fetched",
            &fetched.body,
        ));
    }
    ensure!(
        instance.style != Style::LitePub,
        "a LitePub instance takes only an Announce, and got {}",
        arrival.activity["type"]
    );
    ensure!(
        arrival.body == sent,
        "{} received other bytes than were published",
        instance.name
    );
    Ok(Parcel::new(instance.name, "forwarded activity", &arrival.body))
}
