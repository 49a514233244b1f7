//! One session with the gateway, from the first packet to its end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportErrorCode, VarInt};
use tasuki_core::shutdown::Shutdown;
use tasuki_proto::tunnel::{
    CloseCode, Datagram, EnrolCode, FromAgent, FromGateway, Hello, PathWatch, VERSION, WORDS, encode_frame,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::dial::{Gateway, HeldWay, Reached, any_port_towards};
use super::{Final, Inner, Notice, Tell, flow, udp};
use crate::frames::{read_frame, software};
use crate::quic;
use crate::tls::Identity;
use crate::transport::Transport;

/// Name lookup, handshakes and the gateway's first word together.
const GREETING: Duration = Duration::from_secs(20);
/// How often the way to the gateway is looked at while visitors are on.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that may find a way of TLS connections without any.
const LOOKS_WITHOUT_LINES: u32 = 3;
/// Full packets sent from a new port, so that the gateway may answer it with full ones.
const PADDINGS: usize = 2;
/// How long a try to return to UDP may go on when the session that it was to replace is lost: a new one over TLS may
/// stand by then, and visitors stay only if there is one soon.
const RETURN: Duration = Duration::from_secs(1);
/// What a datagram has before its payload.
const DATAGRAM_HEAD: usize = 5;
/// How long the last packets may take when the session ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a session ended.
pub(super) struct Ended {
    pub(super) lasted: Duration,
    /// The code was spent in it, or the key was known: no code is needed any more.
    pub(super) enrolled: bool,
    /// Another process of the gateway is there already.
    pub(super) at_once: bool,
    pub(super) why: Why,
}

#[derive(Clone, Debug)]
pub(super) enum Why {
    Shutdown,
    Final(Final),
    Lost(String),
}

/// Dials, greets and serves one session.
pub(super) async fn hold(
    inner: &Arc<Inner>,
    identity: &Identity,
    code: Option<&str>,
    shutdown: &Shutdown,
    tell: &Tell,
) -> Ended {
    let not_reached = |why| Ended {
        lasted: Duration::ZERO,
        enrolled: false,
        at_once: false,
        why,
    };
    let greeting = tokio::time::timeout(GREETING, greet(inner, identity, code));
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        () = shutdown.begun() => return not_reached(Why::Shutdown),
    };
    let mut session = match greeted {
        Ok(Ok(session)) => session,
        Ok(Err(why)) => return not_reached(why),
        Err(_) => return not_reached(Why::Lost("the gateway does not answer".into())),
    };
    let began = Instant::now();
    let why = session.serve(inner, identity, shutdown, tell).await;
    let at_once = session.was_handed_over();
    // A session that was lost goes on in the next one: the gateway must not take this for the end.
    match why {
        Why::Lost(_) => drop(tokio::spawn(session.end(CloseCode::GoingAway))),
        Why::Shutdown | Why::Final(_) => session.end(CloseCode::Done).await,
    }
    Ended {
        lasted: began.elapsed(),
        enrolled: true,
        at_once,
        why,
    }
}

/// A session that is dialled beside another.
struct Race<'a> {
    dialling: Pin<Box<dyn Future<Output = Result<Session, Why>> + Send + 'a>>,
    /// Its end, if the session beside it is lost. None if it tries every way: a new one could do no better.
    patience: Option<Duration>,
}

impl<'a> Race<'a> {
    /// By every way, since this session seems dead.
    fn to_replace(inner: &'a Arc<Inner>, identity: &'a Identity) -> Self {
        Self {
            dialling: Box::pin(greet(inner, identity, None)),
            patience: None,
        }
    }

    /// Over UDP alone, while this session serves well by another way.
    fn to_return(inner: &'a Arc<Inner>, identity: &'a Identity) -> Self {
        Self {
            dialling: Box::pin(greet_by_udp(inner, identity)),
            patience: Some(RETURN),
        }
    }

    /// Whether a session that seems dead has to dial by every way, because nothing does yet.
    fn is_too_narrow(race: Option<&Self>) -> bool {
        race.is_none_or(|race| race.patience.is_some())
    }

    /// The new session, if it comes although the one beside it is lost.
    async fn after_loss(self) -> Option<Session> {
        let outcome = match self.patience {
            None => self.dialling.await,
            Some(patience) => tokio::time::timeout(patience, self.dialling).await.ok()?,
        };
        outcome.ok()
    }
}

