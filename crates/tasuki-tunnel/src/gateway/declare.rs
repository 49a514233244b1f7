//! What an agent declares becomes doors: decided, owned in the store, bound, and only then reported as open.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tasuki_core::EngineKind;
use tasuki_core::limits::{Rate, Who};
use tasuki_core::store::accounts::Principal;
use tasuki_core::store::tunnel::{Endpoint, EndpointKind as Kind};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{
    CloseCode, Declared, EndpointKind, EndpointState, EndpointStatus, RefusedEndpoint,
};

use super::Inner;
use super::admit::Refusal;
use super::grants::{House, Want, Wire, may_expose, ports_to_try};
use super::ports::Listening;
use super::registry::{Route, Target};
use super::session::{OpenPort, Session};
use crate::config::TunnelConfig;
use crate::handle::EndpointLine;

/// Declarations of one agent: a person who edits a file, not a loop.
const DECLARATIONS: Rate = Rate {
    burst: 30,
    per_period: 1,
    period: Duration::from_secs(2),
};
/// Free ports to try when the agent asks for any.
const PORT_TRIES: usize = 64;

type No = (RefusedEndpoint, String);
/// Ports of the declaration before, by label.
type Kept = HashMap<Arc<str>, OpenPort>;

/// An endpoint that is open, with its place in the tables.
struct Opened {
    address: String,
    port: Option<OpenPort>,
    kind: Kind,
}

/// Applies a declaration; it replaces the one before. Ports that stay the same stay open.
pub(crate) async fn declare(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    declared: Vec<Declared>,
) -> Result<Vec<EndpointStatus>, Refusal> {
    let config = inner.config();
    if declared.len() > config.agents.max_endpoints {
        let text = format!(
            "{} endpoints; at most {} are allowed",
            declared.len(),
            config.agents.max_endpoints
        );
        return Err(Refusal::new(CloseCode::Protocol, text));
    }
    if inner
        .deps
        .limits
        .take(
            EngineKind::Tunnel,
            "declare",
            Who::Principal(session.agent),
            DECLARATIONS,
        )
        .is_err()
    {
        return Err(Refusal::new(CloseCode::Slow, "too many declarations"));
    }
    // Grants may have changed since the session began.
    let agent = match inner.deps.accounts.by_id(session.agent).await {
        Ok(Some(agent)) => agent,
        Ok(None) => {
            return Err(Refusal::new(
                CloseCode::Revoked,
                "this agent was removed at the gateway",
            ));
        }
        Err(_) => {
            return Err(Refusal::new(
                CloseCode::Unavailable,
                "the gateway cannot look up grants now",
            ));
        }
    };
    // What nobody takes out of here again is closed at the end.
    let mut kept: Kept =
        std::mem::take(&mut session.state.lock().unwrap_or_else(PoisonError::into_inner).ports)
            .into_iter()
            .map(|open| (Arc::clone(&open.label), open))
            .collect();
    let (mut ids, mut labels) = (HashSet::new(), HashSet::new());
    let (mut statuses, mut lines, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in &declared {
        let unique = ids.insert(endpoint.id) && labels.insert(&endpoint.label);
        let opened = if unique {
            open(inner, session, &agent, endpoint, &config, &mut kept).await
        } else {
            Err((
                RefusedEndpoint::Malformed,
                "two endpoints have the same id or label".to_owned(),
            ))
        };
        let label: Arc<str> = endpoint.label.as_str().into();
        let state = match opened {
            Ok(Opened { address, port, kind }) => {
                let number = port.as_ref().map(|open| open.port);
                if let Some(open) = port {
                    session
                        .state
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .ports
                        .push(open);
                }
                let target = Target {
                    session: Arc::clone(session),
                    endpoint: endpoint.id,
                    label: Arc::clone(&label),
                };
                routes.push((kind, target));
                EndpointState::Open {
                    address,
                    port: number,
                }
            }
            Err((reason, text)) => {
                tracing::info!(tunnel.agent = %session.name, endpoint = %label, reason = ?reason, "endpoint refused");
                EndpointState::Refused { reason, text }
            }
        };
        lines.push(EndpointLine::new(&label, endpoint.kind, &state));
        statuses.push(EndpointStatus {
            id: endpoint.id,
            state,
        });
    }
    inner.registry.set_routes(session, routes);
    session.state.lock().unwrap_or_else(PoisonError::into_inner).lines = lines;
    Ok(statuses)
}

async fn open(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    agent: &Principal,
    endpoint: &Declared,
    config: &TunnelConfig,
    kept: &mut Kept,
) -> Result<Opened, No> {
    let length = endpoint.label.chars().count();
    if !(1..=64).contains(&length) || endpoint.label.chars().any(char::is_control) {
        return Err((
            RefusedEndpoint::Malformed,
            "a label has 1 to 64 characters".into(),
        ));
    }
    match (endpoint.kind, &endpoint.name, endpoint.port) {
        (EndpointKind::Minecraft, name, None) => {
            open_name(inner, session, agent, endpoint, name.as_deref()).await
        }
        (kind @ (EndpointKind::Tcp | EndpointKind::Udp), None, port) => {
            let wire = if kind == EndpointKind::Tcp {
                Wire::Tcp
            } else {
                Wire::Udp
            };
            let port = port.unwrap_or(0);
            match kept
                .remove(endpoint.label.as_str())
                .filter(|open| open.wire == wire && (port == 0 || open.port == port))
            {
                Some(open) => keep_port(inner, session, agent, open, config),
                None => open_port(inner, session, agent, endpoint, (wire, port), config).await,
            }
        }
        (kind @ (EndpointKind::Https | EndpointKind::Http), Some(name), None) => {
            open_web(inner, session, agent, endpoint, kind, name).await
        }
        (EndpointKind::Unknown, ..) => Err((
            RefusedEndpoint::NotServed,
            "this gateway does not serve endpoints of that kind".into(),
        )),
        _ => Err((
            RefusedEndpoint::Malformed,
            "a TCP or UDP endpoint has a port, one of another kind a name".into(),
        )),
    }
}

async fn open_name(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    agent: &Principal,
    endpoint: &Declared,
    name: Option<&str>,
) -> Result<Opened, No> {
    let Some(port) = inner.minecraft_port else {
        return Err((
            RefusedEndpoint::NotServed,
            "the gateway's Minecraft port is switched off".into(),
        ));
    };
    let name = match name.map(Domain::parse) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(error)) => return Err((RefusedEndpoint::Malformed, error.to_string())),
    };
    let want = name.as_ref().map_or(Want::Default, Want::Name);
    decide(inner, session, agent, want)?;
    let kind = Kind::Minecraft { name: name.clone() };
    claim(inner, agent, &endpoint.label, kind.clone(), session.from).await?;
    let host = match &name {
        Some(name) => name.as_str().to_owned(),
        None => inner.public_host(inner.config().minecraft.listen.ip()),
    };
    let address = if port == 25565 {
        host
    } else {
        format!("{host}:{port}")
    };
    Ok(Opened {
        address,
        port: None,
        kind,
    })
}

