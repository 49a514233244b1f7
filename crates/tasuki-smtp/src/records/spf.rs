//! Whether a domain's SPF record lets our addresses, or the providers that carry its mail, send.

use std::net::IpAddr;

use tasuki_proto::{
    names::Domain,
    smtp::spf::{self, Answer, Asker, Known, MAX_LOOKUPS, Qualifier, Query, Verdict},
};

use super::{
    DnsRecord, Look,
    RecordState::{Differs, Missing, Unknown, Warning},
    exits::Exits,
};
use crate::dns::{LookupError, MxAnswer};

/// Most questions for one domain. RFC 7208 4.6.4 leads to 10 records with 10 mail servers each at most.
const MAX_QUESTIONS: usize = 150;

impl Look<'_> {
    pub(super) async fn spf(&self, domain: &Domain, exits: &Exits) -> DnsRecord {
        let mut record = DnsRecord::new(domain.as_str(), "spf", domain.as_str(), "TXT");
        record.needed = exits.is_direct || exits.includes.iter().any(|(_, spf)| spf.keeps_sender);
        let mut known = Known::new();
        let query = Query::Texts(domain.to_string());
        let answer = self.answer(&query).await;
        known.insert(query, answer.clone());
        let found: Vec<String> = match answer {
            Answer::Failed(why) => return record.is(Unknown, why),
            Answer::Texts(texts) => texts.into_iter().filter(|text| spf::is_spf(text)).collect(),
            _ => Vec::new(),
        };
        let record = record.found(&found);
        if found.len() > 1 {
            let cure = "several SPF records are an error, and receivers give up: make one of them";
            return record.is(Differs, cure);
        }
        let Some(text) = found.first() else {
            return missing(record, exits);
        };
        let survey = self
            .ask(&mut known, |known| spf::survey(domain.as_str(), known))
            .await;
        if let Some(why) = unanswered(&known) {
            return record.is(Unknown, why);
        }
        let survey = match survey.map(|survey| (survey.problem.clone(), survey)) {
            None => return record.is(Unknown, "the record leads to more names than are looked at"),
            Some((Some(problem), _)) => {
                return record.is(Differs, format!("{problem}: receivers give up on it, correct it"));
            }
            Some((None, survey)) => survey,
        };
        let (mut lacks, mut whom) = (Vec::new(), Vec::new());
        for source in &exits.sources.public {
            let asker = Asker {
                ip: source.ip,
                domain: domain.to_string(),
                helo: source.helo.to_string(),
            };
            match self.ask(&mut known, |known| spf::evaluate(&asker, known)).await {
                Some(Verdict::Said(Qualifier::Pass)) => {}
                Some(Verdict::Temporary(why)) => return record.is(Unknown, why),
                Some(Verdict::Permanent(why)) => {
                    return record.is(Differs, format!("{why}: receivers give up on it, correct it"));
                }
                _ => {
                    lacks.push(term(source.ip));
                    whom.push(source.ip.to_string());
                }
            }
        }
        for (name, provider) in &exits.includes {
            let include = provider.include;
            let term = format!("include:{include}");
            if !survey.reaches.iter().any(|reached| reached == include) && !lacks.contains(&term) {
                lacks.push(term);
                whom.push(name.clone());
            }
        }
        if !lacks.is_empty() {
            let mut cure = format!("it does not cover {}: publish this in its place", whom.join(", "));
            let more = lacks.iter().filter(|term| term.starts_with("include:")).count();
            if survey.lookups + more > MAX_LOOKUPS {
                cure += &format!(
                    "; that takes more than {MAX_LOOKUPS} lookups, so remove terms that are not used"
                );
            }
            return record.with(spf::extended(Some(text), &lacks)).is(Differs, cure);
        }
        if survey.all == Some(Qualifier::Pass) {
            let cure = "+all lets everybody send in the domain's name: write ~all or -all";
            return record.is(Warning, cure);
        }
        let record = record.with(text);
        if let Some(cure) = not_known(exits) {
            // Of what is known, all is covered.
            let blind = exits.is_direct && exits.sources.public.is_empty();
            return match blind {
                true => record.is(Unknown, cure),
                false => DnsRecord { says: cure, ..record },
            };
        }
        record
    }

    /// Asks until there is a result; `None` if that takes too many questions.
    async fn ask<T>(&self, known: &mut Known, about: impl Fn(&Known) -> Result<T, Query>) -> Option<T> {
        while known.len() < MAX_QUESTIONS {
            match about(known) {
                Ok(result) => return Some(result),
                Err(query) => {
                    let answer = self.answer(&query).await;
                    known.insert(query, answer);
                }
            }
        }
        None
    }

    async fn answer(&self, query: &Query) -> Answer {
        let resolver = self.resolver;
        let failed = |error: LookupError| Answer::Failed(error.to_string());
        match query {
            Query::Texts(name) => resolver.txt(name).await.map_or_else(failed, Answer::Texts),
            Query::Addresses(name) => resolver
                .addresses(name)
                .await
                .map_or_else(failed, Answer::Addresses),
            Query::Names(ip) => resolver.names(*ip).await.map_or_else(failed, Answer::Names),
            Query::Hosts(name) => match resolver.mx(name).await {
                Err(error) => failed(error),
                Ok(MxAnswer::Hosts(hosts)) => {
                    Answer::Names(hosts.into_iter().map(|(_, host)| host).collect())
                }
                // RFC 7208 5.4: without MX records the domain's own addresses do not stand in.
                Ok(MxAnswer::Null | MxAnswer::Implicit | MxAnswer::NoDomain) => Answer::Names(Vec::new()),
            },
        }
    }
}

fn unanswered(known: &Known) -> Option<String> {
    known.values().find_map(|answer| match answer {
        Answer::Failed(why) => Some(why.clone()),
        _ => None,
    })
}

fn term(ip: IpAddr) -> String {
    let kind = if ip.is_ipv4() { "ip4" } else { "ip6" };
    format!("{kind}:{ip}")
}

/// A record for a domain that has none.
fn missing(record: DnsRecord, exits: &Exits) -> DnsRecord {
    let mut terms: Vec<String> = exits
        .sources
        .public
        .iter()
        .map(|source| term(source.ip))
        .collect();
    for (_, provider) in &exits.includes {
        let include = format!("include:{}", provider.include);
        if !terms.contains(&include) {
            terms.push(include);
        }
    }
    let cure = "anybody may send in its name: publish this record";
    let (record, cure) = if terms.is_empty() {
        (record, "anybody may send in its name: publish an SPF record")
    } else {
        (record.with(spf::extended(None, &terms)), cure)
    };
    match not_known(exits) {
        Some(more) => record.is(Missing, format!("{cure}; {more}")),
        None => record.is(Missing, cure),
    }
}

/// What the record must cover besides, as far as that is not known here.
fn not_known(exits: &Exits) -> Option<String> {
    if exits.is_direct && (!exits.sources.hidden.is_empty() || exits.sources.public.is_empty()) {
        return Some("whether it covers the public address is not known here: say --address IP".to_owned());
    }
    (!exits.unknown.is_empty()).then(|| {
        format!(
            "what {} wants in it is not known here: see that provider's instructions",
            exits.unknown.join(", ")
        )
    })
}
