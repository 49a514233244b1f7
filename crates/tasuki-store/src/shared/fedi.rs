//! The fediverse: subscriptions, keys, and the verbs on the [`super::log`] of activities.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{Epoch, HostNo, LogSeq, NodeId};
use tasuki_core::store::fedi::{
    ActorKey, Appended, Brake, CutReport, DeliveryForm, Entry, HostFacts, HostLife, HostProgress, KeptFilter,
    LearntSignature, ModerationKind, ModerationRule, NewEntry, NewSubscription, Orders, Progress, Pruned,
    Standstill, Subscription, TopicList,
};
use tasuki_core::store::{AuditEntry, FediStore, StoreError, StoreResult};
use tokio::sync::watch;

use super::{Conn, Db, DbRow, audit, filters, joins, log, moderation, progress, topics};
use crate::error::store_error;
use crate::words::{from_word, word};

/// What [`audit::bump`] raises with every change of subscriptions or hosts.
pub(super) const VERSION: &str = "subscriptions";
pub(super) const SUBSCRIPTION_COLUMNS: &str = "host, host_no, topic, actor, inbox, style, state, follow_id, software, \
                                               since, chosen_form, refused_forward, learnt_signature, \
                                               signature_answer, looked_at, failing_since, suspended_at";

fn host_no_of(no: i64) -> StoreResult<HostNo> {
    u32::try_from(no)
        .map(HostNo)
        .map_err(|_| StoreError::Damaged(format!("host number {no}")))
}

pub(super) fn subscription_of(row: &DbRow) -> StoreResult<Subscription> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    let time = |column| {
        let at: Result<Option<i64>, _> = row.try_get(column);
        at.map(|at| at.map(Timestamp)).map_err(store_error)
    };
    Ok(Subscription {
        host: text("host")?,
        topic: text("topic")?,
        host_no: host_no_of(row.try_get("host_no").map_err(store_error)?)?,
        actor: text("actor")?,
        inbox: text("inbox")?,
        style: from_word(&text("style")?)?,
        state: from_word(&text("state")?)?,
        follow_id: text("follow_id")?,
        software: row.try_get("software").map_err(store_error)?,
        since: Timestamp(row.try_get("since").map_err(store_error)?),
        chosen_form: row
            .try_get::<Option<String>, _>("chosen_form")
            .map_err(store_error)?
            .map(|text| from_word(&text))
            .transpose()?,
        refused_forward: row.try_get("refused_forward").map_err(store_error)?,
        learnt_signature: row
            .try_get::<Option<String>, _>("learnt_signature")
            .map_err(store_error)?
            .map(|text| from_word(&text))
            .transpose()?,
        signature_answer: row.try_get("signature_answer").map_err(store_error)?,
        looked_at: time("looked_at")?,
        failing_since: time("failing_since")?,
        suspended_at: time("suspended_at")?,
    })
}

/// The host's number, made if new. Numbers are never used again: hosts are not removed.
pub(super) async fn number_host(conn: &mut Conn, host: &str, inbox: &str) -> StoreResult<HostNo> {
    let no: i64 = sqlx::query_scalar(
        "INSERT INTO hosts (host, inbox) VALUES ($1, $2)
         ON CONFLICT (host) DO UPDATE SET inbox = excluded.inbox RETURNING no",
    )
    .bind(host)
    .bind(inbox)
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    host_no_of(no)
}

async fn note_facts(conn: &mut Conn, host: &str, facts: &HostFacts) -> StoreResult<()> {
    let known = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {SUBSCRIPTION_COLUMNS} FROM subscriptions WHERE host = $1"
    )))
    .bind(host)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let Some(known) = known.as_ref().map(subscription_of).transpose()? else {
        return Ok(());
    };
    let software = facts.software.as_ref().or(known.software.as_ref());
    let is_other = software != known.software.as_ref();
    // A host may ask for another signature before anybody knows what it runs.
    let is_changed = is_other && known.software.is_some();
    let inbox = facts.inbox.as_ref().unwrap_or(&known.inbox);
    sqlx::query(
        "UPDATE subscriptions SET inbox = $2, software = $3, refused_forward = $4, looked_at = $5,
             learnt_signature = $6, signature_answer = $7 WHERE host = $1",
    )
    .bind(host)
    .bind(inbox)
    .bind(software)
    .bind(known.refused_forward.filter(|_| !is_other))
    .bind(facts.at.0)
    .bind(
        known
            .learnt_signature
            .filter(|_| !is_changed)
            .map(|learnt| word(&learnt)),
    )
    .bind(known.signature_answer.filter(|_| !is_changed))
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    if *inbox != known.inbox {
        number_host(conn, host, inbox).await?;
    }
    // The first look says something too: a host without NodeInfo is sent another form.
    if is_other || *inbox != known.inbox || known.looked_at.is_none() {
        audit::bump(conn, VERSION).await?;
    }
    Ok(())
}

