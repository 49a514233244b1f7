//! How much an author and a host may publish, and whether the author wants to be relayed at all.
//!
//! Deletes, and what takes something back, are never held up.

use std::net::IpAddr;
use std::time::Duration;

use tasuki_core::EngineKind;
use tasuki_core::limits::{Rate, Who};
use tasuki_core::store::fedi::ModerationEffect;
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::ids::{ActorId, Authority, ObjectId};

use crate::engine::Inner;
use crate::metrics::Outcome;
use crate::problem::Problem;
use crate::time::system_time;

/// Accounts and hosts younger than this are held to lower limits: a farm of accounts is made in a day.
const NEW: Duration = Duration::from_secs(7 * 86_400);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl Inner {
    /// Whether `author` may tell something more now; a reason to drop it, or to put it off.
    pub(crate) async fn author_may(
        &self,
        activity: &Activity,
        author: &ActorId,
        from: IpAddr,
    ) -> Result<Option<Outcome>, Problem> {
        let own = activity.object.as_ref().and_then(Object::id);
        if activity.kind == Kind::Update && own.is_some_and(|id| id.as_str() == author.as_str()) {
            self.keys.forget_author(author);
        }
        if !matches!(activity.kind, Kind::Delete | Kind::Undo) {
            let moderation = self.subscribers.moderation();
            let hosts = [Some(author.authority()), own.map(ObjectId::authority)];
            if hosts
                .into_iter()
                .flatten()
                .any(|host| moderation.opt_out(host).is_some())
            {
                return Ok(Some(Outcome::Dropped("domain_opted_out")));
            }
            // Of a boosted post nothing is known here but its host.
            let boosted = own.filter(|_| activity.kind == Kind::Announce);
            let rule = boosted.and_then(|id| moderation.host(id.authority()));
            if rule.is_some_and(|rule| rule.effect == ModerationEffect::Block) {
                return Ok(Some(Outcome::Dropped("boosts_blocked")));
            }
        }
        if !matches!(activity.kind, Kind::Create | Kind::Update | Kind::Announce) {
            return Ok(None);
        }
        let config = self.config.load_full();
        let facts = self.keys.author(author, from).await;
        if let Some(facts) = facts
            && facts.wants_no_relay(config.honor_indexable)
        {
            return Ok(Some(Outcome::Dropped("opted_out")));
        }
        let now = self.deps.clock.wall();
        let born = facts.and_then(|facts| facts.born);
        let is_new = born.is_some_and(|at| system_time(now).duration_since(at).is_ok_and(|age| age < NEW));
        let per_hour = if is_new {
            config.new_author_per_hour
        } else {
            config.author_per_hour
        };
        let who = Who::Domain(author.as_str().to_owned());
        self.take("author_posts", who, per_hour, HOUR, "this account")?;
        let host = author.authority();
        let per_minute = if self.is_new_host(host) {
            config.new_host_per_minute
        } else {
            config.host_per_minute
        };
        let who = Who::Domain(host.to_string());
        self.take("host_posts", who, per_minute, MINUTE, "this instance")?;
        Ok(None)
    }

    fn is_new_host(&self, host: &Authority) -> bool {
        let now = self.deps.clock.wall();
        let table = self.subscribers.table();
        table.host(host).is_some_and(|one| now.since(one.since) < NEW)
    }

    fn take(
        &self,
        what: &'static str,
        who: Who,
        per_period: u32,
        period: Duration,
        whose: &str,
    ) -> Result<(), Problem> {
        if per_period == 0 {
            return Ok(());
        }
        let rate = Rate {
            // A conversation comes in bursts.
            burst: (per_period / 3).max(1),
            per_period,
            period,
        };
        let taken = self.deps.limits.take(EngineKind::Fediverse, what, who, rate);
        taken.map_err(|wait| {
            Problem::overloaded(format!("{whose} publishes too much at once: come again"), wait)
        })
    }
}
