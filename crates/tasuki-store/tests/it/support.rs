//! Stores to test, and values to put into them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::MailId;
use tasuki_core::store::mail::{
    BodyPlace, Class, Envelope, LaneKey, NewDelivery, NewMail, Recipient, StoredBody,
};
use tasuki_core::store::{AuditEntry, Store};
use tempfile::TempDir;

/// A database under test.
pub(crate) struct Bench {
    dir: TempDir,
    url: String,
}

impl Bench {
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        tasuki_store::open(&self.url, self.dir.path()).await.unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// One of each kind.
pub(crate) async fn benches() -> Vec<Bench> {
    let postgres = tokio::task::spawn_blocking(super::postgres::new_database)
        .await
        .unwrap();
    [tasuki_store::DEFAULT_URL.to_owned(), postgres]
        .into_iter()
        .map(|url| Bench {
            dir: TempDir::new().unwrap(),
            url,
        })
        .collect()
}

pub(crate) fn entry(action: &str) -> AuditEntry {
    AuditEntry {
        at: Timestamp(1_000),
        who: "alice".into(),
        from: "192.0.2.1".into(),
        action: action.into(),
        object: "it".into(),
        detail: String::new(),
    }
}

static IDS: AtomicI64 = AtomicI64::new(1);

pub(crate) fn recipient(address: &str) -> Recipient {
    Recipient {
        mailbox: address.parse().unwrap(),
        notify: tasuki_core::store::mail::Notify::default(),
        orcpt: None,
        written: None,
    }
}

pub(crate) fn lane(name: &str) -> LaneKey {
    LaneKey(format!("mx:{name}"))
}

/// A mail with one delivery to each of `domains`.
pub(crate) fn mail(domains: &[&str], body: StoredBody) -> NewMail {
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
        deliveries: domains
            .iter()
            .map(|domain| NewDelivery {
                lane: lane(domain),
                recipients: vec![recipient(&format!("bob@{domain}"))],
            })
            .collect(),
        accepted_at: Timestamp(1_000),
        expires_at: Timestamp(1_000_000),
    }
}

pub(crate) fn small() -> StoredBody {
    StoredBody {
        len: 5,
        place: BodyPlace::Inline(Bytes::from_static(b"hello")),
    }
}

/// Writes a body through the store's own door.
pub(crate) async fn write(store: &dyn Store, bytes: &[u8]) -> StoredBody {
    let mut sink = store.open_body(None).await.unwrap();
    for chunk in bytes.chunks(50_000) {
        sink.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    sink.finish().await.unwrap()
}

pub(crate) async fn read(store: &dyn Store, body: &StoredBody) -> Vec<u8> {
    let mut source = store.body(body).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = source.next().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}
