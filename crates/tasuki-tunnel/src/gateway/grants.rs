//! May this agent expose that? The one place that decides it, closed by default.

use std::net::IpAddr;

use tasuki_core::EngineKind;
use tasuki_core::accounts::Grant;
use tasuki_core::acl::{Acl, Action, Question};
use tasuki_core::store::accounts::Principal;
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::names::Domain;

use crate::config::PortRange;

/// What an agent wants to expose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want<'a> {
    /// This TCP port.
    Port(u16),
    /// This UDP port.
    Udp(u16),
    /// This name on the Minecraft port.
    Name(&'a Domain),
    /// This name on the web ports.
    Web(&'a Domain),
    /// The Minecraft port's default.
    Default,
}

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Tcp,
    Udp,
}

impl Wire {
    pub(crate) fn want(self, port: u16) -> Want<'static> {
        match self {
            Self::Tcp => Want::Port(port),
            Self::Udp => Want::Udp(port),
        }
    }

    /// The port as it is owned.
    pub(crate) fn kind(self, port: u16) -> EndpointKind {
        match self {
            Self::Tcp => EndpointKind::Tcp { port },
            Self::Udp => EndpointKind::Udp { port },
        }
    }

    /// The wire and the number of an owned port.
    pub(crate) fn of(kind: &EndpointKind) -> Option<(Self, u16)> {
        match *kind {
            EndpointKind::Tcp { port } => Some((Self::Tcp, port)),
            EndpointKind::Udp { port } => Some((Self::Udp, port)),
            EndpointKind::Minecraft { .. } | EndpointKind::Https { .. } | EndpointKind::Http { .. } => None,
        }
    }
}

/// What the gateway keeps for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct House<'a> {
    pub(crate) range: PortRange,
    pub(crate) reserved: &'a [u16],
    pub(crate) own: &'a [u16],
    pub(crate) host: Option<&'a Domain>,
}

/// Decides. The error tells the agent's owner what to ask for.
///
/// A rule of the access list decides before the grants do; a rule that allows opens the configured range of ports, not
/// every port. Ports below 1024 need a grant that speaks of nothing else, so that a wide range does not give them away.
pub(crate) fn may_expose(
    acl: &Acl,
    house: House<'_>,
    agent: &Principal,
    from: IpAddr,
    want: Want<'_>,
) -> Result<(), String> {
    if let Want::Port(port) | Want::Udp(port) = want
        && (port == 0 || house.reserved.contains(&port) || house.own.contains(&port))
    {
        return Err(format!(
            "port {port} belongs to the gateway itself; choose another"
        ));
    }
    if let Want::Web(name) = want
        && house.host == Some(name)
    {
        return Err(format!(
            "the web pages of {name} are the gateway's own; choose another name"
        ));
    }
    let question = Question {
        engine: EngineKind::Tunnel,
        action: Action::Expose,
        from: Some(from),
        principal: Some(agent),
        domain: match want {
            Want::Name(name) | Want::Web(name) => Some(name),
            Want::Port(_) | Want::Udp(_) | Want::Default => None,
        },
    };
    let answer = acl.decide(&question);
    if answer.is_denied() {
        return Err("a rule of the gateway denies it; ask the gateway's operator".into());
    }
    let in_range = match want {
        Want::Port(port) | Want::Udp(port) => (house.range.from..=house.range.to).contains(&port),
        Want::Name(_) | Want::Web(_) | Want::Default => true,
    };
    if answer.is_allowed() && in_range {
        return Ok(());
    }
    if !agent.disabled && agent.grants.iter().any(|grant| covers(grant, want)) {
        return Ok(());
    }
    let wanted = match want {
        Want::Port(port) => format!("tunnel:port:{port}"),
        Want::Udp(port) => format!("tunnel:udp:{port}"),
        Want::Name(name) | Want::Web(name) => format!("tunnel:name:{name}"),
        Want::Default => "tunnel:default".to_owned(),
    };
    Err(format!("not granted; ask the gateway's operator for {wanted}"))
}

fn covers(grant: &Grant, want: Want<'_>) -> bool {
    match (grant, want) {
        (Grant::ExposePorts(from, to), Want::Port(port)) | (Grant::ExposeUdp(from, to), Want::Udp(port)) => {
            (*from..=*to).contains(&port) && (port >= 1024 || *to < 1024)
        }
        (Grant::ExposeName(granted), Want::Name(name) | Want::Web(name)) => name.is_within(granted),
        (Grant::ExposeDefault, Want::Default) => true,
        _ => false,
    }
}

/// Ports to try when the agent asks for any: what it is granted within the configured range, else what it is granted;
/// without a grant of ports the range itself, of which [`may_expose`] then decides.
pub(crate) fn ports_to_try(agent: &Principal, range: PortRange, wire: Wire) -> impl Iterator<Item = u16> {
    let granted: Vec<(u16, u16)> = agent
        .grants
        .iter()
        .filter_map(|grant| match (grant, wire) {
            (Grant::ExposePorts(from, to), Wire::Tcp) | (Grant::ExposeUdp(from, to), Wire::Udp) => {
                Some((*from, *to))
            }
            _ => None,
        })
        .collect();
    let within: Vec<(u16, u16)> = granted
        .iter()
        .map(|(from, to)| ((*from).max(range.from), (*to).min(range.to)))
        .filter(|(from, to)| from <= to)
        .collect();
    let ranges = match (granted.is_empty(), within.is_empty()) {
        (true, _) => vec![(range.from, range.to)],
        (false, true) => granted,
        (false, false) => within,
    };
    ranges.into_iter().flat_map(|(from, to)| from..=to)
}

