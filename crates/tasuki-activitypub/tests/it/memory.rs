//! A store in memory, whose outages a test commands.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{BanId, Epoch, HostNo, LogSeq, NodeId};
use tasuki_core::store::bans::{Ban, NewBan};
use tasuki_core::store::fedi::{
    ActorKey, Appended, Brake, CutReport, DeliveryForm, Entry, EntryKind, HostFacts, HostLife, HostProgress,
    KeptFilter, LearntSignature, ModerationKind, ModerationRule, NewEntry, NewSubscription, Orders, Progress,
    Pruned, Standstill, Subscription, TopicList,
};
use tasuki_core::store::{AuditEntry, BanStore, FediStore, SecretStore, Sharing, StoreError, StoreResult};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    /// By host and topic.
    subscriptions: BTreeMap<(String, String), Subscription>,
    lists: Vec<TopicList>,
    filters: Vec<KeptFilter>,
    hosts: BTreeMap<u32, (String, String)>,
    version: i64,
    log: BTreeMap<LogSeq, Entry>,
    newest: i64,
    dedupe: HashSet<String>,
    got: HashMap<String, RoaringBitmap>,
    all_up_to: Option<LogSeq>,
    behind: BTreeMap<u32, HostProgress>,
    epoch: i64,
    owner: Option<NodeId>,
    keys: HashMap<String, ActorKey>,
    secrets: HashMap<String, Vec<u8>>,
    rules: Vec<ModerationRule>,
    orders: Orders,
}

/// The store.
#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    away: AtomicBool,
    checkpoints: Mutex<Vec<Instant>>,
    shared: AtomicBool,
    asked: watch::Sender<usize>,
    subscriptions: watch::Sender<()>,
    log: watch::Sender<()>,
}

impl Memory {
    /// From now on nothing is stored or answered, or it is again.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// From now on it says that other gateways write to it, too.
    pub(crate) fn set_shared(&self) {
        self.shared.store(true, Ordering::SeqCst);
    }

    /// Another gateway appends an entry: nobody here is told.
    pub(crate) fn append_elsewhere(&self, entry: NewEntry) {
        self.state.lock().unwrap().append(entry);
    }

    /// How often anything was read or changed.
    pub(crate) fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// Until it was asked more often than that.
    pub(crate) async fn wait_for_more_than(&self, asked: usize) {
        let mut follow = self.asked.subscribe();
        follow.wait_for(|now| *now > asked).await.unwrap();
    }

    /// The last checkpoint's common mark.
    pub(crate) fn all_up_to(&self) -> Option<LogSeq> {
        self.state.lock().unwrap().all_up_to
    }

    /// When progress was noted.
    pub(crate) fn checkpoints(&self) -> Vec<Instant> {
        self.checkpoints.lock().unwrap().clone()
    }

    /// Entries in the log.
    pub(crate) fn logged(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// For a change of subscriptions: whoever follows them looks when the guard is gone.
    fn change(&self) -> StoreResult<MutexGuard<'_, State>> {
        let state = self.open()?;
        self.subscriptions.send_replace(());
        self.log.send_replace(());
        Ok(state)
    }

    fn open(&self) -> StoreResult<MutexGuard<'_, State>> {
        self.asked.send_modify(|asked| *asked += 1);
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the test took the store away".into()));
        }
        Ok(self.state.lock().unwrap())
    }
}

impl State {
    fn number(&mut self, host: &str, inbox: &str) -> HostNo {
        let known = self
            .hosts
            .iter()
            .find(|(_, (name, _))| name == host)
            .map(|(number, _)| *number);
        let number = known.unwrap_or(u32::try_from(self.hosts.len()).unwrap() + 1);
        self.hosts.insert(number, (host.to_owned(), inbox.to_owned()));
        self.version += 1;
        HostNo(number)
    }

