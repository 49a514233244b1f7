//! The records of the gateway's own names and addresses.

use std::net::IpAddr;

use futures_util::future::join_all;
use tasuki_proto::{names::Domain, smtp::zone};

use super::{
    DnsRecord, Look,
    RecordState::{Differs, Missing},
    exits::{Source, Sources},
};
use crate::tls_policy::dane;

impl Look<'_> {
    /// `direct`: receivers look at our addresses. `receives`: other servers bring mail.
    pub(super) async fn host(&self, sources: &Sources, direct: bool, receives: bool) -> Vec<DnsRecord> {
        let host = &self.settings.host;
        let mut records = Vec::new();
        if !sources.public.iter().any(|source| source.helo == *host) {
            let record = self.some_address(host).await;
            records.push(if direct || receives { record } else { record.hint() });
        }
        let (addresses, reverse, tlsa) = tokio::join!(
            join_all(sources.public.iter().map(|source| self.address(source))),
            join_all(sources.public.iter().map(|source| self.reverse(source))),
            self.tlsa(host),
        );
        records.extend(addresses.into_iter().chain(reverse).chain(tlsa));
        records
    }

    async fn some_address(&self, host: &Domain) -> DnsRecord {
        let record = DnsRecord::new(host.as_str(), "address", host.as_str(), "A");
        match self.resolver.addresses(host.as_str()).await {
            Err(error) => record.unanswered(&error),
            Ok(found) if found.is_empty() => {
                let cure = "it has no address: publish its A record, and AAAA if it has IPv6 (or correct server.host)";
                record.is(Missing, cure)
            }
            Ok(found) => record.found(found),
        }
    }

    async fn address(&self, source: &Source) -> DnsRecord {
        let Source { ip, helo } = source;
        let kind = if ip.is_ipv4() { "A" } else { "AAAA" };
        let of = self.settings.host.as_str();
        let record = DnsRecord::new(of, "address", helo.as_str(), kind).with(ip.to_string());
        let found = match self.resolver.addresses(helo.as_str()).await {
            Err(error) => return record.unanswered(&error),
            Ok(found) => found.into_iter().filter(|found| found.is_ipv4() == ip.is_ipv4()),
        };
        let found: Vec<IpAddr> = found.collect();
        let (there, none) = (found.contains(ip), found.is_empty());
        let record = record.found(found);
        match (there, none) {
            (true, _) => record,
            (false, true) => record.is(
                Missing,
                format!("mail leaves from {ip} as {helo}: publish this record"),
            ),
            (false, false) => {
                let cure = format!(
                    "mail leaves from {ip} as {helo}, which leads elsewhere: publish this record too"
                );
                record.is(Differs, cure)
            }
        }
    }

    /// The name of an address must be the one in EHLO and lead back; large receivers refuse mail from others.
    async fn reverse(&self, source: &Source) -> DnsRecord {
        let Source { ip, helo } = source;
        let of = self.settings.host.as_str();
        let record = DnsRecord::new(of, "reverse", zone::reverse_name(*ip), "PTR").with(format!("{helo}."));
        let (names, back) =
            match tokio::join!(self.resolver.names(*ip), self.resolver.addresses(helo.as_str())) {
                (Ok(names), Ok(back)) => (names, back),
                (Err(error), _) | (_, Err(error)) => return record.unanswered(&error),
            };
        let right = names.iter().any(|name| name == helo.as_str());
        let none = names.is_empty();
        let record = record.found(names);
        let ask = format!("ask whoever gave you {ip} to name it {helo}");
        match (right, none) {
            (false, true) => record.is(Missing, format!("the address has no name: {ask}")),
            (false, false) => record.is(Differs, format!("it is not the name in EHLO: {ask}")),
            (true, _) if !back.contains(ip) => {
                let cure = format!("{helo} does not lead back to {ip}: publish its address record");
                record.is(Differs, cure)
            }
            (true, _) => record,
        }
    }

    /// Only where somebody has published signed ones: wrong ones keep mail away (RFC 7672 2.2).
    async fn tlsa(&self, host: &Domain) -> Option<DnsRecord> {
        let found = self.resolver.tlsa(host.as_str(), host.as_str(), 25).await;
        let record = DnsRecord::new(host.as_str(), "tlsa", format!("_25._tcp.{host}"), "TLSA");
        let tlsa = match found {
            Err(_) => return None,
            Ok(tlsa) if tlsa.records.is_empty() => return None,
            Ok(tlsa) => tlsa,
        };
        let ours = self.context.deps.tls.certificate();
        let good = dane::names_one_of(&tlsa.records, ours.chain());
        let record = record.found(tlsa.records);
        Some(if good {
            record
        } else {
            let cure = "it names another certificate than the one that is presented: servers that check it bring no mail; \
                        publish the present one's, or remove the record";
            record.is(Differs, cure)
        })
    }
}
