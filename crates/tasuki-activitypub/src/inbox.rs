//! `POST /inbox`: from bytes to a decision, in this order: length, type, digest and signed time, JSON, who may, key,
//! signature, replay, and only then what it says.
//!
//! **Invariant:** the signer is the actor: `key.owner == activity.actor`, and the key comes from the actor's own host. What
//! somebody else brings is believed by the actor's own signature in the document ([`crate::carried`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use sha2::{Digest as _, Sha256};
use tasuki_core::EngineKind;
use tasuki_core::bans::{Offence, Standing};
use tasuki_core::budget::BudgetPermit;
use tasuki_core::pool::PoolError;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::BrakeMode;
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::cavage::{self, Candidate, SignatureError, SignedRequest};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::json::Limits;
use tasuki_proto::activitypub::topic::Topic;
use tasuki_proto::activitypub::{media, message_signature};

use crate::engine::Inner;
use crate::keys::{KeyError, KnownKey};
use crate::metrics::Outcome;
use crate::problem::Problem;
use crate::time::system_time;
use crate::trail::Judged;

/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(15);

/// Most of a refused body that is read and thrown away, and for how long: a sender that is cut off while it writes often
/// does not see the answer.
const MAX_DISCARDED_BYTES: usize = 4 << 20;
const DISCARD_DEADLINE: Duration = Duration::from_secs(2);
/// A sender that pauses this long reads what is said to it.
const DISCARD_PAUSE: Duration = Duration::from_millis(50);
const NO_INBOX: &str = "there is no such inbox here: paste it exactly as the relay's page shows it, in small letters and with % signs";
/// The longest that a slowed address waits.
const MAX_SLOWED: Duration = Duration::from_secs(5);

/// What the inbox says in the end.
pub(crate) type Answer = Result<Outcome, Problem>;