async fn open_web(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    agent: &Principal,
    endpoint: &Declared,
    kind: EndpointKind,
    name: &str,
) -> Result<Opened, No> {
    let Some(doors) = inner.web.get() else {
        return Err((
            RefusedEndpoint::NotServed,
            "the gateway's web ports are switched off".into(),
        ));
    };
    let name = Domain::parse(name).map_err(|error| (RefusedEndpoint::Malformed, error.to_string()))?;
    decide(inner, session, agent, Want::Web(&name))?;
    let (kind, address) = match kind {
        EndpointKind::Https => (Kind::Https { name: name.clone() }, doors.https_url(&name)),
        _ => (Kind::Http { name: name.clone() }, doors.http_url(&name)),
    };
    let Some(address) = address else {
        return Err((
            RefusedEndpoint::NotServed,
            "the gateway has no TLS port: front.tls_listen is empty".into(),
        ));
    };
    claim(inner, agent, &endpoint.label, kind.clone(), session.from).await?;
    Ok(Opened {
        address,
        port: None,
        kind,
    })
}

async fn open_port(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    agent: &Principal,
    endpoint: &Declared,
    (wire, port): (Wire, u16),
    config: &TunnelConfig,
) -> Result<Opened, No> {
    if wire == Wire::Udp && session.connection.max_datagram_size().is_none() {
        return Err((
            RefusedEndpoint::NotServed,
            "this agent's version takes no datagrams; update it".into(),
        ));
    }
    let before = inner
        .registry
        .owned(session.agent, &endpoint.label)
        .and_then(|owned| Wire::of(&owned.kind))
        .filter(|(its_wire, _)| *its_wire == wire)
        .map(|(_, port)| port);
    // "Any port" means the one it had before, if it may still have it; else the other half of one that it has.
    let candidates: Vec<u16> = if port != 0 {
        vec![port]
    } else {
        let other = match wire {
            Wire::Tcp => Wire::Udp,
            Wire::Udp => Wire::Tcp,
        };
        let halves = inner.registry.ports_of(session.agent, other);
        let free = |port: &u16| {
            !inner
                .registry
                .port_is_taken(wire, *port, session.agent, &endpoint.label)
        };
        let granted = ports_to_try(agent, config.tcp.ports, wire);
        before
            .into_iter()
            .chain(halves.into_iter().chain(granted).filter(free).take(PORT_TRIES))
            .collect()
    };
    let mut last = (
        RefusedEndpoint::Taken,
        "no free port is left among those granted".to_owned(),
    );
    for port in candidates {
        match try_port(inner, session, agent, endpoint, (wire, port), config).await {
            Ok(opened) => return Ok(opened),
            Err(no @ (RefusedEndpoint::Unavailable, _)) => return Err(no),
            Err(no) => last = no,
        }
    }
    Err(last)
}

