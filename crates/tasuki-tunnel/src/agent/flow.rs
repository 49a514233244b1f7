//! One visitor: the stream's header is read, the local server dialled, the answer given, then bytes run.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tasuki_proto::proxy_protocol;
use tasuki_proto::tunnel::{FlowNumber, OpenReply, RESET_ABORTED, RESET_REFUSED, Resume, StreamHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::visitors::{Coming, Entered};
use super::{Inner, LocalDoor, LocalEndpoint, Served, Tell, wake};
use crate::flows::Flow;
use crate::splice::{End, Link, Outgoing, Relink, Shared, prepare_socket, splice};

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

pub(super) async fn serve(
    inner: Arc<Inner>,
    tell: Tell,
    session: Connection,
    (send, mut incoming): (SendStream, RecvStream),
) {
    let mut outgoing = Outgoing::new(send);
    match tokio::time::timeout(HEADER, read_opening(&mut incoming)).await {
        Ok(Some(Opening::Visitor(header))) => visit(inner, tell, header, session, outgoing, incoming).await,
        Ok(Some(Opening::Resume(resume))) => resume_flow(&inner, resume, session, outgoing, incoming).await,
        Ok(None) | Err(_) => {
            outgoing.reset(RESET_ABORTED);
            let _ = incoming.stop(VarInt::from_u32(RESET_ABORTED));
        }
    }
}

/// How a stream begins.
enum Opening {
    Visitor(StreamHeader),
    Resume(Resume),
}

/// A stream in a new session, for a flow that is there.
struct Offer {
    link: Link,
    /// What the visitor's socket has taken.
    taken: u64,
}

/// Where such streams are handed to their flows. Boxed: a channel has room for 32 at once, and there is one for each flow.
#[derive(Default)]
pub(super) struct Offers(Mutex<HashMap<FlowNumber, mpsc::Sender<Box<Offer>>>>);

/// A flow's end of it; leaves the table when dropped.
struct Receiving<'a> {
    offers: &'a Offers,
    number: Option<FlowNumber>,
    receiver: mpsc::Receiver<Box<Offer>>,
}

impl Offers {
    fn lock(&self) -> MutexGuard<'_, HashMap<FlowNumber, mpsc::Sender<Box<Offer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, number: Option<FlowNumber>) -> Receiving<'_> {
        let (sender, receiver) = mpsc::channel(1);
        if let Some(number) = number {
            self.lock().insert(number, sender);
        }
        Receiving {
            offers: self,
            number,
            receiver,
        }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.offers.lock().remove(&number);
        }
    }
}

impl Relink for Receiving<'_> {
    async fn relink(&mut self, flow: &Flow) -> Option<Link> {
        loop {
            let Offer { mut link, taken } = *self.receiver.recv().await?;
            flow.rewind(taken).ok()?;
            let mut reply = vec![OpenReply::Connected.byte()];
            reply.extend(flow.taken().to_be_bytes());
            // Broken again: another session may come.
            if link.outgoing.write_all(&reply).await.is_ok() {
                return Some(link);
            }
        }
    }
}

/// Hands the stream to its flow; the gateway resets one that is not known any more.
async fn resume_flow(
    inner: &Inner,
    resume: Resume,
    session: Connection,
    mut outgoing: Outgoing,
    incoming: RecvStream,
) {
    let known = inner.offers.lock().get(&resume.flow).cloned();
    let Some(known) = known else {
        let mut reply = vec![OpenReply::NotDeclared.byte()];
        reply.extend(0_u64.to_be_bytes());
        if outgoing.write_all(&reply).await.is_ok() {
            outgoing.finish();
        }
        return;
    };
    let offer = Box::new(Offer {
        link: Link {
            outgoing,
            incoming,
            session,
        },
        taken: resume.taken,
    });
    // Fails only if the flow is over, and then the stream is reset.
    let _ = known.send(offer).await;
}

