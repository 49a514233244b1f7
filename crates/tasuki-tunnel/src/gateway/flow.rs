//! A visitor's stream: opened towards the agent, joined with the visitor's socket, counted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, VarInt};
use tasuki_core::events::What;
use tasuki_core::ids::PrincipalId;
use tasuki_proto::minecraft::Page;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{OpenReply, RESET_ABORTED, StreamHeader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::handover::HandedFlow;
use super::registry::Target;
use super::regulars::STAY;
use super::session::Session;
use super::visitors::{Place, Sessions, Visitors};
use super::{Inner, admit, here};
use crate::flows::Begun;
use crate::metrics::Door;
use crate::splice::{End, Frozen, Halt, Link, Meter, Outgoing, Shared, reset_socket, splice_or_freeze};

/// A stream on which header and first bytes are sent.
pub(crate) struct Opened {
    pub(crate) flow: Begun,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: RecvStream,
    pub(crate) place: Place,
    pub(crate) sent: usize,
}

/// Why a visitor was not joined: the page for a player, and the metric's label.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotJoined {
    pub(crate) page: Page,
    pub(crate) label: &'static str,
}

/// The agent is not there, or was lost just now.
pub(crate) const AWAY: NotJoined = NotJoined {
    page: Page::AgentAway,
    label: "agent_away",
};
const FULL: NotJoined = NotJoined {
    page: Page::Full,
    label: "full",
};
/// Agent or local server do not answer in time.
pub(crate) const SILENT: NotJoined = NotJoined {
    page: Page::ServerSilent,
    label: "server_silent",
};
const REFUSED: NotJoined = NotJoined {
    page: Page::ServerRefused,
    label: "server_refused",
};
const STARTING: NotJoined = NotJoined {
    page: Page::Starting,
    label: "server_starting",
};
const SLEEPING: NotJoined = NotJoined {
    page: Page::Sleeping,
    label: "server_sleeping",
};
const DENIED: NotJoined = NotJoined {
    page: Page::Denied,
    label: "denied_at_home",
};

/// Opens a stream and sends `header` and `first`. Waits no longer than `limit` for an agent that takes no streams.
pub(crate) async fn open(
    inner: &Inner,
    target: &Target,
    header: &StreamHeader,
    first: &[u8],
    limit: Duration,
) -> Result<Opened, NotJoined> {
    let visitors = &target.session.visitors;
    let place = visitors
        .enter(inner.config.load().agents.max_connections)
        .ok_or(FULL)?;
    let number = visitors.number(&inner.last_flow);
    let flow = visitors.book.begin(number);
    let header = StreamHeader {
        flow: number,
        ..header.clone()
    };
    let opening = async {
        let (send, incoming) = target.session.connection.open_bi().await.map_err(|_| AWAY)?;
        let mut outgoing = Outgoing::new(send);
        let mut bytes = header.encode();
        bytes.extend_from_slice(first);
        flow.push_sent(Bytes::copy_from_slice(first));
        outgoing.write_all(&bytes).await.map_err(|_| AWAY)?;
        Ok(Opened {
            flow,
            outgoing,
            incoming,
            place,
            sent: first.len(),
        })
    };
    tokio::time::timeout(limit, opening).await.map_err(|_| SILENT)?
}

/// Opens a stream to the first of `targets` whose local server takes the visitor. Each has `limit` in all, however the time
/// is spent.
///
/// # Errors
/// Why the first of them did not.
pub(crate) async fn reach(
    inner: &Inner,
    targets: Vec<Target>,
    header: &StreamHeader,
    first: &[u8],
    limit: Duration,
) -> Result<(Target, Opened), NotJoined> {
    let (mut why, mut held) = (None, None);
    for target in targets {
        let header = StreamHeader {
            endpoint: target.endpoint,
            ..header.clone()
        };
        let opening = async {
            let mut opened = open(inner, &target, &header, first, limit).await?;
            let reply = read_byte(&mut opened.incoming, limit).await?;
            Ok((opened, reply))
        };
        let not_joined = match tokio::time::timeout(limit, opening).await.unwrap_or(Err(SILENT)) {
            Ok((opened, OpenReply::Connected)) => return Ok((target, opened)),
            // Another may be awake already.
            Ok((opened, OpenReply::Starting)) if header.player.is_some() => {
                held = held.or(Some((target, opened)));
                continue;
            }
            Ok((_, reply)) => refused_by(reply),
            Err(not_joined) => not_joined,
        };
        // Somebody's rules at home keep the visitor out: no reason to try next door.
        if not_joined.page == Page::Denied {
            return Err(not_joined);
        }
        why = why.or(Some(not_joined));
    }
    if let Some((target, mut opened)) = held {
        // The player's client waits in silence: it hears nothing and has nothing to say until the server speaks.
        return match read_byte(&mut opened.incoming, HOLD).await? {
            OpenReply::Connected => Ok((target, opened)),
            reply => Err(refused_by(reply)),
        };
    }
    Err(why.unwrap_or(AWAY))
}

