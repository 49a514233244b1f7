//! Finds out what is asked of the TLS to a domain's servers: by the operator, by signed TLSA records, by MTA-STS.

use std::{collections::HashMap, sync::Arc};

use tasuki_proto::{
    names::{Domain, MailHost},
    smtp::{
        client::ClientFailure,
        header::Header,
        mta_sts::Mode,
        tlsrpt::{FailureDetail, PolicyType, ResultType, SessionPolicy},
    },
};

use super::{Basis, Demand, Level, Sts, Trouble, Watched, dane, require, unmet};
use crate::{
    config::{Settings, TlsLevel, TlsPolicyConfig},
    context::{Context, Job},
    dns::{LookupError, Tlsa},
    route::{Candidate, NextHop},
};

/// Why no server may be given a mail.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: ClientFailure,
    /// The policy is known, and no server fits it; otherwise it is not known now what is asked.
    pub(crate) is_known: bool,
}

/// Failures that are found before there is a session.
#[derive(Default)]
pub(crate) struct Noted(Vec<(Watched, String, FailureDetail)>);

impl Noted {
    fn add(&mut self, domain: &Domain, policy: SessionPolicy, host: &str, trouble: &Trouble) {
        let mut detail = FailureDetail::new(trouble.result, &trouble.words);
        detail.receiving_mx_hostname = Some(host.to_owned());
        self.0
            .push((Watched::new(domain, policy), host.to_owned(), detail));
    }
}

/// The servers that a mail may be given to, each with what TLS to it must be; failures to find that out are counted.
pub(crate) async fn demands(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    job: &Job,
    candidates: Vec<Candidate>,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let mut noted = Noted::default();
    let found = demands_for(context, settings, hop, job, candidates, &mut noted).await;
    for (watched, host, detail) in noted.0 {
        context.tls_sessions.note(context, &watched, &host, Some(detail));
    }
    found
}