async fn visit(
    inner: Arc<Inner>,
    tell: Tell,
    header: StreamHeader,
    session: Connection,
    mut outgoing: Outgoing,
    mut incoming: RecvStream,
) {
    let gone = inner.lineage().gone.clone();
    let place = Place::take(&inner);
    let opened = match &place {
        Some(_) => open(&inner, &tell, &header, &mut outgoing).await,
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
    let flow = inner.book.begin(header.flow);
    let relink = inner.offers.receive(header.flow);
    // If this fails, the session is lost, and the flow goes on in the next one.
    let _ = outgoing.write_all(&[OpenReply::Connected.byte()]).await;
    let shared = Shared {
        pool: &inner.pool,
        patience: &inner.patience,
        meter: &visitor.meter,
        budget: None,
        shaping: None,
    };
    let cut = async {
        tokio::select! {
            () = visitor.cut.cancelled() => End::Denied,
            () = gone.cancelled() => End::StreamReset,
        }
    };
    let link = Link {
        outgoing,
        incoming,
        session,
    };
    let end = splice(
        socket,
        &flow,
        link,
        async |_: &mut RecvStream| Ok(()),
        relink,
        cut,
        shared,
    )
    .await;
    tracing::debug!(
        endpoint = header.endpoint.0,
        result = ?end,
        bytes_in = visitor.meter.to_tcp(),
        bytes_out = visitor.meter.to_stream(),
        "visitor left"
    );
}

async fn read_opening(incoming: &mut RecvStream) -> Option<Opening> {
    let mut head = [0; 2];
    incoming.read_exact(&mut head).await.ok()?;
    let mut rest = vec![0; StreamHeader::rest_length(head).ok()?];
    incoming.read_exact(&mut rest).await.ok()?;
    match Resume::decode_rest(&rest) {
        Some(resume) => resume.ok().map(Opening::Resume),
        None => StreamHeader::decode_rest(&rest).ok().map(Opening::Visitor),
    }
}

/// Connects to the first address of `target` that takes it; how long that one took is one round trip.
async fn connect(target: &str) -> io::Result<(TcpStream, Duration)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(target).await? {
        let began = Instant::now();
        match TcpStream::connect(address).await {
            Ok(socket) => return Ok((socket, began.elapsed())),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Dials the local server of a declared endpoint, and of no other, for a visitor who may come.
async fn open<'a>(
    inner: &'a Inner,
    tell: &Tell,
    header: &StreamHeader,
    outgoing: &mut Outgoing,
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
        .enter(&Coming {
            endpoint,
            from: header.visitor,
            player: header.player.as_deref(),
            flow: header.flow,
            is_at_home: false,
        })
        .ok_or(OpenReply::Denied)?;
    let (socket, took) = match dial(inner, served, header, tell).await {
        Err(away) => {
            wake::wake(inner, served, header, outgoing, away).await?;
            dial(inner, served, header, tell).await?
        }
        Ok(dialled) => dialled,
    };
    visitor.note_local(took);
    Ok((socket, visitor))
}

async fn dial(
    inner: &Inner,
    served: &Served,
    header: &StreamHeader,
    tell: &Tell,
) -> Result<(TcpStream, Duration), OpenReply> {
    let endpoint = &served.endpoint;
    let limit = inner.config.connect_timeout;
    let dialling = async {
        let (mut socket, took) = connect(&endpoint.target).await?;
        prepare_socket(&socket);
        if endpoint.proxy_protocol {
            let line = proxy_protocol::encode_v2(header.visitor, header.door);
            socket.write_all(&line).await?;
        }
        Ok::<_, io::Error>((socket, took))
    };
    match tokio::time::timeout(limit, dialling).await {
        Ok(Ok(dialled)) => {
            served.note(Ok(()), tell);
            Ok(dialled)
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
            LocalDoor::Https(name) => format!("HTTPS at {name}"),
            LocalDoor::Http(name) => format!("HTTP at {name}"),
        }
    }
}
