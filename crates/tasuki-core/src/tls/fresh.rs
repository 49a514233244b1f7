//! Keeps the presented certificate fresh: looks at files every minute, reissues and orders in time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tasuki_proto::backoff::Backoff;

use super::certificate::Certificate;
use super::config::{Settings, Source};
use super::resolver::Presented;
use super::{Tls, TlsError, acme};
use crate::clock::Timestamp;
use crate::events::What;
use crate::shutdown::Shutdown;

/// How often files and dates are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// An order that takes longer has failed.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);
/// Pauses after failed orders, in minutes; a public CA allows few failures an hour.
const ORDER_RETRIES_MINUTES: [u64; 6] = [1, 5, 15, 60, 180, 360];

/// What [`Tls::refresh`] remembers between two looks.
pub(super) struct Renewal {
    stamps: Stamps,
    retry: Retry,
    /// Moves the renewal earlier by up to a thirtieth of the certificate's life, so that not all gateways that started
    /// together ask together.
    jitter: f64,
}

/// When the next order may be made after failed ones.
#[derive(Default)]
pub(super) struct Retry {
    failures: u32,
    next: Timestamp,
}

impl Retry {
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        now >= self.next
    }

    pub(super) fn failed(&mut self, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        let steps = ORDER_RETRIES_MINUTES.map(|minutes| Duration::from_secs(minutes * 60));
        let backoff = Backoff::try_new(steps, 20).expect("the table is not empty and has no zero");
        self.next = now.plus(backoff.delay(self.failures, rand::random()));
    }
}

/// Time and size of the certificate files when they were read.
type Stamps = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

impl Renewal {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            stamps: stamps(settings),
            retry: Retry::default(),
            jitter: rand::random(),
        }
    }
}

impl Tls {
    /// Replaces the certificate when it is time, until the shutdown begins. Start it after the front door listens: an
    /// ACME order is answered there.
    pub async fn keep_fresh(&self, shutdown: Shutdown) {
        loop {
            self.refresh().await;
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(LOOK) => {}
                // Whoever mends the configuration should not wait for the end of a pause.
                () = self.inner.reloaded.notified() => self.inner.renewal.lock().await.retry = Retry::default(),
                () = self.inner.guests_changed.notified() => {}
            }
        }
    }

    /// One look: reads changed files again, reissues the private CA's certificate, or orders a new one by ACME, if it is
    /// time. What fails keeps the old certificate and is told by [`Tls::status`].
    pub async fn refresh(&self) {
        let mut renewal = self.inner.renewal.lock().await;
        let settings = self.inner.settings.load_full();
        let result = match settings.source() {
            Source::Files => self.refresh_files(&settings, &mut renewal).await,
            Source::PrivateCa => self.reissue_if_due(&settings),
            Source::Acme => {
                self.order_if_due(&settings, &mut renewal).await;
                self.reissue_if_due(&settings)
            }
        };
        if let Err(error) = result {
            self.failed(&settings, &with_causes(&error));
        }
        self.refresh_guests(&settings).await;
    }

    async fn refresh_files(&self, settings: &Arc<Settings>, renewal: &mut Renewal) -> Result<(), TlsError> {
        let (Some(cert), Some(key)) = (settings.config.cert.clone(), settings.config.key.clone()) else {
            return Ok(());
        };
        let looked = Arc::clone(settings);
        let seen = renewal.stamps.clone();
        // The files may lie on a slow or dead network mount.
        let read = tokio::task::spawn_blocking(move || {
            let now = stamps(&looked);
            (now != seen).then(|| (now, Certificate::read(&cert, &key)))
        });
        let Ok(Some((stamps, read))) = read.await else {
            return Ok(());
        };
        renewal.stamps = stamps;
        self.present(read?, Source::Files);
        Ok(())
    }

    fn reissue_if_due(&self, settings: &Settings) -> Result<(), TlsError> {
        let presented = self.inner.newest.own.load();
        let now = self.inner.clock.wall();
        if presented.source == Source::PrivateCa && now >= presented.certificate.renew_at() {
            drop(presented);
            self.present(
                self.inner.ca.issue(&settings.private_names(), now)?,
                Source::PrivateCa,
            );
        }
        Ok(())
    }

    async fn order_if_due(&self, settings: &Settings, renewal: &mut Renewal) {
        let now = self.inner.clock.wall();
        let names = settings.acme_names();
        let due = {
            let presented = self.inner.newest.own.load();
            let certificate = &presented.certificate;
            let early = (certificate.life() / 30).mul_f64(renewal.jitter);
            presented.source != Source::Acme
                || !certificate.covers(&names)
                || now >= certificate.renew_at().minus(early)
        };
        if !due || !renewal.retry.is_due(now) {
            return;
        }
        let path = acme::cert_path(&self.inner.keys_dir);
        match self.order(settings, &names, path).await {
            Ok(certificate) => {
                renewal.retry = Retry::default();
                renewal.jitter = rand::random();
                self.present(certificate, Source::Acme);
            }
            Err(error) => {
                renewal.retry.failed(self.inner.clock.wall());
                let text = format!("{error}; the next attempt is at {}", renewal.retry.next);
                self.failed(settings, &text);
            }
        }
    }

    /// One order; the error in one line.
    pub(super) async fn order(
        &self,
        settings: &Settings,
        names: &[String],
        path: PathBuf,
    ) -> Result<Certificate, String> {
        let order = acme::Order {
            config: &settings.config.acme,
            names,
            path,
            keys_dir: &self.inner.keys_dir,
            server_key: self.inner.ca.server_key(),
            challenges: &self.inner.challenges,
            client: self.client(),
        };
        let outcome = tokio::time::timeout(ORDER_TIMEOUT, order.run())
            .await
            .unwrap_or(Err(acme::AcmeError::TooSlow));
        self.inner.challenges.clear();
        outcome.map_err(|error| with_causes(&error))
    }

    fn present(&self, certificate: Certificate, source: Source) {
        let names = certificate.names.clone();
        let days_left = certificate.days_left(self.inner.clock.wall());
        self.inner
            .newest
            .own
            .store(Arc::new(Presented { certificate, source }));
        self.inner.trouble.store(None);
        tracing::info!(tls.names = ?names, tls.source = source.name(), days_left, "certificate replaced");
        self.inner
            .events
            .emit(What::CertificateReplaced { names, days_left });
    }

    fn failed(&self, settings: &Settings, reason: &str) {
        let names = match settings.source() {
            Source::Acme => settings.acme_names(),
            Source::Files | Source::PrivateCa => self.certificate().names,
        };
        tracing::warn!(tls.names = ?names, error = reason, "certificate could not be replaced; the old one stays");
        self.inner.trouble.store(Some(Arc::new(reason.to_owned())));
        self.inner.events.emit(What::CertificateFailed {
            names,
            reason: reason.to_owned(),
        });
    }
}

fn stamps(settings: &Settings) -> Stamps {
    [&settings.config.cert, &settings.config.key]
        .into_iter()
        .flatten()
        .map(|path| {
            let stamp = std::fs::metadata(path)
                .and_then(|meta| Ok((meta.modified()?, meta.len())))
                .ok();
            (path.clone(), stamp)
        })
        .collect()
}

/// An error with its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
