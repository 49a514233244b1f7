//! Going through records with what is known of the DNS (RFC 7208 4.6).

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    macros,
    record::{Mechanism, Qualifier, Record, is_spf},
};

/// Most terms that ask the DNS; with more, receivers give up with a permanent error (RFC 7208 4.6.4).
pub const MAX_LOOKUPS: usize = 10;
/// Most of them without an answer.
const MAX_VOID: usize = 2;
/// Most mail servers of an `mx`, and names of a `ptr`.
const MAX_NAMES: usize = 10;
/// How far a record is counted.
const SURVEY_ENDS: usize = 40;

/// A question to the DNS. Names are in lower case and without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// TXT records.
    Texts(String),
    /// A and AAAA records.
    Addresses(String),
    /// Hosts of MX records.
    Hosts(String),
    /// PTR records.
    Names(IpAddr),
}

/// Its answer; lists are empty if there is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// TXT records, the strings of each joined.
    Texts(Vec<String>),
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// Host names, of MX or PTR records.
    Names(Vec<String>),
    /// None came.
    Failed(String),
}

/// What the DNS has answered.
pub type Known = HashMap<Query, Answer>;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Where the mail comes from.
    pub ip: IpAddr,
    /// The domain of its MAIL FROM.
    pub domain: String,
    /// The name in EHLO.
    pub helo: String,
}

/// What a record says of one who asks (RFC 7208 2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no record.
    None,
    /// What a term says, or that no term says anything.
    Said(Qualifier),
    /// The DNS did not answer.
    Temporary(String),
    /// The record cannot be used.
    Permanent(String),
}

/// What a record is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Terms that ask the DNS, those of included records too.
    pub lookups: usize,
    /// The names of all records that it leads to.
    pub reaches: Vec<String>,
    /// Whether a name in it has macros: whose record counts then differs from sender to sender.
    pub varies: bool,
    /// What is wrong with one of those records, or with the count.
    pub problem: Option<String>,
    /// What is said of everybody else.
    pub all: Option<Qualifier>,
}

enum Stop {
    Need(Query),
    Temporary(String),
    Permanent(String),
}

/// What a domain's record says of one who asks.
///
/// # Errors
/// The question whose answer is needed next.
pub fn evaluate(asker: &Asker, known: &Known) -> Result<Verdict, Query> {
    let mut walk = Walk {
        asker,
        known,
        lookups: 0,
        voids: 0,
    };
    match walk.check(&asker.domain) {
        Ok(Some(qualifier)) => Ok(Verdict::Said(qualifier)),
        Ok(None) => Ok(Verdict::None),
        Err(Stop::Need(query)) => Err(query),
        Err(Stop::Temporary(why)) => Ok(Verdict::Temporary(why)),
        Err(Stop::Permanent(why)) => Ok(Verdict::Permanent(why)),
    }
}

struct Walk<'a> {
    asker: &'a Asker,
    known: &'a Known,
    lookups: usize,
    voids: usize,
}

