//! What TLS a mail's next hop must have, and the connections that keep to it.
//!
//! For each server of a domain there is one [`Demand`]: what the operator asks (`mail.tls_policy`), else what the domain
//! publishes, else opportunistic TLS. **Invariant:** a demand is never lowered by what a server does. A server that does
//! not meet it gets no mail, in the clear least of all; the mail waits, and its sender is told why when it expires.

use std::{collections::HashMap, sync::Arc};

use rustls_pki_types::ServerName;
use tasuki_proto::{
    names::{Domain, MailHost},
    smtp::{
        Reply,
        client::{ClientFailure, Problem, Security, Stage},
        header::Header,
        mta_sts::Mode,
    },
};

mod dane;
mod fetch;
mod sts;

pub(crate) use sts::Sts;

use crate::{
    config::{Settings, TlsLevel},
    connect::{Connection, Dialer},
    context::{Context, Job},
    dns::{LookupError, TlsaRecord},
    route::{Candidate, NextHop},
};

/// How well a connection must be protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// In the clear.
    Plain,
    /// TLS where it works (RFC 7435).
    May,
    /// TLS with any certificate.
    Encrypt,
    /// TLS with a certificate that a CA gave for the server's name.
    Verify,
    /// TLS with a certificate that these records name.
    Dane(Arc<[TlsaRecord]>),
}

/// Where a demand comes from; for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// Nobody asks anything.
    Nothing,
    /// `mail.tls_policy`.
    Configured(TlsLevel),
    /// The domain's MTA-STS policy.
    Sts,
    /// The server's TLSA records.
    Dane,
}

/// What TLS to one server must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) level: Level,
    pub(crate) basis: Basis,
    /// Of the recipients; absent for an address literal.
    domain: Option<Domain>,
}

impl Demand {
    /// Opportunistic TLS.
    pub(crate) const NOTHING: Self = Self {
        level: Level::May,
        basis: Basis::Nothing,
        domain: None,
    };

    /// A failure to protect a connection, in the words of the policy that did not allow for it.
    pub(crate) fn judge(&self, host: &str, failure: ClientFailure) -> ClientFailure {
        let about_tls = match failure.stage {
            Stage::StartTls => true,
            // It does not know EHLO, so it cannot know STARTTLS.
            Stage::Ehlo => failure.reply().is_some_and(Reply::is_permanent),
            _ => false,
        };
        if matches!(self.level, Level::Plain | Level::May) || !about_tls {
            return failure;
        }
        unmet(&format!("{} is not met by {host}: {failure}", self.name()))
    }

    /// The policy, for people.
    pub(crate) fn name(&self) -> String {
        let domain = self.domain.as_ref().map_or("this destination", Domain::as_str);
        match self.basis {
            Basis::Nothing => format!("the TLS policy for {domain}"),
            Basis::Dane => format!("DANE for {domain}"),
            Basis::Sts => format!("the MTA-STS policy of {domain}"),
            Basis::Configured(level) => {
                format!("the TLS policy for {domain} (mail.tls_policy: {})", level.word())
            }
        }
    }

    /// Whether it is known which server it must be.
    fn is_authenticated(&self) -> bool {
        matches!(self.level, Level::Verify | Level::Dane(_))
    }

    /// Whether a connection made for another mail is good enough.
    fn accepts(&self, open: &Connection) -> bool {
        let made_for = &open.demand().level;
        match &self.level {
            Level::Plain | Level::May => true,
            Level::Encrypt => open.is_protected(),
            Level::Verify | Level::Dane(_) => *made_for == self.level,
        }
    }
}

/// No server of the domain may be given this mail now. It waits: what is wrong can be put right by the domain's
/// operator, or by ours.
fn unmet(why: &str) -> ClientFailure {
    // RFC 5248, X.7.10: encryption needed.
    let reply = Reply::with_text(450, (4, 7, 10), why.to_owned());
    ClientFailure::new(Stage::StartTls, Problem::TlsPolicy(reply))
}

/// Whether a failure is a demand that was not met. It holds for mail to one domain, and says nothing about other mail to
/// the same servers.
pub(crate) fn is_unmet(failure: &ClientFailure) -> bool {
    matches!(failure.problem, Problem::TlsPolicy(_))
}

