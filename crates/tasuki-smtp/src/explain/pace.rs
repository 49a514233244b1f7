//! How fast mail goes to a next hop: its rule, and where it stands now.

use std::time::Duration;

use tasuki_core::store::mail::LaneKey;
use tasuki_proto::names::MailHost;

use super::RouteExplained;
use crate::{
    config::{ProviderConfig, Settings, Smarthost},
    engine::Handle,
    route::{self, NextHop},
};

/// Tells how fast mail of a lane may go.
pub(super) async fn tell(handle: &Handle, settings: &Settings, lane: &LaneKey, told: &mut RouteExplained) {
    match route::next_hop(settings, lane) {
        Err(_) => {}
        Ok(NextHop::Smarthost(smarthost)) => told.pace.push(of_smarthost(&smarthost)),
        Ok(NextHop::Group(group)) => told.pace.extend(group.iter().map(|one| of_smarthost(one))),
        Ok(NextHop::Mx(MailHost::Domain(domain))) => {
            // Domains with the same servers share their site's lane.
            match route::site(&handle.context, settings, &domain).await {
                Ok(site) => at_site(handle, settings, &site, told),
                Err(error) => told
                    .pace
                    .push(format!("not known, because its servers are not: {error}")),
            }
        }
        Ok(NextHop::Mx(MailHost::Literal(_))) => at_site(handle, settings, lane, told),
    }
}

fn at_site(handle: &Handle, settings: &Settings, site: &LaneKey, told: &mut RouteExplained) {
    let rule = route::provider(settings, site);
    let by = match rule {
        Some(rule) => format!("the rule {:?} for this receiver", rule.name),
        None => "no rule for this receiver, as for all".to_owned(),
    };
    let limits = route::pace(settings, site);
    told.pace.push(format!(
        "{}: {by}: {} connections at a time, {} to begin with, {} mails over each, {}",
        site.0,
        limits.connections,
        limits.start,
        mails_per_connection(rule, settings),
        gap(limits.gap)
    ));
    for now in handle.lanes_of(site) {
        let pause = now.pause_ms.map_or(Duration::ZERO, Duration::from_millis);
        let slowed = if now.slowed {
            ", because the receiver said that mail came too fast"
        } else {
            ""
        };
        told.pace.push(format!(
            "now: {} connections, {}{slowed}",
            now.allowed,
            gap(pause)
        ));
    }
}

fn mails_per_connection(rule: Option<&ProviderConfig>, settings: &Settings) -> usize {
    rule.and_then(|rule| rule.mails_per_connection)
        .unwrap_or(settings.delivery.mails_per_connection)
}

fn gap(gap: Duration) -> String {
    if gap.is_zero() {
        return "no pause between mails".to_owned();
    }
    format!("one mail every {} ms", gap.as_millis())
}

fn of_smarthost(smarthost: &Smarthost) -> String {
    format!(
        "{}: {} connections at a time, {} mails over each",
        smarthost.name, smarthost.connections, smarthost.mails_per_connection
    )
}
