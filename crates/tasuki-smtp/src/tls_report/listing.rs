//! What the store knows of a day, for people and as a report.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use tasuki_core::{clock::Timestamp, store::StoreError};
use tasuki_proto::{
    names::Domain,
    smtp::tlsrpt::{self, Report, Tally},
};

use super::{DAY_MS, TlsFailing, day_of, flush};
use crate::{config::Settings, dkim::Dkim, engine::Handle};

/// Most kinds of sessions in one answer.
pub(super) const MAX_LISTED: i64 = 5000;

/// A domain's sessions on one day.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TlsDay {
    /// The recipients' domain.
    pub domain: String,
    /// By policy, with the members of a report (RFC 8460 4).
    pub policies: serde_json::Value,
    /// Where the day's report was sent to, or why it was not; empty if that is still to come.
    pub report: Vec<String>,
}

/// A report as a file.
#[derive(Clone, Debug)]
pub struct TlsReportFile {
    /// Unique for the domain's day.
    pub id: String,
    /// As RFC 8460 5.1 has it.
    pub name: String,
    /// The JSON, compressed.
    pub gzip: Vec<u8>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TlsDayError {
    /// There were no sessions with this domain on this day.
    #[error("no sessions with the mail servers of {0} were counted on this day")]
    NoSessions(Domain),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The report of a domain's day. The same day makes the same id, so that a receiver can drop a repeat.
pub(super) fn report_of(settings: &Settings, day: i64, domain: &Domain, tallies: &[Tally]) -> TlsReportFile {
    let start = Timestamp(day * DAY_MS).to_utc();
    let date = start.date();
    let id = format!(
        "{:04}{:02}{:02}.{domain}",
        date.year(),
        u8::from(date.month()),
        date.day()
    );
    let contact = match &settings.tls_reports.from {
        Some(from) => from.to_string(),
        None => format!("postmaster@{}", settings.host),
    };
    let organization = match settings.tls_reports.organization.as_str() {
        "" => settings.host.as_str(),
        organization => organization,
    };
    let json = tlsrpt::write_json(&Report {
        organization,
        contact: &contact,
        id: &format!("{id}@{}", settings.host),
        start,
        tallies,
    });
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(&json);
    TlsReportFile {
        name: tlsrpt::file_name(&settings.host, domain, start, &id),
        id,
        gzip: encoder.finish().unwrap_or_default(),
    }
}

impl Handle {
    /// Servers whose TLS is not what their domain's policy asks, in this life of the gateway.
    pub fn tls_failing(&self) -> Vec<TlsFailing> {
        self.context.tls_sessions.failing()
    }

    /// The domain in whose name reports are mailed while none of its DKIM keys can sign them; whoever receives reports may
    /// refuse those (RFC 8460 3).
    pub async fn tls_reports_unsigned(&self) -> Option<Domain> {
        let context = &self.context;
        let settings = context.settings.load_full();
        let domain = settings.tls_reports.from.as_ref()?.domain()?.clone();
        let ring = context.dkim.ring(context.deps.clock.now()).await;
        let signatures = ring.and_then(|ring| Dkim::signatures(&ring, &domain));
        signatures.map_or(true, |keys| keys.is_empty()).then_some(domain)
    }

    /// The sessions of a day (since 1970, UTC; today if absent), of one domain or of all: the day, and the domains.
    ///
    /// # Errors
    /// See [`TlsDayError`].
    pub async fn tls_day(
        &self,
        day: Option<i64>,
        domain: Option<&Domain>,
    ) -> Result<(i64, Vec<TlsDay>), TlsDayError> {
        let context = &self.context;
        let day = day.unwrap_or_else(|| day_of(context.deps.clock.wall()));
        flush(context).await;
        let reports = context.deps.store.tls_reports(day, MAX_LISTED).await?;
        let tallies = context.deps.store.tls_sessions(day, domain, MAX_LISTED).await?;
        let days = tallies.chunk_by(|a, b| a.domain == b.domain).map(|of_domain| {
            let domain = &of_domain[0].domain;
            let report = reports.iter().find(|(name, _)| name == domain);
            let tallies: Vec<Tally> = of_domain.iter().map(|tally| tally.tally.clone()).collect();
            TlsDay {
                domain: domain.as_str().to_owned(),
                policies: serde_json::to_value(tlsrpt::by_policy(&tallies)).unwrap_or_default(),
                report: report.map(|(_, report)| report.sent.clone()).unwrap_or_default(),
            }
        });
        Ok((day, days.collect()))
    }

    /// The report of a domain's day (since 1970, UTC; today if absent).
    ///
    /// # Errors
    /// See [`TlsDayError`].
    pub async fn tls_report(&self, day: Option<i64>, domain: &Domain) -> Result<TlsReportFile, TlsDayError> {
        let context = &self.context;
        let day = day.unwrap_or_else(|| day_of(context.deps.clock.wall()));
        flush(context).await;
        let tallies = context
            .deps
            .store
            .tls_sessions(day, Some(domain), MAX_LISTED)
            .await?;
        if tallies.is_empty() {
            return Err(TlsDayError::NoSessions(domain.clone()));
        }
        let tallies: Vec<_> = tallies.into_iter().map(|tally| tally.tally).collect();
        Ok(report_of(&context.settings.load(), day, domain, &tallies))
    }
}
