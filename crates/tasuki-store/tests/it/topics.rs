//! What hosts join, from which actor they get what, and the operator's lists.

use bytes::Bytes;
use roaring::RoaringBitmap;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::LogSeq;
use tasuki_core::store::fedi::{
    Appended, EntryKind, FilterBy, HostFacts, HostFilter, KeptFilter, NewEntry, NewSubscription,
    SubscriptionState, SubscriptionStyle, TopicList, Via,
};
use tasuki_core::store::{Store, StoreError};

use super::support::{benches, entry};

fn joins(topic: &str, at: i64) -> NewSubscription {
    NewSubscription {
        host: "a.example".into(),
        topic: topic.into(),
        actor: "https://a.example/actor".into(),
        inbox: "https://a.example/inbox".into(),
        style: SubscriptionStyle::Mastodon,
        state: SubscriptionState::Active,
        follow_id: format!("https://a.example/follow {topic}"),
        software: None,
        at: Timestamp(at),
    }
}

async fn joined(store: &dyn Store) -> Vec<(String, String, Option<String>)> {
    let all = store.subscriptions().await.unwrap();
    all.into_iter()
        .map(|one| (one.topic, one.follow_id, one.software))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_several_and_what_is_known_of_it_stays_until_it_leaves_the_last() {
    for bench in benches().await {
        let store = bench.open().await;
        let mut numbers = Vec::new();
        for (topic, at) in [("tag/猫", 1), ("", 2), ("lang/ja", 3), ("tag/猫", 4)] {
            let letter = NewEntry {
                kind: EntryKind::Control,
                dedupe: format!("{topic} {at}"),
                via: vec![(topic.into(), RoaringBitmap::new())],
                ..activity("accept", &[])
            };
            let made = store
                .subscribe(joins(topic, at), vec![letter], None)
                .await
                .unwrap();
            assert_eq!(
                (made.topic.as_str(), made.since),
                (topic, Timestamp(if at == 4 { 1 } else { at }))
            );
            numbers.push(made.host_no);
        }
        assert!(numbers.iter().all(|no| *no == numbers[0]));
        let own = RoaringBitmap::from_iter([numbers[0].0]);
        let first = store.entries(None, 9, u64::MAX).await.unwrap().remove(0);
        assert_eq!(
            (&first.audience, first.via),
            (&own, vec![("tag/猫".to_owned(), own.clone())])
        );
        let facts = HostFacts {
            software: Some("mastodon 4.5".into()),
            at: Timestamp(5),
            ..HostFacts::default()
        };
        store.note_facts("a.example", facts).await.unwrap();
        let known = Some("mastodon 4.5".to_owned());
        let follow = |topic: &str| format!("https://a.example/follow {topic}");
        let expected = |topics: &[&str]| -> Vec<_> {
            topics
                .iter()
                .map(|topic| ((*topic).to_owned(), follow(topic), known.clone()))
                .collect()
        };
        assert_eq!(joined(&*store).await, expected(&["tag/猫", "", "lang/ja"]));
        let gone = store
            .unsubscribe("a.example", "tag/猫", None, None)
            .await
            .unwrap();
        assert_eq!(gone.follow_id, follow("tag/猫"));
        store.close().await;
        let store = bench.open().await;
        assert_eq!(joined(&*store).await, expected(&["", "lang/ja"]));
        store
            .unsubscribe("a.example", "lang/ja", None, None)
            .await
            .unwrap();
        for topic in ["lang/ja", "tag/none"] {
            let again = store.unsubscribe("a.example", topic, None, None).await;
            assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
        }
        store.unsubscribe("a.example", "", None, None).await.unwrap();
        assert_eq!(joined(&*store).await, []);
    }
}

fn activity(object: &str, audience: &[u32]) -> NewEntry {
    NewEntry {
        kind: EntryKind::Activity,
        object: object.into(),
        actor: String::new(),
        dedupe: object.into(),
        body: Bytes::from_static(b"0123456789"),
        announce: None,
        audience: audience.iter().copied().collect(),
        announce_to: RoaringBitmap::new(),
        via: Via::new(),
        if_known: RoaringBitmap::new(),
        at: Timestamp(1_000),
    }
}

async fn append(store: &dyn Store, entry: NewEntry) -> LogSeq {
    match store.append(entry).await.unwrap() {
        Appended::Stored(seq) => seq,
        other => panic!("{other:?}"),
    }
}

fn via(of: &[(&str, &[u32])]) -> Via {
    of.iter()
        .map(|(topic, hosts)| ((*topic).to_owned(), hosts.iter().copied().collect()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_whoever_got_the_object_from_the_same_actor() {
    for bench in benches().await {
        let store = bench.open().await;
        let create = NewEntry {
            via: via(&[("tag/a", &[2]), ("tag/b", &[3])]),
            ..activity("o", &[1, 2, 3])
        };
        let create = append(&*store, create).await;
        let update = NewEntry {
            dedupe: "update".into(),
            audience: RoaringBitmap::from_iter([4]),
            via: via(&[("tag/c", &[4])]),
            if_known: RoaringBitmap::from_iter([1, 2, 4, 9]),
            ..activity("o", &[])
        };
        let update = append(&*store, update).await;
        let delete = NewEntry {
            kind: EntryKind::Delete,
            dedupe: "delete".into(),
            // It joined the whole relay since.
            audience: RoaringBitmap::from_iter([2]),
            ..activity("o", &[])
        };
        let delete = append(&*store, delete).await;
        store.close().await;
        let store = bench.open().await;
        let of = async |seq| {
            let entry = store.entries_at(&[seq]).await.unwrap().remove(0);
            (entry.audience.iter().collect::<Vec<_>>(), entry.via)
        };
        assert_eq!(
            of(create).await,
            (vec![1, 2, 3], via(&[("tag/a", &[2]), ("tag/b", &[3])]))
        );
        assert_eq!(
            of(update).await,
            (vec![1, 2, 4], via(&[("tag/c", &[4]), ("tag/a", &[2])]))
        );
        assert_eq!(
            of(delete).await,
            (vec![1, 2, 3, 4], via(&[("tag/b", &[3]), ("tag/c", &[4])]))
        );
        let nobody = NewEntry {
            if_known: RoaringBitmap::from_iter([1]),
            ..activity("unknown", &[])
        };
        assert_eq!(store.append(nobody.clone()).await.unwrap(), Appended::Nobody);
        assert_eq!(store.append(nobody).await.unwrap(), Appended::Duplicate);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_kept_changed_and_removed() {
    for bench in benches().await {
        let store = bench.open().await;
        let list = |title: &str| TopicList {
            name: "nihon".into(),
            title: title.into(),
            tags: vec!["東京".into()],
            ..TopicList::default()
        };
        let version = store.subscriptions_version().await.unwrap();
        store
            .put_topic_list(list("one"), Some(entry("fedi.list")))
            .await
            .unwrap();
        store.put_topic_list(list("two"), None).await.unwrap();
        assert_eq!(store.topic_lists().await.unwrap(), [list("two")]);
        assert!(store.subscriptions_version().await.unwrap() > version);
        store.remove_topic_list("nihon", None).await.unwrap();
        assert!(matches!(
            store.remove_topic_list("nihon", None).await,
            Err(StoreError::NotFound(_))
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_kept_changed_and_taken_away() {
    for bench in benches().await {
        let store = bench.open().await;
        let kept = |by, per_minute| KeptFilter {
            host: "a.example".into(),
            filter: HostFilter {
                tags_out: vec!["広告".into()],
                no_bots: true,
                per_minute,
                ..HostFilter::default()
            },
            by,
            at: Timestamp(5),
        };
        let version = store.subscriptions_version().await.unwrap();
        let first = kept(FilterBy::Instance, 5);
        store
            .set_filter("a.example", Some(first), Some(entry("fedi.filter")))
            .await
            .unwrap();
        let second = kept(FilterBy::Operator, 0);
        store
            .set_filter("a.example", Some(second.clone()), None)
            .await
            .unwrap();
        assert!(store.subscriptions_version().await.unwrap() > version);
        store.close().await;
        let store = bench.open().await;
        assert_eq!(store.filters().await.unwrap(), [second]);
        store.set_filter("a.example", None, None).await.unwrap();
        assert_eq!(store.filters().await.unwrap(), []);
        let again = store.set_filter("a.example", None, None).await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    }
}
