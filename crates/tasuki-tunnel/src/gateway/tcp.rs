//! A TCP port of an agent: every connection becomes a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tasuki_core::accept::{Accepted, Acceptor};
use tasuki_proto::tunnel::{EndpointId, StreamHeader, StreamKind};
use tokio_util::sync::CancellationToken;

use super::counts::PerAddress;
use super::registry::Target;
use super::session::Session;
use super::{Inner, admit, flow};
use crate::metrics;
use crate::splice::prepare_socket;

/// A bound port and where it leads.
pub(crate) struct Door {
    pub(crate) acceptor: Acceptor,
    /// The agent's number for the endpoint; a new declaration may change it.
    pub(crate) endpoint: Arc<AtomicU32>,
    pub(crate) label: Arc<str>,
    pub(crate) session: Arc<Session>,
}

/// Accepts until `token` fires.
pub(crate) async fn serve(inner: Arc<Inner>, door: Door, token: CancellationToken) {
    let counts = PerAddress::default();
    loop {
        let accepted = tokio::select! {
            accepted = door.acceptor.accept() => accepted,
            () = token.cancelled() => return,
        };
        let max = inner.config.load().tcp.max_connections_per_address;
        let target = Target {
            session: Arc::clone(&door.session),
            endpoint: EndpointId(door.endpoint.load(Ordering::Acquire)),
            label: Arc::clone(&door.label),
        };
        if let Err(reason) = admit::may_visit(&inner, accepted.peer.ip(), None) {
            flow::turn_away(&inner, accepted.stream, reason);
            continue;
        }
        let Some(counted) = counts.enter(accepted.peer.ip(), max) else {
            flow::turn_away(&inner, accepted.stream, "address_full");
            continue;
        };
        let task = visit(Arc::clone(&inner), target, accepted);
        inner.flows.spawn(async move {
            task.await;
            drop(counted);
        });
    }
}

async fn visit(inner: Arc<Inner>, target: Target, accepted: Accepted) {
    let Accepted { stream, peer, permit } = accepted;
    prepare_socket(&stream);
    let Ok(door) = stream.local_addr() else { return };
    let limit = inner.config.load().connect_timeout;
    let header = StreamHeader {
        kind: StreamKind::Tcp,
        endpoint: target.endpoint,
        visitor: peer,
        door,
        player: None,
        flow: None,
    };
    match flow::open(&inner, &target, &header, &[], limit).await {
        Ok(opened) => {
            flow::join(
                &inner,
                &target,
                metrics::Door::Tcp,
                peer,
                stream,
                opened,
                Some(limit),
            )
            .await
        }
        Err(not_joined) => flow::turn_away(&inner, stream, not_joined.label),
    }
    drop(permit);
}
