//! Sends the day's report to each domain that asks for it, once the day is over: by mail, and to web servers.
//!
//! A report is taken up by one gateway at a time, and noted where it was sent to, so what failed is tried again for the
//! rest of the day (RFC 8460 5.6) and what did not is not repeated. **Invariant:** sessions that bring reports are not
//! reported (RFC 8460 3); see `tls_policy`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};
use tasuki_core::{
    clock::Timestamp,
    store::{tls::TlsReport, trail::Received},
};
use tasuki_proto::{
    names::{Domain, Mailbox},
    smtp::tlsrpt::{self, Destination, ReportMail},
};
use tokio::time::timeout;

use super::{
    DAY_MS, day_of, flush,
    listing::{MAX_LISTED, report_of},
};
use crate::{
    config::{Settings, seed_of},
    context::Context,
    deliver::dispatch,
    https, notice,
};

/// How often is looked for reports that are due.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// After this long a report is taken up again that was not finished.
const TAKE_AGAIN: Duration = Duration::from_secs(3600);
/// For a web server's answer.
const POST_TIMEOUT: Duration = Duration::from_secs(60);
/// How many days of counts are kept.
const KEPT_DAYS: i64 = 15;
/// Domains looked at in one go.
const PAGE: i64 = 100;

/// Sends reports until the engine closes.
pub(crate) async fn keeper(context: Arc<Context>) {
    let mut forgotten = 0;
    while !context.is_closing() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = context.tls_sessions.look.notified() => {}
            () = context.closing.cancelled() => return,
        }
        flush(&context).await;
        let today = day_of(context.deps.clock.wall());
        if forgotten != today {
            match context.deps.store.forget_tls_sessions(today - KEPT_DAYS).await {
                Ok(()) => forgotten = today,
                Err(error) => tracing::debug!(%error, "old counts of TLS sessions cannot be forgotten yet"),
            }
        }
        if let Err(error) = send_due(&context, today).await {
            tracing::warn!(%error, "TLS reports cannot be sent now, it is tried again");
        }
    }
}

async fn send_due(context: &Arc<Context>, today: i64) -> tasuki_core::store::StoreResult<()> {
    let settings = context.settings.load_full();
    let Some(from) = settings.tls_reports.from.clone() else {
        return Ok(());
    };
    // RFC 8460 5.5: not all of the world at midnight.
    let spread = u64::try_from(settings.tls_reports.spread.as_millis()).unwrap_or(u64::MAX);
    let offset = seed_of(settings.host.as_str())
        .checked_rem(spread.saturating_add(1))
        .unwrap_or(0);
    let begins = Timestamp(today * DAY_MS).plus(Duration::from_millis(offset));
    let day = today - 1;
    let mut after: Option<Domain> = None;
    while context.deps.clock.wall() >= begins && !context.is_closing() {
        let page = context.deps.store.tls_domains(day, after.as_ref(), PAGE).await?;
        let Some(last) = page.last().cloned() else {
            break;
        };
        for domain in page {
            let now = context.deps.clock.wall();
            let until = now.plus(TAKE_AGAIN);
            if let Some(report) = context
                .deps
                .store
                .take_tls_report(day, &domain, now, until)
                .await?
            {
                report_to(context, &settings, &from, (day, domain), report).await?;
            }
        }
        after = Some(last);
    }
    Ok(())
}

/// One report, to all places that its domain names and that have not got it yet.
async fn report_to(
    context: &Arc<Context>,
    settings: &Settings,
    from: &Mailbox,
    (day, domain): (i64, Domain),
    mut progress: TlsReport,
) -> tasuki_core::store::StoreResult<()> {
    let store = &context.deps.store;
    let texts = match context
        .resolver
        .txt(&format!("_smtp._tls.{}", domain.as_str()))
        .await
    {
        Ok(texts) => texts,
        // It is taken up again.
        Err(error) => {
            tracing::debug!(domain = domain.as_str(), %error, "no answer about TLS reports");
            return Ok(());
        }
    };
    let places = match tlsrpt::destinations(&texts) {
        Ok(places) => places,
        Err(error) => {
            return store
                .note_tls_report(day, &domain, &[error.to_string()], true)
                .await;
        }
    };
    let tallies = store.tls_sessions(day, Some(&domain), MAX_LISTED).await?;
    let tallies: Vec<_> = tallies.into_iter().map(|tally| tally.tally).collect();
    let report = report_of(settings, day, &domain, &tallies);
    let mut all_sent = true;
    for place in places {
        let line = format!("sent to {place}");
        if progress.sent.contains(&line) {
            continue;
        }
        let sent = match &place {
            Destination::Mail(to) => {
                mail(
                    context,
                    settings,
                    (from, to),
                    day,
                    &domain,
                    &report.id,
                    &report.gzip,
                )
                .await
            }
            Destination::Web(url) => post(context, settings, url, &report.gzip).await,
        };
        match sent {
            Ok(()) => {
                context.metrics.tls_report("sent");
                tracing::info!(domain = domain.as_str(), place = %place, "TLS report sent");
                progress.sent.push(line);
                store.note_tls_report(day, &domain, &progress.sent, false).await?;
            }
            Err(why) => {
                all_sent = false;
                context.metrics.tls_report("failed");
                tracing::info!(domain = domain.as_str(), place = %place, error = %why, "TLS report not sent");
            }
        }
    }
    if all_sent {
        store.note_tls_report(day, &domain, &progress.sent, true).await?;
    }
    Ok(())
}

async fn mail(
    context: &Arc<Context>,
    settings: &Settings,
    (from, to): (&Mailbox, &Mailbox),
    day: i64,
    domain: &Domain,
    id: &str,
    gzip: &[u8],
) -> Result<(), String> {
    let now = context.deps.clock.wall();
    let text = tlsrpt::write_mail(&ReportMail {
        from,
        to,
        domain,
        submitter: &settings.host,
        id,
        start: Timestamp(day * DAY_MS).to_utc(),
        date: now.to_utc(),
        unique: &context.ids.next().to_string(),
        report: gzip,
    });
    let (mail, job) = notice::own_mail(context, settings, to, (text, Received::default()), now)
        .await
        .map_err(|error| error.to_string())?;
    let (node, epoch) = context.deps.node;
    let stored = context.deps.store.enqueue(node, epoch, vec![mail]).await;
    stored.map_err(|error| error.to_string())?;
    context.accepted(&job);
    dispatch(context, job).await;
    Ok(())
}

async fn post(context: &Context, settings: &Settings, url: &url::Url, gzip: &[u8]) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(443);
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/tlsrpt+gzip")
        .body(Full::new(Bytes::copy_from_slice(gzip)))
        .map_err(|error| error.to_string())?;
    let answer = timeout(POST_TIMEOUT, https::ask(context, settings, (host, port), request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let status = answer.map_err(|error| error.to_string())?.response.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("the answer is {status}"))
    }
}
