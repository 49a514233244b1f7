//! The trail of finished mail: told with the settlement, found again by id, recipient and Message-ID, and forgotten.

use std::sync::Arc;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, NodeId};
use tasuki_core::store::Store;
use tasuki_core::store::mail::{Hold, NewMail, Order, Outcome, QueueFilter, Settled, Settlement};
use tasuki_core::store::trail::{
    Announcement, Answers, End, Fate, NoticeKind, NoticeSent, Received, Server, Story, ToldStory, Traced,
};

use super::support::{benches, entry, lane, mail, recipient, small};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

/// What became of a mail to `to` at `at`.
pub(crate) fn story(mail: MailId, to: &str, at: i64) -> Story {
    Story {
        mail,
        delivery: DeliverySeq(0),
        accepted_at: Timestamp(1_000),
        reverse_path: "alice@example.org".parse().unwrap(),
        principal: None,
        size_bytes: 5,
        received: Some(Box::new(Received {
            client: Some("192.0.2.1:50000".parse().unwrap()),
            message_id: Some(format!("{mail}@example.org")),
            ..Received::default()
        })),
        at: Timestamp(at),
        attempt: 1,
        lane: lane("a.example"),
        fates: vec![Fate {
            recipients: vec![to.parse().unwrap()],
            end: End::Relayed,
            words: "250 2.0.0 ok\0 with what PostgreSQL cannot hold".into(),
            server: Some(Server {
                host: "mx.a.example".into(),
                addr: Some("198.51.100.1:25".parse().unwrap()),
                tls: None,
            }),
        }],
        aliases: vec![("sales@shop.test".parse().unwrap(), to.parse().unwrap())],
        notices: vec![NoticeSent {
            mail: MailId(99),
            to: "alice@example.org".parse().unwrap(),
            kind: NoticeKind::Relayed,
        }],
    }
}

fn outcome(mail: MailId, hold: Hold, settlement: Settlement, story: Option<Story>) -> Outcome {
    Outcome {
        mail,
        delivery: DeliverySeq(0),
        hold,
        settlement,
        follow_up: Vec::new(),
        story: story.map(Arc::new),
    }
}

fn deferred() -> Settlement {
    Settlement::Deferred {
        lane: lane("a.example"),
        recipients: vec![recipient("bob@a.example")],
        attempts: 1,
        due: Timestamp(5_000),
        last_error: "450 later".into(),
        delay_reported: false,
    }
}

async fn take(store: &dyn Store, life: (NodeId, Epoch)) -> MailId {
    let new: NewMail = mail(&["a.example"], small());
    let id = new.id;
    store.enqueue(life.0, life.1, vec![new]).await.unwrap();
    id
}

/// Takes a mail and finishes it.
async fn finish(store: &dyn Store, life: (NodeId, Epoch), to: &str, at: i64) -> Story {
    let id = take(store, life).await;
    let told = story(id, to, at);
    let done = outcome(id, Hold::Fresh(life.1), Settlement::Finished, Some(told.clone()));
    assert_eq!(store.settle(life.0, vec![done]).await.unwrap(), [Settled::Done]);
    told
}

async fn found(store: &dyn Store, traced: Traced) -> Vec<Story> {
    let told = store.trail(&traced, 20).await.unwrap();
    told.into_iter().map(|told| told.story).collect()
}

