//! Our own addresses that mail goes out from, in pools, each with its weight and its name in EHLO.

use std::{
    collections::HashSet,
    io::ErrorKind,
    net::{IpAddr, TcpListener},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_proto::names::Domain;

use super::bad;

#[cfg(test)]
mod tests;

/// A pool of addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name, for routes and `mail.default_source`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<SourceAddressConfig>,
}

/// One address of this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceAddressConfig {
    /// The address.
    pub ip: IpAddr,
    /// Our name in EHLO from there, which its PTR record should have; `server.host` if absent.
    #[serde(default)]
    pub helo: Option<Domain>,
    /// Its share of the destinations, beside the others'; 1.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// A pool, ready for use.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) name: String,
    addresses: Vec<SourceAddressConfig>,
}

impl SourceConfig {
    pub(super) fn check(&self) -> Result<Arc<Pool>, BuildError> {
        let wrong = |key: &str, problem: String| {
            let key = format!("mail.sources.{key}");
            Err(bad(&key, format!("{}: {problem}", self.name)))
        };
        if self.name.is_empty() || self.addresses.is_empty() {
            return wrong(
                "addresses",
                "a pool has a name and at least one address".to_owned(),
            );
        }
        let mut seen = HashSet::new();
        for address in &self.addresses {
            if address.weight == Some(0) || !seen.insert(address.ip) {
                let problem = format!("{}: once, and with a weight of at least 1", address.ip);
                return wrong("addresses", problem);
            }
            // Found now, and not when the first mail waits for it.
            match TcpListener::bind((address.ip, 0)) {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                    let problem = format!(
                        "{} is no address of this machine: give it to an interface, or take it out of the pool",
                        address.ip
                    );
                    return wrong("addresses", problem);
                }
                _ => {}
            }
        }
        Ok(Arc::new(Pool {
            name: self.name.clone(),
            addresses: self.addresses.clone(),
        }))
    }
}

impl Pool {
    /// All of them.
    pub(crate) fn addresses(&self) -> &[SourceAddressConfig] {
        &self.addresses
    }

    /// The address for a server of this family; always the same for the same seed, so that a destination which
    /// greylists sees the mail come from where it came before.
    pub(crate) fn pick(&self, ipv6: bool, seed: u64) -> Option<&SourceAddressConfig> {
        let weight = |address: &SourceAddressConfig| u64::from(address.weight.unwrap_or(1));
        let family = || self.addresses.iter().filter(|a| a.ip.is_ipv6() == ipv6);
        let total: u64 = family().map(weight).sum();
        let mut left = seed.checked_rem(total)?;
        family().find(|address| match left.checked_sub(weight(address)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
    }
}

/// A seed from a text.
pub(crate) fn seed_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}
