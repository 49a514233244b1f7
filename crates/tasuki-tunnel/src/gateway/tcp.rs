//! A TCP port of an agent: every connection becomes a stream.

use std::sync::Arc;
use std::time::Duration;

use tasuki_core::accept::{Accepted, Acceptor};
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::tunnel::{StreamHeader, StreamKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::counts::PerAddress;
use super::flow::Visit;
use super::registry::Route;
use super::{Inner, admit, flow, proxied};
use crate::metrics;
use crate::splice::prepare_socket;

/// How long a listed load balancer may take to say whom it brings.
const PROXY_HEADER: Duration = Duration::from_secs(5);

/// Accepts until `token` fires.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    acceptor: Acceptor,
    kind: EndpointKind,
    token: CancellationToken,
) {
    let counts = PerAddress::default();
    // The agent's other endpoints are still being opened: who comes before that is done waits in the kernel.
    tokio::select! {
        () = inner.registry.leads_somewhere(&kind) => {}
        () = token.cancelled() => return,
    }
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = token.cancelled() => return,
        };
        inner
            .flows
            .spawn(visit(Arc::clone(&inner), kind.clone(), counts.clone(), accepted));
    }
}

async fn visit(inner: Arc<Inner>, kind: EndpointKind, counts: PerAddress, accepted: Accepted) {
    let Accepted {
        mut stream,
        peer,
        permit,
    } = accepted;
    prepare_socket(&stream);
    let config = inner.config();
    let deadline = Instant::now() + PROXY_HEADER;
    let peer = match proxied::visitor(&mut stream, peer, &config.tcp.proxy_protocol_from, deadline).await {
        Ok(peer) => peer,
        Err(reason) => return flow::turn_away(&inner, stream, reason),
    };
    if let Err(reason) = admit::may_visit(&inner, peer.ip(), None) {
        return flow::turn_away(&inner, stream, reason);
    }
    let target = match inner.registry.route(&kind) {
        Route::Live(mut targets) => targets.swap_remove(0),
        Route::Away | Route::Unknown => return flow::turn_away(&inner, stream, "agent_away"),
    };
    let Some(_counted) = counts.enter(peer.ip(), config.tcp.max_connections_per_address) else {
        return flow::turn_away(&inner, stream, "address_full");
    };
    let Ok(door) = stream.local_addr() else { return };
    let limit = config.connect_timeout;
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
                player: None,
                is_player: false,
            };
            // What went wrong is counted; on a bare port there is nobody to tell.
            let _ = flow::join(&inner, &target, &visit, stream, opened, Some(limit)).await;
        }
        Err(not_joined) => flow::turn_away(&inner, stream, not_joined.label),
    }
    drop(permit);
}
