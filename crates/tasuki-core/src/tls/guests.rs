//! Certificates for names that agents bring: one for each, so that a name whose DNS is not right yet spoils no other's.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{Settings, Source};
use super::fresh::Retry;
use super::resolver::Presented;
use super::{Tls, TlsError, acme};
use crate::clock::Timestamp;

/// The certificates by name, and who waits for one.
#[derive(Default)]
pub(super) struct Waiting {
    names: BTreeSet<String>,
    retries: HashMap<String, Retry>,
}

pub(super) fn kept_at(keys_dir: &Path, name: &str) -> PathBuf {
    keys_dir.join("acme").join("guests").join(format!("{name}.pem"))
}

impl Tls {
    /// The names, besides the own ones, for which TLS ends here. Each gets a certificate of its own, by ACME if that is how
    /// the gateway gets its own one, unless the gateway's certificate has the name. Until it comes, the private CA's.
    pub fn set_guests(&self, names: impl IntoIterator<Item = String>) {
        let inner = &self.inner;
        let names: BTreeSet<String> = names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        {
            let mut waiting = inner.waiting.lock().unwrap_or_else(|e| e.into_inner());
            if waiting.names == names {
                return;
            }
            waiting.retries.retain(|name, _| names.contains(name));
            waiting.names.clone_from(&names);
        }
        let settings = inner.settings.load();
        let before = inner.newest.guests.load();
        let mut by_name = HashMap::new();
        for name in names {
            let presented = match before.get(&name) {
                Some(known) => Ok(Arc::clone(known)),
                None => self.first_for(&settings, &name),
            };
            match presented {
                Ok(presented) => drop(by_name.insert(name, presented)),
                Err(error) => {
                    tracing::warn!(tls.name = name, %error, "no certificate can be made for the name");
                }
            }
        }
        inner.newest.guests.store(Arc::new(by_name));
        inner.guests_changed.notify_one();
    }

    /// What is presented for a name at once.
    fn first_for(&self, settings: &Settings, name: &str) -> Result<Arc<Presented>, TlsError> {
        let inner = &self.inner;
        let now = inner.clock.wall();
        let names = [name.to_owned()];
        if settings.source() == Source::Acme
            && let Some(certificate) = acme::kept(
                &kept_at(&inner.keys_dir, name),
                inner.ca.server_key(),
                &names,
                now,
            )
        {
            return Ok(Arc::new(Presented {
                certificate,
                source: Source::Acme,
            }));
        }
        Ok(Arc::new(Presented {
            certificate: inner.ca.issue(&names, now)?,
            source: Source::PrivateCa,
        }))
    }

    /// One look at the guests' certificates: orders or issues what is due. A name that fails is tried again later, and holds
    /// up no other.
    pub(super) async fn refresh_guests(&self, settings: &Settings) {
        let inner = &self.inner;
        let names: Vec<String> = {
            let waiting = inner.waiting.lock().unwrap_or_else(|e| e.into_inner());
            waiting.names.iter().cloned().collect()
        };
        for name in names {
            let now = inner.clock.wall();
            let known = inner.newest.guests.load().get(&name).cloned();
            let wants_acme = settings.source() == Source::Acme;
            let is_due = known.is_none_or(|known| {
                (wants_acme && known.source != Source::Acme) || now >= known.certificate.renew_at()
            });
            // The own certificate may have the name, also by a wildcard.
            if !is_due || self.certificate().is_for(&name) || !self.may_try(&name, now) {
                continue;
            }
            let made = if wants_acme {
                self.order(
                    settings,
                    std::slice::from_ref(&name),
                    kept_at(&inner.keys_dir, &name),
                )
                .await
                .map(|certificate| (certificate, Source::Acme))
            } else {
                inner
                    .ca
                    .issue(std::slice::from_ref(&name), now)
                    .map(|certificate| (certificate, Source::PrivateCa))
                    .map_err(|error| error.to_string())
            };
            match made {
                Ok((certificate, source)) => self.present_for(&name, Presented { certificate, source }),
                Err(reason) => self.failed_for(&name, &reason),
            }
        }
    }

    fn may_try(&self, name: &str, now: Timestamp) -> bool {
        let waiting = self.inner.waiting.lock().unwrap_or_else(|e| e.into_inner());
        waiting.retries.get(name).is_none_or(|retry| retry.is_due(now))
    }

    fn present_for(&self, name: &str, presented: Presented) {
        let days_left = presented.certificate.days_left(self.inner.clock.wall());
        tracing::info!(
            tls.name = name,
            tls.source = presented.source.name(),
            days_left,
            "certificate replaced"
        );
        let presented = Arc::new(presented);
        self.inner.newest.guests.rcu(|guests| {
            let mut guests = HashMap::clone(guests);
            guests.insert(name.to_owned(), Arc::clone(&presented));
            guests
        });
        let mut waiting = self.inner.waiting.lock().unwrap_or_else(|e| e.into_inner());
        waiting.retries.remove(name);
    }

    fn failed_for(&self, name: &str, reason: &str) {
        tracing::warn!(
            tls.name = name,
            error = reason,
            "no certificate for an agent's name; it will be tried again"
        );
        let now = self.inner.clock.wall();
        let mut waiting = self.inner.waiting.lock().unwrap_or_else(|e| e.into_inner());
        waiting.retries.entry(name.to_owned()).or_default().failed(now);
    }
}
