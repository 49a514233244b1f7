#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint};
use tasuki_proto::tunnel::SERVER_NAME;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::coop::consume_budget;

use super::*;
use crate::flows::{Book, Room};
use crate::pool::Pool;
use crate::quic;
use crate::tls::{self, Identity};

/// Both ends of one session. The endpoints live as long as the session.
struct Session {
    gateway: Connection,
    agent: Connection,
    _endpoints: [Endpoint; 2],
}

impl Session {
    async fn start() -> Self {
        let identity = Identity::from_pkcs8(&Identity::generate()).unwrap();
        let crypto = QuicServerConfig::try_from(tls::server_config(&identity).unwrap()).unwrap();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::new(quic::gateway_transport(true)));
        let loopback = "127.0.0.1:0".parse().unwrap();
        let gateway = quic::endpoint(quic::bind_udp(loopback, 1 << 20).unwrap().0, Some(server)).unwrap();
        let agent = quic::endpoint(quic::bind_udp(loopback, 1 << 20).unwrap().0, None).unwrap();
        let (client, _) =
            tls::client_config(&identity, identity.fingerprint(), tls::KeyExchange::Hybrid).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
        client.transport_config(Arc::new(quic::agent_transport(true)));
        let to = gateway.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(agent.connect_with(client, to, SERVER_NAME).unwrap(), async {
            gateway.accept().await.unwrap().await
        });
        Self {
            gateway: accepted.unwrap(),
            agent: dialled.unwrap(),
            _endpoints: [gateway, agent],
        }
    }
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

/// Runs `test` on a thread of its own, so that one that never yields fails instead of hanging.
fn must_end<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
        done.send(()).unwrap();
    });
    ended
        .recv_timeout(Duration::from_secs(20))
        .expect("the flow keeps its thread for ever, or failed");
}

#[test]
fn a_flow_whose_task_has_spent_its_budget_yields_and_goes_on() {
    must_end(|| async {
        let session = Session::start().await;
        let (mut visitor, mut socket) = tcp_pair().await;
        let (send, _receive) = session.gateway.open_bi().await.unwrap();
        visitor.write_all(b"through").await.unwrap();
        socket.readable().await.unwrap();
        let (pool, meter) = (Pool::default(), Meter::default());
        let patience = Patience::new(Duration::from_secs(5), 1 << 20, 32 << 20);
        let shared = Shared {
            pool: &pool,
            patience: &patience,
            meter: &meter,
            budget: None,
            shaping: None,
        };
        let mut outgoing = Outgoing::new(send);
        let (mut read_half, _write_half) = socket.split();
        // A flow whose other end knows nothing of flows.
        let flow = Book::new(Room::new(1 << 20)).begin(None);
        let mut up = pin!(socket_to_stream(&mut read_half, &flow, &mut outgoing, shared));
        // As after a long run of reads that never had to wait: nothing of the budget is left in this poll.
        poll_fn(|context| {
            while pin!(consume_budget()).poll(context).is_ready() {}
            assert!(up.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let far_side = async {
            visitor.shutdown().await.unwrap();
            let (_send, mut receive) = session.agent.accept_bi().await.unwrap();
            receive.read_to_end(100).await.unwrap()
        };
        let (end, arrived) = tokio::join!(up, far_side);
        assert_eq!((end, &arrived[..]), (Ok(()), &b"through"[..]));
    });
}

/// For a flow that goes on in no other session.
struct Nowhere;

impl Relink for Nowhere {
    async fn relink(&mut self, _: &Flow) -> Option<Link> {
        None
    }
}

#[tokio::test]
async fn the_first_word_of_who_takes_nothing_is_heard() {
    let session = Session::start().await;
    let (mut visitor, socket) = tcp_pair().await;
    let (mut send, incoming) = session.gateway.open_bi().await.unwrap();
    send.write_all(b"?").await.unwrap();
    let (mut word, mut unread) = session.agent.accept_bi().await.unwrap();
    unread.stop(VarInt::from_u32(RESET_ABORTED)).unwrap();
    let stopped = send.stopped();
    stopped.await.unwrap();
    // What is sent from here on fails at once, before the far side has said a word.
    visitor.write_all(b"a request").await.unwrap();
    socket.readable().await.unwrap();
    let (pool, meter) = (Pool::default(), Meter::default());
    let patience = Patience::new(Duration::from_secs(5), 1 << 20, 32 << 20);
    let shared = Shared {
        pool: &pool,
        patience: &patience,
        meter: &meter,
        budget: None,
        shaping: None,
    };
    let flow = Book::new(Room::new(1 << 20)).begin(None);
    let link = Link {
        outgoing: Outgoing::new(send),
        incoming,
        session: session.gateway.clone(),
    };
    let said = std::sync::Mutex::new(None);
    let listen = async |incoming: &mut RecvStream| {
        let mut byte = [0];
        incoming.read_exact(&mut byte).await.map_err(|_| End::TcpReset)?;
        *said.lock().unwrap() = Some(byte[0]);
        Err(End::Denied)
    };
    let splicing = splice(
        socket,
        &flow,
        link,
        listen,
        Nowhere,
        std::future::pending(),
        shared,
    );
    let far_side = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        word.write_all(&[7]).await.unwrap();
    };
    let (end, ()) = tokio::join!(splicing, far_side);
    assert_eq!((end, said.into_inner().unwrap()), (End::Denied, Some(7)));
}
