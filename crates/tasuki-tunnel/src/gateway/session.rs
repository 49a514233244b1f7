//! One agent's session, from its first packet to its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream, VarInt};
use tasuki_core::clock::Timestamp;
use tasuki_core::events::What;
use tasuki_core::ids::PrincipalId;
use tasuki_core::store::accounts::Principal;
use tasuki_proto::tunnel::{
    Accepted, CloseCode, ControlError, FromAgent, FromGateway, Hello, WORDS, encode_frame,
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::admit::{self, Refusal};
use super::grants::Wire;
use super::ports::Listening;
use super::visitors::Visitors;
use super::{Inner, declare, handover, udp};
use crate::datagrams::Datagrams;
use crate::frames::{read_frame, software};
use crate::handle::EndpointLine;
use crate::tls::Fingerprint;
use crate::transport::Transport;

/// How often a session's right to exist is looked up again.
const RECHECK: Duration = Duration::from_secs(10);
/// How long the agent may take to read a control frame.
const CONTROL_STALL: Duration = Duration::from_secs(10);

/// A session that was let in.
pub(crate) struct Session {
    pub(crate) agent: PrincipalId,
    pub(crate) name: String,
    pub(crate) software: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) from: SocketAddr,
    pub(crate) since: Timestamp,
    pub(crate) transport: Transport,
    pub(crate) connection: Connection,
    pub(crate) visitors: Arc<Visitors>,
    /// Frames for the agent from other tasks.
    pub(crate) outbox: mpsc::Sender<FromGateway>,
    /// Visitors of its UDP ports, and what waits to be sent for them.
    pub(crate) udp: udp::Flows,
    pub(crate) datagrams: Datagrams,
    pub(crate) state: Mutex<State>,
}

/// What the agent declared last.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) lines: Vec<EndpointLine>,
    pub(crate) ports: Vec<OpenPort>,
}

/// An open port; dropping it closes the listener, visitors stay.
pub(crate) struct OpenPort {
    pub(crate) label: Arc<str>,
    pub(crate) wire: Wire,
    pub(crate) port: u16,
    pub(crate) _listening: Arc<Listening>,
}

impl Session {
    /// Ends the session; the agent is told why.
    pub(crate) fn close(&self, code: CloseCode, text: &str) {
        self.connection
            .close(VarInt::from_u32(code.code()), text.as_bytes());
    }

    /// Where the agent is now: its network may have changed since it came.
    pub(crate) fn address(&self) -> SocketAddr {
        let now = self.connection.remote_address();
        SocketAddr::new(now.ip().to_canonical(), now.port())
    }

    /// Closes its ports and waits until they are free.
    pub(crate) async fn close_doors(&self, inner: &Inner) {
        drop(std::mem::take(
            &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner),
        ));
        inner.ports.closed().await;
    }
}

/// Why a session ended, in words for events and logs.
enum Ended {
    /// The agent was lost, or its connection closed.
    Gone(String),
    /// We close it.
    Closed(CloseCode, String),
}

impl From<ControlError> for Ended {
    fn from(error: ControlError) -> Self {
        Self::Closed(CloseCode::Protocol, error.to_string())
    }
}

/// Accepts agents until the engine closes.
pub(crate) async fn accept_agents(inner: Arc<Inner>, endpoint: quinn::Endpoint) {
    let greeting = Arc::new(tokio::sync::Semaphore::new(MAX_GREETING));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = inner.closing.cancelled() => None,
        };
        let Some(incoming) = incoming else { return };
        // Half-way to the limit every new address has to prove that it is reachable before it costs us a handshake.
        if !incoming.remote_address_validated()
            && greeting.available_permits() < MAX_GREETING / 2
            && incoming.may_retry()
        {
            let _ = incoming.retry();
            continue;
        }
        match Arc::clone(&greeting).try_acquire_owned() {
            Ok(permit) => {
                inner
                    .tasks
                    .spawn(serve(Arc::clone(&inner), incoming, Transport::Quic, permit));
            }
            Err(_) => {
                inner.metrics.agent_refused("crowded");
                incoming.ignore();
            }
        }
    }
}

