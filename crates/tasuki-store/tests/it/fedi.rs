//! The log, its audiences and progress.

use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{HostNo, LogSeq};
use tasuki_core::store::fedi::{
    Appended, Brake, BrakeMode, DeliveryForm, EntryKind, HostFacts, HostLife, HostProgress, LearntSignature,
    ModerationEffect, ModerationKind, ModerationRule, NewEntry, NewSubscription, Orders, Pruned, Standstill,
    Subscription, SubscriptionState, SubscriptionStyle,
};
use tasuki_core::store::{Store, StoreError};

use super::support::{benches, entry};

fn activity(kind: EntryKind, object: &str, dedupe: &str, audience: &[u32]) -> NewEntry {
    NewEntry {
        kind,
        object: object.into(),
        actor: String::new(),
        dedupe: dedupe.into(),
        body: Bytes::from_static(b"0123456789"),
        announce: None,
        audience: audience.iter().copied().collect(),
        announce_to: RoaringBitmap::new(),
        via: Vec::new(),
        if_known: RoaringBitmap::new(),
        at: Timestamp(1_000),
    }
}

async fn append(store: &dyn Store, object: &str, audience: &[u32]) -> LogSeq {
    match store
        .append(activity(EntryKind::Activity, object, object, audience))
        .await
        .unwrap()
    {
        Appended::Stored(seq) => seq,
        other => panic!("{object}: {other:?}"),
    }
}

