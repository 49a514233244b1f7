//! How an attempt finds its connection: the servers of a domain, one smarthost, or the best of a group.

use std::sync::Arc;

use tasuki_proto::smtp::client::{
    ClientConfig, ClientFailure, Login, Problem, Protocol, Security, Stage, Timeouts,
};

use super::{
    attempt::{Attempt, MAX_RECIPIENTS},
    login::{self, Secret},
    report::report_smarthost,
};
use crate::{
    config::{Smarthost, seed_of},
    connect::{Connection, Dialer},
    context::Job,
    port25,
    route::{self, Candidate, NextHop, RouteError},
    tls_policy::{self, Demand},
};

pub(super) enum NoConnection {
    /// All servers are known not to take this mail.
    Nobody,
    Route(RouteError),
    Failed(String, ClientFailure),
    /// All servers were asked, and none is as safe as it must be.
    Unsafe(String, ClientFailure),
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
            Self::Failed(_, failure) | Self::Unsafe(_, failure) => failure.fmt(f),
        }
    }
}

impl Attempt<'_> {
    pub(super) async fn connect(&self, job: &Job) -> Result<Connection, NoConnection> {
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
        // A destination that greylists sees its mail come from the same address each time.
        let mut dialer = self.dialer(None, None);
        dialer.seed = seed_of(&job.held.lane.0);
        let first = candidates.first().cloned();
        let demands = tls_policy::demands(self.context, self.settings, self.hop, job, candidates)
            .await
            .map_err(|refusal| {
                let is_final = refusal.is_known && job.held.envelope.require_tls;
                let failure = if is_final {
                    tls_policy::no_safe_server(&refusal.failure)
                } else {
                    refusal.failure
                };
                NoConnection::Failed(String::new(), failure)
            })?;
        let servers: Vec<_> = demands
            .into_iter()
            .map(|(to, demand)| (to, dialer.under(self.context, demand)))
            .collect();
        let dialled = self.dial_each(&servers).await;
        let dialled = match dialled {
            Err(NoConnection::Unsafe(host, failure)) if job.held.envelope.require_tls => {
                Err(NoConnection::Failed(host, tls_policy::no_safe_server(&failure)))
            }
            Err(NoConnection::Unsafe(host, failure)) => Err(NoConnection::Failed(host, failure)),
            other => other,
        };
        match &dialled {
            Err(NoConnection::Failed(_, failure)) if failure.is_silence() => {
                if let Some(first) = first {
                    port25::note_silence(self.context, &self.lane.key.0, first.addr).await;
                }
            }
            Ok(_) => port25::note_answer(self.context),
            // A refused or unreachable connection may have been answered by anybody on the way.
            Err(NoConnection::Failed(_, failure)) if failure.stage == Stage::Connect => {}
            Err(NoConnection::Failed(..)) => port25::note_answer(self.context),
            Err(NoConnection::Route(_) | NoConnection::Nobody | NoConnection::Unsafe(..)) => {}
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
        let context = self.context;
        let secret = login::secret(context, smarthost).await;
        let dialled = match &secret {
            Ok(secret) => self.log_in(smarthost, secret.as_ref(), &candidates).await,
            Err(why) => Err(NoConnection::unknown(why.clone())),
        };
        if let (Err(_), Ok(Some(secret))) = (&dialled, &secret) {
            context.releases.failed_with(smarthost, secret.fingerprint());
        }
        dialled
    }

    async fn log_in(
        &self,
        smarthost: &Arc<Smarthost>,
        secret: Option<&Secret>,
        candidates: &[Candidate],
    ) -> Result<Connection, NoConnection> {
        let context = self.context;
        let fetched = login::login(context, smarthost, secret).await;
        let (login, is_kept) = fetched.map_err(NoConnection::unknown)?;
        let dialled = self
            .dial(&self.dialer(Some(smarthost), login.clone()), candidates)
            .await;
        // A token may be taken back before its time, so one that was kept is replaced once.
        let refused = matches!(&dialled, Err(NoConnection::Failed(_, failure))
            if failure.stage == Stage::Auth && matches!(failure.problem, Problem::Refused(_)));
        if !refused || !is_kept {
            return dialled;
        }
        context.tokens.forget(smarthost, login.as_ref()).await;
        let fetched = login::login(context, smarthost, secret).await;
        let (login, _) = fetched.map_err(NoConnection::unknown)?;
        self.dial(&self.dialer(Some(smarthost), login), candidates).await
    }

    /// One of several smarthosts does not work: it rests, and the others carry on.
    pub(super) fn rest(&self, smarthost: &Smarthost, why: &str) {
        let clock = &self.context.deps.clock;
        let seed = clock.wall().0.cast_unsigned();
        let until = |failures| clock.now() + self.settings.retry.delay(failures, seed);
        if self.context.members.failed(smarthost, until) == 1 {
            tracing::warn!(smarthost = %smarthost.name, error = why, "smarthost does not work, others of its group carry on");
            report_smarthost(self.context, &smarthost.name, Some(why));
        }
    }

    async fn dial(&self, dialer: &Dialer, candidates: &[Candidate]) -> Result<Connection, NoConnection> {
        let servers: Vec<_> = candidates.iter().map(|to| (to.clone(), dialer.clone())).collect();
        self.dial_each(&servers).await
    }

    /// Tries servers in turn, each as it must be.
    async fn dial_each(&self, servers: &[(Candidate, Dialer)]) -> Result<Connection, NoConnection> {
        let connections = &self.context.lanes.connections;
        let mut last: Option<(String, ClientFailure)> = None;
        let mut all_unsafe = true;
        let broken_tls = &self.context.broken_tls;
        for (candidate, dialer) in servers {
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
                        all_unsafe &= tls_policy::is_unmet(&failure);
                        // That a server is not safe enough is worth more than that another one is away.
                        if !last.as_ref().is_some_and(|(_, last)| tls_policy::is_unmet(last)) {
                            last = Some((candidate.host.clone(), failure));
                        }
                        if !tls_broke {
                            break;
                        }
                    }
                }
            }
        }
        let nobody = || (String::new(), ClientFailure::new(Stage::Connect, Problem::Closed));
        let (host, failure) = last.unwrap_or_else(nobody);
        if all_unsafe && tls_policy::is_unmet(&failure) {
            return Err(NoConnection::Unsafe(host, failure));
        }
        Err(NoConnection::Failed(host, failure))
    }

    fn dialer(&self, smarthost: Option<&Smarthost>, login: Option<Login>) -> Dialer {
        let mut client = ClientConfig {
            protocol: Protocol::Smtp,
            helo: self.settings.host.as_str().to_owned(),
            security: protection(smarthost).0,
            login: None,
            max_recipients: MAX_RECIPIENTS,
            timeouts: Timeouts::default(),
        };
        let (_, verifies) = protection(smarthost);
        if let Some(smarthost) = smarthost {
            client.protocol = smarthost.protocol;
            client.login = login;
        }
        let tls = if verifies {
            self.context.deps.tls.client()
        } else {
            Arc::clone(&self.context.any_tls)
        };
        Dialer {
            client,
            tls,
            verifies,
            demand: Arc::new(Demand::NOTHING),
            tls_is_known_broken: false,
            connect_timeout: self.settings.delivery.connect_timeout,
            source: self.source.clone(),
            seed: self.context.metrics.connections.get(),
        }
    }
}

/// How connections are protected, and whether the certificate is verified: to a smarthost, or to a domain's server.
pub(crate) fn protection(smarthost: Option<&Smarthost>) -> (Security, bool) {
    let security = smarthost.map_or(Security::Opportunistic, |smarthost| smarthost.security);
    (
        security,
        matches!(security, Security::Required | Security::Implicit),
    )
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
            plain.tls_is_known_broken = true;
            vec![plain]
        } else {
            vec![self.clone(), plain]
        }
    }
}