/// Sessions that have not yet said who they are.
pub(crate) const MAX_GREETING: usize = 256;

/// Serves one connection of an agent to its end.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    incoming: Incoming,
    transport: Transport,
    greeting: tokio::sync::OwnedSemaphorePermit,
) {
    let from = incoming.remote_address();
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    if let Err(refusal) = admit::may_connect(&inner, from.ip()) {
        inner.metrics.agent_refused(refusal.label());
        incoming.refuse();
        return;
    }
    let limit = inner.config().quic.handshake_timeout;
    let until = tokio::time::Instant::now() + limit;
    let connection = match tokio::time::timeout_at(until, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return inner.metrics.agent_refused("handshake"),
        Err(_) => return inner.metrics.agent_refused("timeout"),
    };
    let greeted = tokio::time::timeout_at(until, greet(&inner, &connection, from)).await;
    drop(greeting);
    let refusal = match greeted {
        Ok(Ok(greeted)) => return run(inner, from, transport, connection, greeted).await,
        Ok(Err(None)) => return inner.metrics.agent_refused("handshake"),
        Ok(Err(Some(refusal))) => {
            inner.metrics.agent_refused(refusal.label());
            refusal
        }
        Err(_) => {
            inner.metrics.agent_refused("timeout");
            Refusal::new(
                CloseCode::Protocol,
                format!("no hello within {} s", limit.as_secs_f64()),
            )
        }
    };
    tracing::debug!(peer.addr = %from, reason = refusal.label(), "agent refused");
    connection.close(VarInt::from_u32(refusal.code.code()), refusal.text.as_bytes());
}

struct Greeted {
    send: SendStream,
    receive: RecvStream,
    input: BytesMut,
    principal: Arc<Principal>,
    fingerprint: Fingerprint,
    hello: Hello,
    enrolled: bool,
}

/// Hello and decision. `Err(None)` is a connection that broke by itself.
async fn greet(inner: &Inner, connection: &Connection, from: SocketAddr) -> Result<Greeted, Option<Refusal>> {
    let protocol = |text: &str| Some(Refusal::new(CloseCode::Protocol, text));
    let fingerprint = peer_fingerprint(connection).ok_or_else(|| protocol("a client key is required"))?;
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|_| None)?;
    let mut input = BytesMut::new();
    let mut has_looked = false;
    let hello = loop {
        match read_frame::<FromAgent>(&mut receive, &mut input).await {
            Ok(Some(FromAgent::Hello(hello))) => break hello,
            Ok(Some(FromAgent::Look)) if !has_looked => {
                has_looked = true;
                let seen = encode_frame(&FromGateway::Seen {
                    address: from,
                    time_ms: inner.deps.clock.wall().0,
                });
                let seen = seen.map_err(|error| protocol(&error.to_string()))?;
                send.write_all(&seen).await.map_err(|_| None)?;
            }
            Ok(Some(_)) => return Err(protocol("the first frame must be a hello")),
            Ok(None) if has_looked => return Err(None),
            Ok(None) => return Err(protocol("the control stream ended before a hello")),
            Err(error) => return Err(protocol(&error.to_string())),
        }
    };
    let (principal, enrolled) = admit::admit(inner, fingerprint, &hello, from.ip()).await?;
    Ok(Greeted {
        send,
        receive,
        input,
        principal,
        fingerprint,
        hello,
        enrolled,
    })
}

fn peer_fingerprint(connection: &Connection) -> Option<Fingerprint> {
    let identity = connection
        .peer_identity()?
        .downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>()
        .ok()?;
    Fingerprint::of_certificate(identity.first()?).ok()
}

