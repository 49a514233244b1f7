//! Filters as they are asked for and set, with a line in the audit.

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{FilterBy, HostFilter, KeptFilter};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_proto::activitypub::ids::Authority;

use super::text::{in_words, read};
use crate::engine::Inner;
use crate::handle::{Handle, HandleError};

/// A host's filter, for the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilterStatus {
    /// The host.
    pub host: String,
    /// What it leaves out.
    pub filter: HostFilter,
    /// The same in words.
    pub in_words: String,
    /// Who set it.
    pub by: FilterBy,
    /// When.
    pub at: Timestamp,
}

impl From<&KeptFilter> for FilterStatus {
    fn from(kept: &KeptFilter) -> Self {
        Self {
            host: kept.host.clone(),
            in_words: in_words(&kept.filter),
            filter: kept.filter.clone(),
            by: kept.by,
            at: kept.at,
        }
    }
}

impl Inner {
    /// Sets a host's filter, or takes it away.
    pub(crate) async fn set_filter(
        &self,
        host: &Authority,
        filter: Option<HostFilter>,
        by: FilterBy,
        (who, from): (&str, &str),
    ) -> Result<Option<KeptFilter>, HandleError> {
        let filter = filter
            .map(read)
            .transpose()?
            .filter(|filter| *filter != HostFilter::default());
        let kept = filter.map(|filter| KeptFilter {
            host: host.to_string(),
            filter,
            by,
            at: self.deps.clock.wall(),
        });
        let detail = kept
            .as_ref()
            .map_or_else(|| "none".to_owned(), |kept| in_words(&kept.filter));
        let audit = AuditEntry {
            at: self.deps.clock.wall(),
            who: who.to_owned(),
            from: from.to_owned(),
            action: "fedi.filter".to_owned(),
            object: host.to_string(),
            detail: detail.chars().take(500).collect(),
        };
        self.store
            .set_filter(host.as_str(), kept.clone(), Some(audit))
            .await?;
        self.subscribers.refresh().await?;
        Ok(kept)
    }
}

impl Handle {
    /// All filters, or that of one host.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn filters(&self, host: Option<&str>) -> Result<Vec<FilterStatus>, HandleError> {
        let host = host.map(Authority::parse).transpose();
        let host = host.map_err(|_| HandleError::NotAHost("that".to_owned()))?;
        let kept = self.inner.store.filters().await?;
        let wanted = |one: &&KeptFilter| host.as_ref().is_none_or(|host| host.as_str() == one.host);
        Ok(kept.iter().filter(wanted).map(FilterStatus::from).collect())
    }

    /// Sets the filter of a subscriber; `None` takes it away. One that the instance set itself is replaced.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn set_filter(
        &self,
        host: &str,
        filter: Option<HostFilter>,
        (who, from): (&str, &str),
    ) -> Result<Option<FilterStatus>, HandleError> {
        let authority =
            Authority::parse(host).map_err(|_| HandleError::NotAHost(host.chars().take(100).collect()))?;
        self.inner.subscribers.refresh().await?;
        let is_known = self.inner.subscribers.table().host(&authority).is_some();
        if filter.is_some() && !is_known {
            return Err(HandleError::NotSubscribed(authority.to_string()));
        }
        let is_taken_away = filter.is_none();
        let set = self
            .inner
            .set_filter(&authority, filter, FilterBy::Operator, (who, from))
            .await;
        match set {
            Err(HandleError::Store(StoreError::NotFound(_))) if is_taken_away => {
                Err(HandleError::NoFilter(authority.to_string()))
            }
            // One of nothing, in place of none.
            Err(HandleError::Store(StoreError::NotFound(_))) => Ok(None),
            other => Ok(other?.as_ref().map(FilterStatus::from)),
        }
    }
}
