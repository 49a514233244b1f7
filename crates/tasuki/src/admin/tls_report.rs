//! How the TLS of outgoing sessions ended, by day, and the reports about it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_proto::names::Domain;
use tasuki_smtp::TlsDayError;
use time::macros::{date, format_description};
use time::{Date, Duration};

use super::Admin;
use super::engines::switched_off;
use super::problem::{Answer, Params, Problem};

/// Most servers that `status` names.
const MAX_NAMED: usize = 5;
const EPOCH: Date = date!(1970 - 01 - 01);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// YYYY-MM-DD (UTC); today if absent.
    #[serde(default)]
    day: Option<String>,
    #[serde(default)]
    domain: Option<Domain>,
}

fn number(day: Option<&str>) -> Answer<Option<i64>> {
    let Some(text) = day else { return Ok(None) };
    let date = Date::parse(text, format_description!("[year]-[month]-[day]"));
    let date = date.map_err(|_| Problem::bad(format!("{text:?} is no day; 2026-01-31 would be one")))?;
    Ok(Some((date - EPOCH).whole_days()))
}

fn text(day: i64) -> String {
    let date = EPOCH.checked_add(Duration::days(day));
    date.map_or_else(|| day.to_string(), |date| date.to_string())
}

pub(super) async fn day(
    State(admin): State<Arc<Admin>>,
    Params(wanted): Params<Wanted>,
) -> Answer<Json<Value>> {
    let asked = number(wanted.day.as_deref())?;
    let (day, domains) = mail(&admin)?.tls_day(asked, wanted.domain.as_ref()).await?;
    Ok(Json(json!({"day": text(day), "domains": domains})))
}

pub(super) async fn file(
    State(admin): State<Arc<Admin>>,
    Path(domain): Path<String>,
    Params(wanted): Params<Wanted>,
) -> Answer<Json<Value>> {
    let domain = Domain::parse(&domain).map_err(|error| Problem::bad(format!("{domain:?}: {error}")))?;
    let asked = number(wanted.day.as_deref())?;
    let file = mail(&admin)?.tls_report(asked, &domain).await?;
    Ok(Json(
        json!({"id": file.id, "name": file.name, "gzip": STANDARD.encode(file.gzip)}),
    ))
}

fn mail(admin: &Admin) -> Answer<&tasuki_smtp::Handle> {
    admin
        .engines
        .mail
        .as_ref()
        .ok_or_else(|| switched_off(EngineKind::Mail))
}

/// For `status`: servers whose TLS is not what their domain's policy asks. They are others' to mend, so nothing is wrong here.
pub(super) fn warnings(admin: &Admin) -> Vec<String> {
    let failing = admin
        .engines
        .mail
        .as_ref()
        .map(tasuki_smtp::Handle::tls_failing)
        .unwrap_or_default();
    let named = failing.iter().take(MAX_NAMED).map(|server| {
        let reason = match server.reason.as_str() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        format!(
            "the TLS of {}, which takes mail for {}, is not what the domain's policy asks since {}: {}{reason}",
            server.host, server.domain, server.since, server.result
        )
    });
    let more = failing.len().saturating_sub(MAX_NAMED);
    let more = (more > 0).then(|| format!("so is that of {more} other servers: tasuki mail tls-report"));
    named.chain(more).collect()
}

/// For `status`: reports that their receivers may refuse.
pub(super) async fn unsigned(admin: &Admin) -> Option<String> {
    let domain = admin.engines.mail.as_ref()?.tls_reports_unsigned().await?;
    Some(format!(
        "TLS reports (mail.tls_reports.from) leave without a DKIM signature of {domain}, so their receivers may refuse them \
         (RFC 8460): tasuki mail dkim add {domain}"
    ))
}

impl From<TlsDayError> for Problem {
    fn from(error: TlsDayError) -> Self {
        match error {
            TlsDayError::NoSessions(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            TlsDayError::Store(error) => error.into(),
        }
    }
}