    fn append(&mut self, new: NewEntry) -> Appended {
        if !self.dedupe.insert(new.dedupe) {
            return Appended::Duplicate;
        }
        let mut audience = new.audience;
        let before = self.got.entry(new.object.clone()).or_default();
        audience |= &*before & &new.if_known;
        if audience.is_empty() && new.kind == EntryKind::Activity {
            return Appended::Nobody;
        }
        if new.kind == EntryKind::Delete {
            audience |= &*before;
            for entry in self.log.values_mut().filter(|entry| entry.object == new.object) {
                entry.body = Bytes::new();
                entry.announce = None;
            }
        }
        *before |= &audience;
        self.newest += 1;
        let seq = LogSeq(self.newest);
        let entry = Entry {
            seq,
            kind: new.kind,
            object: new.object,
            actor: new.actor,
            body: new.body,
            announce: new.announce,
            audience,
            announce_to: new.announce_to,
            via: new.via,
            at: new.at,
        };
        self.log.insert(seq, entry);
        Appended::Stored(seq)
    }
}

impl Sharing for Memory {
    fn is_shared(&self) -> bool {
        self.shared.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl FediStore for Memory {
    async fn subscribe(
        &self,
        new: NewSubscription,
        answers: Vec<NewEntry>,
        _audit: Option<AuditEntry>,
    ) -> StoreResult<Subscription> {
        let mut state = self.change()?;
        let host_no = state.number(&new.host, &new.inbox);
        let subscription = Subscription {
            host: new.host.clone(),
            topic: new.topic.clone(),
            host_no,
            actor: new.actor,
            inbox: new.inbox,
            style: new.style,
            state: new.state,
            follow_id: new.follow_id,
            software: new.software,
            since: new.at,
            chosen_form: None,
            refused_forward: None,
            learnt_signature: None,
            signature_answer: None,
            looked_at: None,
            failing_since: None,
            suspended_at: None,
        };
        state
            .subscriptions
            .insert((new.host, new.topic), subscription.clone());
        for mut answer in answers {
            answer.audience = RoaringBitmap::from_iter([host_no.0]);
            state.append(answer);
        }
        Ok(subscription)
    }

    async fn unsubscribe(
        &self,
        host: &str,
        topic: &str,
        farewell: Option<NewEntry>,
        _audit: Option<AuditEntry>,
    ) -> StoreResult<Subscription> {
        let mut state = self.change()?;
        let gone = state
            .subscriptions
            .remove(&(host.to_owned(), topic.to_owned()))
            .ok_or_else(|| StoreError::NotFound(host.to_owned()))?;
        state.version += 1;
        if let Some(mut farewell) = farewell {
            farewell.audience = RoaringBitmap::from_iter([gone.host_no.0]);
            state.append(farewell);
        }
        Ok(gone)
    }

    async fn subscriptions(&self) -> StoreResult<Vec<Subscription>> {
        Ok(self.open()?.subscriptions.values().cloned().collect())
    }

    async fn note_facts(&self, host: &str, facts: HostFacts) -> StoreResult<()> {
        let mut state = self.change()?;
        let first = state.subscriptions.values_mut().find(|one| one.host == host);
        let Some(known) = first else {
            return Ok(());
        };
        known.looked_at = Some(facts.at);
        known.software = facts.software.or(known.software.take());
        let inbox = facts.inbox.unwrap_or(known.inbox.clone());
        known.inbox.clone_from(&inbox);
        state.number(host, &inbox);
        Ok(())
    }

    async fn choose_form(
        &self,
        host: &str,
        form: Option<DeliveryForm>,
        _audit: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        let known = state.subscriptions.values_mut().find(|one| one.host == host);
        let known = known.ok_or_else(|| StoreError::NotFound(host.to_owned()))?;
        known.chosen_form = form;
        if form.is_none() {
            known.learnt_signature = None;
        }
        Ok(())
    }

    async fn note_refused_forward(&self, host: HostNo, answer: &str) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        for known in state
            .subscriptions
            .values_mut()
            .filter(|known| known.host_no == host)
        {
            known.refused_forward = Some(answer.to_owned());
        }
        Ok(())
    }

    async fn announce_change(&self) -> StoreResult<()> {
        self.change()?.version += 1;
        Ok(())
    }

    async fn note_signature(
        &self,
        host: HostNo,
        learnt: Option<LearntSignature>,
        answer: &str,
    ) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        for known in state
            .subscriptions
            .values_mut()
            .filter(|known| known.host_no == host)
        {
            known.learnt_signature = learnt;
            known.signature_answer = learnt.map(|_| answer.to_owned());
        }
        Ok(())
    }

    async fn moderation(&self) -> StoreResult<Vec<ModerationRule>> {
        Ok(self.open()?.rules.clone())
    }

