//! Ports for the home network itself: a server that wants a PROXY header takes nobody who comes without, so the agent adds
//! it for those at home.

use std::net::SocketAddr;
use std::sync::Arc;

use tasuki_proto::proxy_protocol;
use tasuki_proto::tunnel::EndpointId;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::visitors::Coming;
use super::{Inner, Notice, Tell};
use crate::splice::prepare_socket;

/// Connections at once on one port; more would be no household any more.
const MOST: usize = 256;

/// Opens the ports; they close when the handles are dropped.
pub(super) fn open(inner: &Arc<Inner>, tell: &Tell) -> Vec<AbortOnDropHandle<()>> {
    let wanted = inner
        .endpoints_by_id
        .iter()
        .filter_map(|(id, served)| Some((*id, served.endpoint.lan_listen?)));
    wanted
        .map(|(id, address)| {
            let task = serve(Arc::clone(inner), Arc::clone(tell), id, address);
            AbortOnDropHandle::new(tokio::spawn(task))
        })
        .collect()
}

async fn serve(inner: Arc<Inner>, tell: Tell, id: EndpointId, address: SocketAddr) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            return tell(Notice::LocalDown {
                label: inner.endpoints_by_id[&id].endpoint.label.clone(),
                target: address.to_string(),
                reason: format!("lan_listen: {error}"),
            });
        }
    };
    let places = Arc::new(Semaphore::new(MOST));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((socket, from)) => {
                let inner = Arc::clone(&inner);
                tasks.spawn(async move {
                    // Both ends are on this network; whoever of them breaks it knows why.
                    let _ = visit(&inner, id, socket, from).await;
                    drop(permit);
                });
            }
            // No descriptors, for example: others give theirs back.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn visit(
    inner: &Inner,
    id: EndpointId,
    mut socket: TcpStream,
    from: SocketAddr,
) -> std::io::Result<()> {
    let served = &inner.endpoints_by_id[&id];
    let endpoint = &served.endpoint;
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let coming = Coming {
        endpoint,
        from,
        player: None,
        flow: None,
        is_at_home: true,
    };
    // The home host's bans hold at home too.
    let Some(visitor) = inner.visitors.enter(&coming) else {
        return Ok(());
    };
    prepare_socket(&socket);
    let connecting = TcpStream::connect(endpoint.target.as_str());
    let mut home = tokio::time::timeout(inner.config.connect_timeout, connecting)
        .await
        .map_err(|_| std::io::ErrorKind::TimedOut)??;
    prepare_socket(&home);
    if endpoint.proxy_protocol {
        home.write_all(&proxy_protocol::encode_v2(from, socket.local_addr()?))
            .await?;
    }
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut socket, &mut home) => copied.map(drop),
        () = visitor.cut.cancelled() => Ok(()),
    }
}