struct Session {
    endpoint: Endpoint,
    connection: Connection,
    transport: Transport,
    /// What carries the packets, if it is not UDP.
    way: Option<HeldWay>,
    send: SendStream,
    receive: RecvStream,
    input: BytesMut,
    /// Streams the gateway may have open; raised while they fill.
    allowed: u32,
    path: PathWatch,
    /// Packets that had come when the path was suspect last.
    suspect_at: Option<u64>,
    /// The gateway can go on with flows.
    resumes: bool,
    began: Instant,
    /// In a row.
    looks_without_lines: u32,
    notice: Option<Notice>,
}

/// Dials the gateway, then says who we are.
async fn greet(inner: &Arc<Inner>, identity: &Identity, code: Option<&str>) -> Result<Session, Why> {
    let reached = gateway(inner, identity).reach().await?;
    introduce(inner, reached, code).await
}

/// The same over UDP alone, to leave the other way.
async fn greet_by_udp(inner: &Arc<Inner>, identity: &Identity) -> Result<Session, Why> {
    let reached = gateway(inner, identity).reach_by_udp().await?;
    introduce(inner, reached, None).await
}

fn gateway<'a>(inner: &'a Inner, identity: &'a Identity) -> Gateway<'a> {
    Gateway {
        config: &inner.config,
        identity,
        networks: &inner.networks,
    }
}

async fn introduce(inner: &Inner, reached: Reached, code: Option<&str>) -> Result<Session, Why> {
    let Reached {
        endpoint,
        connection,
        transport,
        way,
    } = reached;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| why_ended(&error))?;
    // Control frames wait behind no bulk transfer.
    let _ = send.set_priority(10);
    let hello = FromAgent::Hello(Hello {
        version: VERSION,
        software: software(),
        code: code.map(|code| EnrolCode(code.to_owned())),
        resume: Some(inner.incarnation),
    });
    let declare = FromAgent::Declare {
        endpoints: inner.declared(),
    };
    let mut input = BytesMut::new();
    write(&mut send, &hello).await?;
    let accepted = match read_frame::<FromGateway>(&mut receive, &mut input).await {
        Ok(Some(FromGateway::Accepted(accepted))) => accepted,
        Ok(Some(FromGateway::Refused { code, text })) => return Err(refused(u64::from(code), text)),
        Ok(Some(_)) => return Err(Why::Lost("the gateway's first word is none we know".into())),
        Ok(None) => return Err(why_ended(&connection.closed().await)),
        Err(error) => return Err(Why::Lost(error.to_string())),
    };
    inner.accepted_by(accepted.resume);
    inner.gateway_holds.store(accepted.holds, Ordering::Relaxed);
    write(&mut send, &declare).await?;
    Ok(Session {
        endpoint,
        connection,
        transport,
        way,
        send,
        receive,
        input,
        allowed: quic::FIRST_FLOWS,
        path: PathWatch::default(),
        suspect_at: None,
        resumes: accepted.resume.is_some(),
        began: Instant::now(),
        looks_without_lines: 0,
        notice: Some(Notice::Connected {
            transport,
            agent: accepted.agent,
            software: accepted.software,
            enrolled: accepted.enrolled,
        }),
    })
}

async fn write(send: &mut SendStream, frame: &FromAgent) -> Result<(), Why> {
    let bytes = encode_frame(frame).map_err(|error| Why::Lost(error.to_string()))?;
    send.write_all(&bytes)
        .await
        .map_err(|error| Why::Lost(error.to_string()))
}

fn refused(code: u64, text: String) -> Why {
    match CloseCode::from_code(code) {
        Some(code) if code.is_final() => Why::Final(Final::Refused { code, text }),
        _ if text.is_empty() => Why::Lost("the gateway refused the session".into()),
        _ => Why::Lost(text),
    }
}

pub(super) fn why_ended(error: &ConnectionError) -> Why {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let text: String = String::from_utf8_lossy(&close.reason)
                .chars()
                .filter(|c| !c.is_control())
                .take(500)
                .collect();
            refused(close.error_code.into_inner(), text)
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Why::Lost(
                "the gateway takes no session from this address: a ban or an access rule keeps it out, or the gateway \
                 is full; its operator sees why with `tasuki acl explain ADDRESS`"
                    .into(),
            )
        }
        ConnectionError::TimedOut => Why::Lost("the gateway does not answer any more".into()),
        other => Why::Lost(other.to_string()),
    }
}