fn behind(host: u32, up_to: LogSeq) -> HostProgress {
    HostProgress {
        host: HostNo(host),
        up_to,
        also: Vec::new(),
        parked: Vec::new(),
        failures: 1,
        next_try: Some(Timestamp(5)),
        last_error: Some("503".into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_appended_once_also_after_a_restart() {
    for bench in benches().await {
        let store = bench.open().await;
        append(&*store, "o", &[1]).await;
        store.close().await;
        let store = bench.open().await;
        let again = store
            .append(activity(EntryKind::Activity, "o", "o", &[1]))
            .await
            .unwrap();
        assert_eq!(again, Appended::Duplicate);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_blanks_what_waits_and_goes_to_all_who_got_the_object() {
    for bench in benches().await {
        let store = bench.open().await;
        let seq = append(&*store, "o", &[1, 2]).await;
        let other = append(&*store, "p", &[1]).await;
        store
            .append(activity(EntryKind::Delete, "o", "delete o", &[3]))
            .await
            .unwrap();
        let entries = store.entries(None, 9, u64::MAX).await.unwrap();
        assert_eq!((entries[0].seq, entries[1].seq), (seq, other));
        assert!(entries[0].body.is_empty() && !entries[1].body.is_empty() && !entries[2].body.is_empty());
        assert_eq!(entries[2].audience, RoaringBitmap::from_iter([1, 2, 3]));
        assert_eq!(store.entries(Some(seq), 9, 5).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brake_is_kept_and_what_is_taken_out_is_emptied_but_for_deletes() {
    for bench in benches().await {
        let store = bench.open().await;
        assert_eq!(store.orders().await.unwrap(), Orders::default());
        let brake = Brake {
            mode: BrakeMode::Hold,
            reason: "spam".into(),
            at: Timestamp(5),
        };
        let version = store.subscriptions_version().await.unwrap();
        store
            .set_brake(Some(brake.clone()), Some(entry("fedi.pause")))
            .await
            .unwrap();
        assert!(store.subscriptions_version().await.unwrap() > version);
        let seq = append(&*store, "o", &[1, 2]).await;
        let kept = append(&*store, "p", &[1]).await;
        let delete = activity(EntryKind::Delete, "q", "delete q", &[3]);
        let Appended::Stored(delete) = store.append(delete).await.unwrap() else {
            panic!("a duplicate");
        };
        store.close().await;
        let store = bench.open().await;
        assert_eq!(store.purge(&[seq, delete], None).await.unwrap(), 1);
        let orders = store.orders().await.unwrap();
        assert_eq!((orders.brake, orders.purges), (Some(brake), 1));
        let entries = store.entries_at(&[seq, kept, delete]).await.unwrap();
        assert_eq!(
            entries
                .iter()
                .map(|entry| entry.body.is_empty())
                .collect::<Vec<_>>(),
            [true, false, false]
        );
        store.set_brake(None, None).await.unwrap();
        assert_eq!(store.orders().await.unwrap().brake, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_of_hosts_are_noted_and_a_new_follow_begins_a_new_one() {
    for bench in benches().await {
        let store = bench.open().await;
        let new = || NewSubscription {
            topic: String::new(),
            host: "a.example".into(),
            actor: "https://a.example/actor".into(),
            inbox: "https://a.example/inbox".into(),
            style: SubscriptionStyle::Mastodon,
            state: SubscriptionState::Active,
            follow_id: "https://a.example/follow".into(),
            software: None,
            at: Timestamp(1),
        };
        let made = store.subscribe(new(), Vec::new(), None).await.unwrap();
        assert_eq!((made.failing_since, made.suspended_at), (None, None));
        let life = HostLife {
            host: made.host_no,
            failing_since: Some(Timestamp(5)),
            suspended_at: Some(Timestamp(6)),
        };
        let version = store.subscriptions_version().await.unwrap();
        store.note_lives(vec![life]).await.unwrap();
        assert!(store.subscriptions_version().await.unwrap() > version);
        let known = store.subscriptions().await.unwrap().remove(0);
        assert_eq!(
            (known.failing_since, known.suspended_at),
            (life.failing_since, life.suspended_at)
        );
        let again = store.subscribe(new(), Vec::new(), None).await.unwrap();
        assert_eq!((again.failing_since, again.suspended_at), (None, None));
        let pruned = Pruned {
            day: 20_000,
            hosts: 3,
        };
        store.note_pruned(pruned).await.unwrap();
        let standstill = Standstill {
            since: Some(Timestamp(7)),
            span_ms: 3,
            until: Some(Timestamp(9)),
        };
        store.note_standstill(standstill).await.unwrap();
        assert_eq!(store.orders().await.unwrap().standstill, standstill);
        assert_eq!(store.orders().await.unwrap().pruned, pruned);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_of_the_fan_out_moves_progress() {
    for bench in benches().await {
        let store = bench.open().await;
        let (a, _) = store.join("a").await.unwrap();
        let (b, _) = store.join("b").await.unwrap();
        let seq = append(&*store, "o", &[1]).await;
        let hold = Duration::from_secs(3600);
        let epoch = store.claim_fanout(a, hold).await.unwrap().unwrap();
        assert_eq!(store.claim_fanout(a, hold).await.unwrap(), Some(epoch));
        assert_eq!(store.claim_fanout(b, hold).await.unwrap(), None);
        let rows = [behind(1, LogSeq(0))];
        store.checkpoint(a, epoch, Some(seq), &rows, &[]).await.unwrap();
        let progress = store.progress().await.unwrap();
        assert_eq!(
            (progress.all_up_to, progress.behind.as_slice()),
            (Some(seq), rows.as_slice())
        );
        store.checkpoint(a, epoch, None, &[], &[HostNo(1)]).await.unwrap();
        assert!(store.progress().await.unwrap().behind.is_empty());
        store.release_fanout(a, epoch).await.unwrap();
        let stale = store.checkpoint(a, epoch, Some(seq), &[], &[]).await;
        assert!(matches!(stale, Err(StoreError::StaleEpoch)), "{stale:?}");
        assert!(store.claim_fanout(b, hold).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_says_what_hosts_lose_and_the_log_still_knows_its_end() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, _) = store.join("a").await.unwrap();
        let first = append(&*store, "o", &[1, 2]).await;
        let second = append(&*store, "p", &[1, 2]).await;
        let epoch = store
            .claim_fanout(node, Duration::from_secs(9))
            .await
            .unwrap()
            .unwrap();
        store
            .checkpoint(node, epoch, Some(second), &[behind(2, first)], &[])
            .await
            .unwrap();
        let kept = store.cut(Timestamp(0), u64::MAX).await.unwrap();
        assert_eq!((kept.removed, kept.lost.len()), (1, 0));
        let lossy = store.cut(Timestamp(0), 9).await.unwrap();
        assert_eq!((lossy.removed, lossy.lost), (1, vec![(HostNo(2), 1)]));
        assert_eq!(store.progress().await.unwrap().newest, Some(second));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_and_its_answer_are_one_change() {
    for bench in benches().await {
        let store = bench.open().await;
        let new = NewSubscription {
            topic: String::new(),
            host: "a.example".into(),
            actor: "https://a.example/actor".into(),
            inbox: "https://a.example/inbox".into(),
            style: SubscriptionStyle::Mastodon,
            state: SubscriptionState::Active,
            follow_id: "https://a.example/follow".into(),
            software: None,
            at: Timestamp(1),
        };
        let answer = activity(EntryKind::Control, "accept", "accept 1", &[]);
        let made = store
            .subscribe(new, vec![answer], Some(entry("fedi.subscribe")))
            .await
            .unwrap();
        let entries = store.entries(None, 9, u64::MAX).await.unwrap();
        assert_eq!(entries[0].audience, RoaringBitmap::from_iter([made.host_no.0]));
        forms_and_facts(&*store, &made).await;
        let gone = store.unsubscribe("a.example", "", None, None).await.unwrap();
        assert_eq!(gone.host_no, made.host_no);
        assert_eq!(
            store.host_no("a.example", &gone.inbox).await.unwrap(),
            made.host_no
        );
        let again = store.unsubscribe("a.example", "", None, None).await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    }
}

async fn forms_and_facts(store: &dyn Store, made: &Subscription) {
    let now = async || store.subscriptions().await.unwrap().remove(0);
    assert_eq!((now().await.looked_at, now().await.chosen_form), (None, None));
    store
        .note_refused_forward(made.host_no, &"403 ".repeat(500))
        .await
        .unwrap();
    assert_eq!(now().await.refused_forward.map(|text| text.len()), Some(300));
    let before = store.subscriptions_version().await.unwrap();
    store.announce_change().await.unwrap();
    assert!(store.subscriptions_version().await.unwrap() > before);
    let learnt = Some(LearntSignature::Message);
    store.note_signature(made.host_no, learnt, "401").await.unwrap();
    assert_eq!(now().await.learnt_signature, learnt);
    store.note_signature(made.host_no, None, "").await.unwrap();
    assert_eq!(
        (now().await.learnt_signature, now().await.signature_answer),
        (None, None)
    );
    let learnt = Some(LearntSignature::Full);
    store
        .note_signature(made.host_no, learnt, &"401 ".repeat(500))
        .await
        .unwrap();
    assert_eq!(now().await.signature_answer.map(|text| text.len()), Some(300));
    let facts = |inbox: Option<&str>, software: Option<&str>, at| HostFacts {
        inbox: inbox.map(str::to_owned),
        software: software.map(str::to_owned),
        at: Timestamp(at),
    };
    let never = store.subscriptions_version().await.unwrap();
    store.note_facts("a.example", facts(None, None, 6)).await.unwrap();
    let before = store.subscriptions_version().await.unwrap();
    assert!(before > never, "the first look is news");
    store.note_facts("a.example", facts(None, None, 7)).await.unwrap();
    assert_eq!(
        store.subscriptions_version().await.unwrap(),
        before,
        "nothing new"
    );
    assert!(now().await.refused_forward.is_some());
    assert_eq!(now().await.learnt_signature, learnt);
    store
        .note_facts(
            "a.example",
            facts(Some("https://a.example/new"), Some("mastodon 5"), 8),
        )
        .await
        .unwrap();
    let known = now().await;
    assert_eq!(known.software.as_deref(), Some("mastodon 5"));
    assert_eq!(known.refused_forward, None, "other software, other answers");
    assert_eq!(
        known.learnt_signature, learnt,
        "nothing was known of its software"
    );
    store
        .note_facts("a.example", facts(None, Some("other 1"), 8))
        .await
        .unwrap();
    let known = now().await;
    assert_eq!((known.learnt_signature, known.signature_answer), (None, None));
    store
        .note_facts("a.example", facts(None, Some("mastodon 5"), 8))
        .await
        .unwrap();
    let known = now().await;
    assert_eq!(known.looked_at, Some(Timestamp(8)));
    let hosts = store.hosts().await.unwrap();
    assert!(
        hosts.contains(&(made.host_no, "a.example".into(), "https://a.example/new".into())),
        "{hosts:?}"
    );
    assert!(store.subscriptions_version().await.unwrap() > before);
    store
        .note_facts("gone.example", facts(None, None, 9))
        .await
        .unwrap();

    let choose = async |host: &str, form| store.choose_form(host, form, Some(entry("fedi.form"))).await;
    choose("a.example", Some(DeliveryForm::Announce)).await.unwrap();
    assert_eq!(now().await.chosen_form, Some(DeliveryForm::Announce));
    choose("a.example", None).await.unwrap();
    assert_eq!(now().await.chosen_form, None);
    assert!(matches!(
        choose("b.example", None).await,
        Err(StoreError::NotFound(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_moderation_are_replaced_and_taken_back_with_a_line_in_the_audit() {
    for bench in benches().await {
        let store = bench.open().await;
        let rule = |subject: &str, effect, reason: &str| ModerationRule {
            effect,
            kind: ModerationKind::Host,
            subject: subject.into(),
            reason: reason.into(),
            at: Timestamp(5),
        };
        let first = rule("b.example", ModerationEffect::Block, "spam");
        let other = rule("a.example", ModerationEffect::Limit, "");
        let before = store.subscriptions_version().await.unwrap();
        store
            .moderate(vec![first, other.clone()], Some(entry("fedi.block")))
            .await
            .unwrap();
        assert!(store.subscriptions_version().await.unwrap() > before);
        let changed = rule("b.example", ModerationEffect::Limit, "better");
        store.moderate(vec![changed.clone()], None).await.unwrap();
        assert_eq!(store.moderation().await.unwrap(), [other, changed.clone()]);
        let lift = async || {
            store
                .unmoderate(ModerationKind::Host, "a.example", Some(entry("fedi.lift")))
                .await
        };
        lift().await.unwrap();
        assert!(matches!(lift().await, Err(StoreError::NotFound(_))));
        assert_eq!(store.moderation().await.unwrap(), std::slice::from_ref(&changed));
        // A domain's wish not to be relayed stands beside the operator's rule about the host.
        let wish = ModerationRule {
            effect: ModerationEffect::OptOut,
            kind: ModerationKind::OptOut,
            ..changed.clone()
        };
        store.moderate(vec![wish.clone()], None).await.unwrap();
        assert_eq!(store.moderation().await.unwrap(), [changed.clone(), wish.clone()]);
        store
            .unmoderate(ModerationKind::Host, &changed.subject, None)
            .await
            .unwrap();
        assert_eq!(store.moderation().await.unwrap(), [wish]);
        assert_eq!(
            store.audit(None, 9).await.unwrap(),
            [entry("fedi.lift"), entry("fedi.block")]
        );
    }
}
