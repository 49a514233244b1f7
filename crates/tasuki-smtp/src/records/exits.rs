//! Where a domain's mail leaves from.

use std::{
    collections::HashSet,
    net::{IpAddr, UdpSocket},
};

use tasuki_core::{net::is_special, store::StoreError};
use tasuki_proto::{
    names::{Domain, Mailbox},
    smtp::client::Protocol,
};

use super::Look;
use crate::config::{Pool, ProviderSpf, Settings, Via};

/// Addresses that receivers know how to reach; nothing is sent there.
const SOMEWHERE: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// An address that receivers see, and our name in EHLO from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) ip: IpAddr,
    pub(super) helo: Domain,
}

/// The addresses that mail leaves from.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    /// Those that receivers see.
    pub(super) public: Vec<Source>,
    /// Private ones: what receivers see in their place is not known here.
    pub(super) hidden: Vec<IpAddr>,
}

impl Sources {
    pub(super) fn add(&mut self, more: &Self) {
        for source in &more.public {
            if !self.public.contains(source) {
                self.public.push(source.clone());
            }
        }
        for ip in &more.hidden {
            if !self.hidden.contains(ip) {
                self.hidden.push(*ip);
            }
        }
    }

    /// Those of a pool; of the system's choice without one. What the operator says is known better.
    fn new(settings: &Settings, pool: Option<&Pool>, said: &[IpAddr]) -> Self {
        let helo = |ip: IpAddr| {
            let named = settings.ways.pools().flat_map(|pool| pool.addresses());
            let mut here = named.filter(|address| address.ip == ip);
            let helo = here.find_map(|address| address.helo.clone());
            helo.unwrap_or_else(|| settings.host.clone())
        };
        let (ips, known) = match pool {
            _ if !said.is_empty() => (said.to_vec(), true),
            Some(pool) => (pool.addresses().iter().map(|address| address.ip).collect(), false),
            None => (chosen_by_the_system(), false),
        };
        let mut sources = Self::default();
        for ip in ips {
            if known || !is_special(ip) {
                sources.public.push(Source { ip, helo: helo(ip) });
            } else {
                sources.hidden.push(ip);
            }
        }
        sources
    }

    /// Those of all pools and of the system's choice.
    pub(super) fn of_all(look: &Look<'_>, said: &[IpAddr]) -> Self {
        let mut all = Self::new(look.settings, None, said);
        for pool in look.settings.ways.pools() {
            all.add(&Self::new(look.settings, Some(pool), said));
        }
        all
    }

    /// That the public address is not known, if that is so.
    pub(super) fn hidden_in_words(&self) -> Option<String> {
        let list: Vec<String> = self.hidden.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        (!list.is_empty()).then(|| {
            format!(
                "mail leaves from {list}, which is no public address: this machine is behind NAT, and the address that \
                 receivers see is not known here; say --address IP"
            )
        })
    }
}

/// The addresses that packets for elsewhere leave from, one of each family.
fn chosen_by_the_system() -> Vec<IpAddr> {
    let chosen = |(from, to): &(&str, &str)| {
        // A UDP socket is only bound to a route by this.
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    SOMEWHERE.iter().filter_map(chosen).collect()
}

/// By which ways a domain's mail leaves.
pub(super) struct Exits {
    /// Some of it goes to the recipients' servers.
    pub(super) is_direct: bool,
    /// Where that leaves from.
    pub(super) sources: Sources,
    /// What providers' customers include, with the smarthost's name.
    pub(super) includes: Vec<(String, ProviderSpf)>,
    /// Smarthosts about which nothing is known.
    pub(super) unknown: Vec<String>,
}

impl Exits {
    pub(super) async fn of(look: &Look<'_>, domain: &Domain, said: &[IpAddr]) -> Result<Self, StoreError> {
        let settings = look.settings;
        let mut may = HashSet::new();
        for name in settings.ways.principals() {
            let principal = look.context.deps.accounts.by_name(name).await?;
            let mailbox = Mailbox::parse(&format!("postmaster@{domain}")).ok();
            if let (Some(principal), Some(mailbox)) = (principal, mailbox)
                && principal.may_send_from(&mailbox)
            {
                may.insert(name.to_owned());
            }
        }
        let mut found = Self {
            is_direct: false,
            sources: Sources::default(),
            includes: Vec::new(),
            unknown: Vec::new(),
        };
        let may = |name: &str| may.contains(name);
        for (via, pool) in settings.ways.exits(domain, &settings.relay_domains, &may) {
            let name = match via {
                Via::Direct => {
                    found.is_direct = true;
                    found.sources.add(&Sources::new(settings, pool.as_deref(), said));
                    continue;
                }
                Via::Smarthost(name) => name,
            };
            for member in settings.ways.members(&name).unwrap_or_default() {
                // A mail store sends nothing on.
                if member.protocol == Protocol::Lmtp {
                    continue;
                }
                let name = member.name.to_string();
                match member.spf {
                    Some(spf) => found.includes.push((name, spf)),
                    None => found.unknown.push(name),
                }
            }
        }
        found.includes.dedup();
        found.unknown.dedup();
        Ok(found)
    }

    /// What there is to say of them.
    pub(super) fn in_words(&self, domain: &Domain) -> Option<String> {
        if self.is_direct {
            return None;
        }
        let known = self.includes.iter().map(|(name, _)| name);
        let names: Vec<&str> = known.chain(&self.unknown).map(String::as_str).collect();
        Some(format!(
            "all mail of {domain} goes through {}: receivers see that provider's addresses, so the PTR and SPF of our own \
             do not matter for it",
            names.join(", ")
        ))
    }
}