async fn run(
    inner: Arc<Inner>,
    from: SocketAddr,
    transport: Transport,
    connection: Connection,
    greeted: Greeted,
) {
    let Greeted {
        send,
        receive,
        input,
        principal,
        fingerprint,
        hello,
        enrolled,
    } = greeted;
    let config = inner.config();
    let (outbox, frames) = mpsc::channel(16);
    let visitors = inner.registry.visitors_of(principal.id, hello.resume, || {
        Visitors::new(
            hello.resume,
            handover::patience(&config),
            Arc::clone(&inner.memory),
        )
    });
    visitors.set_scope(&principal);
    let session = Arc::new(Session {
        agent: principal.id,
        name: principal.name.clone(),
        software: hello
            .software
            .chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect(),
        fingerprint,
        from,
        since: inner.deps.clock.wall(),
        transport,
        connection,
        visitors,
        outbox,
        udp: udp::Flows::default(),
        datagrams: Datagrams::new(inner.metrics.datagrams_dropped("queue")),
        state: Mutex::new(State::default()),
    });
    match inner.registry.insert(&session, config.agents.max_sessions) {
        Err(()) => {
            inner.metrics.agent_refused("full");
            return session.close(CloseCode::Slow, "this gateway has as many agents as it may have");
        }
        Ok(Some(old)) => {
            // The newest proven session wins: the old one is usually a line that died without a word.
            tracing::info!(tunnel.agent = %session.name, "a newer session of the agent takes over");
            // The same program on another way goes on; two programs with one key would throw each other out for ever.
            let code = if Arc::ptr_eq(&old.visitors, &session.visitors) {
                CloseCode::GoingAway
            } else {
                CloseCode::Replaced
            };
            old.close(code, "a newer session of this agent took over");
            old.close_doors(&inner).await;
        }
        Ok(None) => {}
    }
    inner.metrics.agents.inc();
    inner.metrics.agent_sessions.inc();
    inner.deps.events.emit(What::AgentUp {
        agent: session.agent,
        from: from.ip(),
    });
    // Those of the same start of the agent's program; another one knows nothing of them.
    let visitors = session.visitors.count();
    if visitors > 0 {
        inner.deps.events.emit(What::AgentResumed {
            agent: session.agent,
            from: from.ip(),
            visitors,
        });
    }
    tracing::info!(tunnel.agent = %session.name, software = %session.software, enrolled, transport = %session.transport, "agent connected");

    let accepted = Accepted {
        agent: session.name.clone(),
        software: software(),
        max_endpoints: u32::try_from(config.agents.max_endpoints).unwrap_or(u32::MAX),
        enrolled,
        resume: hello.resume.map(|_| inner.incarnation),
        holds: true,
    };
    let mut control = Control {
        send,
        receive,
        input,
        frames,
    };
    // Both end with the connection at the latest.
    let carried = AbortOnDropHandle::new(tokio::spawn(udp::carry(Arc::clone(&inner), Arc::clone(&session))));
    let words = hello
        .resume
        .map(|_| AbortOnDropHandle::new(tokio::spawn(exchange_words(Arc::clone(&session)))));
    let ended = match control.write(&FromGateway::Accepted(accepted)).await {
        Ok(()) => {
            session.visitors.arrived(&session);
            control.talk(&inner, &session).await
        }
        Err(ended) => ended,
    };
    drop((carried, words));
    // Lost is only a session that nobody ended: its visitors wait for the next one.
    let is_lost = matches!(ended, Ended::Gone(_)) && !was_ended(&session.connection);
    let is_alone = session.visitors.left(&session);
    if !is_lost || (is_alone && session.visitors.count() == 0) {
        inner.registry.forget_visitors(session.agent, &session.visitors);
    }
    inner.registry.remove(&session);
    let reason = match ended {
        Ended::Gone(reason) => reason,
        Ended::Closed(code, text) => {
            session.close(code, &text);
            text
        }
    };
    session.close(CloseCode::Done, "");
    session.close_doors(&inner).await;
    inner.metrics.agents.dec();
    tracing::info!(tunnel.agent = %session.name, reason, "agent disconnected");
    inner.deps.events.emit(What::AgentDown {
        agent: session.agent,
        reason,
    });
}

/// The agent said that it has nothing more to do.
fn was_ended(connection: &Connection) -> bool {
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => {
            // A connection that is only dropped says code 0 too, without a word.
            close.error_code == VarInt::from_u32(CloseCode::Done.code()) && !close.reason.is_empty()
        }
        _ => false,
    }
}

