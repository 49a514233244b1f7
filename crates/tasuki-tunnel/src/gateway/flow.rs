//! A visitor's stream: opened towards the agent, joined with the visitor's socket, counted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, VarInt};
use tasuki_core::events::What;
use tasuki_proto::minecraft::Page;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{OpenReply, RESET_ABORTED, StreamHeader};
use tokio::net::TcpStream;

use super::registry::Target;
use super::regulars::STAY;
use super::visitors::{Place, Sessions};
use super::{Inner, admit};
use crate::flows::Begun;
use crate::metrics::Door;
use crate::splice::{End, Link, Meter, Outgoing, Shared, reset_socket, splice};

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
    /// A player who joins a game, and does not only look at the server list.
    pub(crate) is_player: bool,
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
    let (door, visitor) = (visit.door, visit.from);
    let Opened {
        flow,
        outgoing,
        incoming,
        place,
        sent,
    } = opened;
    let meter = Meter::new(Some(inner.metrics.totals.clone()));
    meter.add_to_stream(sent);
    let _proven = target.session.visitors.proven.enter(visitor.ip(), usize::MAX);
    inner.metrics.opened(door);
    let (agent, from) = (target.session.agent, visitor.ip());
    inner.deps.events.emit(What::VisitorJoined {
        agent,
        endpoint: target.label.to_string(),
        from,
    });
    let shared = Shared {
        pool: &inner.pool,
        patience: &target.session.visitors.patience,
        meter: &meter,
        budget: Some(&inner.deps.budget),
        shaping: Some(&target.session.visitors.shaping),
    };
    let refused = Mutex::new(None);
    let wait_for_reply = async |incoming: &mut RecvStream| match reply_limit {
        Some(limit) => read_reply(incoming, limit).await.map_err(|not_joined| {
            inner.metrics.refused(not_joined.label);
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(not_joined);
            End::StreamReset
        }),
        None => Ok(()),
    };
    let mut changes = inner.changes.subscribe();
    let banished = async {
        // The sender lives as long as the engine does.
        while changes.changed().await.is_ok() {
            if admit::may_visit(inner, visitor.ip(), visit.name.as_ref()).is_err() {
                return;
            }
        }
        std::future::pending().await
    };
    let gone = &target.session.visitors.gone;
    let stays = async {
        if visit.is_player {
            tokio::time::sleep(STAY).await;
            inner.regulars.note(visitor.ip(), inner.deps.clock.wall());
        }
        std::future::pending::<()>().await;
    };
    let cut = async {
        tokio::select! {
            () = banished => End::Denied,
            () = gone.cancelled() => End::StreamReset,
            () = stays => End::Clean,
        }
    };
    let link = Link {
        outgoing,
        incoming,
        session: target.session.connection.clone(),
    };
    let relink = Sessions {
        last: Arc::clone(&target.session),
        metrics: &inner.metrics,
    };
    let end = splice(socket, &flow, link, wait_for_reply, relink, cut, shared).await;
    drop(place);
    inner.metrics.closed(door, end);
    tracing::debug!(
        peer.addr = %visitor,
        tunnel.agent = %target.session.name,
        endpoint = %target.label,
        result = ?end,
        bytes_in = meter.to_stream(),
        bytes_out = meter.to_tcp(),
        "visitor left"
    );
    inner.deps.events.emit(What::VisitorLeft {
        agent,
        endpoint: target.label.to_string(),
        from,
        bytes_in: meter.to_stream(),
        bytes_out: meter.to_tcp(),
    });
    let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    refused.map_or(Ok(end), Err)
}

/// Closes a visitor's socket that nobody serves.
pub(crate) fn turn_away(inner: &Inner, socket: TcpStream, reason: &'static str) {
    inner.metrics.refused(reason);
    reset_socket(socket);
}
