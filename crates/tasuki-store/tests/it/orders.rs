//! The queue in an operator's hands: filters, orders, history, pauses.

use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId};
use tasuki_core::store::mail::{
    DeliveryState, Hold, LaneKey, Order, Outcome, Paused, QueueFilter, QueueState, Settled, Settlement,
};
use tasuki_core::store::{Store, StoreError};

use super::support::{benches, entry, lane, mail, recipient, small};

const HOUR: Duration = Duration::from_secs(3600);

fn failed(mail: MailId, seq: u16, hold: Hold, to: &str, attempts: u32) -> Outcome {
    Outcome {
        mail,
        delivery: DeliverySeq(seq),
        hold,
        settlement: Settlement::Deferred {
            lane: lane(to),
            recipients: vec![recipient(&format!("bob@{to}"))],
            attempts,
            due: Timestamp(5_000),
            last_error: format!("450 try {attempts}"),
            delay_reported: false,
        },
        follow_up: Vec::new(),
        story: None,
    }
}

/// Three deferred mails (a, b, b) and a fresh one (c); the second is from a principal, and older.
async fn filled(store: &dyn Store) -> (NodeId, Epoch, Vec<MailId>) {
    let (node, epoch) = store.join("gw").await.unwrap();
    let mut all = vec![
        mail(&["a.example"], small()),
        mail(&["b.example"], small()),
        mail(&["b.example"], small()),
        mail(&["c.example"], small()),
    ];
    all[1].envelope.principal = Some(PrincipalId(7));
    all[1].accepted_at = Timestamp(500);
    all[2].envelope.reverse_path = "Carol@Example.net".parse().unwrap();
    let ids: Vec<MailId> = all.iter().map(|m| m.id).collect();
    store.enqueue(node, epoch, all).await.unwrap();
    let outcomes = vec![
        failed(ids[0], 0, Hold::Fresh(epoch), "a.example", 1),
        failed(ids[1], 0, Hold::Fresh(epoch), "b.example", 1),
        failed(ids[2], 0, Hold::Fresh(epoch), "b.example", 1),
    ];
    store.settle(node, outcomes).await.unwrap();
    (node, epoch, ids)
}

async fn order(store: &dyn Store, filter: &QueueFilter, order: Order) -> u64 {
    let done = store
        .order(filter, &order, Timestamp(2_000), 1000, entry("mail.order"))
        .await;
    done.unwrap().deliveries
}