/// Tells and hears how far the sockets of both ends are, until the session ends.
async fn exchange_words(session: Arc<Session>) {
    let Ok((send, mut receive)) = session.connection.accept_bi().await else {
        return;
    };
    let mut kind = [0];
    let book = &session.visitors.book;
    let is_broken = match receive.read_exact(&mut kind).await {
        Ok(()) if kind == [WORDS] => {
            // At once: a side that hears nothing any more would hold the other's bytes for ever.
            let told = async {
                book.tell(&session.connection, send).await;
                Ok(())
            };
            tokio::try_join!(book.hear(receive), told).is_err()
        }
        Ok(()) => true,
        Err(_) => false,
    };
    if is_broken {
        session.visitors.gone.cancel();
        session.close(CloseCode::Protocol, "more was taken than was sent");
    }
}

struct Control {
    send: SendStream,
    receive: RecvStream,
    input: BytesMut,
    frames: mpsc::Receiver<FromGateway>,
}

impl Control {
    async fn write(&mut self, frame: &FromGateway) -> Result<(), Ended> {
        let bytes = encode_frame(frame)?;
        match tokio::time::timeout(CONTROL_STALL, self.send.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone("connection lost".into())),
            Err(_) => Err(Ended::Closed(
                CloseCode::Protocol,
                "control frames were not read".into(),
            )),
        }
    }

    /// Serves the control stream until the session ends.
    async fn talk(&mut self, inner: &Arc<Inner>, session: &Arc<Session>) -> Ended {
        // Moves of the map, chat and keep-alives wait behind nothing that concerns the session itself.
        let _ = self.send.set_priority(10);
        let mut recheck = tokio::time::interval(RECHECK);
        recheck.reset();
        let mut changes = inner.changes.subscribe();
        loop {
            tokio::select! {
                frame = read_frame::<FromAgent>(&mut self.receive, &mut self.input) => {
                    let answer = match frame {
                        Ok(Some(frame)) => handle(inner, session, frame).await,
                        Ok(None) => return Ended::Gone(gone(&session.connection).await),
                        Err(error) => return error.into(),
                    };
                    match answer {
                        Ok(Some(answer)) => if let Err(ended) = self.write(&answer).await { return ended },
                        Ok(None) => {}
                        Err(ended) => return ended,
                    }
                }
                Some(frame) = self.frames.recv() => if let Err(ended) = self.write(&frame).await { return ended },
                // Changes by other gateways, and bans that nobody made by hand, are only seen by looking.
                _ = async { tokio::select! { _ = recheck.tick() => (), _ = changes.changed() => () } } => {
                    if let Err(refusal) = admit::still_welcome(inner, session).await {
                        return Ended::Closed(refusal.code, refusal.text);
                    }
                }
                error = session.connection.closed() => return Ended::Gone(error.to_string()),
            }
        }
    }
}

async fn handle(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    frame: FromAgent,
) -> Result<Option<FromGateway>, Ended> {
    match frame {
        FromAgent::Hello(_) => Err(Ended::Closed(CloseCode::Protocol, "a second hello".into())),
        // New visitors go to the other agents of the door, if there are some; those who are here stay until the agent ends
        // the session.
        FromAgent::Goodbye => {
            inner.registry.set_routes(session, Vec::new());
            session.close_doors(inner).await;
            Ok(None)
        }
        // Only who has not said hello looks.
        FromAgent::Look | FromAgent::Unknown => Ok(None),
        FromAgent::Declare { endpoints } => {
            let endpoints = declare::declare(inner, session, endpoints)
                .await
                .map_err(|refusal| Ended::Closed(refusal.code, refusal.text))?;
            Ok(Some(FromGateway::Endpoints { endpoints }))
        }
    }
}

/// The control stream ended; usually because the whole session did, which says why.
async fn gone(connection: &Connection) -> String {
    match tokio::time::timeout(Duration::from_secs(1), connection.closed()).await {
        Ok(error) => error.to_string(),
        Err(_) => "the agent ended its control stream".to_owned(),
    }
}
