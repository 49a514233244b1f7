//! Trust in an address is trust in everybody behind it. Behind a NAT or a container's proxy that may be the whole
//! internet: every client then comes from the bridge's gateway, or from loopback.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tasuki_core::{
    health::{Code, Condition},
    net::{Surroundings, single},
};

use crate::{config::MailConfig, context::Context};

/// So many names in EHLO within this time are not those of one trusted machine.
const NAMES: usize = 10;
const WITHIN: Duration = Duration::from_secs(3600);
/// Addresses that are watched at a time; the names of each are bounded by [`NAMES`].
const ADDRESSES: usize = 256;

/// The names that clients of trusted addresses gave.
#[derive(Default)]
pub(crate) struct Crowds(Mutex<HashMap<IpNet, Crowd>>);

struct Crowd {
    since: Instant,
    names: HashSet<Box<str>>,
}

impl Crowds {
    /// Notes a name; true if the address has too many of them.
    fn heard(&self, from: IpAddr, name: &str, now: Instant) -> bool {
        let mut crowds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        crowds.retain(|_, crowd| now.saturating_duration_since(crowd.since) < WITHIN);
        if crowds.len() >= ADDRESSES && !crowds.contains_key(&single(from)) {
            return false;
        }
        let crowd = crowds.entry(single(from)).or_insert_with(|| Crowd {
            since: now,
            names: HashSet::new(),
        });
        if crowd.names.len() < NAMES {
            crowd.names.insert(name.to_ascii_lowercase().into_boxed_str());
        }
        crowd.names.len() >= NAMES
    }
}

/// A client that is trusted for its address alone starts a mail under this name.
pub(crate) fn heard(context: &Context, from: IpAddr, name: &str) {
    if !context.crowds.heard(from, name, context.deps.clock.now()) {
        return;
    }
    let sentence = format!(
        "{from}, which mail.mynetworks trusts, is {NAMES} or more machines by their names in EHLO: if it is a NAT or a \
         container's proxy, everybody behind it may send mail. Take it out of mynetworks and use logins, or let the proxy say \
         who the client is (mail.proxy_protocol_from)"
    );
    context.deps.health.set(
        &format!("mail.trust.{from}"),
        Some(Condition::warning(Code::Trust, sentence)),
    );
}

impl MailConfig {
    /// Networks that are trusted here, and in whose name a NAT or proxy around this machine could speak.
    pub fn trust_warnings(&self, around: &Surroundings) -> Vec<String> {
        if !around.in_container {
            return Vec::new();
        }
        let networks = self.mynetworks.iter().map(|entry| ("mail.mynetworks", entry.net));
        let devices = self.devices.list.iter();
        let devices = devices.flat_map(|device| device.net.iter().map(|net| ("mail.devices.list.net", *net)));
        networks
            .chain(devices)
            .filter_map(|(key, net)| Some((key, net, speaks_for_all(net, around)?)))
            .map(|(key, net, why)| {
                format!(
                    "{key} trusts {net}, and this is a container: {why} If the ports are published by a proxy or NAT, everybody \
                     may send mail. Trust the containers' own addresses only, or use logins"
                )
            })
            .collect()
    }
}

fn speaks_for_all(net: IpNet, around: &Surroundings) -> Option<String> {
    let gateway = around.gateways.iter().find(|gateway| net.contains(*gateway));
    let loopback = ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>());
    if let Some(gateway) = gateway {
        Some(format!(
            "clients from outside may all come from its gateway {gateway}."
        ))
    } else if loopback.iter().flatten().any(|ip| net.contains(ip)) {
        Some("clients from outside may all come from loopback.".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::NetworkConfig;
    use tasuki_core::clock::Clock;

    fn warnings(net: &str, in_container: bool) -> Vec<String> {
        let config = MailConfig {
            mynetworks: vec![NetworkConfig {
                net: net.parse().unwrap(),
                service: "office".into(),
            }],
            ..MailConfig::default()
        };
        config.trust_warnings(&Surroundings {
            gateways: vec!["172.17.0.1".parse().unwrap()],
            in_container,
        })
    }

    #[test]
    fn a_network_that_holds_the_gateway_of_a_container_is_warned_of() {
        for net in ["172.17.0.0/16", "172.16.0.0/12", "172.17.0.1/32", "0.0.0.0/0"] {
            assert!(warnings(net, true)[0].contains("172.17.0.1"), "{net}");
            assert!(warnings(net, false).is_empty(), "{net}");
        }
        for net in ["127.0.0.0/8", "::1/128"] {
            assert!(warnings(net, true)[0].contains("loopback"), "{net}");
        }
        for net in ["172.17.0.2/32", "10.0.0.0/8", "fd00::/8"] {
            assert!(warnings(net, true).is_empty(), "{net}");
        }
    }

    #[test]
    fn many_names_of_one_address_are_a_crowd_and_few_are_not() {
        let crowds = Crowds::default();
        let now = Clock::adjustable().now();
        let gateway: IpAddr = "172.17.0.1".parse().unwrap();
        for n in 0..NAMES - 1 {
            assert!(!crowds.heard(gateway, &format!("host{n}.example"), now));
            assert!(!crowds.heard(gateway, "HOST0.example", now));
        }
        assert!(crowds.heard(gateway, "last.example", now));
        assert!(!crowds.heard("172.17.0.2".parse().unwrap(), "app.example", now));
        assert!(
            !crowds.heard(gateway, "host0.example", now + WITHIN),
            "they are forgotten"
        );
        for n in 0..=2 * ADDRESSES {
            let ip = IpAddr::from([10, 0, (n / 256) as u8, (n % 256) as u8]);
            crowds.heard(ip, "x", now + WITHIN);
        }
        assert!(crowds.0.lock().unwrap().len() <= ADDRESSES);
    }
}
