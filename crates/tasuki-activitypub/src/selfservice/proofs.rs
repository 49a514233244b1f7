//! Whether somebody speaks for an instance: by a post of an account that it names as its own, or in DNS.

use tasuki_core::store::fedi::HostFilter;
use tasuki_proto::activitypub::ids::{Authority, ObjectId};

use super::page::{Own, dns_name};
use super::token::Challenge;
use super::words::Words;
use crate::engine::Inner;
use crate::keys::KeyError;

impl Inner {
    pub(super) fn subscribed(&self, host: &Authority) -> bool {
        self.subscribers.table().host(host).is_some()
    }

    /// What a host sees of itself when it has proven itself.
    pub(super) fn own(&self, host: &Authority) -> Own {
        let moderation = self.subscribers.moderation();
        Own {
            filter: self.subscribed(host).then(|| self.filter_of(host)),
            opted_out: moderation.opt_out(host).map(|rule| rule.subject.clone()),
        }
    }

    fn filter_of(&self, host: &Authority) -> HostFilter {
        let filters = self.subscribers.filters();
        filters
            .host(host)
            .map(|kept| kept.filter.clone())
            .unwrap_or_default()
    }

    pub(super) async fn proven_in_dns(&self, challenge: &Challenge) -> Result<(), Words> {
        let name = dns_name(&challenge.host);
        match self.txt.has(&name, &challenge.token).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Words::NO_RECORD),
            Err(why) => Err(Words::because(why)),
        }
    }

    /// The post must be by an account that the instance names as its contact or staff: anybody may open an account at many
    /// instances, and only the instance's own people may speak for it.
    pub(super) async fn proven_by_post(&self, challenge: &Challenge, post: &str) -> Result<(), Words> {
        let id = ObjectId::parse(post).map_err(|error| Words::because(error.to_string()))?;
        if *id.authority() != challenge.host {
            return Err(Words::OTHER_HOST);
        }
        let failed = |error: KeyError| Words::because(error.to_string());
        let (post, words) = self.keys.post_at(&id).await.map_err(failed)?;
        if post.id.authority() != &challenge.host {
            return Err(Words::OTHER_HOST);
        }
        if !words.text.contains(&challenge.token) {
            return Err(Words::NO_TOKEN);
        }
        let author = self.keys.actor(&post.attributed_to).await.map_err(failed)?;
        if author.id.authority() != &challenge.host {
            return Err(Words::OTHER_HOST);
        }
        let staff = self.staff_of(&author.id).await;
        match staff.names(&author) {
            true => Ok(()),
            false => Err(Words::NOT_STAFF),
        }
    }
}