impl Session {
    async fn serve(
        &mut self,
        inner: &Arc<Inner>,
        identity: &Identity,
        shutdown: &Shutdown,
        tell: &Tell,
    ) -> Why {
        let mut helpers = self.begin(inner, tell);
        // Another session, dialled while this one is silent.
        let mut race: Option<Race<'_>> = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When visitors have to go, once the agent was told to stop.
        let mut leave_at: Option<Instant> = None;
        loop {
            let ended = tokio::select! {
                _ = look.tick() => {
                    let is_dead = self.look_at_path(inner, tell);
                    if is_dead && self.resumes && Race::is_too_narrow(race.as_ref()) {
                        race = Some(Race::to_replace(inner, identity));
                    }
                    if race.is_none() && self.may_return_to_udp(inner) {
                        race = Some(Race::to_return(inner, identity));
                    }
                    let leaves = leave_at.filter(|at| inner.is_alone() || Instant::now() >= *at);
                    leaves.map(|_| Why::Shutdown).or_else(|| self.lost_way())
                }
                raced = async { (&mut race.as_mut().expect("polled only while there is one").dialling).await }, if race.is_some() => {
                    race = None;
                    if let Ok(next) = raced {
                        helpers = self.go_on_in(next, helpers, inner, tell);
                    }
                    None
                }
                frame = read_frame::<FromGateway>(&mut self.receive, &mut self.input) => match frame {
                    Ok(Some(frame)) => heed(inner, frame, tell),
                    Ok(None) => Some(why_ended(&self.connection.closed().await)),
                    Err(error) => Some(Why::Lost(error.to_string())),
                },
                stream = self.connection.accept_bi() => match stream {
                    Ok(stream) => {
                        let session = self.connection.clone();
                        inner.tasks.spawn(flow::serve(Arc::clone(inner), Arc::clone(tell), session, stream));
                        self.allow_more(inner);
                        None
                    }
                    Err(error) => Some(why_ended(&error)),
                },
                () = shutdown.begun(), if leave_at.is_none() => {
                    let _ = write(&mut self.send, &FromAgent::Goodbye).await;
                    let drain = inner.config.drain;
                    leave_at = Some(Instant::now() + drain);
                    (drain.is_zero() || inner.is_alone()).then_some(Why::Shutdown)
                }
            };
            let Some(why) = ended else { continue };
            // The gateway ends the old session when it takes the new one, whose first word is on its way then. What was
            // dialled to a process that has handed over leads nowhere.
            if let (Why::Lost(_), Some(coming), false) = (&why, race.take(), self.was_handed_over()) {
                let raced = tokio::select! {
                    raced = coming.after_loss() => raced,
                    () = shutdown.begun() => return Why::Shutdown,
                };
                if let Some(next) = raced {
                    helpers = self.go_on_in(next, helpers, inner, tell);
                    continue;
                }
            }
            return why;
        }
    }

    /// Takes the place of a session that fell silent. The gateway has given the doors to the new one; streams of the old
    /// one are lost now, and their flows go on in this one.
    fn go_on_in(
        &mut self,
        next: Session,
        helpers: Vec<AbortOnDropHandle<()>>,
        inner: &Arc<Inner>,
        tell: &Tell,
    ) -> Vec<AbortOnDropHandle<()>> {
        let old = std::mem::replace(self, next);
        tokio::spawn(old.end(CloseCode::GoingAway));
        drop(helpers);
        self.begin(inner, tell)
    }

    /// Takes a new local port when the gateway does not answer any more: the old one's way may be gone with a network
    /// or a router's table, and the session can live on over another. Visitors notice nothing but a short wait.
    ///
    /// True if that did not help: then only another session can.
    fn look_at_path(&mut self, inner: &Inner, tell: &Tell) -> bool {
        // Without visitors there is nobody to lose.
        if inner.flows.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let stats = self.connection.stats();
        let (sent, received) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        if !self.path.observe(sent, received, Instant::now().into_std()) {
            return false;
        }
        if self.suspect_at.replace(received) == Some(received) {
            return true;
        }
        tell(Notice::PathSilent);
        if let Some(held) = &self.way {
            // TCP would wait for the old way for many seconds more.
            held.way.renew();
            return false;
        }
        let own = any_port_towards(self.connection.remote_address());
        let moved = quic::bind_udp(own, inner.config.socket_buffer)
            .and_then(|(socket, _)| self.endpoint.rebind(socket));
        match (moved, self.connection.max_datagram_size()) {
            (Ok(()), Some(size)) => {
                for _ in 0..PADDINGS {
                    let padding = Datagram::Padding {
                        zeros: size.saturating_sub(DATAGRAM_HEAD),
                    };
                    // Fails only with the session.
                    let _ = self.connection.send_datagram(padding.encode());
                }
            }
            (Ok(()), None) => {}
            (Err(error), _) => {
                tracing::debug!(error = %error, "no new socket; the session goes on with the old one");
            }
        }
        false
    }

