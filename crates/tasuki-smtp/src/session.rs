//! One SMTP session: the socket, the machine, and the answers to its questions.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tasuki_core::{
    EngineKind,
    accept::Accepted,
    accounts::{AuthError, ScramLogin},
    acl::{Action, Question as AclQuestion},
    bans::{Offence, Standing},
    front::read_proxied,
    limits::{Rate, Who},
    store::accounts::Principal,
};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    scram::Binding,
    smtp::{
        Envelope, Reply,
        server::{Credentials, Event, Question, Session, Ticket, Why},
    },
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
    daily::{self, Reserved},
    policy,
    receive::{BUSY, FULL, Incoming, Trace},
    recipients::{self, Existence},
};

/// How long a handshake, a load balancer's header, and a write of replies may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
const PROXY_HEADER: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(60);
/// How long the end of TLS may take.
const HANG_UP: Duration = Duration::from_secs(5);

const SENDER_OK: Reply = Reply::new(250, (2, 1, 0), "sender ok");
const RECIPIENT_OK: Reply = Reply::new(250, (2, 1, 5), "recipient ok");
const GO_ON: Reply = Reply::new(250, (2, 0, 0), "go on");
const LOGGED_IN: Reply = Reply::new(235, (2, 7, 0), "authentication succeeded");
const LOGIN_REFUSED: Reply = Reply::new(535, (5, 7, 8), "authentication failed");
const LOGIN_TOO_OFTEN: Reply = Reply::new(421, (4, 7, 0), "too many failed logins, try again later");
const LOGIN_UNAVAILABLE: Reply = Reply::new(454, (4, 7, 0), "logins cannot be checked now, try again later");
const NOT_A_DEVICE: Reply = Reply::new(554, (5, 7, 1), "no device is listed for your address");
const NO_SERVICE: Reply = Reply::new(
    421,
    (4, 3, 5),
    "the service of this device does not exist or is disabled",
);
const BANNED: Reply = Reply::new(554, (5, 7, 1), "your address is not welcome here for now");

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

    /// Ban, access rule, connections per address; and who this network is.
    async fn admit(&mut self) -> Result<Option<crate::context::CountedAddress>, Reply> {
        let (context, ip) = (Arc::clone(&self.context), self.ip());
        match context.deps.bans.standing(EngineKind::Mail, ip) {
            Standing::Clear => {}
            Standing::Slowed(by) => tokio::time::sleep(by.min(Duration::from_secs(10))).await,
            Standing::Banned(_) => return Err(BANNED),
        }
        let question = AclQuestion {
            engine: EngineKind::Mail,
            action: Action::Connect,
            from: Some(ip),
            principal: None,
            domain: None,
        };
        if context.deps.acl.decide(&question).is_denied() {
            return Err(BANNED);
        }
        let settings = Arc::clone(&self.settings);
        if self.role.is_for_devices() {
            let device = settings.device(ip).ok_or(NOT_A_DEVICE)?;
            self.network = network_principal(&context, &device.service).await;
            self.device = Some(Arc::clone(device));
            return match self.network {
                Some(_) => Ok(None),
                None => Err(NO_SERVICE),
            };
        }
        if let Some(service) = settings.network_service(ip) {
            self.network = network_principal(&context, service).await;
        }
        if self.network.is_some() || ip.is_loopback() {
            return Ok(None);
        }
        let counted = context.sessions.enter(ip, self.settings.connections_per_address);
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
        let mut told_to_drain = false;
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
                        incoming.piece(&context, piece, header).await;
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
        let acceptor = TlsAcceptor::from(Arc::clone(&self.context.server_tls));
        match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => {
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

    /// What logins may be bound to (RFC 9266: TLS 1.3 has what it takes, TLS 1.2 not always).
    fn bindings(&self) -> Vec<Binding> {
        let Socket::Server(tls) = &self.socket else {
            return Vec::new();
        };
        let (_, connection) = tls.get_ref();
        if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Vec::new();
        }
        let exported = connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""));
        let binding = exported.map(|data: [u8; 32]| Binding {
            name: "tls-exporter",
            data: data.to_vec(),
        });
        binding.into_iter().collect()
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
            Question::Mail => self.check_sender(session),
            Question::ScramKeys(login) => {
                self.flush().await?;
                return Ok(self.scram_keys(session, ticket, &login).await);
            }
            Question::ScramProved(which) => self.scram_proved(which),
            Question::ScramRefused => self.scram_refused(),
            Question::Recipient(mailbox) => return Ok(self.check_recipient(ticket, mailbox).await),
            Question::Data => self.begin_data(session),
        }))
    }

    async fn check_login(&mut self, credentials: &Credentials) -> Reply {
        let (login, password) = (&credentials.login, credentials.password.reveal());
        match self
            .context
            .deps
            .accounts
            .login(EngineKind::Mail, login, password, self.ip())
            .await
        {
            Ok(principal) => {
                self.login = Some(principal);
                LOGGED_IN
            }
            Err(error) => self.login_refused(error),
        }
    }

    fn login_refused(&self, error: AuthError) -> Reply {
        self.context.metrics.refuse("login");
        match error {
            AuthError::Refused => LOGIN_REFUSED,
            AuthError::TooMany => LOGIN_TOO_OFTEN,
            AuthError::Unavailable(error) => {
                tracing::error!(%error, "logins cannot be checked");
                LOGIN_UNAVAILABLE
            }
        }
    }

    async fn scram_keys(&mut self, session: &mut Session, ticket: Ticket, login: &str) -> Option<Reply> {
        let deps = &self.context.deps;
        match deps.accounts.scram(EngineKind::Mail, login, self.ip()).await {
            Ok(login) => {
                let now = deps.clock.now();
                session.handle_scram(now, ticket, &rand::random(), login.salt(), login.verifiers());
                self.scram = Some(login);
                None
            }
            Err(error) => Some(self.login_refused(error)),
        }
    }

    fn scram_proved(&mut self, which: usize) -> Reply {
        let Some(login) = self.scram.take() else {
            return LOGIN_REFUSED;
        };
        let accounts = &self.context.deps.accounts;
        match accounts.scram_proved(EngineKind::Mail, self.ip(), &login, which) {
            Ok(principal) => {
                self.login = Some(principal);
                LOGGED_IN
            }
            Err(error) => self.login_refused(error),
        }
    }

    fn scram_refused(&mut self) -> Reply {
        if let Some(login) = self.scram.take() {
            let accounts = &self.context.deps.accounts;
            accounts.scram_refused(EngineKind::Mail, self.ip(), &login);
        }
        self.login_refused(AuthError::Refused)
    }

    fn client(&self) -> policy::Client<'_> {
        policy::Client {
            role: self.role,
            from: self.ip(),
            principal: self.principal().map(|p| &**p),
            device: self.device.as_deref(),
        }
    }

    fn check_sender(&mut self, session: &Session) -> Reply {
        // A mail keeps the settings of its MAIL to its end.
        self.settings = self.context.settings.load_full();
        self.reserved = None;
        let Some(envelope) = session.envelope() else {
            return BUSY;
        };
        // A principal may send as what its sender becomes; a stranger's sender becomes nothing.
        let sender = match rewritten_sender(&self.settings, envelope) {
            Some(sender) if self.principal().is_some() => ReversePath::Mailbox(sender.clone()),
            _ => envelope.from.clone(),
        };
        match policy::may_send_as(&self.client(), &sender) {
            Ok(()) => SENDER_OK,
            Err(reply) => {
                self.context.metrics.refuse("sender");
                tracing::debug!(peer.addr = %self.peer, principal = self.principal().map(|p| p.name.as_str()), "sender refused");
                reply
            }
        }
    }

    async fn check_recipient(&mut self, ticket: Ticket, mailbox: Mailbox) -> Option<Reply> {
        let client = self.client();
        if let Err(reply) = policy::may_relay_to(&client, &mailbox, &self.settings, &self.context.deps.acl) {
            self.context.metrics.refuse("relay");
            tracing::debug!(peer.addr = %self.peer, "relaying denied");
            if self.principal().is_none() {
                self.context
                    .deps
                    .bans
                    .offence(EngineKind::Mail, self.ip(), Offence::RelayProbe);
            }
            return Some(reply);
        }
        match recipients::listed(&self.settings, &mailbox) {
            Ok(existence) => Some(self.known(existence).await),
            Err(whom) => {
                let (context, settings) = (Arc::clone(&self.context), Arc::clone(&self.settings));
                let question =
                    async move { (ticket, recipients::ask(context, settings, mailbox, whom).await) };
                self.asking.push(question.boxed());
                None
            }
        }
    }

    /// The reply to a recipient that is allowed, once it is known whether it exists.
    async fn known(&mut self, existence: Existence) -> Reply {
        match existence {
            Existence::Known => self.charge().await,
            Existence::Unknown => {
                self.context.metrics.refuse("recipient");
                recipients::UNKNOWN
            }
            Existence::Unclear => recipients::UNCLEAR,
        }
    }

    /// Takes one recipient off the principal's rate and cap.
    async fn charge(&mut self) -> Reply {
        let per_minute = self.settings.recipients_per_minute;
        if let Some(principal) = self.principal()
            && per_minute > 0
        {
            let rate = Rate {
                burst: per_minute,
                per_period: per_minute,
                period: Duration::from_secs(60),
            };
            let who = Who::Principal(principal.id);
            if let Err(wait) = self
                .context
                .deps
                .limits
                .take(EngineKind::Mail, "recipients", who, rate)
            {
                self.context.metrics.refuse("rate");
                let text = format!(
                    "too many recipients for now, try again in {} s",
                    wait.as_secs() + 1
                );
                return Reply::with_text(451, (4, 7, 1), text);
            }
        }
        if let Some(principal) = self.principal().cloned()
            && let Some(cap) = daily::cap_of(&self.settings, &principal)
            && let Err(reply) = Reserved::add(&mut self.reserved, &self.context, &principal, cap).await
        {
            self.context.metrics.refuse("rate");
            return reply;
        }
        RECIPIENT_OK
    }

    fn begin_data(&mut self, session: &Session) -> Reply {
        if self.context.deps.health.disk_full() {
            self.context.metrics.refuse("disk");
            return FULL;
        }
        let Some(envelope) = session.envelope() else {
            return BUSY;
        };
        let (helo, esmtp) = session.helo().unwrap_or(("unknown", false));
        let only_recipient = match envelope.recipients.as_slice() {
            [one] => Some(one.mailbox.to_string()),
            _ => None,
        };
        let trace = Trace {
            helo: helo.to_owned(),
            esmtp,
            tls: session.is_tls(),
            login: self.login.is_some(),
            smtputf8: envelope.smtputf8,
            peer: self.peer,
            only_recipient,
            sender: rewritten_sender(&self.settings, envelope).map(ToString::to_string),
        };
        let settings = Arc::clone(&self.settings);
        match Incoming::begin(
            &self.context,
            settings,
            trace,
            (self.principal().cloned(), self.device.clone()),
            envelope.size,
        ) {
            Ok(incoming) => {
                self.incoming = Some(incoming);
                GO_ON
            }
            Err(reply) => {
                self.context.metrics.refuse("memory");
                reply
            }
        }
    }
}

/// The sender as the table has it.
fn rewritten_sender<'a>(settings: &'a Settings, envelope: &'a Envelope) -> Option<&'a Mailbox> {
    let sender = envelope.from.mailbox()?;
    Some(settings.rewrite.sender(sender).unwrap_or(sender))
}

async fn network_principal(context: &Context, service: &str) -> Option<Arc<Principal>> {
    match context.deps.accounts.by_name(service).await {
        Ok(Some(principal)) if !principal.disabled => Some(principal),
        Ok(_) => {
            tracing::warn!(
                service,
                "a network of mail.mynetworks or mail.devices names a service that does not exist or is disabled"
            );
            None
        }
        Err(error) => {
            tracing::error!(%error, service, "the service of a network cannot be looked up");
            None
        }
    }
}
