//! The records of a domain whose mail comes here.

use std::net::IpAddr;

use tasuki_proto::{
    names::Domain,
    smtp::{
        mta_sts::{StsError, record_id},
        tlsrpt::{TlsRptError, destinations},
    },
};

use super::{
    DnsRecord, Look,
    RecordState::{Differs, Missing},
    exits::Sources,
};
use crate::dns::{LookupError, MxAnswer};

impl Look<'_> {
    pub(super) async fn incoming(&self, domain: &Domain, sources: &Sources) -> Vec<DnsRecord> {
        let (mx, reports, sts) = tokio::join!(
            self.leads_here(domain, sources),
            self.tls_reports(domain),
            self.mta_sts(domain),
        );
        vec![mx, reports, sts]
    }

    async fn leads_here(&self, domain: &Domain, sources: &Sources) -> DnsRecord {
        let host = &self.settings.host;
        let record = DnsRecord::new(domain.as_str(), "mx", domain.as_str(), "MX").with(format!("10 {host}."));
        let elsewhere =
            "its mail does not come here: publish this record, or take the domain out of mail.relay_domains";
        let (hosts, record) = match self.resolver.mx(domain.as_str()).await {
            Err(error) => return record.unanswered(&error),
            Ok(MxAnswer::Null) => {
                let cure = "a null MX says that the domain takes no mail: publish this record in its place";
                return record.found(["0 ."]).is(Differs, cure);
            }
            Ok(MxAnswer::NoDomain) => return record.is(Missing, "the domain does not exist in the DNS"),
            Ok(MxAnswer::Implicit) => (vec![domain.to_string()], record),
            Ok(MxAnswer::Hosts(hosts)) => {
                let record = record.found(hosts.iter().map(|(n, host)| format!("{n} {host}.")));
                (hosts.into_iter().map(|(_, host)| host).collect(), record)
            }
        };
        match self.is_ours(&hosts, sources).await {
            Err(error) => record.unanswered(&error),
            Ok(true) => record,
            Ok(false) if record.found.is_empty() => record.is(Missing, elsewhere),
            Ok(false) => record.is(Differs, elsewhere),
        }
    }

    /// Whether one of these hosts is this gateway, by its name or by an address.
    async fn is_ours(&self, hosts: &[String], sources: &Sources) -> Result<bool, LookupError> {
        let (resolver, host) = (self.resolver, self.settings.host.as_str());
        if hosts.iter().any(|one| one == host) {
            return Ok(true);
        }
        let mut ours: Vec<IpAddr> = sources.public.iter().map(|source| source.ip).collect();
        ours.extend(resolver.addresses(host).await?);
        for one in hosts {
            let theirs = resolver.addresses(one).await?;
            if theirs.iter().any(|ip| ours.contains(ip)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn tls_reports(&self, domain: &Domain) -> DnsRecord {
        let name = format!("_smtp._tls.{domain}");
        let record = DnsRecord::new(domain.as_str(), "tls-rpt", name.as_str(), "TXT").hint();
        let found = match self.resolver.txt(&name).await {
            Err(error) => return record.unanswered(&error),
            Ok(found) => found,
        };
        let read = destinations(&found);
        let record = record.found(found);
        let ours = format!("v=TLSRPTv1; rua=mailto:postmaster@{domain}");
        match read {
            Ok(_) => record,
            Err(TlsRptError::Records(0)) => {
                let cure = "optional: with it, other servers report when TLS to here fails (RFC 8460)";
                record.with(ours).is(Missing, cure)
            }
            Err(error) => record
                .with(ours)
                .is(Differs, format!("{error}: correct the record")),
        }
    }

    async fn mta_sts(&self, domain: &Domain) -> DnsRecord {
        let name = format!("_mta-sts.{domain}");
        let record = DnsRecord::new(domain.as_str(), "mta-sts", name.as_str(), "TXT").hint();
        let found = match self.resolver.txt(&name).await {
            Err(error) => return record.unanswered(&error),
            Ok(found) => found,
        };
        let read = record_id(&found);
        let record = record.found(found);
        match read {
            Ok(_) => record,
            Err(StsError::Records(0)) => {
                let cure = format!(
                    "optional: with it and a policy at https://mta-sts.{domain}/.well-known/mta-sts.txt, other servers insist \
                     on TLS (RFC 8461)"
                );
                record.is(Missing, cure)
            }
            Err(error) => record.is(Differs, format!("{error}: correct the record")),
        }
    }
}
