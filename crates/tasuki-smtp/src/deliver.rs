//! Workers: each takes jobs of one lane and delivers them over one connection, kept for the next job.
//!
//! **Invariant:** only replies to MAIL, RCPT and DATA judge a mail. Everything else that goes wrong is the route's or our
//! own failure: the lane stops for a while, what waits in it is put off without counting an attempt, and nothing bounces
//! before it expires.

mod attempt;
pub(crate) mod dialing;
pub(crate) mod login;
mod report;
pub(crate) mod signing;

use std::sync::Arc;

use bytes::Bytes;
use tasuki_core::failure::{Failure, Reply as FailureReply};
use tasuki_proto::{
    backoff::jittered,
    names::{Domain, MailHost},
    smtp::Reply,
};

use self::{
    attempt::{Attempt, refusal},
    report::report_route,
    signing::signature,
};
use crate::{
    config::Settings,
    connect::Connection,
    context::{Context, Job},
    lanes::{Lane, Pushed},
    orders,
    route::{self, NextHop, RouteError},
    settle::{Attempted, Judged},
};

/// What became of one recipient in an attempt.
pub(crate) type RecipientResult = Result<Reply, Failure>;

/// Queues a job; starts a worker or puts the job off where that is the answer.
pub(crate) async fn dispatch(context: &Arc<Context>, job: Job) {
    let settings = context.settings.load_full();
    let Some(job) = orders::obey(context, &settings, job).await else {
        return;
    };
    let lane = context.lane_now(&settings, &job, &job.held.recipients).await;
    if lane != job.held.lane {
        return context.move_to(job, lane).await;
    }
    let now = context.deps.clock.now();
    let road = context.lanes.road(&job.held.lane, now);
    let limits = route::pace(&settings, &road);
    match context.lanes.push(job, &road, limits, now) {
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
        if !is_turn(context, lane).await {
            // It goes on in the next life.
            let now = context.deps.clock.wall();
            context.put_off(job, now, "the gateway stopped").await;
            continue;
        }
        connection = deliver(context, lane, connection, job).await;
        if lane.leave_if_too_many() {
            break;
        }
    }
    if let Some(open) = connection {
        open.quit(&context.deps.clock).await;
    }
}

/// Waits for the next mail's turn; `false` if the engine closes before it.
async fn is_turn(context: &Context, lane: &Lane) -> bool {
    let wait = lane.turn(context.deps.clock.now());
    if wait.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = context.closing.cancelled() => false,
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
        prefix: marked(&job, prefix),
        context,
        settings: &settings,
        lane,
        hop: &hop,
        connection,
        unfit: Vec::new(),
        passed_over: Vec::new(),
        too_fast: false,
        source: context.source_of(&settings, &job).await,
    };
    let began = context.releases.count();
    let attempted = attempt.run(&job).await;
    let route_failure = attempted.route_failure.clone();
    let (connection, too_fast) = (attempt.connection.take(), attempt.too_fast);
    let took_mail = attempted.results.iter().any(|judged| judged.result.is_ok());
    match &route_failure {
        // What was wrong may be changed already: that is tried first.
        Some(why) if attempted.is_nobodys() && context.releases.count() != began => {
            let now = context.deps.clock.wall();
            context.put_off(job, now, why).await;
            return keep_or_quit(context, &settings, lane, connection).await;
        }
        // Nothing goes anywhere; that must not use up the mail's attempts.
        Some(why) if matches!(hop, NextHop::Mx(_)) && waits_for_port25(context, &job) => {
            let wait = settings.retry.delay(1, job.held.mail.0.cast_unsigned());
            let due = context.deps.clock.wall().plus(wait);
            context.put_off(job, due, why).await;
        }
        _ => context.conclude(&settings, job, attempted).await,
    }
    if too_fast {
        slow_down(context, lane, route_failure.as_deref());
    } else if took_mail && lane.took_mail() {
        start_worker(context, Arc::clone(lane));
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
    match connection {
        Some(open) if too_fast => {
            open.quit(&context.deps.clock).await;
            None
        }
        connection => keep_or_quit(context, &settings, lane, connection).await,
    }
}

/// What goes in front of a message: the address that an alias exchanged (RFC 9228), by which we know the mail if it comes
/// back; then our signatures. Each delivery is of one such address, so that no recipient reads another one's.
fn marked(job: &Job, signatures: Bytes) -> Bytes {
    let Some(written) = job.held.recipients.first().and_then(|r| r.written.as_ref()) else {
        return signatures;
    };
    let mut prefix = format!("Delivered-To: {written}\r\n").into_bytes();
    prefix.extend_from_slice(&signatures);
    prefix.into()
}

/// The receiver said that mail comes too fast.
fn slow_down(context: &Context, lane: &Lane, why: Option<&str>) {
    if lane.slowed(context.deps.clock.now()) {
        tracing::info!(lane = %lane.key.0, error = why.unwrap_or_default(), "the receiver wants mail to come slower");
    }
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
    lane: &Lane,
    connection: Option<Connection>,
) -> Option<Connection> {
    let open = connection?;
    let most = match &open.member {
        // Its settings were changed while it was open.
        Some((smarthost, _)) if !settings.ways.smarthosts().any(|now| Arc::ptr_eq(now, smarthost)) => 0,
        Some((smarthost, _)) => smarthost.mails_per_connection,
        None => route::provider(settings, &lane.key)
            .and_then(|rule| rule.mails_per_connection)
            .unwrap_or(settings.delivery.mails_per_connection),
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
        .map(|recipient| Judged {
            recipient: recipient.clone(),
            result: Err(failure()),
            server: None,
            gone: false,
        })
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
