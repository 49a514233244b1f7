//! Workers: each takes jobs of one lane and delivers them over one connection, kept for the next job.
//!
//! **Invariant:** only replies to MAIL, RCPT and DATA judge a mail. Everything else that goes wrong is the route's or our
//! own failure: the lane stops for a while, what waits in it is put off without counting an attempt, and nothing bounces
//! before it expires.

use std::sync::Arc;

use bytes::Bytes;
use tasuki_core::{
    failure::{Blame, Failure, Reply as FailureReply, Verdict},
    health::{Code, Condition},
    store::mail::Recipient,
};
use tasuki_proto::{
    backoff::jittered,
    names::{Domain, MailHost, Mailbox},
    smtp::{
        BodyType, Reply,
        client::{ClientConfig, ClientFailure, Login, Problem, Proof, Protocol, Security, Stage, Timeouts},
        dkim::HeaderTooLong,
        header,
        server::Password as Hidden,
    },
};

use crate::{
    config::{Password, Settings, Smarthost},
    connect::{Connection, Dialer},
    context::{Context, Job},
    convert, dkim,
    lanes::{Lane, Pushed},
    orders, port25,
    route::{self, Candidate, NextHop, RouteError},
    settle::Attempted,
};

/// Most recipients in one transaction (RFC 5321 4.5.3.1.8).
const MAX_RECIPIENTS: usize = 100;

/// What became of one recipient in an attempt.
pub(crate) type RecipientResult = Result<Reply, Failure>;

/// Queues a job; starts a worker or puts the job off where that is the answer.
pub(crate) async fn dispatch(context: &Arc<Context>, job: Job) {
    let settings = context.settings.load_full();
    let Some(job) = orders::obey(context, &settings, job).await else {
        return;
    };
    let now = context.deps.clock.now();
    let road = context.lanes.road(&job.held.lane, now);
    let limit = route::concurrency(&settings, &road);
    match context.lanes.push(job, &road, limit, now) {
        Pushed::Queued => {}
        Pushed::StartWorker(lane) => start_worker(context, lane),
        Pushed::Full(job) => {
            // The store keeps what memory does not; the lane's owner finds it there at once.
            let due = context.deps.clock.wall();
            context
                .put_off(
                    job,
                    due,
                    "more mail than fits in memory waits for this destination",
                )
                .await;
        }
        Pushed::Blocked(job, until, why) => {
            let wait = until.saturating_duration_since(now);
            let spread = jittered(wait, 15, job.held.mail.0.cast_unsigned());
            let due = context.deps.clock.wall().plus(spread.max(wait));
            context.put_off(job, due, &why).await;
        }
    }
}

fn start_worker(context: &Arc<Context>, lane: Arc<Lane>) {
    let context = Arc::clone(context);
    // Owned by the engine's tracker, which `Engine::run` waits for.
    context
        .tracker
        .clone()
        .spawn(async move { work(&context, &lane).await });
}

/// A worker's life.
async fn work(context: &Arc<Context>, lane: &Arc<Lane>) {
    let settings = context.settings.load_full();
    if let Ok(NextHop::Mx(MailHost::Domain(domain))) = route::next_hop(&settings, &lane.key) {
        return find_site(context, &settings, lane, &domain).await;
    }
    drop(settings);
    let mut connection: Option<Connection> = None;
    loop {
        if context.is_closing() {
            lane.quit();
            break;
        }
        let job = match (lane.take(), &mut connection) {
            (Some(job), _) => job,
            (None, None) => match lane.leave() {
                Some(job) => job,
                None => break,
            },
            (None, Some(open)) => {
                if !idle(context, lane, open).await
                    && let Some(open) = connection.take()
                {
                    open.quit(&context.deps.clock).await;
                }
                continue;
            }
        };
        if lane.wants_more() {
            context.wake.notify_one();
        }
        connection = deliver(context, lane, connection, job).await;
    }
    if let Some(open) = connection {
        open.quit(&context.deps.clock).await;
    }
}

