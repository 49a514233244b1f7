//! MTA-STS (RFC 8461): finds the policies of domains, and keeps them for as long as they hold.
//!
//! **Invariant:** a policy that was fetched holds until its `max_age` is over. That its record is gone, or that it can no
//! longer be fetched, is just what somebody in between would bring about (RFC 8461 3.3 and 10.2).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tasuki_core::{clock::Timestamp, store::tls::StsPolicy};
use tasuki_proto::{
    names::Domain,
    smtp::{
        mta_sts::{StsError, record_id},
        tlsrpt::ResultType,
    },
};

use super::{Trouble, fetch::fetch};
use crate::{config::Settings, context::Context};

/// How often a domain's record is looked at, and how long after a failure the policy is fetched again (RFC 8461 3.3).
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Most domains in memory; others are read from the store again.
const MAX_DOMAINS: usize = 10_000;

/// What is known of domains.
#[derive(Default)]
pub(crate) struct Sts(Mutex<HashMap<Domain, Arc<tokio::sync::Mutex<Known>>>>);

#[derive(Default)]
struct Known {
    policy: Option<Arc<StsPolicy>>,
    /// Why the policy that the domain's record tells of is not to be had.
    trouble: Option<Trouble>,
    next_look: Option<Instant>,
}

impl Sts {
    fn entry(&self, domain: &Domain) -> Arc<tokio::sync::Mutex<Known>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_DOMAINS && !all.contains_key(domain) {
            all.retain(|_, known| Arc::strong_count(known) > 1);
        }
        Arc::clone(all.entry(domain.clone()).or_default())
    }

    /// The policy that holds for mail to a domain, or what keeps us from having one. One lookup at a time for each domain;
    /// others wait for it.
    pub(crate) async fn find(
        context: &Context,
        settings: &Settings,
        domain: &Domain,
    ) -> (Option<Arc<StsPolicy>>, Option<Trouble>) {
        let entry = context.sts.entry(domain);
        let mut known = entry.lock().await;
        let now = context.deps.clock.now();
        if known.next_look.is_none_or(|at| at <= now) {
            look(context, settings, domain, &mut known).await;
            known.next_look = Some(context.deps.clock.now() + LOOK_EVERY);
        }
        let wall = context.deps.clock.wall();
        known.policy.take_if(|policy| policy.expires <= wall);
        // A policy that was fetched holds, whatever is wrong with its publication now.
        let trouble = known.trouble.clone().filter(|_| known.policy.is_none());
        (known.policy.clone(), trouble)
    }
}

async fn look(context: &Context, settings: &Settings, domain: &Domain, known: &mut Known) {
    let (store, wall) = (&context.deps.store, context.deps.clock.wall());
    if known.policy.is_none() {
        match store.sts_policy(domain).await {
            Ok(stored) => known.policy = stored.map(Arc::new),
            Err(error) => tracing::warn!(%error, "stored MTA-STS policies cannot be read"),
        }
    }
    known.policy.take_if(|policy| policy.expires <= wall);
    known.trouble = None;
    let texts = match context
        .resolver
        .txt(&format!("_mta-sts.{}", domain.as_str()))
        .await
    {
        Ok(texts) => texts,
        Err(error) => return tracing::debug!(%error, "no answer about MTA-STS"),
    };
    let id = match record_id(&texts) {
        Ok(id) => id,
        Err(StsError::Records(0)) => return,
        Err(error) => {
            known.trouble = Some(Trouble::new(ResultType::StsPolicyInvalid, &error.to_string()));
            return tracing::debug!(domain = domain.as_str(), %error, "the MTA-STS record does not count");
        }
    };
    if known
        .policy
        .as_ref()
        .is_some_and(|policy| is_current(policy, &id, wall))
    {
        return;
    }
    match fetch(context, settings, domain).await {
        Ok(policy) => {
            let expires = wall.plus(policy.max_age);
            let policy = StsPolicy { id, policy, expires };
            if let Err(error) = store.keep_sts_policy(domain, policy.clone(), wall).await {
                tracing::warn!(%error, "an MTA-STS policy cannot be stored, it holds until the next start");
            }
            known.policy = Some(Arc::new(policy));
        }
        Err(error) => {
            tracing::info!(domain = domain.as_str(), %error, "the MTA-STS policy cannot be fetched");
            known.trouble = Some(Trouble::new(error.result(), &error.to_string()));
        }
    }
}

/// Whether it need not be fetched again: it is the published one, and not yet in the second half of its time.
fn is_current(known: &StsPolicy, id: &str, now: Timestamp) -> bool {
    known.id == id && now.plus(known.policy.max_age / 2) <= known.expires
}