/// How long a player is held while a server starts: clients give up 30 s after the last word they heard.
const HOLD: Duration = Duration::from_secs(25);

/// Reads the agent's answer about its local server.
pub(crate) async fn read_reply(incoming: &mut RecvStream, limit: Duration) -> Result<(), NotJoined> {
    match read_byte(incoming, limit).await? {
        OpenReply::Connected => Ok(()),
        reply => Err(refused_by(reply)),
    }
}

async fn read_byte(incoming: &mut RecvStream, limit: Duration) -> Result<OpenReply, NotJoined> {
    let mut byte = [0];
    match tokio::time::timeout(limit, incoming.read_exact(&mut byte)).await {
        Ok(Ok(())) => Ok(OpenReply::from_byte(byte[0])),
        Ok(Err(_)) => Err(AWAY),
        Err(_) => {
            let _ = incoming.stop(VarInt::from_u32(RESET_ABORTED));
            Err(SILENT)
        }
    }
}

fn refused_by(reply: OpenReply) -> NotJoined {
    match reply {
        OpenReply::Refused | OpenReply::NotDeclared => REFUSED,
        OpenReply::Busy => FULL,
        OpenReply::Denied => DENIED,
        OpenReply::Starting => STARTING,
        OpenReply::Sleeping => SLEEPING,
        OpenReply::Connected | OpenReply::Silent | OpenReply::Failed => SILENT,
    }
}

/// Who visits.
#[derive(Debug, Clone)]
pub(crate) struct Visit {
    pub(crate) door: Door,
    pub(crate) from: SocketAddr,
    /// The host name that the visitor came by.
    pub(crate) name: Option<Domain>,
    /// The name that a Minecraft client claims when it joins.
    pub(crate) player: Option<String>,
    /// A player who joins a game, and does not only look at the server list.
    pub(crate) is_player: bool,
}

/// A visitor who is joined with an agent.
pub(crate) struct Joined {
    pub(crate) visitors: Arc<Visitors>,
    pub(crate) agent: PrincipalId,
    pub(crate) agent_name: Arc<str>,
    /// The agent's own name for the endpoint.
    pub(crate) label: Arc<str>,
    pub(crate) visit: Visit,
    pub(crate) socket: TcpStream,
    pub(crate) flow: Begun,
    pub(crate) place: Place,
    pub(crate) meter: Meter,
    /// How long they were here in another process.
    pub(crate) stayed: Duration,
    /// The stream that carries them, and the session that it belongs to; none yet for one from another process.
    pub(crate) link: Option<(Link, Arc<Session>)>,
}

/// Joins a visitor with an open stream until both directions end. `reply_limit` is set if the agent's answer has not
/// been read yet: the visitor's bytes go ahead meanwhile.
///
/// # Errors
/// What that answer was, if it was not the local server's.
pub(crate) async fn join(
    inner: &Inner,
    target: &Target,
    visit: &Visit,
    socket: TcpStream,
    opened: Opened,
    reply_limit: Option<Duration>,
) -> Result<End, NotJoined> {
    let Opened {
        flow,
        outgoing,
        incoming,
        place,
        sent,
    } = opened;
    let session = &target.session;
    let meter = Meter::new(Some(inner.metrics.totals.clone()));
    meter.add_to_stream(sent);
    inner.deps.events.emit(What::VisitorJoined {
        agent: session.agent,
        endpoint: target.label.to_string(),
        from: visit.from.ip(),
        player: visit.player.clone(),
    });
    let link = Link {
        outgoing,
        incoming,
        session: session.connection.clone(),
    };
    let joined = Joined {
        visitors: Arc::clone(&session.visitors),
        agent: session.agent,
        agent_name: session.name.as_str().into(),
        label: Arc::clone(&target.label),
        visit: visit.clone(),
        socket,
        flow,
        place,
        meter,
        stayed: Duration::ZERO,
        link: Some((link, Arc::clone(session))),
    };
    carry(inner, joined, reply_limit).await
}

