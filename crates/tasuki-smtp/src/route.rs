//! From a recipient to the lane its mail waits in, and from a lane to the servers that may take it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tasuki_core::{net::is_special, store::mail::LaneKey};
use tasuki_proto::{
    names::{Domain, MailHost, Mailbox},
    smtp::{Reply, pace::PaceLimits},
};

use crate::{
    config::{Origin, ProviderConfig, Settings, Smarthost, Via, pace_limits},
    context::Context,
    dns::MxAnswer,
};

#[cfg(test)]
mod tests;

/// Most MX hosts tried in one attempt, and most addresses of each.
const MAX_HOSTS: usize = 5;
const MAX_ADDRESSES: usize = 2;

/// A lane's next hop, read back from its key.
#[derive(Clone, Debug)]
pub(crate) enum NextHop {
    /// A configured smarthost.
    Smarthost(Arc<Smarthost>),
    /// Several that stand in for each other.
    Group(Arc<[Arc<Smarthost>]>),
    /// The mail servers of a domain, or an address literal.
    Mx(MailHost),
}

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// For TLS and people.
    pub(crate) host: String,
    pub(crate) addr: SocketAddr,
}

/// Why there is nobody to try.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    /// The recipients' domain cannot get mail; this judges the mail.
    #[error("{0}")]
    Unroutable(Reply),
    /// It cannot be told now.
    #[error("{0}")]
    Unknown(String),
}

/// The lane of a recipient under these settings, for mail of our own (notices, questions).
pub(crate) fn lane_of(settings: &Settings, mailbox: &Mailbox) -> LaneKey {
    lane_for(settings, Origin::default(), mailbox)
}

/// The lane of a recipient under these settings, for mail from `origin`.
pub(crate) fn lane_for(settings: &Settings, origin: Origin<'_>, mailbox: &Mailbox) -> LaneKey {
    match settings.ways.choose(origin, mailbox) {
        Via::Direct => LaneKey(format!("mx:{}", mailbox.host())),
        Via::Smarthost(name) => LaneKey(format!("via:{name}")),
    }
}

/// The lane of recipients to whom a mail has been already. It leads back to the sender only.
pub(crate) const LOOP_LANE: &str = "loop:";

/// Whether it is [`LOOP_LANE`].
pub(crate) fn is_loop(key: &LaneKey) -> bool {
    key.0 == LOOP_LANE
}

/// What a lane's key stands for. A smarthost that left the configuration is unknown, until its mails are re-routed.
pub(crate) fn next_hop(settings: &Settings, key: &LaneKey) -> Result<NextHop, RouteError> {
    if let Some(name) = key.0.strip_prefix("via:") {
        return match settings.ways.members(name) {
            Some([one]) => Ok(NextHop::Smarthost(Arc::clone(one))),
            Some(group) => Ok(NextHop::Group(group.into())),
            None => Err(RouteError::Unknown(format!(
                "smarthost {name:?} is no longer configured"
            ))),
        };
    }
    if is_loop(key) {
        return Err(RouteError::Unroutable(DELIVERED_BEFORE));
    }
    let host = key.0.strip_prefix("mx:").and_then(|h| MailHost::parse(h).ok());
    host.map(NextHop::Mx)
        .ok_or_else(|| RouteError::Unknown(format!("lane {:?} names no next hop", key.0)))
}

/// The rule for the receiver that a site's lane is to.
pub(crate) fn provider<'a>(settings: &'a Settings, key: &LaneKey) -> Option<&'a ProviderConfig> {
    let site = key.0.strip_prefix("site:")?;
    let host = site.split('~').next().unwrap_or(site);
    settings.providers.of_host(host)
}

