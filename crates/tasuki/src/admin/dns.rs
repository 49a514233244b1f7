//! The DNS records that our mail needs, and whether they are published.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tasuki_core::accounts::Grant;
use tasuki_proto::names::Domain;
use tasuki_smtp::DnsReport;

use super::Admin;
use super::accounts::quoted;
use super::mail::engine;
use super::problem::{Answer, Params, Problem};

/// Most domains in one answer: each takes a dozen questions to the DNS.
const MAX_DOMAINS: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Domains with commas between them; all that send if empty.
    #[serde(default)]
    domains: String,
    /// Our public addresses, with commas between them; what this machine knows if empty.
    #[serde(default)]
    addresses: String,
}

fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|one| !one.is_empty())
}

pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    Params(asked): Params<Asked>,
) -> Answer<Json<DnsReport>> {
    let mut domains = BTreeSet::new();
    for text in listed(&asked.domains) {
        let domain =
            Domain::parse(text).map_err(|error| Problem::bad(format!("{}: {error}", quoted(text))))?;
        domains.insert(domain);
    }
    let mut addresses = Vec::new();
    for text in listed(&asked.addresses) {
        let address: IpAddr = text
            .parse()
            .map_err(|_| Problem::bad(format!("{} is not an IP address", quoted(text))))?;
        addresses.push(address);
    }
    let mail = engine(&admin)?;
    let all = domains.is_empty();
    if all {
        domains.extend(mail.dkim_domains().await?);
        for principal in admin.store.principals().await? {
            let granted = principal.grants.into_iter().filter_map(|grant| match grant {
                Grant::SendAs(domain) if !principal.disabled => Some(domain),
                _ => None,
            });
            domains.extend(granted);
        }
    }
    if domains.len() > MAX_DOMAINS {
        return Err(Problem::bad(format!(
            "{} domains are too many for one answer, {MAX_DOMAINS} are possible: name those you want to see",
            domains.len()
        )));
    }
    let domains: Vec<Domain> = domains.into_iter().collect();
    Ok(Json(mail.dns_report(&domains, all, &addresses).await?))
}