/// Carries a visitor's bytes until both directions end, or the gateway goes on in another process.
///
/// # Errors
/// See [`join`].
pub(crate) async fn carry(
    inner: &Inner,
    joined: Joined,
    reply_limit: Option<Duration>,
) -> Result<End, NotJoined> {
    let Joined {
        visitors,
        agent,
        agent_name,
        label,
        visit,
        socket,
        flow,
        place,
        meter,
        stayed,
        link,
    } = joined;
    let (door, visitor) = (visit.door, visit.from);
    let guest = inner.here.enter(here::Coming {
        agent: &agent_name,
        label: &label,
        visit: &visit,
        visitors: &visitors,
        flow: flow.keeps().then(|| flow.number()),
        way: here::Way::of(&socket, &visit),
        meter,
        since: inner.deps.clock.wall().minus(stayed),
    });
    let meter = &guest.meter;
    let _proven = visitors.proven.enter(visitor.ip(), usize::MAX);
    inner.metrics.opened(door);
    let shared = Shared {
        pool: &inner.pool,
        patience: &visitors.patience,
        meter,
        budget: Some(&inner.deps.budget),
        shaping: Some(&visitors.shaping),
    };
    let settled = Mutex::new(reply_limit.is_none().then(|| inner.handing.settled()));
    let refused = Mutex::new(None);
    let wait_for_reply = async |incoming: &mut RecvStream| match reply_limit {
        Some(limit) => match read_reply(incoming, limit).await {
            Ok(()) => {
                *settled.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner.handing.settled());
                Ok(())
            }
            Err(not_joined) => {
                inner.metrics.refused(not_joined.label);
                *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(not_joined);
                Err(End::StreamReset)
            }
        },
        None => Ok(()),
    };
    let since = Instant::now();
    let (link, last) = link.unzip();
    let relink = Sessions {
        visitors: Arc::clone(&visitors),
        last,
        metrics: &inner.metrics,
    };
    let cut = async {
        let end = tokio::select! {
            () = banished(inner, &visit) => End::Denied,
            () = visitors.gone.cancelled() => End::StreamReset,
            () = stays(inner, &visit, STAY.saturating_sub(stayed)) => End::Clean,
            () = inner.handing.frozen() => return Halt::Freeze,
        };
        Halt::End(end)
    };
    let spliced = splice_or_freeze(socket, &flow, link, wait_for_reply, relink, cut, shared).await;
    let end = match spliced {
        Ok(end) => end,
        Err(Frozen(socket)) => {
            let flow = flow.state();
            let handed = HandedFlow {
                agent,
                agent_name,
                incarnation: visitors.incarnation(),
                label,
                visit,
                flow,
                socket,
                to_stream: meter.to_stream(),
                to_tcp: meter.to_tcp(),
                stayed: stayed + since.elapsed(),
            };
            inner.handing.take(handed);
            return Ok(End::Clean);
        }
    };
    drop(place);
    inner.metrics.closed(door, end);
    tracing::debug!(
        peer.addr = %visitor,
        tunnel.agent = %agent_name,
        endpoint = %label,
        result = ?end,
        bytes_in = meter.to_stream(),
        bytes_out = meter.to_tcp(),
        "visitor left"
    );
    inner.deps.events.emit(What::VisitorLeft {
        agent,
        endpoint: label.to_string(),
        from: visitor.ip(),
        player: visit.player.clone(),
        bytes_in: meter.to_stream(),
        bytes_out: meter.to_tcp(),
    });
    let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    refused.map_or(Ok(end), Err)
}

/// Resolves when rules or bans keep the visitor out.
async fn banished(inner: &Inner, visit: &Visit) {
    let mut changes = inner.changes.subscribe();
    loop {
        // First of all: one who came from another process was let in under the rules of that time.
        if admit::may_visit(inner, visit.from.ip(), visit.name.as_ref()).is_err() {
            return;
        }
        // The sender lives as long as the engine does.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Notes a player who has stayed; never resolves.
async fn stays(inner: &Inner, visit: &Visit, after: Duration) {
    if visit.is_player {
        tokio::time::sleep(after).await;
        inner.regulars.note(visit.from.ip(), inner.deps.clock.wall());
    }
    std::future::pending().await
}

/// Closes a visitor's socket that nobody serves.
pub(crate) fn turn_away(inner: &Inner, socket: TcpStream, reason: &'static str) {
    inner.metrics.refused(reason);
    reset_socket(socket);
}