/// The worker of a domain's own lane: hands what waits there over to the lane of the domain's site.
async fn find_site(context: &Arc<Context>, settings: &Settings, lane: &Arc<Lane>, domain: &Domain) {
    let site = route::site(context, settings, domain).await;
    if let Ok(site) = &site {
        lane.works();
        context
            .lanes
            .learn(&lane.key, site.clone(), context.deps.clock.now());
    }
    let why = match &site {
        Err(error @ RouteError::Unknown(_)) => Some(error.to_string()),
        _ => None,
    };
    for job in lane.leave_with_all() {
        match &site {
            Ok(_) => dispatch(context, job).await,
            Err(error) => {
                context.metrics.attempts.inc();
                conclude_all(context, settings, job, None, &refusal(error)).await;
            }
        }
    }
    if let Some(why) = why {
        block(context, settings, lane, &why).await;
    }
}

/// Waits with an open connection; `false` when that makes no more sense.
async fn idle(context: &Context, lane: &Lane, open: &mut Connection) -> bool {
    if !lane.go_idle() {
        return true;
    }
    let wait = context.settings.load().delivery.idle;
    let woken = tokio::select! {
        () = lane.woken() => true,
        () = tokio::time::sleep(wait) => false,
        () = open.broken() => false,
        () = context.lanes.connections.needed_elsewhere() => false,
        () = context.closing.cancelled() => false,
    };
    lane.stop_idling();
    woken
}

/// Delivers one job, gives its outcome to the settler, and returns the connection if it can be used again.
async fn deliver(
    context: &Arc<Context>,
    lane: &Arc<Lane>,
    connection: Option<Connection>,
    job: Job,
) -> Option<Connection> {
    let settings = context.settings.load_full();
    context.metrics.attempts.inc();
    let hop = match route::next_hop(&settings, &job.held.lane) {
        Ok(hop) => hop,
        Err(error) => {
            conclude_all(context, &settings, job, None, &refusal(&error)).await;
            return connection;
        }
    };
    let prefix = match signature(context, &settings, &job).await {
        Ok(prefix) => prefix,
        Err(why) => {
            let failure = || Failure::us(why.clone());
            conclude_all(context, &settings, job, None, &failure).await;
            return connection;
        }
    };
    let mut attempt = Attempt {
        prefix,
        context,
        settings: &settings,
        lane,
        hop: &hop,
        connection,
        unfit: Vec::new(),
        passed_over: Vec::new(),
    };
    let attempted = attempt.run(&job).await;
    let route_failure = attempted.route_failure.clone();
    let connection = attempt.connection.take();
    match &route_failure {
        // Nothing goes anywhere; that must not use up the mail's attempts.
        Some(why) if matches!(hop, NextHop::Mx(_)) && waits_for_port25(context, &job) => {
            let wait = settings.retry.delay(1, job.held.mail.0.cast_unsigned());
            let due = context.deps.clock.wall().plus(wait);
            context.put_off(job, due, why).await;
        }
        _ => context.conclude(&settings, job, attempted).await,
    }
    match route_failure {
        Some(why) => block(context, &settings, lane, &why).await,
        None => {
            if lane.works() {
                report_route(context, &lane.key.0, None);
                context.deps.events.emit(tasuki_core::events::What::RouteUp {
                    route: lane.key.0.clone(),
                });
            }
        }
    }
    keep_or_quit(context, &settings, connection).await
}

fn waits_for_port25(context: &Context, job: &Job) -> bool {
    let now = context.deps.clock.wall();
    let held = &job.held;
    // Its sender is told of the delay all the same.
    let delay_told =
        held.delay_reported || now.since(held.accepted_at) < context.settings.load().delivery.delay_notice;
    context.port25.is_blocked() && now < held.expires_at && delay_told
}

async fn keep_or_quit(
    context: &Context,
    settings: &Settings,
    connection: Option<Connection>,
) -> Option<Connection> {
    let open = connection?;
    let most = match &open.member {
        Some((smarthost, _)) => smarthost.mails_per_connection,
        None => settings.delivery.mails_per_connection,
    };
    if open.mails >= most {
        open.quit(&context.deps.clock).await;
        return None;
    }
    Some(open)
}