    /// UDP is the better way: while the session has to do without it, it is tried now and then.
    fn may_return_to_udp(&self, inner: &Inner) -> bool {
        self.transport == Transport::Tls
            && inner.config.transport.is_none()
            && (self.resumes || inner.flows.load(Ordering::Relaxed) == 0)
            && inner
                .returning
                .is_due(self.began.into_std(), Instant::now().into_std())
    }

    /// A way without connections for some time has lost the gateway: the next session may find it.
    fn lost_way(&mut self) -> Option<Why> {
        let lines = self.way.as_ref()?.way.lines();
        self.looks_without_lines = if lines == 0 {
            self.looks_without_lines + 1
        } else {
            0
        };
        (self.looks_without_lines > LOOKS_WITHOUT_LINES)
            .then(|| Why::Lost("the connections to the gateway broke".into()))
    }

    /// Starts what runs beside the control stream; it ends when it is dropped.
    fn begin(&mut self, inner: &Arc<Inner>, tell: &Tell) -> Vec<AbortOnDropHandle<()>> {
        inner.standing.session_began(&self.connection, self.transport);
        inner
            .returning
            .session_began(self.transport, self.began.into_std());
        if let Some(notice) = self.notice.take() {
            tell(notice);
        }
        let datagrams = udp::carry(Arc::clone(inner), Arc::clone(tell), self.connection.clone());
        let mut helpers = vec![AbortOnDropHandle::new(tokio::spawn(datagrams))];
        if self.resumes {
            let words = exchange_words(Arc::clone(inner), self.connection.clone());
            helpers.push(AbortOnDropHandle::new(tokio::spawn(words)));
        }
        helpers
    }

    /// Lets the gateway open more streams when three of four are in use: each allowed one costs memory at once.
    fn allow_more(&mut self, inner: &Inner) {
        let open = inner.flows.load(Ordering::Relaxed);
        let max = inner.config.max_connections.saturating_add(16);
        if self.allowed < max && open >= self.allowed / 4 * 3 {
            self.allowed = self.allowed.saturating_mul(2).min(max);
            self.connection
                .set_max_concurrent_bi_streams(VarInt::from_u32(self.allowed));
        }
    }

    /// The gateway goes on in another process.
    fn was_handed_over(&self) -> bool {
        let code = VarInt::from_u32(CloseCode::HandedOver.code());
        let reason = self.connection.close_reason();
        matches!(reason, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == code)
    }

    /// Says goodbye to the gateway; what still runs is cut, and both ends of it see a reset.
    async fn end(self, code: CloseCode) {
        self.connection
            .close(VarInt::from_u32(code.code()), b"the agent ends the session");
        // A gateway that does not listen any more is not waited for.
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

/// Tells and hears how far the sockets of both ends are, until the session ends.
async fn exchange_words(inner: Arc<Inner>, connection: Connection) {
    let Ok((mut send, receive)) = connection.open_bi().await else {
        return;
    };
    if send.write_all(&[WORDS]).await.is_err() {
        return;
    }
    // At once: a side that hears nothing any more would hold the other's bytes for ever.
    let told = async {
        inner.book.tell(&connection, send).await;
        Ok(())
    };
    if tokio::try_join!(inner.book.hear(receive), told).is_err() {
        connection.close(
            VarInt::from_u32(CloseCode::Protocol.code()),
            b"more was taken than was sent",
        );
    }
}

fn heed(inner: &Inner, frame: FromGateway, tell: &Tell) -> Option<Why> {
    match frame {
        FromGateway::Endpoints { endpoints } => {
            for status in endpoints {
                if let Some(served) = inner.endpoints_by_id.get(&status.id) {
                    tell(Notice::Endpoint {
                        label: served.endpoint.label.clone(),
                        state: status.state,
                    });
                }
            }
            None
        }
        FromGateway::GoAway { grace_s } => {
            tell(Notice::GoingAway { grace_s });
            None
        }
        FromGateway::Refused { code, text } => Some(refused(u64::from(code), text)),
        FromGateway::RoundTrips { flows } => {
            inner.visitors.note_round_trips(&flows);
            None
        }
        FromGateway::Accepted(_) | FromGateway::Seen { .. } | FromGateway::Unknown => None,
    }
}