async fn try_port(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    agent: &Principal,
    endpoint: &Declared,
    (wire, port): (Wire, u16),
    config: &TunnelConfig,
) -> Result<Opened, No> {
    decide(inner, session, agent, wire.want(port))?;
    let kind = wire.kind(port);
    // Bound first, so that a port in use elsewhere on the machine is never promised to anybody; unless it is open already,
    // for others, who would share with this agent only if it is one owner with them.
    let is_new = matches!(inner.registry.route(&kind), Route::Unknown);
    let early = match is_new {
        true => Some(bind(inner, session, (wire, port)).await?),
        false => None,
    };
    claim(inner, agent, &endpoint.label, kind.clone(), session.from).await?;
    let listening = match early {
        Some(listening) => listening,
        None => bind(inner, session, (wire, port)).await?,
    };
    let open = OpenPort {
        label: endpoint.label.as_str().into(),
        wire,
        port,
        _listening: listening,
    };
    let address = format!("{}:{port}", inner.public_host(config.tcp.bind));
    Ok(Opened {
        address,
        port: Some(open),
        kind,
    })
}

async fn bind(
    inner: &Arc<Inner>,
    session: &Session,
    (wire, port): (Wire, u16),
) -> Result<Arc<Listening>, No> {
    inner.ports.open(inner, (wire, port)).await.map_err(|error| {
        tracing::warn!(tunnel.agent = %session.name, port, error = %error, "port cannot be opened");
        (
            RefusedEndpoint::CannotBind,
            format!("the gateway cannot open port {port}: {error}"),
        )
    })
}

/// Goes on with a port that is open already, if the agent may still have it.
fn keep_port(
    inner: &Inner,
    session: &Session,
    agent: &Principal,
    open: OpenPort,
    config: &TunnelConfig,
) -> Result<Opened, No> {
    decide(inner, session, agent, open.wire.want(open.port))?;
    let address = format!("{}:{}", inner.public_host(config.tcp.bind), open.port);
    Ok(Opened {
        address,
        kind: open.wire.kind(open.port),
        port: Some(open),
    })
}

fn decide(inner: &Inner, session: &Session, agent: &Principal, want: Want<'_>) -> Result<(), No> {
    let (config, shared) = (inner.config(), inner.shared.load());
    let house = House {
        range: config.tcp.ports,
        reserved: &config.tcp.reserved,
        own: &inner.own_ports,
        host: shared.host.as_ref(),
    };
    may_expose(&inner.deps.acl, house, agent, session.from.ip(), want)
        .map_err(|text| (RefusedEndpoint::NotGranted, text))
}

/// Makes the endpoint the agent's own in the store, unless it is already.
async fn claim(
    inner: &Inner,
    agent: &Principal,
    label: &str,
    kind: Kind,
    from: SocketAddr,
) -> Result<(), No> {
    if inner
        .registry
        .owned(agent.id, label)
        .is_some_and(|owned| owned.kind == kind && owned.group.as_deref() == agent.share_group())
    {
        return Ok(());
    }
    let now = inner.deps.clock.wall();
    let audit = AuditEntry {
        at: now,
        who: format!("agent:{}", agent.id),
        from: from.ip().to_string(),
        action: "tunnel.claim".to_owned(),
        object: kind.to_string(),
        detail: format!("label {label}"),
    };
    let claimed: Result<Endpoint, StoreError> = inner
        .deps
        .store
        .claim_endpoint(agent.id, agent.share_group(), label, kind, now, audit)
        .await;
    match claimed {
        Ok(endpoint) => {
            inner.registry.own(endpoint);
            inner.certify_names();
            Ok(())
        }
        Err(StoreError::Conflict(text)) => Err((RefusedEndpoint::Taken, text)),
        Err(error) => {
            tracing::warn!(error = %error, "an endpoint cannot be claimed");
            Err((
                RefusedEndpoint::Unavailable,
                "the gateway cannot store endpoints now; it will be tried again".into(),
            ))
        }
    }
}
