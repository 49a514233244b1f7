//! One SMTP session: the socket, the machine, and the answers to its questions.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tasuki_core::{
    EngineKind, accept::Accepted, accounts::ScramLogin, bans::Offence, front::read_proxied,
    store::accounts::Principal, tls::ClientCertificate,
};
use tasuki_proto::smtp::{
    Reply,
    server::{Event, Question, Session, Ticket, Why},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant as TokioInstant, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::{Device, Role, Settings},
    connect::Socket,
    context::{Context, PerAddress},
    daily::Reserved,
    receive::{BUSY, Incoming},
    recipients::Existence,
};

pub(crate) mod admission;
mod login;
pub(crate) mod transaction;

/// How long a handshake, a load balancer's header, and a write of replies may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
const PROXY_HEADER: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(60);
/// How long the end of TLS may take.
const HANG_UP: Duration = Duration::from_secs(5);

/// Serves one accepted connection to its end.
pub(crate) async fn serve(context: Arc<Context>, role: Role, mut accepted: Accepted) {
    let settings = context.settings.load_full();
    let proxy = accepted.peer.ip();
    if settings.proxies.iter().any(|net| net.contains(&proxy)) {
        match timeout(PROXY_HEADER, read_proxied(&mut accepted.stream)).await {
            Ok(Ok(client)) => accepted.peer = client.unwrap_or(accepted.peer),
            Ok(Err(error)) => {
                return tracing::debug!(peer.addr = %proxy, %error, "the proxy's connection has no PROXY header");
            }
            Err(_) => return tracing::debug!(peer.addr = %proxy, "the proxy sent no PROXY header in time"),
        }
    }
    let from = accepted.peer.ip();
    context.metrics.sessions.inc();
    context.metrics.sessions_open.inc();
    let mut shell = Shell {
        socket: Socket::Plain(accepted.stream),
        out: BytesMut::new(),
        role,
        peer: accepted.peer,
        network: None,
        login: None,
        scram: None,
        certificate: None,
        by_certificate: false,
        device: None,
        asking: FuturesUnordered::new(),
        incoming: None,
        reserved: None,
        settings,
        context: Arc::clone(&context),
    };
    match shell.admit().await {
        Ok(counted) => {
            let end = shell.run().await;
            tracing::debug!(peer.addr = %accepted.peer, end = ?end, "session ended");
            if matches!(
                end,
                End::Closed(Why::TooManyErrors | Why::WrongProtocol | Why::EarlyTalker)
            ) {
                context
                    .deps
                    .bans
                    .offence(EngineKind::Mail, from, Offence::ProtocolAbuse);
            }
            drop(counted);
        }
        Err(reply) => {
            context.metrics.refuse("connection");
            if !role.is_implicit_tls() {
                shell.say(&reply).await;
            }
        }
    }
    context.metrics.sessions_open.dec();
    drop(accepted.permit);
}

/// How a session ended.
#[derive(Debug)]
enum End {
    Closed(Why),
    Socket,
    Handshake,
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        tracing::debug!(%error, "the client's connection broke");
        Self::Socket
    }
}

struct Shell {
    context: Arc<Context>,
    settings: Arc<Settings>,
    socket: Socket,
    out: BytesMut,
    role: Role,
    peer: std::net::SocketAddr,
    /// The service that this network's clients act as.
    network: Option<Arc<Principal>>,
    login: Option<Arc<Principal>>,
    /// A login that is proving itself.
    scram: Option<ScramLogin>,
    /// What the client showed in TLS.
    certificate: Option<ClientCertificate>,
    /// The login is by that certificate, and good as long as it is listed.
    by_certificate: bool,
    /// The device that this is, at the devices' listener.
    device: Option<Arc<Device>>,
    /// Recipients whose existence is being asked for; the machine allows 16 at a time.
    asking: FuturesUnordered<BoxFuture<'static, (Ticket, Existence)>>,
    incoming: Option<Incoming>,
    /// What the mail under way takes of its principal's daily cap.
    reserved: Option<Reserved>,
}

impl Shell {
    fn ip(&self) -> IpAddr {
        self.peer.ip()
    }