/// The next hop does not work: the lane rests, and what waits behind is put off without an attempt.
async fn block(context: &Arc<Context>, settings: &Settings, lane: &Lane, why: &str) {
    let clock = &context.deps.clock;
    let seed = clock.wall().0.cast_unsigned();
    let mut wait = std::time::Duration::ZERO;
    let (failures, behind) = lane.failed(why, |failures| {
        wait = settings.retry.delay(failures, seed);
        clock.now() + wait
    });
    report_route(context, &lane.key.0, Some(why));
    if failures == 1 {
        tracing::warn!(lane = %lane.key.0, error = why, "next hop does not work, its mail waits");
        let (route, reason) = (lane.key.0.clone(), why.to_owned());
        context
            .deps
            .events
            .emit(tasuki_core::events::What::RouteDown { route, reason });
    }
    for job in behind {
        let spread = jittered(wait, 15, job.held.mail.0.cast_unsigned());
        context.put_off(job, clock.wall().plus(spread), why).await;
    }
}

/// A smarthost that does not work is ours to mend, so `status` tells of it; a stranger's server is not.
fn report_route(context: &Context, lane: &str, trouble: Option<&str>) {
    let Some(name) = lane.strip_prefix("via:") else {
        return;
    };
    let sentence =
        |why| format!("smarthost {name} does not work ({why}); mail for it waits and is tried again");
    let condition = trouble.map(|why| Condition::warning(Code::RouteDown, sentence(why)));
    context.deps.health.set(&format!("mail.route.{name}"), condition);
}

/// One of a group: mail does not wait for it.
fn report_smarthost(context: &Context, name: &str, trouble: Option<&str>) {
    let sentence = |why| format!("smarthost {name} does not work ({why}); others of its group carry on");
    let condition = trouble.map(|why| Condition::warning(Code::RouteDown, sentence(why)));
    context
        .deps
        .health
        .set(&format!("mail.smarthost.{name}"), condition);
    let route = format!("smarthost {name}");
    context.deps.events.emit(match trouble {
        Some(why) => tasuki_core::events::What::RouteDown {
            route,
            reason: why.to_owned(),
        },
        None => tasuki_core::events::What::RouteUp { route },
    });
}

pub(crate) async fn conclude_all(
    context: &Arc<Context>,
    settings: &Settings,
    job: Job,
    host: Option<String>,
    failure: &(dyn Fn() -> Failure + Sync),
) {
    let results = job
        .held
        .recipients
        .iter()
        .map(|r| (r.clone(), Err(failure())))
        .collect();
    let attempted = Attempted {
        results,
        host,
        sends_notices: false,
        is_final: false,
        route_failure: None,
    };
    context.conclude(settings, job, attempted).await;
}

fn refusal(error: &RouteError) -> impl Fn() -> Failure + use<> {
    let (verdict, blame, reply, text) = match error {
        RouteError::Unroutable(reply) => (
            Verdict::Permanent,
            Blame::Peer,
            Some(convert::failure_reply(reply)),
            reply.to_string(),
        ),
        RouteError::Unknown(what) => (
            Verdict::Retry { not_before: None },
            Blame::Route,
            None,
            what.clone(),
        ),
    };
    move || Failure {
        verdict,
        blame,
        reply: reply.clone(),
        source: Some(text.clone().into()),
    }
}

/// The DKIM signatures that go in front of a mail: if it is one of ours, and its author's domain has keys.
async fn signature(context: &Context, settings: &Settings, job: &Job) -> Result<Bytes, String> {
    let held = &job.held;
    // What strangers bring for relay domains may claim any author.
    if held.envelope.principal.is_none() && !held.envelope.is_dsn {
        return Ok(Bytes::new());
    }
    let ring = context.dkim.ring(context.deps.clock.now()).await;
    report_keys(context, ring.as_ref().err());
    let ring = ring?;
    if ring.is_empty() {
        return Ok(Bytes::new());
    }
    // Our own trace fields stand in front of what was taken in.
    let mut message = dkim::hasher(settings.server.data.max_header_size + 64 * 1024);
    let too_long = |error: HeaderTooLong| error.to_string();
    match &job.body {
        Some(kept) => {
            for piece in &kept.pieces {
                message.update(piece).map_err(too_long)?;
            }
        }
        None => {
            let store = &context.deps.store;
            let mut source = store.body(&held.body).await.map_err(|e| e.to_string())?;
            while let Some(piece) = source.next().await.map_err(|e| e.to_string())? {
                message.update(&piece).map_err(too_long)?;
            }
        }
    }
    let (header, body_hash) = message.finish();
    let authors = header::authors(&header::Header::parse(&header)).unwrap_or_default();
    let Some(author) = authors.first().and_then(Mailbox::domain) else {
        return Ok(Bytes::new());
    };
    let author = author.clone();
    let now = context.deps.clock.wall();
    let fields = context.dkim.sign(&ring, &author, header, body_hash, now).await;
    report_keys(context, fields.as_ref().err());
    fields.map(Bytes::from)
}