async fn choose_form(conn: &mut Conn, host: &str, form: Option<DeliveryForm>) -> StoreResult<()> {
    let changed =
        sqlx::query("UPDATE subscriptions SET chosen_form = $2, refused_forward = NULL WHERE host = $1")
            .bind(host)
            .bind(form.map(|form| word(&form)))
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    if changed.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("a subscription of {host}")));
    }
    if form.is_none() {
        sqlx::query(
            "UPDATE subscriptions SET learnt_signature = NULL, signature_answer = NULL WHERE host = $1",
        )
        .bind(host)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    }
    audit::bump(conn, VERSION).await
}

async fn note_refused_forward(conn: &mut Conn, host: HostNo, answer: &str) -> StoreResult<()> {
    sqlx::query("UPDATE subscriptions SET refused_forward = $2 WHERE host_no = $1")
        .bind(i64::from(host.0))
        .bind(answer)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    audit::bump(conn, VERSION).await
}

async fn note_signature(
    conn: &mut Conn,
    host: HostNo,
    learnt: Option<LearntSignature>,
    answer: &str,
) -> StoreResult<()> {
    sqlx::query("UPDATE subscriptions SET learnt_signature = $2, signature_answer = $3 WHERE host_no = $1")
        .bind(i64::from(host.0))
        .bind(learnt.map(|learnt| word(&learnt)))
        .bind(learnt.map(|_| answer))
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    audit::bump(conn, VERSION).await
}

async fn append_to_one(conn: &mut Conn, mut entry: NewEntry, host: HostNo) -> StoreResult<()> {
    entry.audience.clear();
    entry.audience.insert(host.0);
    for (_, hosts) in &mut entry.via {
        *hosts = entry.audience.clone();
    }
    log::append(conn, &entry).await.map(drop)
}

fn key_of(row: &DbRow) -> Result<ActorKey, sqlx::Error> {
    Ok(ActorKey {
        key_id: row.try_get("key_id")?,
        owner: row.try_get("owner")?,
        pem: row.try_get("pem")?,
        inbox: row.try_get("inbox")?,
        fetched_at: Timestamp(row.try_get("fetched_at")?),
    })
}

async fn remember(conn: &mut Conn, key: &ActorKey) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO actor_keys (key_id, owner, pem, inbox, fetched_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (key_id) DO UPDATE SET owner = excluded.owner, pem = excluded.pem, inbox = excluded.inbox,
             fetched_at = excluded.fetched_at",
    )
    .bind(&key.key_id)
    .bind(&key.owner)
    .bind(&key.pem)
    .bind(&key.inbox)
    .bind(key.fetched_at.0)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

#[async_trait]
impl FediStore for Db {
    async fn subscribe(
        &self,
        new: NewSubscription,
        answers: Vec<NewEntry>,
        entry: Option<AuditEntry>,
    ) -> StoreResult<Subscription> {
        self.require_space()?;
        self.change_fedi(move |conn| {
            Box::pin(async move {
                let subscription = joins::subscribe(conn, &new).await?;
                for answer in answers {
                    append_to_one(conn, answer, subscription.host_no).await?;
                }
                if let Some(entry) = &entry {
                    audit::append(conn, entry).await?;
                }
                Ok(subscription)
            })
        })
        .await
    }

    async fn unsubscribe(
        &self,
        host: &str,
        topic: &str,
        farewell: Option<NewEntry>,
        entry: Option<AuditEntry>,
    ) -> StoreResult<Subscription> {
        let (host, topic) = (host.to_owned(), topic.to_owned());
        self.change_fedi(move |conn| {
            Box::pin(async move {
                let subscription = joins::unsubscribe(conn, &host, &topic).await?;
                if let Some(farewell) = farewell {
                    append_to_one(conn, farewell, subscription.host_no).await?;
                }
                if let Some(entry) = &entry {
                    audit::append(conn, entry).await?;
                }
                Ok(subscription)
            })
        })
        .await
    }

