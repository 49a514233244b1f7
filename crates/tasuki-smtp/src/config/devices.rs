//! `[mail.devices]`: copiers, cameras and power supplies, which cannot log in.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tasuki_core::{BuildError, config::size, net::unmapped};
use tasuki_proto::names::{Domain, Mailbox};

use super::bad;

/// The listener for devices, and who they are. It is closed until a device is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicesConfig {
    /// Addresses with ports, without TLS or with STARTTLS. Each must be private, ULA, link-local or loopback.
    pub listen: Vec<SocketAddr>,
    /// The same with TLS from the first octet.
    pub listen_tls: Vec<SocketAddr>,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Largest message.
    #[serde(with = "size")]
    pub max_size: u64,
    /// Lets the listeners and the devices' networks be public; without a login that is nearly an open relay.
    pub danger_public_listen: bool,
    /// The devices.
    pub list: Vec<DeviceConfig>,
}

/// One device, or several alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub net: Vec<IpNet>,
    /// The service (made with `tasuki service add NAME --class device --send-as DOMAIN --daily N`) whose grants it has.
    pub service: String,
    /// The From of its mails whose own From is not one of its service's.
    pub sender: Mailbox,
    /// Who hears of mails that could not be delivered.
    pub contact: Mailbox,
    /// Recipients beside those in the service's own domains and in `relay_domains`: addresses, domains, or `*`.
    #[serde(default)]
    pub recipients: Vec<Target>,
}

/// Whom a device may write to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Target {
    /// Everybody.
    Any,
    /// A domain with its subdomains.
    Domain(Domain),
    /// One address.
    Mailbox(Mailbox),
}

impl Target {
    fn is(&self, recipient: &Mailbox) -> bool {
        match self {
            Self::Any => true,
            Self::Domain(domain) => {
                !recipient.hides_route() && recipient.domain().is_some_and(|d| d.is_within(domain))
            }
            Self::Mailbox(mailbox) => recipient == mailbox,
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            |e: &dyn std::fmt::Display| format!("{text:?}: an address, a domain or \"*\" is expected ({e})");
        match text.as_str() {
            "*" => Ok(Self::Any),
            t if t.contains('@') => Mailbox::parse(t).map(Self::Mailbox).map_err(|e| wrong(&e)),
            t => Domain::parse(t).map(Self::Domain).map_err(|e| wrong(&e)),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        match target {
            Target::Any => "*".to_owned(),
            Target::Domain(domain) => domain.to_string(),
            Target::Mailbox(mailbox) => mailbox.to_string(),
        }
    }
}

impl Default for DevicesConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 2526))],
            listen_tls: Vec::new(),
            max_connections: 200,
            max_size: 50 * 1024 * 1024,
            danger_public_listen: false,
            list: Vec::new(),
        }
    }
}

/// A device, ready for use.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    nets: Vec<IpNet>,
    pub(crate) service: String,
    pub(crate) sender: Mailbox,
    pub(crate) contact: Mailbox,
    recipients: Vec<Target>,
}

impl Device {
    /// Whether it may write to this recipient beyond what is owned.
    pub(crate) fn lists(&self, recipient: &Mailbox) -> bool {
        self.recipients.iter().any(|target| target.is(recipient))
    }
}

/// The device at this address: the one with the narrowest network.
pub(crate) fn device_at(devices: &[Arc<Device>], from: IpAddr) -> Option<&Arc<Device>> {
    let narrowest = |device: &&Arc<Device>| {
        let here = device.nets.iter().filter(|net| net.contains(&from));
        here.map(|net| usize::from(net.prefix_len()) + 1)
            .max()
            .unwrap_or(0)
    };
    devices
        .iter()
        .filter(|device| narrowest(device) > 0)
        .max_by_key(narrowest)
}

impl DevicesConfig {
    /// Whether there is anything to listen for.
    pub(crate) fn is_open(&self) -> bool {
        !self.list.is_empty()
    }

    pub(crate) fn check(&self) -> Result<Vec<Arc<Device>>, BuildError> {
        if self.max_size == 0 {
            return Err(bad("mail.devices.max_size", "must be at least 1B".to_owned()));
        }
        for addr in self.listen.iter().chain(&self.listen_tls) {
            if !self.danger_public_listen && !is_private(addr.ip()) {
                let problem = format!(
                    "{addr} is public (so is every wildcard): name an address of your own network, or set danger_public_listen"
                );
                return Err(bad("mail.devices.listen", problem));
            }
        }
        self.list.iter().map(|device| self.device(device)).collect()
    }

