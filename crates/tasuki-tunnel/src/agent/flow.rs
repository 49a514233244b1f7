//! One visitor: the stream's header is read, the local server dialled, the answer given, then bytes run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{RecvStream, SendStream, VarInt};
use tasuki_proto::proxy_protocol;
use tasuki_proto::tunnel::{OpenReply, RESET_ABORTED, RESET_REFUSED, StreamHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::visitors::Entered;
use super::{Inner, LocalDoor, LocalEndpoint, Tell};
use crate::splice::{End, Outgoing, Shared, prepare_socket, splice};

/// How long the gateway may take to send a header that it has in hand.
const HEADER: Duration = Duration::from_secs(10);

/// A place among the agent's connections; given back on drop.
pub(super) struct Place<'a>(&'a Inner);

impl<'a> Place<'a> {
    pub(super) fn take(inner: &'a Inner) -> Option<Self> {
        let max = inner.config.max_connections;
        inner
            .flows
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |flows| {
                (flows < max).then_some(flows + 1)
            })
            .is_ok()
            .then(|| Self(inner))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) async fn serve(inner: Arc<Inner>, tell: Tell, send: SendStream, mut incoming: RecvStream) {
    let mut outgoing = Outgoing::new(send);
    let Ok(Some(header)) = tokio::time::timeout(HEADER, read_header(&mut incoming)).await else {
        outgoing.reset(RESET_ABORTED);
        let _ = incoming.stop(VarInt::from_u32(RESET_ABORTED));
        return;
    };
    let place = Place::take(&inner);
    let opened = match &place {
        Some(_) => open(&inner, &tell, &header).await,
        None => Err(OpenReply::Busy),
    };
    let (socket, visitor) = match opened {
        Ok(opened) => opened,
        Err(reply) => {
            // The one byte tells the gateway what to show; nothing follows.
            if outgoing.write_all(&[reply.byte()]).await.is_ok() {
                outgoing.finish();
            }
            let _ = incoming.stop(VarInt::from_u32(RESET_REFUSED));
            return;
        }
    };
    if outgoing.write_all(&[OpenReply::Connected.byte()]).await.is_err() {
        return;
    }
    let shared = Shared {
        pool: &inner.pool,
        patience: &inner.patience,
        meter: &visitor.meter,
        budget: None,
    };
    let end = tokio::select! {
        end = splice(socket, outgoing, incoming, async |_| Ok(()), shared) => end,
        () = visitor.cut.cancelled() => End::Denied,
    };
    tracing::debug!(
        endpoint = header.endpoint.0,
        result = ?end,
        bytes_in = visitor.meter.to_tcp(),
        bytes_out = visitor.meter.to_stream(),
        "visitor left"
    );
}

async fn read_header(incoming: &mut RecvStream) -> Option<StreamHeader> {
    let mut head = [0; 2];
    incoming.read_exact(&mut head).await.ok()?;
    let mut rest = vec![0; StreamHeader::rest_length(head).ok()?];
    incoming.read_exact(&mut rest).await.ok()?;
    StreamHeader::decode_rest(&rest).ok()
}

/// Dials the local server of a declared endpoint, and of no other, for a visitor who may come.
async fn open<'a>(
    inner: &'a Inner,
    tell: &Tell,
    header: &StreamHeader,
) -> Result<(TcpStream, Entered<'a>), OpenReply> {
    let served = inner
        .endpoints_by_id
        .get(&header.endpoint)
        .ok_or(OpenReply::NotDeclared)?;
    let endpoint = &served.endpoint;
    if matches!(endpoint.door, LocalDoor::Udp(_)) {
        return Err(OpenReply::NotDeclared);
    }
    let visitor = inner
        .visitors
        .enter(&endpoint.label, header.visitor, header.player.as_deref())
        .ok_or(OpenReply::Denied)?;
    let limit = inner.config.connect_timeout;
    let dialling = async {
        let mut socket = TcpStream::connect(endpoint.target.as_str()).await?;
        prepare_socket(&socket);
        if endpoint.proxy_protocol {
            let line = proxy_protocol::encode_v2(header.visitor, header.door);
            socket.write_all(&line).await?;
        }
        Ok::<_, io::Error>(socket)
    };
    match tokio::time::timeout(limit, dialling).await {
        Ok(Ok(socket)) => {
            served.note(Ok(()), tell);
            Ok((socket, visitor))
        }
        Ok(Err(error)) => {
            served.note(Err(error.to_string()), tell);
            Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => OpenReply::Refused,
                _ => OpenReply::Failed,
            })
        }
        Err(_) => {
            served.note(Err(format!("no answer within {} s", limit.as_secs_f64())), tell);
            Err(OpenReply::Silent)
        }
    }
}

impl LocalEndpoint {
    /// The door in a few words, for people.
    #[must_use]
    pub fn door_in_words(&self) -> String {
        match &self.door {
            LocalDoor::Tcp(0) => "any granted TCP port".into(),
            LocalDoor::Tcp(port) => format!("TCP port {port}"),
            LocalDoor::Udp(0) => "any granted UDP port".into(),
            LocalDoor::Udp(port) => format!("UDP port {port}"),
            LocalDoor::Minecraft(Some(name)) => format!("Minecraft at {name}"),
            LocalDoor::Minecraft(None) => "Minecraft".into(),
        }
    }
}