fn by(recipient: &str) -> Traced {
    Traced::Recipient(recipient.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_mail_is_found_by_id_recipient_alias_and_message_id() {
    for bench in benches().await {
        let store = bench.open().await;
        let life = store.join("gw").await.unwrap();
        let one = finish(&*store, life, "Bob@a.example", 2_000).await;
        let two = finish(&*store, life, "carol@a.example", 3_000).await;
        for (traced, stories) in [
            (Traced::Mail(one.mail), vec![one.clone()]),
            (by("bob@A.example"), vec![one.clone()]),
            (by("sales@shop.test"), vec![one.clone(), two.clone()]),
            (
                Traced::MessageId(format!("<{}@example.org>", two.mail)),
                vec![two.clone()],
            ),
            (by("alice@example.org"), vec![]),
            (Traced::Mail(MailId(1 << 50)), vec![]),
        ] {
            assert_eq!(found(&*store, traced.clone()).await, stories, "{traced:?}");
        }
        // The newest only, if there are many.
        let newest = store.trail(&by("sales@shop.test"), 1).await.unwrap();
        assert_eq!(newest.len(), 1);
        assert_eq!(newest[0].story, two);
        store.close().await;
        let store = bench.open().await;
        assert_eq!(
            found(&*store, Traced::Mail(one.mail)).await,
            [one],
            "after a restart"
        );
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_mail_takes_its_attempts_and_who_ordered_its_end_into_the_trail() {
    for bench in benches().await {
        let store = bench.open().await;
        let life = store.join("gw").await.unwrap();
        let id = take(&*store, life).await;
        let first = outcome(id, Hold::Fresh(life.1), deferred(), None);
        store.settle(life.0, vec![first]).await.unwrap();
        assert!(found(&*store, Traced::Mail(id)).await.is_empty(), "it only waits");
        let filter = QueueFilter {
            mail: Some(id),
            ..QueueFilter::default()
        };
        store
            .order(
                &filter,
                &Order::Delete,
                Timestamp(2_000),
                10,
                entry("mail.delete"),
            )
            .await
            .unwrap();
        let lanes = store
            .claim_lanes(life.0, Timestamp(9_000), HOUR, 8, &[])
            .await
            .unwrap();
        let hold = Hold::Lane(lanes[0].id, lanes[0].epoch);
        let end = Some(story(id, "bob@a.example", 9_000));
        let done = outcome(id, hold, Settlement::Finished, end.clone());
        // A stale outcome tells nothing.
        let stale = Hold::Lane(lanes[0].id, Epoch(lanes[0].epoch.0 + 1));
        let lost = store
            .settle(life.0, vec![outcome(id, stale, Settlement::Finished, end)])
            .await
            .unwrap();
        assert_eq!(lost, [Settled::LaneLost]);
        assert_eq!(store.settle(life.0, vec![done]).await.unwrap(), [Settled::Done]);
        let told: Vec<ToldStory> = store.trail(&Traced::Mail(id), 20).await.unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].ordered_by.as_deref(), Some("alice"));
        assert_eq!(told[0].history.len(), 1);
        assert_eq!(told[0].history[0].words, "450 later");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_forgotten_by_age_and_by_size_a_few_batches_at_a_time() {
    for bench in benches().await {
        let store = bench.open().await;
        let life = store.join("gw").await.unwrap();
        for n in 0..10 {
            finish(&*store, life, "bob@a.example", 1_000 * (n + 1)).await;
            // Each in a commit of its own.
            store.queue(&QueueFilter::default(), 1).await.unwrap();
        }
        let left = async || found(&*store, by("bob@a.example")).await.len();
        assert_eq!(left().await, 10);
        let big = u64::MAX >> 1;
        assert_eq!(store.prune_trail(Timestamp(4_500), big, 3).await.unwrap(), 3);
        assert_eq!(left().await, 7);
        assert_eq!(store.prune_trail(Timestamp(4_500), big, 3).await.unwrap(), 1);
        assert_eq!(store.prune_trail(Timestamp(4_500), big, 3).await.unwrap(), 0);
        assert_eq!(left().await, 6);
        // Room for about two of them.
        let size = serde_json::to_vec(&story(MailId(1), "bob@a.example", 1))
            .unwrap()
            .len() as u64;
        assert_eq!(
            store
                .prune_trail(Timestamp(0), 2 * size + size / 2, 100)
                .await
                .unwrap(),
            4
        );
        assert_eq!(left().await, 2);
        assert_eq!(store.prune_trail(Timestamp(0), 0, 100).await.unwrap(), 2);
        assert_eq!(left().await, 0);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_stories_of_one_commit_are_all_found() {
    for bench in benches().await {
        let store = bench.open().await;
        let life = store.join("gw").await.unwrap();
        let (mut mails, mut outcomes) = (Vec::new(), Vec::new());
        for n in 0..600 {
            let new = mail(&["a.example"], small());
            let told = story(new.id, &format!("r{n}@a.example"), 2_000);
            outcomes.push(outcome(
                new.id,
                Hold::Fresh(life.1),
                Settlement::Finished,
                Some(told),
            ));
            mails.push(new);
        }
        store.enqueue(life.0, life.1, mails).await.unwrap();
        store.settle(life.0, outcomes).await.unwrap();
        for n in [0, 255, 256, 599] {
            assert_eq!(
                found(&*store, by(&format!("r{n}@a.example"))).await.len(),
                1,
                "{n}"
            );
        }
        assert_eq!(found(&*store, by("sales@shop.test")).await.len(), 20);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_hear_what_others_announce_and_answer() {
    for bench in benches().await {
        let store = bench.open().await;
        let (desk, _) = store.join("desk").await.unwrap();
        let (other, _) = store.join("other").await.unwrap();
        let announcement = Announcement {
            filter: QueueFilter {
                recipient_domain: Some("a.example".into()),
                ..QueueFilter::default()
            },
            order: Some(Order::Reroute(lane("b.example"))),
            audit: entry("mail.reroute"),
        };
        let id = store.announce(desk, &announcement).await.unwrap();
        assert_eq!(store.announced(desk).await.unwrap(), [], "one's own is no news");
        let heard = store.announced(other).await.unwrap();
        assert_eq!(heard.len(), 1);
        assert_eq!((heard[0].id, &heard[0].announcement), (id, &announcement));
        store.answer(id, 3).await.unwrap();
        let answers = Answers {
            expected: 1,
            answered: 1,
            deliveries: 3,
        };
        assert_eq!(store.answers(desk, id).await.unwrap(), answers);
        store.close().await;
    }
}