/// The servers that a mail may be given to, each with what TLS to it must be.
pub(crate) async fn demands(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    job: &Job,
    candidates: Vec<Candidate>,
) -> Result<Vec<(Candidate, Demand)>, ClientFailure> {
    let demands = demands_on(context, settings, hop, candidates.clone()).await;
    let is_strict = |demand: &Demand| matches!(demand.basis, Basis::Sts | Basis::Dane);
    let strict = match (&demands, hop) {
        (Ok(demands), _) => demands.iter().any(|(_, demand)| is_strict(demand)),
        (Err(_), NextHop::Mx(MailHost::Domain(domain))) => settings.tls_policies.rule_for(domain).is_none(),
        (Err(_), _) => false,
    };
    if strict && !job.held.envelope.require_tls && tls_is_optional(context, job).await {
        return Ok(candidates.into_iter().map(|to| (to, Demand::NOTHING)).collect());
    }
    demands
}

/// RFC 8689 4.2.2: `TLS-Required: No` asks for delivery whatever the recipient's domain publishes. What our own operator
/// asks stands.
async fn tls_is_optional(context: &Context, job: &Job) -> bool {
    let Ok(head) = job.head(&*context.deps.store).await else {
        return false;
    };
    let said = Header::parse(&head).value("TLS-Required");
    said.is_some_and(|value| value.eq_ignore_ascii_case("No"))
}

/// As what the operator and the domain ask of these servers.
pub(crate) async fn demands_on(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    candidates: Vec<Candidate>,
) -> Result<Vec<(Candidate, Demand)>, ClientFailure> {
    let NextHop::Mx(MailHost::Domain(domain)) = hop else {
        return Ok(candidates.into_iter().map(|to| (to, Demand::NOTHING)).collect());
    };
    if let Some(rule) = settings.tls_policies.rule_for(domain) {
        let demand = Demand {
            level: match rule.level {
                TlsLevel::None => Level::Plain,
                TlsLevel::May => Level::May,
                TlsLevel::Encrypt => Level::Encrypt,
                TlsLevel::Verify | TlsLevel::DaneOnly => Level::Verify,
            },
            basis: Basis::Configured(rule.level),
            domain: Some(domain.clone()),
        };
        let listed = |host: &Domain| rule.mx.is_empty() || rule.mx.iter().any(|mx| mx.matches(host));
        if rule.level != TlsLevel::DaneOnly {
            return only(candidates, &demand, listed);
        }
        let listed = only(candidates, &demand, listed)?;
        let listed = listed.into_iter().map(|(to, _)| to).collect();
        let found = with_tlsa(context, settings, domain, listed, demand.basis).await?;
        let found: Vec<_> = found
            .into_iter()
            .filter_map(|(to, demand)| Some((to, demand?)))
            .collect();
        if found.is_empty() {
            return Err(unmet(&format!(
                "{} is not met: the servers have no TLSA records",
                demand.name()
            )));
        }
        return Ok(found);
    }
    let found = with_tlsa(context, settings, domain, candidates, Basis::Dane).await?;
    // RFC 8461 2: DANE comes first; a policy is asked about servers that have no records of their own.
    let (proved, others): (Vec<_>, Vec<_>) = found.iter().cloned().partition(|(_, demand)| demand.is_some());
    let rest = others.into_iter().map(|(to, _)| to).collect();
    let mut rest = match published(context, settings, domain, rest).await {
        Ok(rest) => rest,
        Err(_) if !proved.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    // In the order of the MX records.
    let mut all = Vec::new();
    for (to, demand) in found {
        match demand {
            Some(demand) => all.push((to, demand)),
            None => {
                if let Some(at) = rest.iter().position(|(other, _)| *other == to) {
                    all.push(rest.remove(at));
                }
            }
        }
    }
    Ok(all)
}

/// Each server with what its TLSA records demand, if it has such. Those whose records are forged or do not come now are
/// left out (RFC 7672 2.1.2).
async fn with_tlsa(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    candidates: Vec<Candidate>,
    basis: Basis,
) -> Result<Vec<(Candidate, Option<Demand>)>, ClientFailure> {
    let mut known: HashMap<String, Result<Vec<TlsaRecord>, LookupError>> = HashMap::new();
    let (mut found, mut trouble) = (Vec::new(), None);
    for to in candidates {
        let records = match known.get(&to.host) {
            Some(records) => records.clone(),
            None => {
                let port = settings.delivery.mx_port;
                let records = context.resolver.tlsa(domain.as_str(), &to.host, port).await;
                known.insert(to.host.clone(), records.clone());
                records
            }
        };
        match records {
            Ok(records) if records.is_empty() => found.push((to, None)),
            Ok(records) => {
                let usable = dane::usable(records);
                // RFC 7672 2.2: TLS all the same, though nothing can be said of the certificate.
                let level = if usable.is_empty() {
                    Level::Encrypt
                } else {
                    Level::Dane(usable.into())
                };
                let domain = Some(domain.clone());
                found.push((to, Some(Demand { level, basis, domain })));
            }
            Err(error) => trouble = Some(error.to_string()),
        }
    }
    match trouble {
        Some(why) if found.is_empty() => Err(unmet(&format!("DANE for {}: {why}", domain.as_str()))),
        _ => Ok(found),
    }
}

/// What the domain's own policy demands of its servers.
async fn published(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    candidates: Vec<Candidate>,
) -> Result<Vec<(Candidate, Demand)>, ClientFailure> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    if settings.delivery.mta_sts
        && let Some(found) = Sts::find(context, settings, domain).await
        && found.policy.mode == Mode::Enforce
    {
        let demand = Demand {
            level: Level::Verify,
            basis: Basis::Sts,
            domain: Some(domain.clone()),
        };
        return only(candidates, &demand, |host| found.policy.allows(host));
    }
    Ok(candidates.into_iter().map(|to| (to, Demand::NOTHING)).collect())
}