/// Keys that cannot be read are ours to mend.
fn report_keys(context: &Context, trouble: Option<&String>) {
    let sentence = |why| format!("mail cannot be signed ({why}); it waits until it can be");
    let condition = trouble.map(|why| Condition::warning(Code::Signing, sentence(why)));
    context.deps.health.set("mail.dkim", condition);
}

/// One attempt at one job.
struct Attempt<'a> {
    /// Goes in front of the message.
    prefix: Bytes,
    context: &'a Arc<Context>,
    settings: &'a Settings,
    lane: &'a Lane,
    hop: &'a NextHop,
    connection: Option<Connection>,
    /// Servers of the domain that cannot take this mail as it is.
    unfit: Vec<(String, ClientFailure)>,
    /// Smarthosts of the group that refused us, not the mail.
    passed_over: Vec<Arc<str>>,
}

impl Attempt<'_> {
    async fn run(&mut self, job: &Job) -> Attempted {
        let mut attempted = Attempted {
            results: Vec::new(),
            host: None,
            sends_notices: false,
            is_final: false,
            route_failure: None,
        };
        let mut open: Vec<Recipient> = job.held.recipients.clone();
        while !open.is_empty() {
            let rest = open.split_off(open.len().min(MAX_RECIPIENTS));
            let group = std::mem::replace(&mut open, rest);
            let results = match self.send(job, &group).await {
                Ok(sent) => {
                    attempted.host = Some(sent.host);
                    attempted.sends_notices = sent.sends_notices;
                    attempted.is_final = sent.is_final;
                    sent.results
                }
                Err(NoConnection::Route(error)) => {
                    let make = refusal(&error);
                    if let RouteError::Unknown(why) = &error {
                        attempted.route_failure = Some(why.clone());
                    }
                    let all = group.into_iter().chain(open.drain(..));
                    attempted.results.extend(all.map(|r| (r, Err(make()))));
                    return attempted;
                }
                Err(NoConnection::Nobody) => {
                    let nobody = || ClientFailure::new(Stage::Connect, Problem::Closed);
                    let (host, failure) = self
                        .unfit
                        .last()
                        .cloned()
                        .unwrap_or_else(|| (String::new(), nobody()));
                    attempted.host = Some(host);
                    group.iter().map(|_| Err(failure.clone())).collect()
                }
                Err(NoConnection::Failed(host, failure)) => {
                    attempted.host = Some(host);
                    attempted.route_failure = Some(failure.to_string());
                    let all = group.into_iter().chain(open.drain(..));
                    attempted
                        .results
                        .extend(all.map(|r| (r, Err(convert::failure(&failure)))));
                    return attempted;
                }
            };
            let progress = results.iter().any(Result::is_ok);
            for (recipient, result) in group.into_iter().zip(results) {
                match result {
                    Ok(reply) => attempted.results.push((recipient, Ok(reply))),
                    // RFC 5321 4.5.3.1.10: the rest goes in another transaction, as long as that gets us anywhere.
                    Err(failure) if progress && is_too_many(&failure) => open.push(recipient),
                    Err(failure) => {
                        if !failure.judges_message() && !matches!(failure.problem, Problem::Ours(_)) {
                            attempted.route_failure = Some(failure.to_string());
                        }
                        attempted
                            .results
                            .push((recipient, Err(convert::failure(&failure))));
                    }
                }
            }
        }
        attempted
    }

    /// Sends to one group, over the connection at hand or a new one. A connection that was used before may have died in
    /// between; that says nothing about the next hop, so it is replaced once.
    async fn send(&mut self, job: &Job, group: &[Recipient]) -> Result<Sent, NoConnection> {
        let mut fresh = self.connection.is_none();
        loop {
            let connection = match self.connection.take() {
                Some(open) => open,
                None => self.connect(job).await?,
            };
            let (host, sends_notices) = (connection.host.clone(), connection.offers_dsn());
            let member = connection
                .member
                .as_ref()
                .map(|(smarthost, _)| Arc::clone(smarthost));
            let mut envelope = convert::to_wire(&job.held.envelope, group);
            if job.held.envelope.eight_bit {
                envelope.body = BodyType::EightBitMime;
            }
            let prefix = self.prefix.clone();
            let (mut results, left) = connection.send(self.context, job, envelope, prefix).await;
            self.connection = left;
            if let Some(smarthost) = &member {
                results = results
                    .into_iter()
                    .map(|r| r.map_err(|f| without_quota(f, smarthost)))
                    .collect();
            }
            // RFC 6531 3.6: what one server lacks another one may have.
            if matches!(self.hop, NextHop::Mx(_)) && results.iter().all(|r| r.as_ref().is_err_and(is_unfit)) {
                if let Some(open) = self.connection.take() {
                    open.quit(&self.context.deps.clock).await;
                }
                let why = results.into_iter().find_map(Result::err);
                self.unfit.extend(why.map(|failure| (host, failure)));
                self.connection = Some(self.connect(job).await?);
                fresh = true;
                continue;
            }
            if let Some(smarthost) = &member
                && let NextHop::Group(group) = self.hop
                && self.passed_over.len() + 1 < group.len()
                && results.iter().all(|r| r.as_ref().is_err_and(is_stale))
                && (fresh || self.connection.is_some())
            {
                let why = results
                    .iter()
                    .find_map(|r| r.as_ref().err())
                    .map(ToString::to_string);
                self.rest(smarthost, &why.unwrap_or_default());
                if let Some(open) = self.connection.take() {
                    open.quit(&self.context.deps.clock).await;
                }
                self.passed_over.push(Arc::clone(&smarthost.name));
                fresh = true;
                continue;
            }
            let died = self.connection.is_none() && results.iter().all(|r| r.as_ref().is_err_and(is_stale));
            if died && !fresh {
                fresh = true;
                continue;
            }
            let is_final = member.is_some_and(|smarthost| smarthost.protocol == Protocol::Lmtp);
            return Ok(Sent {
                host,
                sends_notices,
                is_final,
                results,
            });
        }
    }

    async fn connect(&self, job: &Job) -> Result<Connection, NoConnection> {
        match self.hop {
            NextHop::Mx(_) => self.connect_to_mx(job).await,
            NextHop::Smarthost(one) => self.connect_to_members(std::slice::from_ref(one)).await,
            NextHop::Group(group) => self.connect_to_members(group).await,
        }
    }

    async fn connect_to_mx(&self, job: &Job) -> Result<Connection, NoConnection> {
        let seed = job.held.mail.0.cast_unsigned();
        let mut candidates = route::candidates(self.context, self.settings, self.hop, seed)
            .await
            .map_err(NoConnection::Route)?;
        candidates.retain(|candidate| self.unfit.iter().all(|(host, _)| *host != candidate.host));
        if candidates.is_empty() {
            return Err(NoConnection::Nobody);
        }
        let dialer = self.dialer(None).await.map_err(NoConnection::unknown)?;
        let dialled = self.dial(&dialer, &candidates).await;
        match &dialled {
            Err(NoConnection::Failed(_, failure)) if failure.is_silence() => {
                if let Some(first) = candidates.first() {
                    port25::note_silence(self.context, &self.lane.key.0, first.addr).await;
                }
            }
            Ok(_) => port25::note_answer(self.context),
            // A refused or unreachable connection may have been answered by anybody on the way.
            Err(NoConnection::Failed(_, failure)) if failure.stage == Stage::Connect => {}
            Err(NoConnection::Failed(..)) => port25::note_answer(self.context),
            Err(NoConnection::Route(_) | NoConnection::Nobody) => {}
        }
        dialled
    }

    /// Tries the smarthosts of a group, the best first; the first that works is it.
    async fn connect_to_members(&self, group: &[Arc<Smarthost>]) -> Result<Connection, NoConnection> {
        let (members, clock) = (&self.context.members, &self.context.deps.clock);
        let mut last = None;
        for smarthost in members.in_order(group, clock.now()) {
            if self.passed_over.contains(&smarthost.name) {
                continue;
            }
            let Some(seat) = members.seat(&smarthost).await else {
                continue;
            };
            let began = clock.now();
            match self.connect_to(&smarthost).await {
                Ok(mut connection) => {
                    if members.works(&smarthost, clock.now().saturating_duration_since(began))
                        && group.len() > 1
                    {
                        report_smarthost(self.context, &smarthost.name, None);
                    }
                    connection.member = Some((smarthost, seat));
                    return Ok(connection);
                }
                Err(failure) => {
                    if group.len() > 1 {
                        self.rest(&smarthost, &failure.to_string());
                    }
                    last = Some(failure);
                }
            }
        }
        Err(last.unwrap_or(NoConnection::Nobody))
    }

    async fn connect_to(&self, smarthost: &Arc<Smarthost>) -> Result<Connection, NoConnection> {
        let candidates = route::smarthost_addresses(self.context, smarthost)
            .await
            .map_err(NoConnection::Route)?;
        let dialer = self
            .dialer(Some(smarthost))
            .await
            .map_err(NoConnection::unknown)?;
        self.dial(&dialer, &candidates).await
    }

    /// One of several smarthosts does not work: it rests, and the others carry on.
    fn rest(&self, smarthost: &Smarthost, why: &str) {
        let clock = &self.context.deps.clock;
        let seed = clock.wall().0.cast_unsigned();
        let until = |failures| clock.now() + self.settings.retry.delay(failures, seed);
        if self.context.members.failed(smarthost, until) == 1 {
            tracing::warn!(smarthost = %smarthost.name, error = why, "smarthost does not work, others of its group carry on");
            report_smarthost(self.context, &smarthost.name, Some(why));
        }
    }

    async fn dial(&self, dialer: &Dialer, candidates: &[Candidate]) -> Result<Connection, NoConnection> {
        let connections = &self.context.lanes.connections;
        let mut last = None;
        let broken_tls = &self.context.broken_tls;
        for candidate in candidates {
            let known_broken = broken_tls.is_broken(&candidate.host, self.context.deps.clock.now());
            let mut tls_broke = false;
            for dialer in dialer.with_fallback(known_broken) {
                let Ok(permit) = connections.place().await else {
                    return Err(NoConnection::unknown("the gateway stops".to_owned()));
                };
                match dialer.dial(self.context, candidate, permit).await {
                    Ok(connection) => {
                        if tls_broke {
                            broken_tls.remember(&candidate.host, self.context.deps.clock.now());
                        }
                        return Ok(connection);
                    }
                    Err(failure) => {
                        tracing::debug!(lane = %self.lane.key.0, host = %candidate.host, error = %failure, "next hop refused the connection");
                        self.lane.note_error(&failure.to_string());
                        tls_broke = failure.stage == Stage::StartTls;
                        last = Some((candidate.host.clone(), failure));
                        if !tls_broke {
                            break;
                        }
                    }
                }
            }
        }
        let nobody = || (String::new(), ClientFailure::new(Stage::Connect, Problem::Closed));
        let (host, failure) = last.unwrap_or_else(nobody);
        Err(NoConnection::Failed(host, failure))
    }

    async fn dialer(&self, smarthost: Option<&Smarthost>) -> Result<Dialer, String> {
        let mut client = ClientConfig {
            protocol: Protocol::Smtp,
            helo: self.settings.host.as_str().to_owned(),
            security: Security::Opportunistic,
            login: None,
            max_recipients: MAX_RECIPIENTS,
            timeouts: Timeouts::default(),
        };
        let mut verifies = false;
        if let Some(smarthost) = smarthost {
            client.protocol = smarthost.protocol;
            client.security = smarthost.security;
            verifies = matches!(smarthost.security, Security::Required | Security::Implicit);
            client.login = login(self.context, smarthost).await?;
        }
        let tls = if verifies {
            self.context.deps.tls.client()
        } else {
            Arc::clone(&self.context.any_tls)
        };
        Ok(Dialer {
            client,
            tls,
            verifies,
            connect_timeout: self.settings.delivery.connect_timeout,
        })
    }
}