/// The same, and nothing is counted.
pub(super) async fn demands_for(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    job: &Job,
    candidates: Vec<Candidate>,
    noted: &mut Noted,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let demands = demands_on(context, settings, hop, candidates.clone(), noted).await;
    let envelope = &job.held.envelope;
    if envelope.require_tls {
        return require::raised(context, settings, hop, demands?).await;
    }
    let is_strict = |demand: &Demand| matches!(demand.basis, Basis::Sts | Basis::Dane);
    let strict = match (&demands, hop) {
        (Ok(demands), _) => demands.iter().any(|(_, demand)| is_strict(demand)),
        (Err(_), NextHop::Mx(MailHost::Domain(domain))) => settings.tls_policies.rule_for(domain).is_none(),
        (Err(_), _) => false,
    };
    // Sessions with our own reports are not reported, or two gateways would go on for ever (RFC 8460 3).
    if (strict || envelope.is_dsn) && tls_is_optional(context, job).await {
        noted.0.clear();
        if strict {
            return Ok(candidates.into_iter().map(|to| (to, Demand::NOTHING)).collect());
        }
        let uncounted = |demand| Demand {
            watched: None,
            ..demand
        };
        let demands = demands?.into_iter();
        return Ok(demands.map(|(to, demand)| (to, uncounted(demand))).collect());
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
    noted: &mut Noted,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let NextHop::Mx(MailHost::Domain(domain)) = hop else {
        return Ok(candidates.into_iter().map(|to| (to, Demand::NOTHING)).collect());
    };
    if let Some(rule) = settings.tls_policies.rule_for(domain) {
        return configured(context, settings, domain, rule, candidates, noted).await;
    }
    let found = with_tlsa(context, settings, domain, candidates, Basis::Dane, noted).await?;
    // RFC 8461 2: DANE comes first; a policy is asked about servers that have no records of their own.
    let (proved, others): (Vec<_>, Vec<_>) = found.iter().cloned().partition(|(_, demand)| demand.is_some());
    let rest = others.into_iter().map(|(to, _)| to).collect();
    let mut rest = match published(context, settings, domain, rest, noted).await {
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
    for (to, demand) in &mut all {
        let rule = settings.providers.of_host(&to.host);
        if demand.level == Level::May && rule.is_some_and(|rule| rule.require_tls) {
            (demand.level, demand.basis, demand.domain) =
                (Level::Encrypt, Basis::Provider, Some(domain.clone()));
        }
    }
    Ok(all)
}

/// What the operator asks.
async fn configured(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    rule: &TlsPolicyConfig,
    candidates: Vec<Candidate>,
    noted: &mut Noted,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let watched = Watched::new(domain, SessionPolicy::none(domain));
    let demand = Demand {
        level: match rule.level {
            TlsLevel::None => Level::Plain,
            TlsLevel::May => Level::May,
            TlsLevel::Encrypt => Level::Encrypt,
            TlsLevel::Verify | TlsLevel::DaneOnly => Level::Verify,
        },
        basis: Basis::Configured(rule.level),
        domain: Some(domain.clone()),
        tls_name: None,
        watched: (rule.level != TlsLevel::None).then(|| Arc::new(watched)),
    };
    let listed = |host: &Domain| rule.mx.is_empty() || rule.mx.iter().any(|mx| mx.matches(host));
    let listed = only(candidates, &demand, listed)?;
    if rule.level != TlsLevel::DaneOnly {
        return Ok(listed);
    }
    let listed = listed.into_iter().map(|(to, _)| to).collect();
    let (mut good, mut bare) = (Vec::new(), Vec::new());
    for (to, demand) in with_tlsa(context, settings, domain, listed, demand.basis, noted).await? {
        match demand {
            Some(demand) => good.push((to, demand)),
            None if !bare.contains(&to.host) => bare.push(to.host),
            None => {}
        }
    }
    let trouble = Trouble::new(ResultType::DaneRequired, "no signed TLSA records");
    for host in bare {
        noted.add(
            domain,
            SessionPolicy::bare(PolicyType::Tlsa, &host),
            &host,
            &trouble,
        );
    }
    if good.is_empty() {
        let why = format!("{} is not met: the servers have no TLSA records", demand.name());
        return Err(Refusal {
            failure: unmet(&why),
            is_known: true,
        });
    }
    Ok(good)
}

/// Each server with what its TLSA records demand, if it has such. Those whose records are forged or do not come now are
/// left out (RFC 7672 2.1.2).
async fn with_tlsa(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    candidates: Vec<Candidate>,
    basis: Basis,
    noted: &mut Noted,
) -> Result<Vec<(Candidate, Option<Demand>)>, Refusal> {
    let mut known: HashMap<String, Result<Option<Demand>, LookupError>> = HashMap::new();
    let (mut found, mut trouble) = (Vec::new(), None);
    for to in candidates {
        let demand = match known.get(&to.host) {
            Some(demand) => demand.clone(),
            None => {
                let port = settings.delivery.mx_port;
                let records = context.resolver.tlsa(domain.as_str(), &to.host, port).await;
                if let Err(error) = &records {
                    let trouble = Trouble::new(ResultType::DnssecInvalid, &error.to_string());
                    noted.add(
                        domain,
                        SessionPolicy::bare(PolicyType::Tlsa, &to.host),
                        &to.host,
                        &trouble,
                    );
                }
                let demand = records.map(|found| by_records(domain, found, basis));
                known.insert(to.host.clone(), demand.clone());
                demand
            }
        };
        match demand {
            Ok(demand) => found.push((to, demand)),
            Err(error) => trouble = Some(error.to_string()),
        }
    }
    match trouble {
        Some(why) if found.is_empty() => Err(Refusal {
            failure: unmet(&format!("DANE for {}: {why}", domain.as_str())),
            is_known: false,
        }),
        _ => Ok(found),
    }
}

/// What TLSA records demand; nothing if there are none.
fn by_records(domain: &Domain, Tlsa { base, records }: Tlsa, basis: Basis) -> Option<Demand> {
    if records.is_empty() {
        return None;
    }
    let policy = SessionPolicy::tlsa(&base, records.iter().map(ToString::to_string));
    let mut watched = Watched::new(domain, policy);
    let usable = dane::usable(records);
    // RFC 7672 2.2: TLS all the same, though nothing can be said of the certificate.
    let level = if usable.is_empty() {
        watched.trouble = Some(Trouble::new(
            ResultType::TlsaInvalid,
            "no TLSA record that can be used for mail",
        ));
        Level::Encrypt
    } else {
        Level::Dane(usable.into())
    };
    Some(Demand {
        level,
        basis,
        domain: Some(domain.clone()),
        tls_name: Some(base),
        watched: Some(Arc::new(watched)),
    })
}

/// What the domain's own policy demands of its servers.
async fn published(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    candidates: Vec<Candidate>,
    noted: &mut Noted,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let mut watched = Watched::new(domain, SessionPolicy::none(domain));
    if settings.delivery.mta_sts {
        let (found, trouble) = Sts::find(context, settings, domain).await;
        if let Some(trouble) = trouble {
            watched.policy = SessionPolicy::bare(PolicyType::Sts, domain.as_str());
            watched.trouble = Some(trouble);
        }
        if let Some(found) = found.filter(|found| found.policy.mode != Mode::None) {
            watched.policy = SessionPolicy::sts(domain, &found.policy);
            if found.policy.mode == Mode::Enforce {
                let watched = Arc::new(watched);
                let demand = Demand {
                    level: Level::Verify,
                    basis: Basis::Sts,
                    domain: Some(domain.clone()),
                    tls_name: None,
                    watched: Some(Arc::clone(&watched)),
                };
                let hosts: Vec<String> = candidates.iter().map(|to| to.host.clone()).collect();
                let fitting = only(candidates, &demand, |host| found.policy.allows(host));
                if fitting.is_err() {
                    for host in hosts {
                        noted.add(domain, watched.policy.clone(), &host, &Trouble::unlisted());
                    }
                }
                return fitting;
            }
            watched.testing = Some(found);
        }
    }
    let demand = Demand {
        domain: Some(domain.clone()),
        watched: Some(Arc::new(watched)),
        ..Demand::NOTHING
    };
    Ok(candidates.into_iter().map(|to| (to, demand.clone())).collect())
}

/// Those of the servers that a policy lists.
fn only(
    candidates: Vec<Candidate>,
    demand: &Demand,
    listed: impl Fn(&Domain) -> bool,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let is_listed = |to: &Candidate| Domain::parse(&to.host).is_ok_and(|host| listed(&host));
    let (listed, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_listed);
    if listed.is_empty() {
        let why = format!(
            "{} names other mail servers than the domain's MX records do ({})",
            demand.name(),
            hosts(&others)
        );
        return Err(Refusal {
            failure: unmet(&why),
            is_known: true,
        });
    }
    Ok(listed.into_iter().map(|to| (to, demand.clone())).collect())
}

fn hosts(candidates: &[Candidate]) -> String {
    let mut names: Vec<&str> = candidates.iter().map(|to| to.host.as_str()).collect();
    names.dedup();
    names.join(", ")
}
