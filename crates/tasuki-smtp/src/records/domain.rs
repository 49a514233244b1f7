//! The records of a domain whose mail leaves through here.

use futures_util::future::join_all;
use tasuki_proto::{
    names::Domain,
    smtp::dmarc::{Dmarc, DmarcError, is_dmarc},
};

use super::{
    DnsRecord, Look,
    RecordState::{Differs, Missing, Unknown, Warning},
    exits::Exits,
};
use crate::{
    dkim::{DkimKey, KeyState},
    dns::{LookupError, MxAnswer},
};

/// Most steps up to a domain that has a DMARC record (RFC 9989 4.10).
const MAX_STEPS: usize = 8;

impl Look<'_> {
    pub(super) async fn domain(&self, domain: &Domain, exits: &Exits) -> Vec<DnsRecord> {
        let keys = self.keys_of(domain);
        let mut signed = Vec::new();
        if keys.is_empty() {
            let record = DnsRecord::new(domain.as_str(), "dkim", format!("_domainkey.{domain}"), "TXT");
            let cure = format!(
                "its mail is not signed: `tasuki mail dkim add {domain}` makes keys and prints their records"
            );
            let record = record.is(Missing, cure);
            // The provider may sign in its place.
            signed.push(if exits.is_direct { record } else { record.hint() });
        }
        // Where we take its mail, more is asked of the MX.
        let is_incoming = self.settings.relay_domains.contains(domain);
        let returns = async {
            match is_incoming {
                true => None,
                false => Some(self.returns(domain).await),
            }
        };
        // All at once: a DNS that does not answer takes its time only once.
        let (returns, spf, of_keys, dmarc) = tokio::join!(
            returns,
            self.spf(domain, exits),
            join_all(keys.iter().map(|key| self.dkim(domain, key))),
            self.dmarc(domain, keys.first().map(|key| &key.domain)),
        );
        let mut records: Vec<DnsRecord> = returns.into_iter().collect();
        records.push(spf);
        records.extend(signed);
        records.extend(of_keys);
        records.push(dmarc);
        records
    }

    /// The keys that sign or will sign the domain's mail: its own, or those of the nearest domain above.
    fn keys_of(&self, domain: &Domain) -> Vec<&DkimKey> {
        let above = self.keys.iter().filter(|key| domain.is_within(&key.domain));
        let nearest = above
            .map(|key| &key.domain)
            .max_by_key(|above| above.as_str().len());
        let of_nearest = self.keys.iter().filter(|key| Some(&key.domain) == nearest);
        of_nearest.filter(|key| key.state != KeyState::Retired).collect()
    }

    /// A domain that takes no mail gets no notices of failure, and its mail is refused by some.
    async fn returns(&self, domain: &Domain) -> DnsRecord {
        let record = DnsRecord::new(domain.as_str(), "mx", domain.as_str(), "MX");
        let resolver = self.resolver;
        match resolver.mx(domain.as_str()).await {
            Err(error) => record.unanswered(&error),
            Ok(MxAnswer::Hosts(hosts)) => record.found(hosts.iter().map(|(n, host)| format!("{n} {host}."))),
            Ok(MxAnswer::Null) => {
                // RFC 7505 4.2.
                let cure = "a null MX says that the domain takes no mail, and receivers refuse what it sends: publish the MX \
                            of the server that takes its replies";
                record.found(["0 ."]).is(Differs, cure)
            }
            Ok(MxAnswer::NoDomain) => record.is(
                Missing,
                "the domain does not exist in the DNS: register it, or correct the name",
            ),
            Ok(MxAnswer::Implicit) => match resolver.addresses(domain.as_str()).await {
                Err(error) => record.unanswered(&error),
                Ok(found) if found.is_empty() => {
                    let cure = "it has no mail server, so replies and notices of failure go nowhere: publish the MX of the server \
                                that takes them";
                    record.is(Missing, cure)
                }
                Ok(found) => record.found(found),
            },
        }
    }

    async fn dkim(&self, domain: &Domain, key: &DkimKey) -> DnsRecord {
        let record = DnsRecord::new(domain.as_str(), "dkim", key.name.as_str(), "TXT");
        let next = key.state == KeyState::Next;
        let record = if next { record.hint() } else { record };
        if !key.record.starts_with("v=DKIM1") {
            return record.is(Unknown, key.record.as_str());
        }
        let record = record.with(key.record.as_str());
        let found = match self.resolver.txt(&key.name).await {
            Err(error) => return record.unanswered(&error),
            Ok(found) => found,
        };
        let ours = tag(&key.record, "p");
        let mine = found.iter().find(|text| tag(text, "p") == ours);
        let testing = mine
            .and_then(|text| tag(text, "t"))
            .is_some_and(|flags| flags.split(':').any(|flag| flag == "y"));
        let (there, none, several) = (mine.is_some(), found.is_empty(), found.len() > 1);
        let record = record.found(found);
        match (there, none) {
            (false, true) if next => record.is(
                Missing,
                "publish it, then `tasuki mail dkim rotate` changes over to this key",
            ),
            (false, true) => record.is(Missing, "our signatures cannot be checked: publish this record"),
            (false, false) => record.is(
                Differs,
                "it has another public key: publish this record in its place",
            ),
            // RFC 6376 3.6.2.2: with more than one, the result is undefined.
            (true, _) if several => record.is(Differs, "there must be one record: remove the others"),
            (true, _) if testing => record.is(
                Warning,
                "t=y says that it is a test, and receivers may ignore it: remove t=y",
            ),
            (true, _) => record,
        }
    }

    async fn dmarc(&self, domain: &Domain, signed_by: Option<&Domain>) -> DnsRecord {
        let record = DnsRecord::new(domain.as_str(), "dmarc", format!("_dmarc.{domain}"), "TXT");
        let (at, found) = match self.dmarc_at(domain).await {
            Err(error) => return record.unanswered(&error),
            Ok(None) => {
                let cure = "receivers do not know what to make of forged mail, and large ones want it of every sender: publish \
                            this record; p=quarantine or p=reject once all of the domain's mail is signed";
                return record.with("v=DMARC1; p=none").is(Missing, cure);
            }
            Ok(Some(found)) => found,
        };
        let read = Dmarc::find(&found);
        let record = record.found(found);
        let read = match read {
            Err(DmarcError::Records(_)) => {
                return record.is(
                    Differs,
                    format!("_dmarc.{at} has several DMARC records, so none counts: remove all but one"),
                );
            }
            Err(error) => return record.is(Differs, format!("{error}: correct the record at _dmarc.{at}")),
            Ok(read) => read,
        };
        if let Some(signed_by) = signed_by
            && read.strict_dkim
            && signed_by != domain
        {
            let cure = format!(
                "adkim=s wants a signature of {domain}, and ours is of {signed_by}: `tasuki mail dkim add {domain}`, or \
                 remove adkim=s"
            );
            return record.is(Differs, cure);
        }
        let inherited = at != *domain;
        let policy = match read.subdomains {
            Some(policy) if inherited => policy,
            _ => read.policy,
        };
        let mut record = record;
        if !inherited {
            record.value = record.found.first().cloned();
        }
        record.says = format!("p={}", policy.name());
        if inherited {
            record.says += &format!(", from {at}");
        }
        record
    }

    /// The records that hold for a domain, its own or those of the nearest domain above (RFC 9989 4.10), and whose they are.
    async fn dmarc_at(&self, domain: &Domain) -> Result<Option<(Domain, Vec<String>)>, LookupError> {
        let mut at = Some(domain.clone());
        for _ in 0..MAX_STEPS {
            let Some(name) = at.filter(|name| name == domain || name.as_str().contains('.')) else {
                break;
            };
            let mut found = self.resolver.txt(&format!("_dmarc.{name}")).await?;
            found.retain(|text| is_dmarc(text));
            let of_a_registry = Dmarc::find(&found).is_ok_and(|read| read.public_suffix);
            if !found.is_empty() && (name == *domain || !of_a_registry) {
                return Ok(Some((name, found)));
            }
            at = name.parent();
        }
        Ok(None)
    }
}

/// A tag's value without white space (RFC 6376 3.2).
fn tag(record: &str, name: &str) -> Option<String> {
    let tags = record.split(';').filter_map(|tag| tag.split_once('='));
    let mut values = tags.filter(|(tag, _)| tag.trim() == name);
    values
        .next()
        .map(|(_, value)| value.split_whitespace().collect::<String>())
}
