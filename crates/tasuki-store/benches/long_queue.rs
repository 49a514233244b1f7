//! Mails in a store, and many of them: what `cargo bench -p tasuki-store` and `bench run mail` (case `deferred`) fill with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::ids::{DeliverySeq, Epoch, MailId, MailIds, NodeId};
use tasuki_core::store::Store;
use tasuki_core::store::mail::{
    Class, Envelope, Hold, LaneKey, NewDelivery, NewMail, Notify, Outcome, Recipient, Settlement, StoredBody,
};

/// As many outcomes as the mail engine settles at once.
pub(crate) const SETTLE: usize = 256;
static IDS: AtomicI64 = AtomicI64::new(1);

/// Mails as another gateway of the store left them, due over the next hour.
pub(crate) async fn fill(url: &str, dir: &Path, count: i64) {
    let store = tasuki_store::open(url, dir).await.unwrap();
    let clock = Clock::system();
    IDS.store(
        MailIds::new(NodeId(1000), clock.clone()).next().0,
        Ordering::Relaxed,
    );
    defer_many(&store, count, clock.wall()).await;
    store.close().await;
}

/// Mails of 2 KiB for `d00000.sink.test` and its kin, ten for each, deferred once.
pub(crate) async fn defer_many(store: &Arc<dyn Store>, count: i64, now: Timestamp) {
    let (node, epoch) = store.join("bench").await.unwrap();
    let lanes = (count / 10).max(1);
    let mut n = 0;
    while n < count {
        let mut mails = Vec::with_capacity(SETTLE);
        for place in n..count.min(n + 256) {
            let domain = format!("d{:05}.sink.test", place % lanes);
            let stored = write(&**store, &text(&domain, place)).await;
            mails.push(new_mail(&domain, stored, now));
        }
        let first = n;
        n += i64::try_from(mails.len()).unwrap();
        let domains: Vec<LaneKey> = mails.iter().map(|mail| mail.deliveries[0].lane.clone()).collect();
        let ids = store.enqueue(node, epoch, mails).await.unwrap();
        let outcomes = ids
            .into_iter()
            .zip(domains)
            .zip(first..)
            .map(|((id, lane), place)| {
                let domain = lane.0.trim_start_matches("mx:").to_owned();
                let settlement = Settlement::Deferred {
                    lane,
                    recipients: vec![recipient(&domain)],
                    attempts: 1,
                    due: Timestamp(now.0 + place * 3),
                    last_error: "450 4.2.0 try again later".into(),
                    delay_reported: false,
                };
                outcome(id, epoch, settlement)
            })
            .collect();
        store.settle(node, outcomes).await.unwrap();
    }
}

fn text(domain: &str, number: i64) -> Bytes {
    let mut text = format!(
        "From: <alice@example.org>\r\nTo: <bob@{domain}>\r\nDate: Tue, 24 Nov 2026 00:00:00 +0000\r\n\
         Message-ID: <{number}@fill.bench.test>\r\nSubject: bench\r\n\r\n"
    );
    while text.len() < 2 << 10 {
        text.push_str("0123456789012345678901234567890123456789012345678901234567890123456789\r\n");
    }
    text.into()
}

fn recipient(domain: &str) -> Recipient {
    Recipient {
        mailbox: format!("bob@{domain}").parse().unwrap(),
        notify: Notify::default(),
        orcpt: None,
        written: None,
    }
}

pub(crate) fn new_mail(domain: &str, body: StoredBody, now: Timestamp) -> NewMail {
    NewMail {
        id: MailId(IDS.fetch_add(1, Ordering::Relaxed)),
        envelope: Envelope {
            reverse_path: "alice@example.org".parse().unwrap(),
            principal: None,
            envid: None,
            ret: None,
            smtputf8: false,
            eight_bit: false,
            is_dsn: false,
            require_tls: false,
            class: Class::default(),
            received: None,
        },
        body,
        deliveries: vec![NewDelivery {
            lane: LaneKey(format!("mx:{domain}")),
            recipients: vec![recipient(domain)],
        }],
        accepted_at: now,
        expires_at: now.plus(Duration::from_secs(5 * 86_400)),
    }
}

pub(crate) fn outcome(mail: MailId, epoch: Epoch, settlement: Settlement) -> Outcome {
    Outcome {
        mail,
        delivery: DeliverySeq(0),
        hold: Hold::Fresh(epoch),
        settlement,
        follow_up: Vec::new(),
        story: None,
    }
}

/// A body as it arrives from a socket: in pieces.
pub(crate) async fn write(store: &dyn Store, bytes: &Bytes) -> StoredBody {
    let mut sink = store.open_body(Some(bytes.len() as u64)).await.unwrap();
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(16 << 10));
        sink.write(piece).await.unwrap();
    }
    sink.finish().await.unwrap()
}
