//! A network between gateway and PostgreSQL that stops to carry anything, without a word to either side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::store::mail::QueueFilter;
use tasuki_core::store::{StoreError, StoreResult};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::postgres;
use super::support::{mail, small, write};

/// The gateway's own deadlines for one answer and for a connection, and room for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Carries bytes to a server's socket until it is told, or sees in them, that it should not.
#[derive(Clone)]
struct Network {
    socket: PathBuf,
    is_down: watch::Sender<bool>,
    /// Goes down when the gateway sends this, which does not arrive any more.
    until: &'static [u8],
}

impl Network {
    async fn carry(self, listener: TcpListener) {
        while let Ok((near, _)) = listener.accept().await {
            let network = self.clone();
            tokio::spawn(async move {
                network.up().await;
                let far = UnixStream::connect(&network.socket).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::join!(
                    network.copy(near_read, far_write, network.until),
                    network.copy(far_read, near_write, b"")
                );
            });
        }
    }

    async fn up(&self) {
        self.is_down.subscribe().wait_for(|down| !down).await.unwrap();
    }

    async fn copy(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, until: &[u8]) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut bytes).await {
            if !until.is_empty() && bytes[..n].windows(until.len()).any(|part| part == until) {
                self.is_down.send_replace(true);
            }
            self.up().await;
            if to.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_carries_nothing_is_an_outage_and_then_over() {
    let url = tokio::task::spawn_blocking(postgres::new_database).await.unwrap();
    let network = Network {
        socket: postgres::shared().socket(),
        is_down: watch::Sender::new(false),
        until: b"SELECT value FROM facts",
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(network.clone().carry(listener));
    let url = format!("postgres://postgres@{address}/{}", postgres::name_of(&url));
    let dir = TempDir::new().unwrap();
    let store = tasuki_store::open(&url, dir.path()).await.unwrap();
    let (node, epoch) = store.join("gw").await.unwrap();
    let enqueue = async || {
        let new = vec![mail(&["a.example"], small())];
        store.enqueue(node, epoch, new).await.map(drop)
    };
    enqueue().await.unwrap();
    let body = write(&*store, &[7; 600_000]).await;
    let mut source = store.body(&body).await.unwrap();
    source.next().await.unwrap();

    let unavailable = |what: &str, result: StoreResult<()>| {
        assert!(
            matches!(result, Err(StoreError::Unavailable(_))),
            "{what}: {result:?}"
        );
    };
    // The question whose answer never comes.
    let fact = timeout(PATIENCE, store.fact("anything")).await.unwrap();
    unavailable("fact", fact.map(drop));
    assert!(*network.is_down.borrow(), "the question was not seen");
    // Callers that do not wait must not keep the connections that they asked on.
    for _ in 0..40 {
        let store = Arc::clone(&store);
        let gone = tokio::spawn(async move { store.ping().await });
        tokio::task::yield_now().await;
        gone.abort();
    }
    let all = QueueFilter::default();
    let asked = async {
        tokio::join!(
            store.queue(&all, 9),
            store.ping(),
            source.next(),
            enqueue(),
            store.heartbeat(node, epoch, Duration::from_secs(9)),
        )
    };
    let (queue, ping, next, enqueued, beat) = timeout(PATIENCE, asked).await.unwrap();
    unavailable("queue", queue.map(drop));
    unavailable("ping", ping);
    unavailable("body", next.map(drop));
    unavailable("enqueue", enqueued);
    unavailable("heartbeat", beat);

    network.is_down.send_replace(false);
    store.ping().await.unwrap();
    enqueue().await.unwrap();
    store
        .heartbeat(node, epoch, Duration::from_secs(9))
        .await
        .unwrap();
    assert!(store.queue(&all, 9).await.unwrap().len() >= 2);
    assert!(!*network.is_down.borrow());
    store.close().await;
}