impl Inner {
    /// Takes one POST; counts its outcome.
    pub(crate) async fn receive(&self, request: Request<Body>, from: IpAddr) -> Result<StatusCode, Problem> {
        let mut note = Judged {
            at: self.deps.clock.wall(),
            from: from.to_string(),
            ..Judged::default()
        };
        let mut id = String::new();
        let answer = self.judge(request, from, &mut note, &mut id).await;
        (note.status, note.outcome, note.reason) = match &answer {
            Ok(outcome) => (202, outcome.as_str().to_owned(), outcome.in_words().to_owned()),
            Err(problem) => (
                problem.status.as_u16(),
                "refused".to_owned(),
                problem.detail.clone(),
            ),
        };
        if let Some(more) = self.trail.explanation(&id) {
            note.reason = format!("{}: {more}", note.reason);
        }
        self.trail.add(note);
        self.metrics.received(match &answer {
            Ok(outcome) => *outcome,
            Err(problem) => match problem.status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Outcome::Refused,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Outcome::PutOff,
                _ => Outcome::Malformed,
            },
        });
        match answer {
            Ok(outcome) => {
                tracing::debug!(peer.addr = %from, ?outcome, "an activity was taken");
                Ok(StatusCode::ACCEPTED)
            }
            Err(problem) => {
                tracing::debug!(peer.addr = %from, status = problem.status.as_u16(), error = %problem.detail, "an activity was refused");
                Err(problem)
            }
        }
    }

    /// `id` becomes the activity's id, also where the note must not have it.
    async fn judge(
        &self,
        request: Request<Body>,
        from: IpAddr,
        note: &mut Judged,
        id: &mut String,
    ) -> Answer {
        let Some(relay) = self.relay.as_ref() else {
            return Err(Problem::unavailable(
                "this relay has no public name yet: its operator has to set server.host",
            ));
        };
        // A Reject by an actor that is not served could not be verified, so a closed topic sends none.
        let topic = Topic::of_inbox_path(request.uri().path()).filter(|topic| self.serves(topic));
        let Some(topic) = topic else {
            discard(request.into_body()).await;
            return Err(Problem::not_found(NO_INBOX));
        };
        let relay = relay.at(&topic);
        match self.deps.bans.standing(EngineKind::Fediverse, from) {
            Standing::Clear => {}
            Standing::Slowed(wait) => tokio::time::sleep(wait.min(MAX_SLOWED)).await,
            Standing::Banned(_) => return Err(Problem::refused("this address is banned here for a time")),
        }
        let (parts, body) = request.into_parts();
        let (body, _permit) = self.read_body(&parts.headers, body).await?;
        let headers = flatten(
            &parts.headers,
            parts.uri.authority().map(http::uri::Authority::as_str),
        );
        let target = parts
            .uri
            .path_and_query()
            .map_or("/inbox", |target| target.as_str());
        let signed = SignedRequest {
            method: parts.method.as_str(),
            path_and_query: target,
            headers: &headers,
        };
        let now = system_time(self.deps.clock.wall());
        let candidate = match message_signature::is_used(&headers) {
            true => message_signature::check_post(&signed, &body, relay.origin(), relay.host(), now),
            false => cavage::check_post(&signed, &body, relay.host(), now),
        };
        note.signer = candidate.as_ref().ok().map(|found| found.key_id.to_string());
        let limits = Limits {
            bytes: body.len(),
            ..Limits::default()
        };
        // Read before the signature is judged only to say of what it was.
        let activity = Activity::read(&body, &limits);
        if let Ok(activity) = &activity {
            activity.id.as_str().clone_into(id);
            note.kind = Some(activity.kind.as_str().to_owned());
            note.actor = Some(activity.actor.to_string());
            // Who knows a Follow's id can speak for the relay at Mastodon and Misskey: it is kept nowhere but in the store.
            if !names_a_follow(activity) {
                note.id = Some(activity.id.to_string());
                let object = activity.object.as_ref().and_then(Object::id);
                note.object = object.map(ToString::to_string);
            }
        }
        let candidate = candidate.map_err(signature_problem)?;
        let activity = activity.map_err(|e| Problem::malformed(e.to_string()))?;
        self.take_signed(&relay, &activity, body, candidate, from).await
    }

    /// Reads the body within its limit, deadline and share of the process's budget.
    async fn read_body(&self, headers: &HeaderMap, body: Body) -> Result<(Bytes, BudgetPermit), Problem> {
        let limit = self.config.load().max_activity_size;
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u64>().ok());
        let refusal = match check_content_type(headers) {
            Err(problem) => Some(problem),
            Ok(()) if announced.is_some_and(|length| length > limit) => Some(Problem::too_large(limit)),
            Ok(()) => None,
        };
        if let Some(problem) = refusal {
            discard(body).await;
            return Err(problem);
        }
        // Without a length the whole limit is set aside until the body is here.
        let Some(mut permit) = self.deps.budget.try_take(announced.unwrap_or(limit)) else {
            discard(body).await;
            let wait = Duration::from_secs(5);
            return Err(Problem::overloaded("this relay has too much in memory", wait));
        };
        let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
        let collected = tokio::time::timeout(BODY_DEADLINE, limited.collect())
            .await
            .map_err(|_| Problem::too_slow())?
            .map_err(|e| match e.downcast_ref::<http_body_util::LengthLimitError>() {
                Some(_) => Problem::too_large(limit),
                None => Problem::malformed("the body ended before it was complete"),
            })?;
        let body = collected.to_bytes();
        permit.shrink(permit.bytes().saturating_sub(body.len() as u64));
        Ok((body, permit))
    }

    /// Who may, key, signature, replay; then what it says.
    async fn take_signed(
        &self,
        relay: &Relay,
        activity: &Activity,
        body: Bytes,
        candidate: Candidate,
        from: IpAddr,
    ) -> Answer {
        let brake = self.subscribers.orders().brake.as_ref().map(|brake| brake.mode);
        if brake == Some(BrakeMode::Refuse) && !names_a_follow(activity) {
            return Err(Problem::unavailable(
                "the operator of this relay has stopped it for a time: nothing is lost, come again",
            ));
        }
        let host = activity.actor.authority();
        let bringer = candidate.key_id.authority().clone();
        // Before any key is fetched: strangers cannot make the relay ask around for more than a Follow.
        if bringer != *host {
            self.may_bring(relay, activity, &bringer, from).await?;
        } else if let Some(outcome) = self.answer_without_proof(activity, from).await? {
            return Ok(outcome);
        }
        let known = match self.keys.find(&candidate.key_id, from).await {
            Ok(known) => known,
            Err(error) => return key_answer(activity, error),
        };
        let is_carried = known.owner != activity.actor;
        if is_carried && bringer == *host {
            self.may_bring(relay, activity, &bringer, from).await?;
        }
        self.verify(&candidate, known, from).await?;
        self.deps.bans.proved(from);
        let replay: [u8; 32] = Sha256::new()
            .chain_update(candidate.key_id.as_str())
            .chain_update(&candidate.signature)
            .finalize()
            .into();
        if self.replays.contains_key(&replay) {
            return Ok(Outcome::Duplicate);
        }
        self.is_heard(&bringer).await;
        let outcome = if is_carried {
            self.take_carried(relay, activity, body, &bringer, from).await?
        } else {
            self.act(relay, activity, body, from).await?
        };
        self.replays.insert(replay, ());
        Ok(outcome)
    }

    /// What needs no proof: a stranger's publication is refused, and a stranger's farewell is taken and forgotten, since its
    /// server would try again for days. A Follow is answered in its own form, also with a no.
    async fn answer_without_proof(
        &self,
        activity: &Activity,
        from: IpAddr,
    ) -> Result<Option<Outcome>, Problem> {
        let host = activity.actor.authority();
        let is_farewell = matches!(
            activity.kind,
            Kind::Undo | Kind::Accept | Kind::Reject | Kind::Delete
        );
        if activity.kind == Kind::Follow || (is_farewell && self.subscribers.table().host(host).is_some()) {
            return Ok(None);
        }
        match self.may_publish(host, from).await {
            Ok(()) => Ok(None),
            Err(problem) if is_farewell && problem.status == StatusCode::FORBIDDEN => {
                Ok(Some(Outcome::Dropped("unknown_signer")))
            }
            Err(problem) => Err(problem),
        }
    }

    async fn verify(&self, candidate: &Candidate, known: Arc<KnownKey>, from: IpAddr) -> Result<(), Problem> {
        if self.verifies(candidate, Arc::clone(&known)).await? {
            return Ok(());
        }
        // The key may have been changed since it was fetched.
        if let Ok(Some(fresh)) = self.keys.find_changed(&candidate.key_id, &known, from).await
            && fresh.owner == known.owner
            && self.verifies(candidate, fresh).await?
        {
            return Ok(());
        }
        self.deps
            .bans
            .offence(EngineKind::Fediverse, from, Offence::BadSignature);
        Err(Problem::unproven(
            "the HTTP signature does not verify with the actor's key",
        ))
    }

    async fn verifies(&self, candidate: &Candidate, known: Arc<KnownKey>) -> Result<bool, Problem> {
        if candidate.kind.is_some_and(|kind| kind != known.key.kind()) {
            return Ok(false);
        }
        let candidate = candidate.clone();
        self.compute(move || {
            candidate
                .signing_strings
                .iter()
                .any(|string| known.key.verifies(string.as_bytes(), &candidate.signature))
        })
        .await
    }

    /// Runs on the CPU pool what a sender makes us compute.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        self.deps.pool.try_run(job).await.map_err(|error| match error {
            PoolError::Full => Problem::overloaded(
                "this relay has too many signatures to verify",
                Duration::from_secs(5),
            ),
            PoolError::Lost => Problem::unavailable("the signature was not verified"),
        })
    }
}

