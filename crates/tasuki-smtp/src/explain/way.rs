//! The way of one recipient's mail: servers, protection, pace.

use tasuki_proto::{
    names::Mailbox,
    smtp::client::{Protocol, Security},
};

use super::{RouteExplained, pace};
use crate::{
    config::{Origin, Settings, Smarthost},
    context::Context,
    deliver::dialing,
    engine::Handle,
    route::{self, Candidate, NextHop},
    tls_policy::{self, Basis, Demand, Level},
};

/// Where one recipient's mail would go.
pub(super) async fn way(
    handle: &Handle,
    settings: &Settings,
    origin: Origin<'_>,
    recipient: &Mailbox,
) -> RouteExplained {
    let context = &*handle.context;
    let lane = route::lane_for(settings, origin, recipient);
    let mut explained = RouteExplained {
        recipient: recipient.to_string(),
        lane: lane.0.clone(),
        servers: Vec::new(),
        tls: Vec::new(),
        pace: Vec::new(),
        held_up: Vec::new(),
    };
    explained.held_up.extend(context.pauses.why(&lane));
    for status in handle.lanes_of(&lane) {
        if let Some(rest) = status.rests_s {
            let error = status.last_error.unwrap_or_default();
            explained
                .held_up
                .push(format!("{} rests for another {rest} s: {error}", status.lane));
        }
    }
    pace::tell(handle, settings, &lane, &mut explained).await;
    let hop = match route::next_hop(settings, &lane) {
        Ok(hop) => hop,
        Err(error) => {
            explained.servers.push(error.to_string());
            return explained;
        }
    };
    match &hop {
        NextHop::Mx(_) => match route::candidates(context, settings, &hop, 0).await {
            Ok(servers) => to_servers(context, settings, &hop, servers, &mut explained).await,
            Err(error) => explained.servers.push(error.to_string()),
        },
        NextHop::Smarthost(smarthost) => to_smarthost(context, smarthost, &mut explained).await,
        NextHop::Group(group) => {
            for smarthost in context.members.in_order(group, context.deps.clock.now()) {
                to_smarthost(context, &smarthost, &mut explained).await;
            }
        }
    }
    explained
}

async fn to_servers(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    servers: Vec<Candidate>,
    explained: &mut RouteExplained,
) {
    let named = servers.iter();
    explained
        .servers
        .extend(named.map(|server| format!("{} at {}", server.host, server.addr)));
    // It is no session, so nothing is counted.
    let mut noted = tls_policy::Noted::default();
    match tls_policy::demands_on(context, settings, hop, servers, &mut noted).await {
        Err(refusal) => explained.tls.push(refusal.failure.to_string()),
        Ok(demands) => {
            with_requiretls(context, settings, hop, demands.clone(), explained).await;
            for (server, demand) in demands {
                let how = match demand.level {
                    Level::Plain => "no TLS",
                    Level::May => "TLS where it works, with any certificate",
                    Level::Encrypt => "TLS or nothing, with any certificate",
                    Level::Verify => "TLS or nothing, with a verified certificate",
                    Level::Dane(_) => "TLS or nothing, with a certificate that its TLSA records name",
                };
                let line = match demand.basis {
                    Basis::Nothing => format!("{}: {how}", server.host),
                    _ => format!("{}: {how} ({})", server.host, demand.name()),
                };
                if !explained.tls.contains(&line) {
                    explained.tls.push(line);
                }
            }
        }
    }
}

/// What would become of the mail if it asked for REQUIRETLS (RFC 8689 4.2.1).
async fn with_requiretls(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    demands: Vec<(Candidate, Demand)>,
    explained: &mut RouteExplained,
) {
    let raised = match tls_policy::raised(context, settings, hop, demands).await {
        Ok(raised) => raised,
        Err(refusal) => return explained.tls.push(refusal.failure.to_string()),
    };
    for (server, demand) in raised {
        let what = match demand.level {
            Level::Verify | Level::Dane(_) => "goes there if the server offers that",
            Level::Plain => "does not go there, because mail.tls_policy wants no TLS",
            _ => "does not go there, because neither a signed MX record nor a policy names the server",
        };
        let line = format!("{}: mail with REQUIRETLS {what}", server.host);
        if !explained.tls.contains(&line) {
            explained.tls.push(line);
        }
    }
}

async fn to_smarthost(context: &Context, smarthost: &Smarthost, explained: &mut RouteExplained) {
    let protocol = match smarthost.protocol {
        Protocol::Lmtp => "by LMTP",
        Protocol::Smtp => "by SMTP",
    };
    let login = match &smarthost.username {
        Some(username) => format!(", as {username}"),
        None => ", without login".to_owned(),
    };
    match route::smarthost_addresses(context, smarthost).await {
        Ok(servers) => explained.servers.extend(servers.iter().map(|server| {
            format!(
                "{}: {} at {} {protocol}{login}",
                smarthost.name, server.host, server.addr
            )
        })),
        Err(error) => explained.servers.push(format!("{}: {error}", smarthost.name)),
    }
    explained
        .tls
        .push(format!("{}: {}", smarthost.name, protected(smarthost)));
    let requires = match dialing::protection(Some(smarthost)) {
        (Security::Plain, _) | (_, false) => "does not go there, because its certificate is not verified",
        (_, true) => "goes there if the server offers that",
    };
    explained
        .tls
        .push(format!("{}: mail with REQUIRETLS {requires}", smarthost.name));
}

fn protected(smarthost: &Smarthost) -> String {
    let (security, verifies) = dialing::protection(Some(smarthost));
    let how = match security {
        Security::Plain => "no TLS",
        Security::Opportunistic => "TLS if the server offers it, else plain",
        Security::Required => "STARTTLS or nothing",
        Security::Implicit => "TLS from the first octet",
    };
    let certificate = match (security, verifies) {
        (Security::Plain, _) => "",
        (_, true) => "; the certificate is verified",
        (_, false) => "; any certificate",
    };
    format!("{how}{certificate}")
}