#[cfg(test)]
mod tests {
    use tasuki_core::accounts::{PrincipalKind, Role};
    use tasuki_core::acl::{Acl, Origin, RuleSpec};
    use tasuki_core::clock::Timestamp;
    use tasuki_core::ids::PrincipalId;
    use tasuki_core::store::accounts::Principal;

    use super::{House, PortRange, Want, Wire, may_expose, ports_to_try};

    fn agent(grants: &[&str]) -> Principal {
        Principal {
            id: PrincipalId(1),
            name: "home".into(),
            kind: PrincipalKind::Agent,
            role: Role::None,
            grants: grants.iter().map(|text| text.parse().unwrap()).collect(),
            disabled: false,
            created_at: Timestamp(0),
        }
    }

    const HOUSE: House<'static> = House {
        range: PortRange {
            from: 20_000,
            to: 20_010,
        },
        reserved: &[8600],
        own: &[25565],
        host: None,
    };

    fn check(grants: &[&str], rule: Option<&str>, want: Want<'_>) -> bool {
        let acl = Acl::new();
        let own = "relay.example".parse().unwrap();
        let house = House {
            host: Some(&own),
            ..HOUSE
        };
        if let Some(json) = rule {
            let rule: RuleSpec = serde_json::from_str(json).unwrap();
            acl.replace(vec![(Origin::File(1), rule)]);
        }
        may_expose(&acl, house, &agent(grants), "192.0.2.1".parse().unwrap(), want).is_ok()
    }

    #[test]
    fn exposing_without_a_grant_is_refused() {
        let name = "mc.example.org".parse().unwrap();
        for want in [
            Want::Port(20_000),
            Want::Name(&name),
            Want::Web(&name),
            Want::Default,
        ] {
            assert!(!check(&[], None, want), "{want:?}");
            assert!(!check(&["mail:send:*", "fedi:publish"], None, want), "{want:?}");
        }
        assert!(check(&["tunnel:port:20000"], None, Want::Port(20_000)));
        assert!(!check(&["tunnel:port:20000"], None, Want::Port(20_001)));
        assert!(!check(&["tunnel:port:20000"], None, Want::Udp(20_000)));
        assert!(check(&["tunnel:udp:20000"], None, Want::Udp(20_000)));
        assert!(!check(&["tunnel:udp:20000"], None, Want::Port(20_000)));
        assert!(check(&["tunnel:name:example.org"], None, Want::Name(&name)));
        assert!(!check(
            &["tunnel:name:example.org"],
            None,
            Want::Name(&"badexample.org".parse().unwrap())
        ));
        assert!(check(&["tunnel:name:example.org"], None, Want::Web(&name)));
        assert!(check(&["tunnel:default"], None, Want::Default));
        assert!(!check(&["tunnel:default"], None, Want::Name(&name)));
    }

    #[test]
    fn the_gateways_own_ports_and_low_ports_are_closed() {
        assert!(!check(&["tunnel:port:1-65535"], None, Want::Port(8600)));
        assert!(!check(&["tunnel:port:1-65535"], None, Want::Port(25565)));
        assert!(!check(&["tunnel:port:1-65535"], None, Want::Port(0)));
        assert!(!check(&["tunnel:port:1-65535"], None, Want::Port(22)));
        assert!(check(&["tunnel:port:22"], None, Want::Port(22)));
        assert!(check(&["tunnel:port:1-65535"], None, Want::Port(1024)));
        let own = "relay.example".parse().unwrap();
        assert!(!check(&["tunnel:name:relay.example"], None, Want::Web(&own)));
        assert!(check(&["tunnel:name:relay.example"], None, Want::Name(&own)));
    }

    #[test]
    fn a_rule_decides_before_the_grants() {
        let allow = Some(r#"{"effect":"allow","engine":"tunnel","action":"expose","principal":"home"}"#);
        assert!(check(&[], allow, Want::Port(20_005)));
        assert!(!check(&[], allow, Want::Port(30_000)));
        assert!(!check(&[], allow, Want::Port(22)));
        assert!(check(&[], allow, Want::Default));
        let deny = Some(r#"{"effect":"deny","engine":"tunnel","from":["192.0.2.0/24"]}"#);
        assert!(!check(&["tunnel:default"], deny, Want::Default));
    }

    #[test]
    fn any_port_means_one_that_is_granted() {
        let range = HOUSE.range;
        let ports = |grants: &[&str]| ports_to_try(&agent(grants), range, Wire::Tcp).collect::<Vec<_>>();
        assert_eq!(ports(&["tunnel:port:25570-25571"]), [25_570, 25_571]);
        assert_eq!(ports(&["tunnel:port:20009-30000"]), [20_009, 20_010]);
        assert_eq!(ports(&[]).len(), 11);
        let grants = ["tunnel:port:20001", "tunnel:udp:20003"];
        let udp: Vec<u16> = ports_to_try(&agent(&grants), range, Wire::Udp).collect();
        assert_eq!(udp, [20_003]);
    }
}
