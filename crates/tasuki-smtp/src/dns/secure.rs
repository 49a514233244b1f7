//! Lookups whose answers are proved by DNSSEC, for DANE. The proofs are checked here, whatever the resolver says of them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        dnssec::Proof,
        rr::{Name, RData, RecordType},
    },
};
use tokio::time::Instant;

use super::{LookupError, Tlsa, TlsaRecord, absolute, failed, in_time};

/// How long a resolver that passes no signatures on is left in peace.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// Most aliases of a name that are followed.
const MAX_ALIASES: usize = 8;
/// Most names known to have nothing, and the longest time for which one is.
const MAX_NOTHINGS: usize = 4096;
const MAX_NOTHING_TTL: Duration = Duration::from_secs(3600);

/// A resolver that checks proofs.
pub(super) struct Secure {
    resolver: TokioResolver,
    state: tokio::sync::Mutex<State>,
    nothing: Nothings,
}

/// Whether the resolver behind us passes signatures on.
enum State {
    Unknown,
    Works,
    NotBefore(Instant),
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
            nothing: Nothings::default(),
        }
    }

    /// A resolver that leaves signatures out makes all of the DNS look forged; so the root's own are asked for first. Once
    /// they came, their absence counts.
    async fn works(&self) -> bool {
        let mut state = self.state.lock().await;
        match *state {
            State::Works => return true,
            State::NotBefore(at) if at > Instant::now() => return false,
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
                *state = State::NotBefore(Instant::now() + ASK_AGAIN);
                false
            }
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer, LookupError> {
        if self.nothing.has(name, kind) {
            return Ok(Answer::Nothing);
        }
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
            Err(error) => {
                let ttl = match &error {
                    NetError::Dns(DnsError::NoRecordsFound(nothing)) => nothing.negative_ttl,
                    NetError::Dns(DnsError::Nsec { response, proof, .. }) if *proof != Proof::Bogus => {
                        response.negative_ttl()
                    }
                    _ => return Err(failed(name, &error)),
                };
                self.nothing.remember(name, kind, ttl);
                Ok(Answer::Nothing)
            }
        }
    }

    /// The same behind an alias. The validator takes an alias of a name without such records for forged, because the proof
    /// is of the other name; so what it refuses is asked for one step after the other.
    async fn follow(&self, name: &str, kind: RecordType) -> Result<Answer, LookupError> {
        let mut at = name.to_owned();
        let mut refused = None;
        for _ in 0..MAX_ALIASES {
            match self.ask(&at, kind).await {
                Ok(answer) => return Ok(answer),
                Err(error) => refused = refused.or(Some(error)),
            }
            match self.ask(&at, RecordType::CNAME).await? {
                Answer::Proved(lookup) => match target(&lookup) {
                    Some(next) => at = next,
                    None => break,
                },
                Answer::Unsigned => return Ok(Answer::Unsigned),
                Answer::Nothing => break,
            }
        }
        let endless = || LookupError {
            name: name.to_owned(),
            problem: "too many aliases".to_owned(),
        };
        Err(refused.unwrap_or_else(endless))
    }

    /// See [`super::Resolver::mx_is_signed`].
    pub(super) async fn mx_is_signed(&self, domain: &str, host: &str) -> Result<bool, LookupError> {
        if !self.works().await {
            return Ok(false);
        }
        Ok(match self.ask(domain, RecordType::MX).await? {
            Answer::Proved(lookup) => names(&lookup, host),
            Answer::Nothing | Answer::Unsigned => false,
        })
    }

    /// See [`super::Resolver::tlsa`].
    pub(super) async fn tlsa(&self, domain: &str, host: &str, port: u16) -> Result<Tlsa, LookupError> {
        if !self.works().await {
            return Ok(Tlsa::none(host));
        }
        // RFC 7672 2.2.1: whoever can forge the MX records can name a server with good records of its own.
        match self.ask(domain, RecordType::MX).await? {
            Answer::Unsigned => return Ok(Tlsa::none(host)),
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
        let (mut signed, mut bases) = (false, Vec::new());
        for kind in [RecordType::A, RecordType::AAAA] {
            if let Answer::Proved(lookup) = self.follow(host, kind).await? {
                signed = true;
                // RFC 7672 2.2.3: first at the name that the host is an alias of, then at its own.
                bases.extend(owner(&lookup, kind).filter(|name| name != host));
            }
        }
        // An alias of a name in a zone that is not signed may have records at its own name.
        if !signed && !matches!(self.ask(host, RecordType::CNAME).await?, Answer::Proved(_)) {
            return Ok(Tlsa::none(host));
        }
        bases.dedup();
        bases.push(host.to_owned());
        for base in bases {
            let name = format!("_{port}._tcp.{base}");
            let Answer::Proved(lookup) = self.follow(&name, RecordType::TLSA).await? else {
                continue;
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
            let records: Vec<_> = records.collect();
            if !records.is_empty() {
                return Ok(Tlsa { base, records });
            }
        }
        Ok(Tlsa::none(host))
    }
}

/// The name that has the records of an answer.
fn owner(lookup: &Lookup, kind: RecordType) -> Option<String> {
    let mut answers = lookup.answers().iter();
    let record = answers.find(|record| record.record_type() == kind)?;
    Some(plain(&record.name))
}

/// What an alias stands for.
fn target(lookup: &Lookup) -> Option<String> {
    let mut answers = lookup.answers().iter();
    answers.find_map(|record| match &record.data {
        RData::CNAME(cname) => Some(plain(&cname.0)),
        _ => None,
    })
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// Names that have no records of a type. The resolver keeps such answers only where they are proved, and without them each
/// mail to a domain without DANE costs a query.
#[derive(Default)]
struct Nothings(Mutex<HashMap<(String, RecordType), Instant>>);

impl Nothings {
    fn has(&self, name: &str, kind: RecordType) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = known.get(&(name.to_owned(), kind));
        until.is_some_and(|until| *until > Instant::now())
    }

    /// For as long as the zone says (RFC 2308 5), within bounds.
    fn remember(&self, name: &str, kind: RecordType, ttl: Option<u32>) {
        let Some(ttl) = ttl.map(|seconds| Duration::from_secs(seconds.into())) else {
            return;
        };
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NOTHINGS {
            known.retain(|_, until| *until > now);
            if known.len() >= MAX_NOTHINGS {
                known.clear();
            }
        }
        known.insert((name.to_owned(), kind), now + ttl.min(MAX_NOTHING_TTL));
    }
}
