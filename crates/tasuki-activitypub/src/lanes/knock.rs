//! One delivery under the signature that its host takes: where to begin, what to try after a refusal, what to remember.

use tasuki_core::failure::Failure;
use tasuki_core::store::fedi::LearntSignature;
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::software::knows_only_the_draft;

use super::lane::{Common, Lane};
use super::log::{Letter, Payload};
use super::send::Target;
use super::style::{self, SignatureUse, Style};
use crate::signer::KeyChoice;

/// Sends for the actor `relay` under the signature that the host is known to take, and under others while it refuses the signature.
pub(super) async fn knock(
    lane: &Lane,
    common: &Common,
    relay: &Relay,
    (target, payload): (&Target, &Payload),
    letter: Letter,
) -> Result<(), Failure> {
    let signer = common.sender.signer();
    let key_id = relay.key_id().into();
    let first = lane.style(common, letter);
    let mut tried = vec![first];
    let mut sent = common.sender.send(target, payload, first, &key_id).await;
    let mut refusal = None;
    while let Some(reply) = sent.refused_signature() {
        refusal.get_or_insert_with(|| reply.text.clone());
        let asks = sent.told.asks_for_message || lane.may_try_message(common, reply.code, &tried);
        let Some(way) = style::next(&tried, asks, signer.previous_until().is_some()) else {
            break;
        };
        tried.push(way);
        sent = common.sender.send(target, payload, way, &key_id).await;
    }
    if sent.is_answered() {
        lane.answered(common.clock.wall(), sent.told.skew_s);
    }
    if let (Some(taken), Ok(())) = (tried.last(), &sent.result) {
        let knows = match letter {
            // The new key is in the letter itself.
            Letter::KeyNews => KeyChoice::Current,
            _ => taken.key,
        };
        lane.known.took(signer.serial(knows));
        if let (Some(answer), Some(learnt)) = (&refusal, taken.signature.learnt_after(first.signature)) {
            lane.note_signature(common, learnt, answer).await;
        }
    }
    sent.result
}

impl Lane {
    /// How to begin.
    fn style(&self, common: &Common, letter: Letter) -> Style {
        let signer = common.sender.signer();
        let subscribers = &common.subscribers;
        let table = subscribers.table();
        let subscriber = self.authority.as_ref().and_then(|host| table.host(host));
        let config = common.config.load_full();
        let takes_shared = letter == Letter::Public
            && config.shared_signatures
            && subscribers.receivers(&config).shared.contains(self.number.0);
        let learnt = subscriber.and_then(|subscriber| subscriber.learnt_signature);
        let previous = signer
            .previous_until()
            .map(|_| signer.serial(KeyChoice::Previous));
        Style {
            signature: SignatureUse::of(learnt, takes_shared),
            key: match letter {
                // By the key that the host knows already.
                Letter::KeyNews => KeyChoice::Previous,
                _ => self.known.key(signer.serial(KeyChoice::Current), previous),
            },
        }
    }

    /// Whether RFC 9421 is worth a try although the host did not ask for it: it refuses what it got, and its software is not
    /// known to read nothing else.
    fn may_try_message(&self, common: &Common, status: u16, tried: &[Style]) -> bool {
        let is_tried = tried.iter().any(|way| way.signature == SignatureUse::Rfc9421);
        if status != 401 || is_tried {
            return is_tried;
        }
        let table = common.subscribers.table();
        let subscriber = self.authority.as_ref().and_then(|host| table.host(host));
        let software = subscriber.and_then(|subscriber| subscriber.software.as_deref());
        !software.is_none_or(knows_only_the_draft) && self.known.may_knock(common.clock.wall())
    }

    async fn note_signature(&self, common: &Common, learnt: Option<LearntSignature>, answer: &str) {
        tracing::info!(actor.host = %self.host, ?learnt, %answer, "a host takes another signature than it was sent");
        let noted = common.store.note_signature(self.number, learnt, answer).await;
        if let Err(error) = match noted {
            Ok(()) => common.subscribers.refresh().await.map(drop),
            Err(error) => Err(error),
        } {
            tracing::debug!(actor.host = %self.host, error = %error, "the signature that a host takes was not noted");
        }
    }
}