/// Those of the servers that a policy lists.
fn only(
    candidates: Vec<Candidate>,
    demand: &Demand,
    listed: impl Fn(&Domain) -> bool,
) -> Result<Vec<(Candidate, Demand)>, ClientFailure> {
    let is_listed = |to: &Candidate| Domain::parse(&to.host).is_ok_and(|host| listed(&host));
    let (listed, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_listed);
    if listed.is_empty() {
        return Err(unmet(&format!(
            "{} names other mail servers than the domain's MX records do ({})",
            demand.name(),
            hosts(&others)
        )));
    }
    Ok(listed.into_iter().map(|to| (to, demand.clone())).collect())
}

fn hosts(candidates: &[Candidate]) -> String {
    let mut names: Vec<&str> = candidates.iter().map(|to| to.host.as_str()).collect();
    names.dedup();
    names.join(", ")
}

/// Whether a connection made for another mail may be used for this one.
pub(crate) async fn may_reuse(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    job: &Job,
    open: &Connection,
) -> bool {
    let NextHop::Mx(_) = hop else {
        // To a smarthost all connections are alike.
        return true;
    };
    let again = vec![open.candidate().clone()];
    match demands(context, settings, hop, job, again).await {
        // RFC 8689 4.2.1: that it must be this server has to be known for this mail's domain, too.
        Ok(demands) => demands.iter().all(|(_, demand)| {
            demand.accepts(open) && (demand.is_authenticated() || !job.held.envelope.require_tls)
        }),
        Err(_) => false,
    }
}

impl Dialer {
    /// The same, keeping to a demand.
    pub(crate) fn under(&self, context: &Context, demand: Demand) -> Self {
        let mut dialer = self.clone();
        match &demand.level {
            Level::Plain => dialer.client.security = Security::Plain,
            Level::May => {}
            Level::Encrypt => dialer.client.security = Security::Required,
            Level::Dane(records) => {
                let domain = demand.domain.as_ref().map(|domain| domain.as_str().to_owned());
                let domain = domain.and_then(|domain| ServerName::try_from(domain).ok());
                dialer.client.security = Security::Required;
                dialer.tls = dane::client_config(Arc::clone(records), domain);
                dialer.verifies = true;
            }
            Level::Verify => {
                dialer.client.security = Security::Required;
                dialer.tls = context.deps.tls.client();
                dialer.verifies = true;
            }
        }
        dialer.demand = Arc::new(demand);
        dialer
    }
}
