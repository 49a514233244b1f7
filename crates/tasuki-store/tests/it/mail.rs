//! Mail: accepted, held, settled, deferred, adopted.

use std::sync::Arc;
use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, NodeId, PrincipalId};
use tasuki_core::store::mail::{Hold, Outcome, QueueFilter, QueueState, Settled, Settlement};
use tasuki_core::store::{Actor, Store, StoreError};
use tasuki_proto::names::{Domain, Mailbox};

use super::support::{benches, lane, mail, read, recipient, small, write};

const HOUR: Duration = Duration::from_secs(3600);

fn outcome(mail: MailId, seq: u16, hold: Hold, settlement: Settlement) -> Outcome {
    Outcome {
        mail,
        delivery: DeliverySeq(seq),
        hold,
        settlement,
        follow_up: Vec::new(),
        story: None,
    }
}

fn deferred(to: &str, due: i64) -> Settlement {
    Settlement::Deferred {
        lane: lane(to),
        recipients: vec![recipient(&format!("bob@{to}"))],
        attempts: 1,
        due: Timestamp(due),
        last_error: "450 later".into(),
        delay_reported: false,
    }
}

async fn joined(store: &dyn Store) -> (NodeId, Epoch) {
    store.join("gw").await.unwrap()
}

async fn listed(store: &dyn Store) -> usize {
    store.queue(&QueueFilter::default(), 100).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_share_commits() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let before = store.stats();
        let calls = (0..50).map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store
                    .enqueue(node, epoch, vec![mail(&["a.example"], small())])
                    .await
            })
        });
        for call in futures_util::future::join_all(calls).await {
            call.unwrap().unwrap();
        }
        let commits = store.stats().commits - before.commits;
        assert!(commits <= 25, "{commits} commits for 50 callers");
        assert_eq!(store.queue_counts().await.unwrap().mails, 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_mail_fails_alone() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let taken = mail(&["a.example"], small());
        store.enqueue(node, epoch, vec![taken.clone()]).await.unwrap();
        let calls = (0..20).map(|i| {
            let new = if i == 7 {
                taken.clone()
            } else {
                mail(&["a.example"], small())
            };
            store.enqueue(node, epoch, vec![new])
        });
        let results = futures_util::future::join_all(calls).await;
        let refused: Vec<_> = results
            .iter()
            .enumerate()
            .filter(|(_, r)| r.is_err())
            .map(|(i, _)| i)
            .collect();
        assert_eq!(refused, [7]);
        assert!(matches!(results[7], Err(StoreError::Conflict(_))));
        assert_eq!(listed(&*store).await, 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_gone_with_the_last_of_its_lanes() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let (one, three) = (
            mail(&["a.example"], small()),
            mail(&["a.example", "b.example", "c.example"], small()),
        );
        let ids = store.enqueue(node, epoch, vec![one, three]).await.unwrap();
        let fresh = Hold::Fresh(epoch);
        let done = |mail, seq| outcome(mail, seq, fresh, Settlement::Finished);
        let settled = store
            .settle(node, vec![done(ids[0], 0), done(ids[1], 1), done(ids[1], 0)])
            .await
            .unwrap();
        assert_eq!(settled, [Settled::Done; 3]);
        let rows = store.queue(&QueueFilter::default(), 10).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].lane, lane("c.example"));
        store.settle(node, vec![done(ids[1], 2)]).await.unwrap();
        assert_eq!(listed(&*store).await, 0);
        assert_eq!(store.queue_counts().await.unwrap().mails, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_mail_comes_back_in_due_order_to_the_owner_of_its_lane_only() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let mails: Vec<_> = (0..3).map(|_| mail(&["a.example"], small())).collect();
        let ids = store.enqueue(node, epoch, mails).await.unwrap();
        let outcomes = ids
            .iter()
            .zip([300, 100, 200])
            .map(|(id, due)| outcome(*id, 0, Hold::Fresh(epoch), deferred("a.example", due)))
            .collect();
        store.settle(node, outcomes).await.unwrap();
        assert_eq!(store.next_due(node).await.unwrap(), Some(Timestamp(100)));
        assert!(
            store
                .claim_lanes(node, Timestamp(99), HOUR, 9, &[])
                .await
                .unwrap()
                .is_empty()
        );
        let lanes = store
            .claim_lanes(node, Timestamp(250), HOUR, 9, &[])
            .await
            .unwrap();
        let owned = &lanes[0];
        let due = async |flying: &[(MailId, DeliverySeq)]| {
            store
                .due(owned.id, owned.epoch, Timestamp(250), 9, flying)
                .await
                .unwrap()
        };
        let held: Vec<_> = due(&[]).await.iter().map(|h| h.mail).collect();
        assert_eq!(held, [ids[1], ids[2]]);
        assert_eq!(due(&[(ids[1], DeliverySeq(0))]).await.len(), 1);
        let hold = Hold::Lane(owned.id, owned.epoch);
        store
            .settle(node, vec![outcome(ids[1], 0, hold, Settlement::Finished)])
            .await
            .unwrap();
        assert_eq!(due(&[]).await.len(), 1, "a settled delivery never comes back");
        assert_eq!(store.queue_counts().await.unwrap().deferred, 2);

        store.release_lanes(&[(owned.id, owned.epoch)]).await.unwrap();
        let late = store
            .settle(node, vec![outcome(ids[2], 0, hold, Settlement::Finished)])
            .await
            .unwrap();
        assert_eq!(late, [Settled::LaneLost]);
        let stale = store.due(owned.id, owned.epoch, Timestamp(900), 9, &[]).await;
        assert!(matches!(stale, Err(StoreError::StaleEpoch)), "{stale:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_up_is_stored_with_its_outcome_or_not_at_all() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let ids = store
            .enqueue(node, epoch, vec![mail(&["a.example"], small())])
            .await
            .unwrap();
        let dsn = mail(&["example.org"], small());
        let mut bounced = outcome(ids[0], 0, Hold::Fresh(epoch), Settlement::Finished);
        bounced.follow_up = vec![dsn.clone(), dsn.clone()];
        assert!(store.settle(node, vec![bounced.clone()]).await.is_err());
        assert_eq!(
            store.queue(&QueueFilter::default(), 9).await.unwrap()[0].mail,
            ids[0]
        );
        bounced.follow_up = vec![dsn.clone()];
        assert_eq!(store.settle(node, vec![bounced]).await.unwrap(), [Settled::Done]);
        let rows = store.queue(&QueueFilter::default(), 9).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.mail).collect::<Vec<_>>(), [dsn.id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_mail_and_its_body_outlive_the_process() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let mut mails = Vec::new();
        let sizes = [0, 100, 20_000, 100_000, 700_000];
        let text = |len: usize| (0..len).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
        for len in sizes {
            let body = write(&*store, &text(len)).await;
            mails.push(mail(&["a.example", "b.example"], body));
        }
        let ids = store.enqueue(node, epoch, mails).await.unwrap();
        let one = outcome(ids[0], 0, Hold::Fresh(epoch), Settlement::Finished);
        store.settle(node, vec![one]).await.unwrap();
        store.close().await;

        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let held = store.adopt(node, epoch, 100).await.unwrap();
        assert_eq!(held.len(), sizes.len() * 2 - 1);
        for held in &held {
            let place = ids.iter().position(|id| *id == held.mail).unwrap();
            assert_eq!(read(&*store, &held.body).await, text(sizes[place]));
        }
        assert!(store.adopt(node, epoch, 100).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_loses_its_mail_and_cannot_settle_it_any_more() {
    for bench in benches().await {
        let store = bench.open().await;
        let dead = store.join("dead").await.unwrap();
        let heir = store.join("heir").await.unwrap();
        let ids = store
            .enqueue(dead.0, dead.1, vec![mail(&["a.example"], small())])
            .await
            .unwrap();
        assert!(store.adopt(heir.0, heir.1, 9).await.unwrap().is_empty());
        store.heartbeat(dead.0, dead.1, Duration::ZERO).await.unwrap();
        let held = store.adopt(heir.0, heir.1, 9).await.unwrap();
        assert_eq!(held.len(), 1);
        let late = outcome(ids[0], 0, Hold::Fresh(dead.1), Settlement::Finished);
        assert_eq!(
            store.settle(dead.0, vec![late]).await.unwrap(),
            [Settled::LaneLost]
        );
        let own = outcome(ids[0], 0, held[0].hold, Settlement::Finished);
        assert_eq!(store.settle(heir.0, vec![own]).await.unwrap(), [Settled::Done]);
        assert_eq!(listed(&*store).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_whose_segment_was_not_written_is_dropped_at_the_start() {
    // A segment that was found whole at an earlier start is known from the database; it is looked at all the same.
    for starts_before in [0, 1] {
        let bench = benches().await.remove(0);
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let mut mails = vec![mail(&["a.example"], small())];
        for _ in 0..6 {
            let body = write(&*store, &[7; 100_000]).await;
            mails.push(mail(&["a.example"], body));
        }
        store.enqueue(node, epoch, mails).await.unwrap();
        store.close().await;
        for _ in 0..starts_before {
            let store = bench.open().await;
            assert_eq!(listed(&*store).await, 7);
            store.close().await;
        }
        for file in std::fs::read_dir(bench.dir().join("segments")).unwrap() {
            let path = file.unwrap().path();
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len();
            assert_eq!(len, 300_000, "three in each of the two shared segments");
            file.set_len(len - 1).unwrap();
        }
        let store = bench.open().await;
        assert_eq!(listed(&*store).await, 5);
        assert_eq!(store.queue_counts().await.unwrap().mails, 5);
        let (node, epoch) = joined(&*store).await;
        let held = store.adopt(node, epoch, 9).await.unwrap();
        for held in &held[1..] {
            assert_eq!(read(&*store, &held.body).await, [7; 100_000]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_adds_up_over_the_day() {
    for bench in benches().await {
        let store = bench.open().await;
        let (shop, news) = (PrincipalId(1), PrincipalId(2));
        assert_eq!(store.add_sent(7, vec![(shop, 0)]).await.unwrap(), [0]);
        assert_eq!(
            store.add_sent(7, vec![(shop, 3), (news, 5)]).await.unwrap(),
            [3, 5]
        );
        assert_eq!(
            store.add_sent(7, vec![(news, 2), (shop, 1)]).await.unwrap(),
            [7, 4]
        );
        assert_eq!(store.add_sent(8, vec![(shop, 1)]).await.unwrap(), [1]);
        // Yesterday is kept for gateways whose clock is a little behind; the day before is forgotten.
        assert_eq!(store.add_sent(7, vec![(shop, 1)]).await.unwrap(), [5]);
        store.add_sent(9, vec![(shop, 1)]).await.unwrap();
        assert_eq!(store.add_sent(7, vec![(shop, 1)]).await.unwrap(), [1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_in_figures_is_the_queue_in_rows_also_after_a_restart() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = joined(&*store).await;
        let large = write(&*store, &[7; 100_000]).await;
        let mut new = vec![mail(&["a.example", "b.example"], large)];
        new.extend((0..5).map(|_| mail(&["a.example"], small())));
        let ids = store.enqueue(node, epoch, new).await.unwrap();
        let fresh = Hold::Fresh(epoch);
        let mut bounced = outcome(ids[3], 0, fresh, Settlement::Finished);
        bounced.follow_up = vec![mail(&["example.org"], small())];
        let outcomes = vec![
            outcome(ids[0], 0, fresh, deferred("a.example", 100)),
            outcome(ids[1], 0, fresh, deferred("a.example", 100)),
            outcome(ids[2], 0, fresh, Settlement::Finished),
            bounced,
        ];
        store.settle(node, outcomes).await.unwrap();
        let lanes = store
            .claim_lanes(node, Timestamp(200), HOUR, 9, &[])
            .await
            .unwrap();
        let hold = Hold::Lane(lanes[0].id, lanes[0].epoch);
        let rest = outcome(ids[1], 0, hold, Settlement::Finished);
        store.settle(node, vec![rest]).await.unwrap();

        let figures = async |store: &dyn Store| {
            let rows = store.queue(&QueueFilter::default(), 100).await.unwrap();
            let mut mails: Vec<_> = rows.iter().map(|row| row.mail).collect();
            mails.dedup();
            let deferred = rows
                .iter()
                .filter(|row| row.state == QueueState::Deferred)
                .count();
            assert_eq!((mails.len(), deferred), (4, 1));
            let counts = store.queue_counts().await.unwrap();
            assert_eq!((counts.mails, counts.deferred), (4, 1));
        };
        figures(&*store).await;
        store.close().await;
        figures(&*bench.open().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn known_recipients_are_found_in_any_case_and_listed_by_domain() {
    for bench in benches().await {
        let store = bench.open().await;
        let mailbox = |text: &str| Mailbox::parse(text).unwrap();
        let entry = |n| Actor::gateway("test").entry(Timestamp(n), "mail.recipients", "x.org", "");
        let add = ["Anna@x.org", "bob@x.org", "anna@sub.x.org"]
            .map(mailbox)
            .to_vec();
        store
            .change_recipients(add.clone(), vec![], entry(1))
            .await
            .unwrap();
        store
            .change_recipients(add, vec![mailbox("nobody@x.org")], entry(2))
            .await
            .unwrap();
        for (address, there) in [
            ("anna@x.org", true),
            ("ANNA@X.org", true),
            ("anna@sub.x.org", true),
            ("bob@sub.x.org", false),
            ("anna@[192.0.2.1]", false),
        ] {
            assert_eq!(
                store.is_recipient(&mailbox(address)).await.unwrap(),
                there,
                "{address}"
            );
        }
        let domain = Domain::parse("x.org").unwrap();
        assert_eq!(store.recipients(&domain, "", 10).await.unwrap(), ["anna", "bob"]);
        assert_eq!(store.recipients(&domain, "anna", 10).await.unwrap(), ["bob"]);
        assert_eq!(store.recipients(&domain, "", 1).await.unwrap(), ["anna"]);
        store
            .change_recipients(vec![], vec![mailbox("ANNA@x.org")], entry(3))
            .await
            .unwrap();
        assert!(!store.is_recipient(&mailbox("anna@x.org")).await.unwrap());
    }
}