    fn principal(&self) -> Option<&Arc<Principal>> {
        self.login.as_ref().or(self.network.as_ref())
    }

    /// Who may speak, and how many of one address at a time.
    async fn admit(&mut self) -> Result<Option<crate::context::CountedAddress>, Reply> {
        let (context, ip) = (Arc::clone(&self.context), self.ip());
        let admitted = admission::admit(&context, &self.settings, self.role, ip).await?;
        if !admitted.slowed.is_zero() {
            tokio::time::sleep(admitted.slowed).await;
        }
        self.network = admitted.network;
        self.device = admitted.device;
        if self.network.is_some() || ip.is_loopback() {
            return Ok(None);
        }
        let most = (
            self.settings.connections_per_address,
            self.settings.connections_per_prefix,
        );
        let counted = context.sessions.enter(ip, most);
        counted.map(Some).ok_or(PerAddress::TOO_MANY)
    }

    async fn say(&mut self, reply: &Reply) {
        reply.write(&mut self.out);
        self.hang_up().await;
    }

    /// Writes what waits and closes; a peer that does not read is not waited for long.
    async fn hang_up(&mut self) {
        if self.flush().await.is_ok() {
            let _ = timeout(HANG_UP, self.socket.shutdown()).await;
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let write = async {
            self.socket.write_all(&self.out).await?;
            self.socket.flush().await
        };
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        timeout(WRITE, write).await.map_err(late)??;
        self.out.clear();
        Ok(())
    }

    async fn run(&mut self) -> End {
        if self.role.is_implicit_tls() && !self.handshake().await {
            return End::Handshake;
        }
        let server = if self.role.is_for_devices() {
            &self.settings.devices_server
        } else {
            &self.settings.server
        };
        let mut config = (**server).clone();
        let stranger = self.network.is_none() && !self.ip().is_loopback();
        if self.role == Role::Relay && stranger {
            config.timers.greet_pause = self.settings.greet_pause;
        }
        let config = if config.timers.greet_pause.is_zero() {
            Arc::clone(server)
        } else {
            Arc::new(config)
        };
        let now = self.context.deps.clock.now();
        let mut session = Session::new(config, self.role.is_implicit_tls(), now);
        session.set_bindings(self.bindings());
        session.set_external(self.may_log_in_by_certificate().await);
        match self.converse(&mut session).await {
            Ok(why) => {
                self.hang_up().await;
                End::Closed(why)
            }
            Err(end) => end,
        }
    }

    /// The loop between socket and machine.
    async fn converse(&mut self, session: &mut Session) -> Result<Why, End> {
        let context = Arc::clone(&self.context);
        let clock = &context.deps.clock;
        let mut input = BytesMut::new();
        let (mut told_to_drain, mut told_of_cut) = (false, false);
        // One timer for the session, moved only when it fires: deadlines mostly move later.
        let timer = tokio::time::sleep(WRITE);
        let mut armed = None;
        tokio::pin!(timer);
        loop {
            session.handle_input(clock.now(), &mut input);
            if let Some(why) = self.events(session, &mut input).await? {
                return Ok(why);
            }
            self.flush().await?;
            let due = session.poll_timeout();
            if let Some(due) = due
                && armed.is_none_or(|at| due < at)
            {
                armed = Some(due);
                timer
                    .as_mut()
                    .reset(TokioInstant::now() + due.saturating_duration_since(clock.now()));
            }
            let wants_input = session.wants_input();
            if wants_input {
                input.reserve(if self.incoming.is_some() {
                    32 * 1024
                } else {
                    4 * 1024
                });
            }
            tokio::select! {
                read = self.socket.read_buf(&mut input), if wants_input => {
                    if read? == 0 {
                        session.handle_eof(clock.now());
                    }
                }
                () = &mut timer, if armed.is_some() => {
                    session.handle_timeout(clock.now());
                    armed = None;
                }
                Some((ticket, existence)) = self.asking.next(), if !self.asking.is_empty() => {
                    let reply = self.known(existence).await;
                    self.answered(session, ticket, reply, &mut input);
                }
                () = context.closing.cancelled(), if !told_to_drain => {
                    told_to_drain = true;
                    session.handle_drain(clock.now());
                }
                () = context.cut.cancelled(), if !told_of_cut => {
                    told_of_cut = true;
                    session.handle_cut(clock.now());
                }
            }
        }
    }

    /// Does what the machine asks, until it asks for nothing more.
    async fn events(&mut self, session: &mut Session, input: &mut BytesMut) -> Result<Option<Why>, End> {
        let context = Arc::clone(&self.context);
        let clock = &context.deps.clock;
        loop {
            let Some(event) = session.poll_event() else {
                return Ok(None);
            };
            match event {
                Event::Reply(octets) => self.out.extend_from_slice(&octets),
                Event::Ask(ticket, question) => {
                    if let Some(reply) = self.answer(session, ticket, question).await? {
                        self.answered(session, ticket, reply, input);
                    }
                }
                Event::Body { piece, header } => {
                    if let Some(incoming) = &mut self.incoming {
                        let begun = clock.now();
                        incoming.piece(&context, piece, header).await;
                        session.handle_held(clock.now().saturating_duration_since(begun));
                    }
                }
                Event::Discard(why) => {
                    if why.is_some() {
                        context.metrics.refuse("content");
                    }
                    self.incoming = None;
                    self.reserved = None;
                }
                Event::MessageEnd(ticket, message) => {
                    self.flush().await?;
                    let reply = match self.incoming.take() {
                        Some(incoming) => incoming.commit(&context, message).await,
                        None => BUSY,
                    };
                    if let Some(reserved) = self.reserved.take_if(|_| reply.is_positive()) {
                        reserved.accepted();
                    }
                    self.reserved = None;
                    self.answered(session, ticket, reply, input);
                }
                Event::StartTls => {
                    self.flush().await?;
                    input.clear();
                    if !self.handshake().await {
                        return Err(End::Handshake);
                    }
                    session.handle_tls(clock.now());
                    session.set_bindings(self.bindings());
                    session.set_external(self.may_log_in_by_certificate().await);
                }
                Event::Close(why) => return Ok(Some(why)),
            }
        }
    }

    /// Gives an answer and lets the machine go on at once, so that a pipelined group is answered in one write.
    fn answered(&mut self, session: &mut Session, ticket: Ticket, reply: Reply, input: &mut BytesMut) {
        let now = self.context.deps.clock.now();
        session.handle_answer(now, ticket, reply);
        session.handle_input(now, input);
    }

    async fn handshake(&mut self) -> bool {
        let Socket::Plain(stream) = std::mem::replace(&mut self.socket, Socket::Gone) else {
            return false;
        };
        let asks = self.settings.client_certificates && !self.role.is_for_devices();
        let config = if asks {
            &self.context.asking_tls
        } else {
            &self.context.server_tls
        };
        let acceptor = TlsAcceptor::from(Arc::clone(config));
        match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => {
                let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
                self.certificate = shown
                    .filter(|_| asks)
                    .and_then(|der| ClientCertificate::from_der(der).ok());
                self.socket = Socket::Server(Box::new(tls));
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(peer.addr = %self.peer, %error, "TLS handshake failed");
                false
            }
            Err(_) => false,
        }
    }

    /// The answer, unless it comes later.
    async fn answer(
        &mut self,
        session: &mut Session,
        ticket: Ticket,
        question: Question,
    ) -> Result<Option<Reply>, End> {
        Ok(Some(match question {
            Question::Auth(credentials) => {
                self.flush().await?;
                self.check_login(&credentials).await
            }
            Question::External(name) => {
                self.flush().await?;
                self.check_certificate(&name).await
            }
            Question::Mail => self.check_sender(session).await,
            Question::ScramKeys(login) => {
                self.flush().await?;
                return Ok(self.scram_keys(session, ticket, &login).await);
            }
            Question::ScramProved(which) => self.scram_proved(which).await,
            Question::ScramRefused => self.scram_refused(),
            Question::Recipient(mailbox) => return Ok(self.check_recipient(session, ticket, mailbox).await),
            Question::Data => self.begin_data(session),
        }))
    }
}