    fn device(&self, device: &DeviceConfig) -> Result<Arc<Device>, BuildError> {
        let name = &device.name;
        let plain = (1..=64).contains(&name.len()) && name.bytes().all(|b| (b' '..=b'~').contains(&b));
        if !plain || name.contains(['"', '\\']) {
            let problem = format!("{name:?}: 1 to 64 printable ASCII characters without quotes");
            return Err(bad("mail.devices.list.name", problem));
        }
        if device.net.is_empty() {
            return Err(bad(
                "mail.devices.list.net",
                format!("{name}: needs at least one network"),
            ));
        }
        for net in &device.net {
            let private = is_private(net.network()) && is_private(net.broadcast());
            if !self.danger_public_listen && !private {
                let problem = format!("{name}: {net} is not private; name the device's own addresses");
                return Err(bad("mail.devices.list.net", problem));
            }
        }
        for (key, mailbox) in [("sender", &device.sender), ("contact", &device.contact)] {
            if mailbox.needs_smtputf8() {
                let problem = format!("{name}: {mailbox} must be ASCII, not every next hop takes others");
                return Err(bad(&format!("mail.devices.list.{key}"), problem));
            }
        }
        Ok(Arc::new(Device {
            name: name.clone(),
            nets: device.net.clone(),
            service: device.service.clone(),
            sender: device.sender.clone(),
            contact: device.contact.clone(),
            recipients: device.recipients.clone(),
        }))
    }
}

/// Private, ULA, link-local or loopback.
fn is_private(ip: IpAddr) -> bool {
    match unmapped(ip) {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn devices(listen: &str, net: &str) -> DevicesConfig {
        DevicesConfig {
            listen: vec![listen.parse().unwrap()],
            list: vec![DeviceConfig {
                name: "copier".into(),
                net: vec![net.parse().unwrap()],
                service: "copier".into(),
                sender: Mailbox::parse("scan@x.org").unwrap(),
                contact: Mailbox::parse("it@x.org").unwrap(),
                recipients: vec![],
            }],
            ..DevicesConfig::default()
        }
    }

    #[test]
    fn only_private_addresses_are_listened_on() {
        for (addr, fine) in [
            ("127.0.0.1:2526", true),
            ("192.168.1.5:25", true),
            ("10.0.0.1:25", true),
            ("[fd00::1]:25", true),
            ("[fe80::1]:25", true),
            ("[::1]:25", true),
            ("[::ffff:192.168.1.5]:25", true),
            ("0.0.0.0:25", false),
            ("[::]:25", false),
            ("198.51.100.1:25", false),
            ("[2001:db8::1]:25", false),
            ("100.64.0.1:25", false),
        ] {
            let mut config = devices(addr, "192.168.1.0/24");
            assert_eq!(config.check().is_ok(), fine, "{addr}");
            config.danger_public_listen = true;
            assert!(config.check().is_ok(), "{addr}");
        }
    }

    #[test]
    fn networks_of_devices_are_private() {
        for (net, fine) in [
            ("192.168.1.7/32", true),
            ("10.0.0.0/8", true),
            ("fd00::/8", true),
            ("0.0.0.0/0", false),
            ("10.0.0.0/7", false),
            ("::/0", false),
            ("198.51.100.0/24", false),
        ] {
            assert_eq!(devices("127.0.0.1:2526", net).check().is_ok(), fine, "{net}");
        }
    }

    #[test]
    fn the_narrowest_network_wins() {
        let mut config = devices("127.0.0.1:2526", "10.0.0.0/8");
        let mut other = config.list[0].clone();
        other.name = "camera".into();
        other.net = vec!["10.1.0.0/16".parse().unwrap()];
        config.list.push(other);
        let list = config.check().unwrap();
        let at = |ip: &str| device_at(&list, ip.parse().unwrap()).map(|d| d.name.clone());
        assert_eq!(at("10.1.2.3").as_deref(), Some("camera"));
        assert_eq!(at("10.2.2.3").as_deref(), Some("copier"));
        assert_eq!(at("192.168.1.1"), None);
    }
}