/// How fast mail of a lane may go.
pub(crate) fn pace(settings: &Settings, key: &LaneKey) -> PaceLimits {
    let fixed = |connections| PaceLimits {
        connections,
        start: connections,
        gap: Duration::ZERO,
    };
    match next_hop(settings, key) {
        Ok(NextHop::Smarthost(smarthost)) => fixed(smarthost.connections),
        Ok(NextHop::Group(group)) => fixed(group.iter().map(|smarthost| smarthost.connections).sum()),
        // It only finds out its site.
        Ok(NextHop::Mx(MailHost::Domain(_))) => fixed(1),
        _ => pace_limits(provider(settings, key), settings.delivery.connections_per_site),
    }
}

/// The servers to try, best first.
pub(crate) async fn candidates(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    seed: u64,
) -> Result<Vec<Candidate>, RouteError> {
    match hop {
        NextHop::Smarthost(smarthost) => smarthost_addresses(context, smarthost).await,
        NextHop::Group(group) => {
            let order = context.members.in_order(group, context.deps.clock.now());
            let nobody = || RouteError::Unknown("the group has no members".to_owned());
            smarthost_addresses(context, order.first().ok_or_else(nobody)?).await
        }
        NextHop::Mx(MailHost::Literal(ip)) => {
            let candidate = Candidate {
                host: ip.to_string(),
                addr: SocketAddr::new(*ip, settings.delivery.mx_port),
            };
            guard(context, settings, vec![candidate])
        }
        NextHop::Mx(MailHost::Domain(domain)) => mx_addresses(context, settings, domain, seed).await,
    }
}

pub(crate) async fn smarthost_addresses(
    context: &Context,
    smarthost: &Smarthost,
) -> Result<Vec<Candidate>, RouteError> {
    let addresses = match smarthost.host.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => lookup(context, &smarthost.host).await?,
    };
    if addresses.is_empty() {
        return Err(RouteError::Unknown(format!("{} has no address", smarthost.host)));
    }
    let at = |ip| Candidate {
        host: smarthost.host.clone(),
        addr: SocketAddr::new(ip, smarthost.port),
    };
    Ok(addresses.into_iter().take(MAX_ADDRESSES).map(at).collect())
}

async fn lookup(context: &Context, host: &str) -> Result<Vec<IpAddr>, RouteError> {
    // RFC 6761 6.3: this name never leaves the machine.
    if host == "localhost" {
        return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
    }
    let found = context.resolver.addresses(host).await;
    let found = found.map_err(|e| RouteError::Unknown(e.to_string()))?;
    Ok(in_turn(found, context.settings.load().delivery.ipv4_first))
}

/// A domain's mail servers by name, best first.
async fn mx_hosts(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    seed: u64,
) -> Result<Vec<String>, RouteError> {
    let answer = context
        .resolver
        .mx(domain.as_str())
        .await
        .map_err(|e| RouteError::Unknown(e.to_string()))?;
    mail_servers(answer, domain, &settings.host, seed).map_err(RouteError::Unroutable)
}

/// The lane that a domain shares with all domains that have the same mail servers.
pub(crate) async fn site(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
) -> Result<LaneKey, RouteError> {
    // Any seed will do as long as it is the same for all, so that the same servers make the same name.
    let hosts = mx_hosts(context, settings, domain, 0).await?;
    Ok(site_of(&hosts))
}

/// The name for people is the first server's; sets that begin with the same one are told apart by a mark.
fn site_of(hosts: &[String]) -> LaneKey {
    let first = hosts.first().map_or("", String::as_str);
    if hosts.len() < 2 {
        return LaneKey(format!("site:{first}"));
    }
    let mark = hosts.iter().flat_map(|host| host.bytes().chain([0]));
    let mark = mark.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    LaneKey(format!("site:{first}~{mark:016x}"))
}