    async fn moderate(&self, rules: Vec<ModerationRule>, _audit: Option<AuditEntry>) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        state.rules.extend(rules);
        Ok(())
    }

    async fn unmoderate(
        &self,
        kind: ModerationKind,
        subject: &str,
        _audit: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        state
            .rules
            .retain(|rule| rule.kind != kind || rule.subject != subject);
        Ok(())
    }

    async fn filters(&self) -> StoreResult<Vec<KeptFilter>> {
        Ok(self.open()?.filters.clone())
    }

    async fn set_filter(
        &self,
        host: &str,
        filter: Option<KeptFilter>,
        _audit: Option<AuditEntry>,
    ) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        let before = state.filters.len();
        state.filters.retain(|known| known.host != host);
        if filter.is_none() && state.filters.len() == before {
            return Err(StoreError::NotFound(host.to_owned()));
        }
        state.filters.extend(filter);
        Ok(())
    }

    async fn topic_lists(&self) -> StoreResult<Vec<TopicList>> {
        Ok(self.open()?.lists.clone())
    }

    async fn put_topic_list(&self, list: TopicList, _audit: Option<AuditEntry>) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        state.lists.retain(|known| known.name != list.name);
        state.lists.push(list);
        Ok(())
    }

    async fn remove_topic_list(&self, name: &str, _audit: Option<AuditEntry>) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        state.lists.retain(|known| known.name != name);
        Ok(())
    }

    async fn orders(&self) -> StoreResult<Orders> {
        Ok(self.open()?.orders.clone())
    }

    async fn set_brake(&self, brake: Option<Brake>, _audit: Option<AuditEntry>) -> StoreResult<()> {
        let mut state = self.change()?;
        state.version += 1;
        state.orders.brake = brake;
        Ok(())
    }

    async fn purge(&self, places: &[LogSeq], _audit: Option<AuditEntry>) -> StoreResult<u64> {
        let mut state = self.change()?;
        state.version += 1;
        state.orders.purges += 1;
        for place in places {
            if let Some(entry) = state.log.get_mut(place) {
                entry.body = Bytes::new();
                entry.announce = None;
            }
        }
        Ok(places.len() as u64)
    }

    async fn note_lives(&self, lives: Vec<HostLife>) -> StoreResult<()> {
        let mut state = self.open()?;
        state.version += 1;
        for life in lives {
            let known = state
                .subscriptions
                .values_mut()
                .find(|one| one.host_no == life.host);
            if let Some(known) = known {
                (known.failing_since, known.suspended_at) = (life.failing_since, life.suspended_at);
            }
        }
        Ok(())
    }

    async fn note_pruned(&self, pruned: Pruned) -> StoreResult<()> {
        let mut state = self.open()?;
        state.version += 1;
        state.orders.pruned = pruned;
        Ok(())
    }

    async fn note_standstill(&self, standstill: Standstill) -> StoreResult<()> {
        let mut state = self.open()?;
        state.version += 1;
        state.orders.standstill = standstill;
        Ok(())
    }

    async fn host_no(&self, host: &str, inbox: &str) -> StoreResult<HostNo> {
        Ok(self.change()?.number(host, inbox))
    }

    async fn hosts(&self) -> StoreResult<Vec<(HostNo, String, String)>> {
        let state = self.open()?;
        Ok(state
            .hosts
            .iter()
            .map(|(number, (host, inbox))| (HostNo(*number), host.clone(), inbox.clone()))
            .collect())
    }

    async fn subscriptions_version(&self) -> StoreResult<i64> {
        Ok(self.open()?.version)
    }

    fn subscription_news(&self) -> watch::Receiver<()> {
        self.subscriptions.subscribe()
    }

    fn log_news(&self) -> watch::Receiver<()> {
        self.log.subscribe()
    }

    async fn append(&self, entry: NewEntry) -> StoreResult<Appended> {
        Ok(self.change()?.append(entry))
    }

    async fn entries(&self, after: Option<LogSeq>, n: usize, _max_bytes: u64) -> StoreResult<Vec<Entry>> {
        let state = self.open()?;
        let after = after.unwrap_or(LogSeq(0));
        Ok(state
            .log
            .range(LogSeq(after.0 + 1)..)
            .take(n)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn entries_at(&self, places: &[LogSeq]) -> StoreResult<Vec<Entry>> {
        let state = self.open()?;
        Ok(places
            .iter()
            .filter_map(|seq| state.log.get(seq).cloned())
            .collect())
    }

    async fn progress(&self) -> StoreResult<Progress> {
        let state = self.open()?;
        Ok(Progress {
            all_up_to: state.all_up_to,
            behind: state.behind.values().cloned().collect(),
            newest: state.log.keys().next_back().copied(),
        })
    }

    async fn checkpoint(
        &self,
        node: NodeId,
        epoch: Epoch,
        all_up_to: Option<LogSeq>,
        behind: &[HostProgress],
        caught_up: &[HostNo],
    ) -> StoreResult<()> {
        self.checkpoints.lock().unwrap().push(Instant::now());
        let mut state = self.open()?;
        if state.owner != Some(node) || state.epoch != epoch.0 {
            return Err(StoreError::StaleEpoch);
        }
        assert!(all_up_to >= state.all_up_to, "the common mark went back");
        state.all_up_to = all_up_to;
        for row in behind {
            state.behind.insert(row.host.0, row.clone());
        }
        for host in caught_up {
            state.behind.remove(&host.0);
        }
        Ok(())
    }

    async fn claim_fanout(&self, node: NodeId, _hold: Duration) -> StoreResult<Option<Epoch>> {
        let mut state = self.open()?;
        match state.owner {
            Some(owner) if owner != node => return Ok(None),
            Some(_) => {}
            None => state.epoch += 1,
        }
        state.owner = Some(node);
        Ok(Some(Epoch(state.epoch)))
    }

    async fn release_fanout(&self, _node: NodeId, _epoch: Epoch) -> StoreResult<()> {
        self.open()?.owner = None;
        Ok(())
    }

    async fn cut(&self, _before: Timestamp, _max_bytes: u64) -> StoreResult<CutReport> {
        self.open().map(|_| CutReport::default())
    }

    async fn remember_key(&self, key: ActorKey) -> StoreResult<()> {
        self.open()?.keys.insert(key.key_id.clone(), key);
        Ok(())
    }

    async fn key(&self, key_id: &str) -> StoreResult<Option<ActorKey>> {
        Ok(self.open()?.keys.get(key_id).cloned())
    }
}

#[async_trait]
impl SecretStore for Memory {
    async fn secret(&self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        Ok(self.open()?.secrets.get(name).cloned())
    }

    async fn put_secret_if_absent(&self, name: &str, sealed: Vec<u8>) -> StoreResult<Vec<u8>> {
        Ok(self
            .open()?
            .secrets
            .entry(name.to_owned())
            .or_insert(sealed)
            .clone())
    }

    async fn replace_secret(&self, name: &str, sealed: Vec<u8>, _audit: AuditEntry) -> StoreResult<()> {
        self.open()?.secrets.insert(name.to_owned(), sealed);
        Ok(())
    }

    async fn remove_secret(&self, name: &str, sealed: &[u8], _audit: AuditEntry) -> StoreResult<bool> {
        let secrets = &mut self.open()?.secrets;
        let is_it = secrets.get(name).is_some_and(|there| there == sealed);
        Ok(is_it && secrets.remove(name).is_some())
    }

    async fn fact(&self, _name: &str) -> StoreResult<Option<String>> {
        Ok(None)
    }

    async fn put_fact(&self, _name: &str, _value: &str) -> StoreResult<()> {
        Ok(())
    }
}

#[async_trait]
impl BanStore for Memory {
    async fn bans(&self, _now: Timestamp) -> StoreResult<Vec<Ban>> {
        Ok(Vec::new())
    }

    async fn add_ban(&self, new: NewBan, _audit: AuditEntry) -> StoreResult<Ban> {
        Err(StoreError::Conflict(format!("{new:?} is not kept in memory")))
    }

    async fn remove_ban(&self, id: BanId, _audit: AuditEntry) -> StoreResult<()> {
        Err(StoreError::NotFound(id.to_string()))
    }

    async fn ban_repeats(&self, _net: IpNet, _now: Timestamp) -> StoreResult<u32> {
        Ok(0)
    }

    async fn note_proved(&self, _addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()> {
        Ok(())
    }

    async fn proved(&self, _since: Timestamp) -> StoreResult<Vec<IpAddr>> {
        Ok(Vec::new())
    }
}