impl Dialer {
    /// Itself, and for opportunistic TLS a second one without, for servers whose TLS is broken.
    fn with_fallback(&self, known_broken: bool) -> Vec<Self> {
        if self.client.security != Security::Opportunistic {
            return vec![self.clone()];
        }
        let mut plain = self.clone();
        plain.client.security = Security::Plain;
        if known_broken {
            vec![plain]
        } else {
            vec![self.clone(), plain]
        }
    }
}

struct Sent {
    host: String,
    sends_notices: bool,
    is_final: bool,
    results: Vec<Result<Reply, ClientFailure>>,
}

impl NoConnection {
    fn unknown(why: String) -> Self {
        Self::Route(RouteError::Unknown(why))
    }
}

impl std::fmt::Display for NoConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("no server takes this mail"),
            Self::Route(error) => error.fmt(f),
            Self::Failed(_, failure) => failure.fmt(f),
        }
    }
}

enum NoConnection {
    /// All servers are known not to take this mail.
    Nobody,
    Route(RouteError),
    Failed(String, ClientFailure),
}

async fn login(context: &Context, smarthost: &Smarthost) -> Result<Option<Login>, String> {
    let Some(username) = smarthost.username.clone() else {
        return Ok(None);
    };
    let text = match &smarthost.password {
        Password::None => return Ok(None),
        Password::Given(secret) => secret.expose().to_owned(),
        Password::File(path) => {
            let text = tokio::fs::read_to_string(path)
                .await
                .map_err(|e| format!("{}: {e}", path.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        Password::Sealed(name) => {
            let bytes = context.deps.secrets.load(name).await.map_err(|e| e.to_string())?;
            let bytes = bytes.ok_or_else(|| format!("there is no sealed secret {name:?}"))?;
            String::from_utf8(bytes.to_vec())
                .map_err(|_| format!("the sealed secret {name:?} is not text"))?
        }
    };
    Ok(Some(Login {
        username,
        proof: Proof::Password(Hidden::new(text)),
    }))
}

fn is_too_many(failure: &ClientFailure) -> bool {
    failure.stage == Stage::Recipient && failure.reply().is_some_and(|r| r.code == 452)
}

/// A reply by which a provider says that our account is used up judges the account, not the mail.
fn without_quota(failure: ClientFailure, smarthost: &Smarthost) -> ClientFailure {
    let Problem::Refused(reply) = &failure.problem else {
        return failure;
    };
    let text = reply.text.to_ascii_lowercase();
    if smarthost.quota.iter().any(|part| text.contains(part)) {
        // As if it had been said at the login, where such a thing belongs.
        return ClientFailure::new(Stage::Auth, failure.problem);
    }
    failure
}

/// The server lacks what the mail needs.
fn is_unfit(failure: &ClientFailure) -> bool {
    matches!(failure.problem, Problem::Unfit(_))
}

/// Failures by which a kept connection shows that it had died, before the server could have taken the mail.
fn is_stale(failure: &ClientFailure) -> bool {
    let early = matches!(
        failure.stage,
        Stage::Idle | Stage::Rset | Stage::Auth | Stage::Mail | Stage::Recipient | Stage::Data
    );
    early && !failure.judges_message()
}

/// For log and store: what a failure says, in the peer's words where there are any.
pub(crate) fn words(failure: &Failure) -> String {
    let said = failure.reply.as_ref().map(|r: &FailureReply| match &r.enhanced {
        Some(enhanced) => format!("{} {enhanced} {}", r.code, r.text),
        None => format!("{} {}", r.code, r.text),
    });
    let cause = || failure.source.as_ref().map(ToString::to_string);
    said.or_else(cause)
        .unwrap_or_else(|| "delivery failed".to_owned())
}