/// Whether the id of a Follow is in it: its own, or the one that is taken back or answered.
fn names_a_follow(activity: &Activity) -> bool {
    match activity.kind {
        Kind::Follow | Kind::Accept | Kind::Reject => true,
        Kind::Undo => match &activity.object {
            Some(Object::Embedded(object)) => object.kind.as_deref() == Some("Follow"),
            // An id alone may be one.
            _ => true,
        },
        _ => false,
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .filter(|value| media::is_activity(value))
        .map(|_| ())
        .ok_or_else(Problem::content_type)
}

async fn discard(mut body: Body) {
    let read = async {
        let mut seen = 0;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DISCARD_PAUSE, body.frame()).await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MAX_DISCARDED_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_DEADLINE, read).await;
}

/// Headers as the signature sees them; several of one name are joined. HTTP/2 has the host in `:authority`.
fn flatten(headers: &HeaderMap, authority: Option<&str>) -> BTreeMap<String, String> {
    let mut flat: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let Ok(value) = value.to_str() else { continue };
        flat.entry(name.as_str().to_owned())
            .and_modify(|known| {
                known.push_str(", ");
                known.push_str(value.trim());
            })
            .or_insert_with(|| value.trim().to_owned());
    }
    if let (false, Some(authority)) = (flat.contains_key(HOST.as_str()), authority) {
        flat.insert(HOST.as_str().to_owned(), authority.to_owned());
    }
    flat
}

/// What cannot be read is malformed; what does not prove anything is unproven, so that a sender with several signature
/// schemes tries the next.
fn signature_problem(error: SignatureError) -> Problem {
    match error {
        SignatureError::Malformed(_)
        | SignatureError::KeyId(_)
        | SignatureError::Date
        | SignatureError::Digest
        | SignatureError::ContentDigest => Problem::malformed(error.to_string()),
        _ => Problem::unproven(error.to_string()),
    }
}

/// What a missing key means: nothing for a Delete of somebody who is gone, a refusal or another try for the rest.
pub(crate) fn key_answer(activity: &Activity, error: KeyError) -> Answer {
    // Senders of a Delete for an account that nobody here knows would try again for days (Mastodon, Akkoma do likewise).
    if activity.kind == Kind::Delete && !matches!(error, KeyError::Store(_) | KeyError::Limited(_)) {
        return Ok(Outcome::Dropped("gone"));
    }
    Err(match error {
        KeyError::Store(error) => store_problem(error),
        KeyError::Limited(wait) => {
            Problem::overloaded("this address makes the relay fetch too many keys", wait)
        }
        KeyError::Unreachable(_) => Problem::unavailable(
            "the actor's document cannot be fetched now: is it reachable from here, and does it answer signed requests?",
        ),
        KeyError::Gone => Problem::refused("the actor is gone"),
        KeyError::Refused(source) => {
            Problem::refused(format!("the actor's document cannot be fetched: {source}"))
        }
        error => Problem::refused(error.to_string()),
    })
}

/// Our own fault is never the sender's: it comes again.
pub(crate) fn store_problem(error: StoreError) -> Problem {
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "the store did not take an activity"
    );
    Problem::unavailable("this relay cannot store anything now")
}
