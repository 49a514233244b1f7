//! A TCP port of an agent: every connection becomes a stream.

use std::sync::Arc;

use tasuki_core::accept::{Accepted, Acceptor};
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::tunnel::{StreamHeader, StreamKind};
use tokio_util::sync::CancellationToken;

use super::counts::PerAddress;
use super::flow::Visit;
use super::registry::{Route, Target};
use super::{Inner, admit, flow};
use crate::metrics;
use crate::splice::prepare_socket;

/// Accepts until `token` fires.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    acceptor: Acceptor,
    kind: EndpointKind,
    token: CancellationToken,
) {
    let counts = PerAddress::default();
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = token.cancelled() => return,
        };
        let max = inner.config.load().tcp.max_connections_per_address;
        if let Err(reason) = admit::may_visit(&inner, accepted.peer.ip(), None) {
            flow::turn_away(&inner, accepted.stream, reason);
            continue;
        }
        let target = match inner.registry.route(&kind) {
            Route::Live(mut targets) => targets.swap_remove(0),
            Route::Away | Route::Unknown => {
                flow::turn_away(&inner, accepted.stream, "agent_away");
                continue;
            }
        };
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
            let visit = Visit {
                door: metrics::Door::Tcp,
                from: peer,
                name: None,
                is_player: false,
            };
            // What went wrong is counted; on a bare port there is nobody to tell.
            let _ = flow::join(&inner, &target, &visit, stream, opened, Some(limit)).await;
        }
        Err(not_joined) => flow::turn_away(&inner, stream, not_joined.label),
    }
    drop(permit);
}