async fn mx_addresses(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    seed: u64,
) -> Result<Vec<Candidate>, RouteError> {
    let hosts = mx_hosts(context, settings, domain, seed).await?;
    let mut candidates = Vec::new();
    let mut trouble = None;
    for host in hosts.into_iter().take(MAX_HOSTS) {
        match lookup(context, &host).await {
            Ok(addresses) => {
                candidates.extend(addresses.into_iter().take(MAX_ADDRESSES).map(|ip| Candidate {
                    host: host.clone(),
                    addr: SocketAddr::new(ip, settings.delivery.mx_port),
                }))
            }
            // RFC 5321 5.1: a lookup that failed is not a name without addresses.
            Err(error) => trouble = Some(error),
        }
    }
    match (candidates.is_empty(), trouble) {
        (true, Some(error)) => Err(error),
        (true, None) => Err(RouteError::Unroutable(NO_ADDRESS)),
        _ => guard(context, settings, candidates),
    }
}

/// One address of each family in turn, so that a server whose one family is not to be reached is tried by the other.
fn in_turn(addresses: Vec<IpAddr>, ipv4_first: bool) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    let (first, second) = if ipv4_first { (v4, v6) } else { (v6, v4) };
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

pub(crate) const NULL_MX: Reply = Reply::new(556, (5, 1, 10), "the domain takes no mail (null MX)");
const NO_DOMAIN: Reply = Reply::new(550, (5, 1, 2), "the domain does not exist");
const NO_ADDRESS: Reply = Reply::new(550, (5, 4, 4), "the domain has no mail server and no address");
const LOOP: Reply = Reply::new(
    554,
    (5, 4, 6),
    "the domain's mail server is this one: mail loops back to us",
);
/// RFC 9228: its Delivered-To field names the address that it comes for.
pub(crate) const DELIVERED_BEFORE: Reply = Reply::new(
    554,
    (5, 4, 6),
    "mail loops: it was sent on for this recipient before and came back",
);
const PRIVATE: Reply = Reply::new(
    550,
    (5, 4, 4),
    "the domain's mail server has a private or special address",
);

/// The hosts to try, best first; equal preferences in an order that the seed decides (RFC 5321 5.1).
fn mail_servers(answer: MxAnswer, domain: &Domain, own: &Domain, seed: u64) -> Result<Vec<String>, Reply> {
    let mut hosts = match answer {
        MxAnswer::NoDomain => return Err(NO_DOMAIN),
        MxAnswer::Null => return Err(NULL_MX),
        MxAnswer::Implicit if domain == own => return Err(LOOP),
        MxAnswer::Implicit => return Ok(vec![domain.as_str().to_owned()]),
        MxAnswer::Hosts(hosts) => hosts,
    };
    // If we are one of them, only better ones may be tried, or mail would go round in circles.
    if let Some(ours) = hosts
        .iter()
        .filter(|(_, h)| h == own.as_str())
        .map(|(p, _)| *p)
        .min()
    {
        hosts.retain(|(preference, _)| *preference < ours);
        if hosts.is_empty() {
            return Err(LOOP);
        }
    }
    hosts.retain(|(_, host)| !host.is_empty());
    let shuffle = |host: &str| {
        host.bytes()
            .fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    hosts.sort_by_key(|(preference, host)| (*preference, shuffle(host)));
    if hosts.is_empty() {
        Err(NO_ADDRESS)
    } else {
        Ok(hosts.into_iter().map(|(_, host)| host).collect())
    }
}

/// Takes out addresses that a stranger's DNS must not make us contact: private ones, and our own listeners.
fn guard(
    context: &Context,
    settings: &Settings,
    mut candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, RouteError> {
    let before = candidates.len();
    let is_own = |addr: SocketAddr| {
        context.own.iter().any(|own| {
            own.port() == addr.port()
                && (own.ip() == addr.ip() || own.ip().is_unspecified() && addr.ip().is_loopback())
        })
    };
    candidates.retain(|c| !is_own(c.addr));
    if candidates.is_empty() && before > 0 {
        return Err(RouteError::Unroutable(LOOP));
    }
    if !settings.delivery.danger_private_addresses {
        candidates.retain(|c| !is_special(c.addr.ip()));
    }
    if candidates.is_empty() {
        Err(RouteError::Unroutable(PRIVATE))
    } else {
        Ok(candidates)
    }
}