async fn claimed(store: &dyn Store, node: NodeId, now: i64) -> Vec<(LaneId, Epoch, LaneKey)> {
    let lanes = store
        .claim_lanes(node, Timestamp(now), HOUR, 10, &[])
        .await
        .unwrap();
    lanes.into_iter().map(|l| (l.id, l.epoch, l.key)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_finds_by_sender_recipient_state_age_principal_and_lane() {
    for bench in benches().await {
        let store = bench.open().await;
        let (.., ids) = filled(&*store).await;
        let all = QueueFilter::default;
        for (filter, found) in [
            (all(), vec![0, 1, 2, 3]),
            (
                QueueFilter {
                    sender: Some("carol@example".into()),
                    ..all()
                },
                vec![2],
            ),
            (
                QueueFilter {
                    recipient_domain: Some("B.example".into()),
                    ..all()
                },
                vec![1, 2],
            ),
            (
                QueueFilter {
                    recipient: Some("bob@c".into()),
                    ..all()
                },
                vec![3],
            ),
            (
                QueueFilter {
                    state: Some(QueueState::Fresh),
                    ..all()
                },
                vec![3],
            ),
            (
                QueueFilter {
                    state: Some(QueueState::Deferred),
                    ..all()
                },
                vec![0, 1, 2],
            ),
            (
                QueueFilter {
                    taken_before: Some(Timestamp(600)),
                    ..all()
                },
                vec![1],
            ),
            (
                QueueFilter {
                    principal: Some(PrincipalId(7)),
                    ..all()
                },
                vec![1],
            ),
            (
                QueueFilter {
                    lane: Some(lane("a.example")),
                    ..all()
                },
                vec![0],
            ),
            (
                QueueFilter {
                    mail: Some(ids[2]),
                    ..all()
                },
                vec![2],
            ),
            (
                QueueFilter {
                    mail: Some(ids[2]),
                    recipient: Some("nobody".into()),
                    ..all()
                },
                vec![],
            ),
        ] {
            let rows = store.queue(&filter, 100).await.unwrap();
            let got: Vec<MailId> = rows.iter().map(|r| r.mail).collect();
            let wanted: Vec<MailId> = found.iter().map(|i: &usize| ids[*i]).collect();
            assert_eq!(got, wanted, "{filter:?}");
            let matched = store.queue_match(&filter).await.unwrap();
            assert_eq!(
                (matched.mails, matched.size_bytes),
                (wanted.len() as u64, 5 * wanted.len() as u64)
            );
        }
        assert_eq!(store.queue_match(&all()).await.unwrap().fresh, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn held_mail_is_not_due_before_it_expires_and_released_mail_is_due_at_once() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, _, ids) = filled(&*store).await;
        let to_b = QueueFilter {
            recipient_domain: Some("b.example".into()),
            ..Default::default()
        };
        assert_eq!(order(&*store, &to_b, Order::Hold).await, 2);
        assert_eq!(
            order(&*store, &to_b, Order::Hold).await,
            0,
            "they are held already"
        );
        assert_eq!(
            order(&*store, &to_b, Order::Retry).await,
            0,
            "a held mail waits for its release"
        );
        let keys: Vec<LaneKey> = claimed(&*store, node, 900_000)
            .await
            .into_iter()
            .map(|l| l.2)
            .collect();
        assert_eq!(keys, [lane("a.example")]);
        let at_expiry = claimed(&*store, node, 1_000_000).await;
        let (id, epoch, _) = at_expiry[0].clone();
        let due = store.due(id, epoch, Timestamp(1_000_000), 10, &[]).await.unwrap();
        assert_eq!(due.len(), 2);
        assert!(due.iter().all(|d| d.orders.state == DeliveryState::Held));

        let one = QueueFilter {
            mail: Some(ids[1]),
            ..Default::default()
        };
        assert_eq!(order(&*store, &one, Order::Release).await, 1);
        let due = store.due(id, epoch, Timestamp(2_000), 10, &[]).await.unwrap();
        assert_eq!(due.len(), 1);
        assert_eq!(
            (due[0].mail, due[0].orders.state),
            (ids[1], DeliveryState::Waiting)
        );
        let rows = store.queue(&to_b, 10).await.unwrap();
        assert_eq!(
            [rows[0].state, rows[1].state],
            [QueueState::Deferred, QueueState::Held]
        );
        let audit = store.audit(None, 10).await.unwrap();
        assert!(
            audit.iter().any(|e| e.detail.starts_with("2 deliveries: ")),
            "{audit:?}"
        );
        assert_eq!(audit.len(), 2, "what changed nothing has no line");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rerouted_mail_moves_to_its_new_lane_and_says_so() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, _, ids) = filled(&*store).await;
        let way = LaneKey("via:office".into());
        let one = QueueFilter {
            mail: Some(ids[0]),
            ..Default::default()
        };
        assert_eq!(order(&*store, &one, Order::Reroute(way.clone())).await, 1);
        let lanes = claimed(&*store, node, 2_000).await;
        assert_eq!(lanes.len(), 1, "the others are due later");
        let (id, epoch, key) = lanes[0].clone();
        assert_eq!(key, way);
        let due = store.due(id, epoch, Timestamp(2_000), 10, &[]).await.unwrap();
        assert!(due[0].orders.rerouted && due[0].mail == ids[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_given_during_an_attempt_stands() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, _, ids) = filled(&*store).await;
        let (id, epoch, _) = claimed(&*store, node, 5_000)
            .await
            .into_iter()
            .find(|l| l.2 == lane("a.example"))
            .unwrap();
        let one = QueueFilter {
            mail: Some(ids[0]),
            ..Default::default()
        };
        assert_eq!(order(&*store, &one, Order::Delete).await, 1);
        let settled = store
            .settle(
                node,
                vec![failed(ids[0], 0, Hold::Lane(id, epoch), "a.example", 2)],
            )
            .await
            .unwrap();
        assert_eq!(settled, [Settled::Done]);
        let due = store.due(id, epoch, Timestamp(2_000), 10, &[]).await.unwrap();
        assert_eq!(
            (due.len(), due[0].orders.state),
            (1, DeliveryState::Delete),
            "it is still due now"
        );
        assert_eq!(order(&*store, &one, Order::Bounce).await, 0, "it is ending");
        let row = &store.queue(&one, 10).await.unwrap()[0];
        assert_eq!(row.state, QueueState::Ending);
        let words: Vec<(u32, &str)> = row
            .history
            .iter()
            .map(|a| (a.attempt, a.words.as_str()))
            .collect();
        assert_eq!(words, [(1, "450 try 1"), (2, "450 try 2")]);
        assert_eq!(row.history[0].lane, lane("a.example"));
        let listed = store.queue(&QueueFilter::default(), 10).await.unwrap();
        assert!(
            listed.iter().all(|row| row.history.is_empty()),
            "only for one mail"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_order_goes_on_where_it_stopped() {
    for bench in benches().await {
        let store = bench.open().await;
        let (node, epoch) = store.join("gw").await.unwrap();
        let many: Vec<_> = (0..600)
            .map(|_| mail(&["a.example", "b.example"], small()))
            .collect();
        let outcomes = many.iter().flat_map(|m| {
            [("a.example", 0), ("b.example", 1)].map(|(to, seq)| failed(m.id, seq, Hold::Fresh(epoch), to, 1))
        });
        let outcomes = outcomes.collect();
        store.enqueue(node, epoch, many).await.unwrap();
        store.settle(node, outcomes).await.unwrap();
        let (mut filter, mut held, mut calls) = (QueueFilter::default(), 0, 0);
        loop {
            let done = store
                .order(&filter, &Order::Hold, Timestamp(1), 100, entry("mail.hold"))
                .await
                .unwrap();
            held += done.deliveries;
            calls += 1;
            match done.after {
                Some(_) => filter.after = done.after,
                None => break,
            }
        }
        assert_eq!(held, 1200);
        assert!(calls >= 12, "{calls}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_are_replaced_listed_and_ended_once() {
    for bench in benches().await {
        let store = bench.open().await;
        let paused = |reason: &str| Paused {
            lane: lane("a.example"),
            since: Timestamp(3),
            by: "uid:0".into(),
            reason: reason.into(),
        };
        store
            .pause_lane(paused("first"), entry("mail.pause"))
            .await
            .unwrap();
        store
            .pause_lane(paused("second"), entry("mail.pause"))
            .await
            .unwrap();
        assert_eq!(store.paused_lanes().await.unwrap(), [paused("second")]);
        store
            .resume_lane(&lane("a.example"), entry("mail.resume"))
            .await
            .unwrap();
        assert!(store.paused_lanes().await.unwrap().is_empty());
        let again = store.resume_lane(&lane("a.example"), entry("mail.resume")).await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
        assert_eq!(store.audit(None, 10).await.unwrap().len(), 3);
    }
}