impl Walk<'_> {
    /// `check_host()` of RFC 7208 4; `None` if there is no record.
    fn check(&mut self, domain: &str) -> Result<Option<Qualifier>, Stop> {
        let Some(record) = record_at(domain, self.known)? else {
            return Ok(None);
        };
        for term in &record.terms {
            if self.matches(&term.mechanism, domain)? {
                return Ok(Some(term.qualifier));
            }
        }
        let Some(redirect) = &record.redirect else {
            return Ok(Some(Qualifier::Neutral));
        };
        self.count()?;
        let target = macros::expand(redirect, self.asker, domain);
        // RFC 7208 6.1: a redirect to nothing is a permanent error.
        let said = self.check(&target)?;
        said.map(Some)
            .ok_or_else(|| Stop::Permanent(format!("redirect={target} leads to no SPF record")))
    }

    fn count(&mut self) -> Result<(), Stop> {
        self.lookups += 1;
        if self.lookups > MAX_LOOKUPS {
            return Err(Stop::Permanent(format!("more than {MAX_LOOKUPS} lookups")));
        }
        Ok(())
    }

    fn matches(&mut self, mechanism: &Mechanism, domain: &str) -> Result<bool, Stop> {
        let name = |spec: &Option<String>| match spec {
            Some(spec) => macros::expand(spec, self.asker, domain),
            None => domain.to_owned(),
        };
        match mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip(net) => Ok(net.contains(&self.asker.ip)),
            Mechanism::A(spec, v4, v6) => {
                let name = name(spec);
                self.count()?;
                self.is_one_of(name, *v4, *v6, true)
            }
            Mechanism::Mx(spec, v4, v6) => {
                let name = name(spec);
                self.count()?;
                let hosts = names(self.ask(Query::Hosts(name.clone()), true)?);
                if hosts.len() > MAX_NAMES {
                    let why = format!("{name} has more than {MAX_NAMES} MX records");
                    return Err(Stop::Permanent(why));
                }
                for host in hosts {
                    if self.is_one_of(host, *v4, *v6, false)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Mechanism::Exists(spec) => {
                let name = macros::expand(spec, self.asker, domain);
                self.count()?;
                // RFC 7208 5.7: an A record, whatever the family of the one who asks.
                let found = addresses(self.ask(Query::Addresses(name), true)?);
                Ok(found.iter().any(IpAddr::is_ipv4))
            }
            Mechanism::Ptr(spec) => {
                let target = name(spec);
                self.count()?;
                self.has_name_in(&target)
            }
            Mechanism::Include(spec) => {
                let target = macros::expand(spec, self.asker, domain);
                self.count()?;
                match self.check(&target)? {
                    Some(said) => Ok(said == Qualifier::Pass),
                    // RFC 7208 5.2.
                    None => Err(Stop::Permanent(format!(
                        "include:{target} leads to no SPF record"
                    ))),
                }
            }
        }
    }

    fn ask(&mut self, query: Query, counts: bool) -> Result<Answer, Stop> {
        let answer = match self.known.get(&query) {
            None => return Err(Stop::Need(query)),
            Some(Answer::Failed(why)) => return Err(Stop::Temporary(why.clone())),
            Some(answer) => answer.clone(),
        };
        let empty = match &answer {
            Answer::Texts(found) | Answer::Names(found) => found.is_empty(),
            Answer::Addresses(found) => found.is_empty(),
            Answer::Failed(_) => false,
        };
        if empty && counts {
            self.voids += 1;
            if self.voids > MAX_VOID {
                let why = format!("more than {MAX_VOID} of its names lead to nothing");
                return Err(Stop::Permanent(why));
            }
        }
        Ok(answer)
    }

    fn is_one_of(&mut self, name: String, v4: u8, v6: u8, counts: bool) -> Result<bool, Stop> {
        let found = addresses(self.ask(Query::Addresses(name), counts)?);
        let ip = self.asker.ip;
        let length = if ip.is_ipv4() { v4 } else { v6 };
        let within = |theirs: &IpAddr| {
            theirs.is_ipv4() == ip.is_ipv4() && IpNet::new(*theirs, length).is_ok_and(|net| net.contains(&ip))
        };
        Ok(found.iter().any(within))
    }

    /// RFC 7208 5.5: a name of the address that leads back to it and is within the target. What fails does not match.
    fn has_name_in(&mut self, target: &str) -> Result<bool, Stop> {
        let query = Query::Names(self.asker.ip);
        let found = match self.ask(query, true) {
            Ok(answer) => names(answer),
            Err(Stop::Temporary(_)) => return Ok(false),
            Err(stop) => return Err(stop),
        };
        for name in found.into_iter().take(MAX_NAMES) {
            let inside = name
                .strip_suffix(target)
                .is_some_and(|head| head.is_empty() || head.ends_with('.'));
            if !inside {
                continue;
            }
            match self.ask(Query::Addresses(name), false) {
                Ok(answer) => {
                    if addresses(answer).contains(&self.asker.ip) {
                        return Ok(true);
                    }
                }
                Err(Stop::Temporary(_)) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(false)
    }
}

fn names(answer: Answer) -> Vec<String> {
    match answer {
        Answer::Names(names) => names,
        _ => Vec::new(),
    }
}

fn addresses(answer: Answer) -> Vec<IpAddr> {
    match answer {
        Answer::Addresses(addresses) => addresses,
        _ => Vec::new(),
    }
}

/// The one record of a domain.
fn record_at(domain: &str, known: &Known) -> Result<Option<Record>, Stop> {
    let query = Query::Texts(domain.to_owned());
    let texts = match known.get(&query) {
        None => return Err(Stop::Need(query)),
        Some(Answer::Texts(texts)) => texts,
        Some(Answer::Failed(why)) => return Err(Stop::Temporary(why.clone())),
        Some(_) => return Ok(None),
    };
    let found: Vec<&String> = texts.iter().filter(|text| is_spf(text)).collect();
    match found.as_slice() {
        [] => Ok(None),
        [text] => match Record::parse(text) {
            Ok(record) => Ok(Some(record)),
            Err(error) => Err(Stop::Permanent(format!("{domain}: {error}"))),
        },
        // RFC 7208 4.5.
        more => Err(Stop::Permanent(format!(
            "{domain} has {} SPF records, one is allowed",
            more.len()
        ))),
    }
}

/// Goes through all of a domain's record, as receivers must for an address that no term names.
///
/// # Errors
/// The question whose answer is needed next.
pub fn survey(domain: &str, known: &Known) -> Result<Survey, Query> {
    let mut survey = Survey::default();
    survey.visit(domain, known)?;
    if survey.problem.is_none() && survey.lookups > MAX_LOOKUPS {
        let more = if survey.lookups > SURVEY_ENDS {
            "more than "
        } else {
            ""
        };
        let counted = survey.lookups.min(SURVEY_ENDS);
        survey.problem = Some(format!(
            "it takes {more}{counted} lookups, {MAX_LOOKUPS} are allowed"
        ));
    }
    Ok(survey)
}

impl Survey {
    fn visit(&mut self, domain: &str, known: &Known) -> Result<(), Query> {
        let record = match record_at(domain, known) {
            Ok(Some(record)) => record,
            Ok(None) => return self.note(format!("{domain} has no SPF record")),
            Err(Stop::Need(query)) => return Err(query),
            Err(Stop::Temporary(why) | Stop::Permanent(why)) => return self.note(why),
        };
        // What comes after `all` is never looked at (RFC 7208 5.1).
        for term in &record.terms {
            match &term.mechanism {
                Mechanism::All => {
                    self.all = Some(term.qualifier);
                    return Ok(());
                }
                Mechanism::Ip(_) => {}
                Mechanism::A(..) | Mechanism::Mx(..) | Mechanism::Ptr(_) | Mechanism::Exists(_) => {
                    self.lookups += 1
                }
                Mechanism::Include(target) => {
                    let all = self.all;
                    self.follow(target, known)?;
                    self.all = all;
                }
            }
        }
        match &record.redirect {
            Some(target) => self.follow(target, known),
            None => Ok(()),
        }
    }

    fn follow(&mut self, target: &str, known: &Known) -> Result<(), Query> {
        self.lookups += 1;
        if self.lookups > SURVEY_ENDS {
            return Ok(());
        }
        if !macros::is_fixed(target) {
            self.varies = true;
            return Ok(());
        }
        let target = target.trim_end_matches('.').to_ascii_lowercase();
        self.reaches.push(target.clone());
        self.visit(&target, known)
    }

    fn note(&mut self, problem: String) -> Result<(), Query> {
        self.problem.get_or_insert(problem);
        Ok(())
    }
}
