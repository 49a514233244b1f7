//! Lookups whose answers are proved by DNSSEC, for DANE. The proofs are checked here, whatever the resolver says of them.

use hickory_resolver::{
    TokioResolver,
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        dnssec::Proof,
        rr::{RData, RecordType},
    },
};

use super::{LookupError, TlsaRecord, absolute, failed, in_time};

/// How long a resolver that passes no signatures on is left in peace.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_secs(300);

/// A resolver that checks proofs.
pub(super) struct Secure {
    resolver: TokioResolver,
    state: tokio::sync::Mutex<State>,
}

/// Whether the resolver behind us passes signatures on.
enum State {
    Unknown,
    Works,
    NotBefore(tokio::time::Instant),
}

/// Whether one of the MX records has this host.
fn names(lookup: &Lookup, host: &str) -> bool {
    lookup.answers().iter().any(|record| match &record.data {
        RData::MX(mx) => mx
            .exchange
            .to_ascii()
            .trim_end_matches('.')
            .eq_ignore_ascii_case(host),
        _ => false,
    })
}

/// An answer with its proof.
enum Answer {
    Proved(Lookup),
    /// Proved or not, there is nothing to be had.
    Nothing,
    /// From a zone that is not signed.
    Unsigned,
}

impl Secure {
    pub(super) fn new(resolver: TokioResolver) -> Self {
        Self {
            resolver,
            state: tokio::sync::Mutex::new(State::Unknown),
        }
    }

    /// A resolver that leaves signatures out makes all of the DNS look forged; so the root's own are asked for first. Once
    /// they came, their absence counts.
    async fn works(&self) -> bool {
        let mut state = self.state.lock().await;
        match *state {
            State::Works => return true,
            State::NotBefore(at) if at > tokio::time::Instant::now() => return false,
            State::NotBefore(_) | State::Unknown => {}
        }
        match self.ask(".", RecordType::SOA).await {
            Ok(Answer::Proved(_)) => {
                *state = State::Works;
                true
            }
            other => {
                if matches!(*state, State::Unknown) {
                    let error = other.err().map(|error| error.to_string()).unwrap_or_default();
                    tracing::warn!(
                        error,
                        "the resolver passes no DNSSEC signatures on: mail goes out without DANE"
                    );
                }
                *state = State::NotBefore(tokio::time::Instant::now() + ASK_AGAIN);
                false
            }
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer, LookupError> {
        let query = if name == "." {
            name.to_owned()
        } else {
            absolute(name)
        };
        match in_time(name, self.resolver.lookup(query, kind)).await? {
            Ok(lookup) => {
                let mut answers = lookup
                    .answers()
                    .iter()
                    .filter(|r| r.record_type() != RecordType::RRSIG)
                    .peekable();
                let all = answers.peek().is_some() && answers.all(|record| record.proof == Proof::Secure);
                Ok(if all {
                    Answer::Proved(lookup)
                } else {
                    Answer::Unsigned
                })
            }
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Answer::Nothing),
            Err(NetError::Dns(DnsError::Nsec { proof, .. })) if proof != Proof::Bogus => Ok(Answer::Nothing),
            Err(error) => Err(failed(name, &error)),
        }
    }

    /// See [`super::Resolver::tlsa`].
    pub(super) async fn tlsa(
        &self,
        domain: &str,
        host: &str,
        port: u16,
    ) -> Result<Vec<TlsaRecord>, LookupError> {
        if !self.works().await {
            return Ok(Vec::new());
        }
        // RFC 7672 2.2.1: whoever can forge the MX records can name a server with good records of its own.
        match self.ask(domain, RecordType::MX).await? {
            Answer::Unsigned => return Ok(Vec::new()),
            Answer::Proved(lookup) if names(&lookup, host) => {}
            Answer::Nothing if domain == host => {}
            Answer::Proved(_) | Answer::Nothing => {
                return Err(LookupError {
                    name: domain.to_owned(),
                    problem: format!("{host} is not among the signed MX records"),
                });
            }
        }
        // RFC 7672 2.2.2: where the addresses are not signed, TLSA records need not be asked for, and some servers of
        // such zones do not answer that.
        let mut signed = false;
        for kind in [RecordType::A, RecordType::AAAA] {
            signed |= matches!(self.ask(host, kind).await?, Answer::Proved(_));
        }
        if !signed {
            return Ok(Vec::new());
        }
        let Answer::Proved(lookup) = self
            .ask(&format!("_{port}._tcp.{host}"), RecordType::TLSA)
            .await?
        else {
            return Ok(Vec::new());
        };
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TLSA(tlsa) => Some(TlsaRecord {
                usage: tlsa.cert_usage.into(),
                selector: tlsa.selector.into(),
                matching: tlsa.matching.into(),
                data: tlsa.cert_data.clone(),
            }),
            _ => None,
        });
        Ok(records.collect())
    }
}
