//! One attempt at one job: groups of recipients, each a transaction, over a connection at hand or a new one.

use std::sync::Arc;

use bytes::Bytes;
use tasuki_core::{
    failure::{Blame, Failure, Verdict},
    store::{mail::Recipient, trail::Server},
};
use tasuki_proto::smtp::{
    BodyType, Reply,
    client::{ClientFailure, Problem, Protocol, Stage},
};

use super::dialing::NoConnection;
use crate::{
    config::{Pool, Settings, Smarthost, is_slow_down},
    connect::Connection,
    context::{Context, Job},
    convert,
    lanes::Lane,
    route::{self, NextHop, RouteError},
    settle::{Attempted, Judged},
    suppress::judge::says_gone,
    tls_policy, trail,
};

/// Most recipients in one transaction (RFC 5321 4.5.3.1.8).
pub(super) const MAX_RECIPIENTS: usize = 100;

/// One attempt at one job.
pub(super) struct Attempt<'a> {
    /// Goes in front of the message.
    pub(super) prefix: Bytes,
    pub(super) context: &'a Arc<Context>,
    pub(super) settings: &'a Settings,
    pub(super) lane: &'a Lane,
    pub(super) hop: &'a NextHop,
    pub(super) connection: Option<Connection>,
    /// Servers of the domain that cannot take this mail as it is.
    pub(super) unfit: Vec<(String, ClientFailure)>,
    /// Smarthosts of the group that refused us, not the mail.
    pub(super) passed_over: Vec<Arc<str>>,
    /// The receiver said that mail comes too fast.
    pub(super) too_fast: bool,
    /// Our addresses that it goes out from.
    pub(super) source: Option<Arc<Pool>>,
}

impl Attempt<'_> {
    pub(super) async fn run(&mut self, job: &Job) -> Attempted {
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
            let server;
            let results = match self.send(job, &group).await {
                Ok(sent) => {
                    attempted.host = Some(sent.host);
                    attempted.sends_notices = sent.sends_notices;
                    attempted.is_final = sent.is_final;
                    server = Some(sent.server);
                    sent.results
                }
                Err(NoConnection::Route(error)) => {
                    let make = refusal(&error);
                    if let RouteError::Unknown(why) = &error {
                        attempted.route_failure = Some(why.clone());
                    }
                    let all = group.into_iter().chain(open.drain(..));
                    attempted.results.extend(all.map(|recipient| Judged {
                        recipient,
                        result: Err(make()),
                        server: None,
                        gone: false,
                    }));
                    return attempted;
                }
                Err(NoConnection::Nobody) => {
                    let nobody = || ClientFailure::new(Stage::Connect, Problem::Closed);
                    let (host, failure) = self
                        .unfit
                        .last()
                        .cloned()
                        .unwrap_or_else(|| (String::new(), nobody()));
                    server = trail::unreached(&host);
                    attempted.host = Some(host);
                    group.iter().map(|_| Err(failure.clone())).collect()
                }
                Err(NoConnection::Failed(host, failure) | NoConnection::Unsafe(host, failure)) => {
                    let failure = self.without_haste(failure, true);
                    let server = trail::unreached(&host);
                    attempted.host = Some(host);
                    if !tls_policy::is_unmet(&failure) && !failure.judges_message() {
                        attempted.route_failure = Some(failure.to_string());
                    }
                    let all = group.into_iter().chain(open.drain(..));
                    attempted.results.extend(all.map(|recipient| Judged {
                        recipient,
                        result: Err(convert::failure(&failure)),
                        server: server.clone(),
                        gone: false,
                    }));
                    return attempted;
                }
            };
            let progress = results.iter().any(Result::is_ok);
            for (recipient, result) in group.into_iter().zip(results) {
                let gone = result
                    .as_ref()
                    .is_err_and(|failure| self.says_gone(failure, &recipient));
                let result = match result {
                    Ok(reply) => Ok(reply),
                    // RFC 5321 4.5.3.1.10: the rest goes in another transaction, as long as that gets us anywhere.
                    Err(failure) if progress && is_too_many(&failure) => {
                        open.push(recipient);
                        continue;
                    }
                    Err(failure) => {
                        if !failure.judges_message() && !matches!(failure.problem, Problem::Ours(_)) {
                            attempted.route_failure = Some(failure.to_string());
                        }
                        Err(convert::failure(&failure))
                    }
                };
                attempted.results.push(Judged {
                    recipient,
                    result,
                    server: server.clone(),
                    gone,
                });
            }
        }
        attempted
    }

    /// Sends to one group, over the connection at hand or a new one. A connection that was used before may have died in
    /// between; that says nothing about the next hop, so it is replaced once.
    async fn send(&mut self, job: &Job, group: &[Recipient]) -> Result<Sent, NoConnection> {
        let ours = self.source.as_ref().map(|pool| pool.name.as_str());
        if let Some(open) = self.connection.take_if(|open| open.source() != ours) {
            // Another mail's addresses.
            open.quit(&self.context.deps.clock).await;
        }
        let mut fresh = self.connection.is_none();
        loop {
            let connection = match self.connection.take() {
                Some(open)
                    if tls_policy::may_reuse(self.context, self.settings, self.hop, job, &open).await =>
                {
                    open
                }
                Some(open) => {
                    open.quit(&self.context.deps.clock).await;
                    fresh = true;
                    self.connect(job).await?
                }
                None => self.connect(job).await?,
            };
            let (host, sends_notices) = (connection.host.clone(), connection.offers_dsn());
            let server = connection.server();
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
            results = results
                .into_iter()
                .map(|r| r.map_err(|f| self.without_haste(f, fresh)))
                .collect();
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
            if died && !fresh && !self.too_fast {
                fresh = true;
                continue;
            }
            let is_final = member.is_some_and(|smarthost| smarthost.protocol == Protocol::Lmtp);
            return Ok(Sent {
                host,
                server,
                sends_notices,
                is_final,
                results,
            });
        }
    }
}

impl Attempt<'_> {
    fn says_gone(&self, failure: &ClientFailure, recipient: &Recipient) -> bool {
        // Behind a smarthost the site is not ours to see, but the carriers' domains are those of their servers.
        let of_site = route::provider(self.settings, &self.lane.key);
        let domain = recipient.mailbox.domain();
        let of_domain = domain.and_then(|domain| self.settings.providers.of_host(domain.as_str()));
        says_gone(failure, &[of_site, of_domain])
    }

    /// A receiver's "too fast" judges our pace, not the mail.
    fn without_haste(&mut self, failure: ClientFailure, is_fresh: bool) -> ClientFailure {
        let Problem::Refused(reply) = &failure.problem else {
            return failure;
        };
        let is_command = !matches!(failure.stage, Stage::Idle | Stage::Quit | Stage::Rset);
        let rule = route::provider(self.settings, &self.lane.key);
        // A recipient too many is answered for the rest of this mail alone.
        let is_ours = matches!(self.hop, NextHop::Mx(_)) && is_command && !is_too_many(&failure);
        if !is_ours || !is_slow_down(rule, reply, is_fresh) {
            return failure;
        }
        self.too_fast = true;
        // As if it had been said to the connection, where such a thing belongs.
        ClientFailure::new(Stage::Auth, failure.problem)
    }
}

struct Sent {
    host: String,
    server: Arc<Server>,
    sends_notices: bool,
    is_final: bool,
    results: Vec<Result<Reply, ClientFailure>>,
}

pub(super) fn refusal(error: &RouteError) -> impl Fn() -> Failure + use<> {
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