    async fn subscriptions(&self) -> StoreResult<Vec<Subscription>> {
        self.read(async |conn| joins::all(conn).await).await
    }

    async fn note_facts(&self, host: &str, facts: HostFacts) -> StoreResult<()> {
        let host = host.to_owned();
        self.change_fedi(move |conn| Box::pin(async move { note_facts(conn, &host, &facts).await }))
            .await
    }

    async fn choose_form(
        &self,
        host: &str,
        form: Option<DeliveryForm>,
        entry: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let host = host.to_owned();
        self.change_fedi(move |conn| {
            Box::pin(async move {
                choose_form(conn, &host, form).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn note_refused_forward(&self, host: HostNo, answer: &str) -> StoreResult<()> {
        let answer: String = answer.chars().take(300).collect();
        self.change_fedi(move |conn| Box::pin(async move { note_refused_forward(conn, host, &answer).await }))
            .await
    }

    async fn announce_change(&self) -> StoreResult<()> {
        self.change_fedi(|conn| Box::pin(audit::bump(conn, VERSION)))
            .await
    }

    async fn note_signature(
        &self,
        host: HostNo,
        learnt: Option<LearntSignature>,
        answer: &str,
    ) -> StoreResult<()> {
        let answer: String = answer.chars().take(300).collect();
        self.change_fedi(move |conn| {
            Box::pin(async move { note_signature(conn, host, learnt, &answer).await })
        })
        .await
    }

    async fn moderation(&self) -> StoreResult<Vec<ModerationRule>> {
        self.read(async |conn| {
            sqlx::query("SELECT kind, subject, effect, reason, at FROM fedi_rules ORDER BY kind, subject")
                .fetch_all(conn)
                .await
                .map_err(store_error)
        })
        .await?
        .iter()
        .map(moderation::rule_of)
        .collect()
    }

    async fn moderate(&self, rules: Vec<ModerationRule>, entry: Option<AuditEntry>) -> StoreResult<()> {
        self.change_fedi(move |conn| {
            Box::pin(async move {
                moderation::moderate(conn, &rules).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn unmoderate(
        &self,
        kind: ModerationKind,
        subject: &str,
        entry: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let subject = subject.to_owned();
        self.change_fedi(move |conn| {
            Box::pin(async move {
                moderation::unmoderate(conn, kind, &subject).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn filters(&self) -> StoreResult<Vec<KeptFilter>> {
        self.read(async |conn| filters::all(conn).await).await
    }

    async fn set_filter(
        &self,
        host: &str,
        filter: Option<KeptFilter>,
        entry: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let host = host.to_owned();
        self.change_fedi(move |conn| {
            Box::pin(async move {
                filters::set(conn, &host, filter.as_ref()).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn topic_lists(&self) -> StoreResult<Vec<TopicList>> {
        self.read(async |conn| topics::lists(conn).await).await
    }

    async fn put_topic_list(&self, list: TopicList, entry: Option<AuditEntry>) -> StoreResult<()> {
        self.change_fedi(move |conn| {
            Box::pin(async move {
                topics::put_list(conn, &list).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn remove_topic_list(&self, name: &str, entry: Option<AuditEntry>) -> StoreResult<()> {
        let name = name.to_owned();
        self.change_fedi(move |conn| {
            Box::pin(async move {
                topics::remove_list(conn, &name).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn orders(&self) -> StoreResult<Orders> {
        self.read(async |conn| moderation::orders(conn).await).await
    }

    async fn set_brake(&self, brake: Option<Brake>, entry: Option<AuditEntry>) -> StoreResult<()> {
        self.change_fedi(move |conn| {
            Box::pin(async move {
                moderation::set_brake(conn, brake.as_ref()).await?;
                match &entry {
                    Some(entry) => audit::append(conn, entry).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    async fn purge(&self, places: &[LogSeq], entry: Option<AuditEntry>) -> StoreResult<u64> {
        let places = places.to_vec();
        self.change_fedi(move |conn| {
            Box::pin(async move {
                let emptied = log::purge(conn, &places).await?;
                moderation::note_purge(conn).await?;
                if let Some(entry) = &entry {
                    audit::append(conn, entry).await?;
                }
                Ok(emptied)
            })
        })
        .await
    }

    async fn note_lives(&self, lives: Vec<HostLife>) -> StoreResult<()> {
        self.change(move |conn| Box::pin(async move { moderation::note_lives(conn, &lives).await }))
            .await
    }

    async fn note_pruned(&self, pruned: Pruned) -> StoreResult<()> {
        self.change(move |conn| Box::pin(async move { moderation::note_pruned(conn, pruned).await }))
            .await
    }

    async fn note_standstill(&self, standstill: Standstill) -> StoreResult<()> {
        self.change(move |conn| Box::pin(async move { moderation::note_standstill(conn, standstill).await }))
            .await
    }

    async fn host_no(&self, host: &str, inbox: &str) -> StoreResult<HostNo> {
        let known: Option<(i64, String)> = self
            .read(async |conn| {
                sqlx::query_as("SELECT no, inbox FROM hosts WHERE host = $1")
                    .bind(host)
                    .fetch_optional(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        if let Some((no, known)) = known
            && known == inbox
        {
            return host_no_of(no);
        }
        let (host, inbox) = (host.to_owned(), inbox.to_owned());
        self.change_fedi(move |conn| {
            Box::pin(async move {
                let no = number_host(conn, &host, &inbox).await?;
                audit::bump(conn, VERSION).await?;
                Ok(no)
            })
        })
        .await
    }

    async fn hosts(&self) -> StoreResult<Vec<(HostNo, String, String)>> {
        let rows: Vec<(i64, String, String)> = self
            .read(async |conn| {
                sqlx::query_as("SELECT no, host, inbox FROM hosts ORDER BY no")
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        rows.into_iter()
            .map(|(no, host, inbox)| Ok((host_no_of(no)?, host, inbox)))
            .collect()
    }

    async fn subscriptions_version(&self) -> StoreResult<i64> {
        audit::version(self, VERSION).await
    }

    fn subscription_news(&self) -> watch::Receiver<()> {
        self.news.subscriptions.subscribe()
    }

    fn log_news(&self) -> watch::Receiver<()> {
        self.news.log.subscribe()
    }

    async fn append(&self, entry: NewEntry) -> StoreResult<Appended> {
        self.append_entry(entry).await
    }

    async fn entries(&self, after: Option<LogSeq>, n: usize, max_bytes: u64) -> StoreResult<Vec<Entry>> {
        self.read(async |conn| log::entries(conn, after, n, max_bytes).await)
            .await
    }

    async fn entries_at(&self, places: &[LogSeq]) -> StoreResult<Vec<Entry>> {
        self.read(async |conn| log::entries_at(conn, places).await).await
    }

    async fn progress(&self) -> StoreResult<Progress> {
        self.read(async |conn| progress::load(conn).await).await
    }

    async fn checkpoint(
        &self,
        node: NodeId,
        epoch: Epoch,
        all_up_to: Option<LogSeq>,
        behind: &[HostProgress],
        caught_up: &[HostNo],
    ) -> StoreResult<()> {
        let (behind, caught_up) = (behind.to_vec(), caught_up.to_vec());
        self.change(move |conn| {
            Box::pin(async move {
                progress::require_owner(conn, node, epoch, all_up_to).await?;
                progress::store(conn, &behind, &caught_up).await
            })
        })
        .await
    }

    async fn claim_fanout(&self, node: NodeId, hold: Duration) -> StoreResult<Option<Epoch>> {
        self.change(move |conn| Box::pin(async move { progress::claim(conn, node, hold).await }))
            .await
    }

    async fn release_fanout(&self, node: NodeId, epoch: Epoch) -> StoreResult<()> {
        self.change(move |conn| Box::pin(async move { progress::release(conn, node, epoch).await }))
            .await
    }

    async fn cut(&self, before: Timestamp, max_bytes: u64) -> StoreResult<CutReport> {
        self.change(move |conn| Box::pin(async move { log::cut(conn, before, max_bytes).await }))
            .await
    }

    async fn remember_key(&self, key: ActorKey) -> StoreResult<()> {
        self.ride(move |conn| Box::pin(async move { remember(conn, &key).await }))
            .await
    }

    async fn key(&self, key_id: &str) -> StoreResult<Option<ActorKey>> {
        self.read(async |conn| {
            sqlx::query("SELECT key_id, owner, pem, inbox, fetched_at FROM actor_keys WHERE key_id = $1")
                .bind(key_id)
                .fetch_optional(conn)
                .await
                .map_err(store_error)
        })
        .await?
        .as_ref()
        .map(key_of)
        .transpose()
        .map_err(store_error)
    }
}
