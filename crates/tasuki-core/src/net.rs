//! Addresses: typed by meaning, grouped by prefix, and checked against private ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A client's address: the peer's, or what a trusted proxy said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// An IPv4-mapped IPv6 address as IPv4; every other unchanged.
#[must_use]
pub fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// The network that stands for one customer: /32 of IPv4, /64 of IPv6.
#[must_use]
pub fn single(ip: IpAddr) -> ipnet::IpNet {
    cut(ip, 32, 64)
}

/// The wider network: /24 of IPv4, /48 of IPv6.
#[must_use]
pub fn prefix(ip: IpAddr) -> ipnet::IpNet {
    cut(ip, 24, 48)
}

fn cut(ip: IpAddr, v4: u8, v6: u8) -> ipnet::IpNet {
    let ip = unmapped(ip);
    let bits = if ip.is_ipv4() { v4 } else { v6 };
    ipnet::IpNet::new(ip, bits)
        .expect("the prefix is within the address's length")
        .trunc()
}

/// Whether an address that a peer named must not be contacted: private, loopback, link-local, documentation,
/// multicast, and IPv6 forms that carry such an IPv4 address (mapped, NAT64 64:ff9b::/96, 6to4 2002::/16, Teredo).
#[must_use]
pub fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => is_special_v6(v6),
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // RFC 6598, carrier-grade NAT
        || (a == 192 && b == 0 && c == 0) // RFC 6890
        || (a == 192 && b == 88 && c == 99) // RFC 7526, 6to4 relay anycast
        || (a == 198 && (18..20).contains(&b)) // RFC 2544, benchmarks
}

fn is_special_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_special_v4(v4);
    }
    let s = ip.segments();
    let embedded = |hi: u16, lo: u16| Ipv4Addr::from((u32::from(hi) << 16) | u32::from(lo));
    match s {
        [0, 0, 0, 0, 0, 0, _, _] => true, // ::, ::1, IPv4-compatible (RFC 4291)
        [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => is_special_v4(embedded(hi, lo)), // RFC 6052, NAT64
        [0x64, 0xff9b, 1, ..] => true,    // RFC 8215, local NAT64
        [0x100, 0, 0, 0, ..] => true,     // RFC 6666, discard
        [0x2001, b, ..] if b < 0x200 => true, // RFC 2928: Teredo, ORCHID, benchmarks
        [0x2001, 0xdb8, ..] => true,      // RFC 3849, documentation
        [0x2002, hi, lo, ..] => is_special_v4(embedded(hi, lo)), // RFC 3056, 6to4
        [0x3fff, b, ..] if b < 0x1000 => true, // RFC 9637, documentation
        [a, ..] => {
            (a & 0xfe00) == 0xfc00
                || (a & 0xffc0) == 0xfe80
                || (a & 0xffc0) == 0xfec0
                || (a & 0xff00) == 0xff00
        }
    }
}

/// What is around this machine, as far as it decides who can speak in whose name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Where packets for elsewhere go first.
    pub gateways: Vec<IpAddr>,
    /// Whether this is a container, whose published ports others forward.
    pub in_container: bool,
}

impl Surroundings {
    /// Asks the operating system (Linux; elsewhere nothing is known).
    #[must_use]
    pub fn look() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let mut gateways = gateways_v4(&read("/proc/net/route"));
        gateways.extend(gateways_v6(&read("/proc/net/ipv6_route")));
        let marks = ["/.dockerenv", "/run/.containerenv"];
        let named = ["container", "KUBERNETES_SERVICE_HOST"];
        Self {
            gateways,
            in_container: marks.iter().any(|mark| std::path::Path::new(mark).exists())
                || named.iter().any(|name| std::env::var_os(name).is_some()),
        }
    }
}

/// Gateways of default routes in `/proc/net/route`: hexadecimal numbers in the machine's own order of bytes.
fn gateways_v4(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut columns = line.split_whitespace();
        let (destination, gateway) = (columns.nth(1)?, columns.next()?);
        let mask = columns.nth(4)?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let is_default = number(destination)? == 0 && number(mask)? == 0;
        let ip = Ipv4Addr::from(number(gateway)?.to_ne_bytes());
        (is_default && !ip.is_unspecified()).then_some(IpAddr::V4(ip))
    };
    table.lines().skip(1).filter_map(gateway).collect()
}

/// The same in `/proc/net/ipv6_route`: 32 digits in the order of the network.
fn gateways_v6(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut columns = line.split_whitespace();
        let (destination, length) = (columns.next()?, columns.next()?);
        let next_hop = columns.nth(2)?;
        let is_default = length == "00" && destination.bytes().all(|b| b == b'0');
        let ip = Ipv6Addr::from(u128::from_str_radix(next_hop, 16).ok()?);
        (is_default && !ip.is_unspecified()).then_some(IpAddr::V6(ip))
    };
    table.lines().filter_map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::{gateways_v4, gateways_v6, is_special, prefix, single};

    #[cfg(target_endian = "little")]
    #[test]
    fn gateways_are_read_from_the_kernels_tables() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(
            gateways_v4(table),
            ["172.17.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        let zeros = "0".repeat(32);
        let table = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(
            gateways_v6(&table),
            ["fe80::1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert!(gateways_v4("").is_empty() && gateways_v6("nonsense\n").is_empty());
    }

    #[test]
    fn special_addresses_are_known_in_every_disguise() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "192.168.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
        ] {
            assert!(is_special(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "8.8.8.8",
            "1.1.1.1",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!is_special(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn prefixes_follow_the_family_and_see_through_mapping() {
        assert_eq!(
            single("::ffff:192.0.2.7".parse().unwrap()).to_string(),
            "192.0.2.7/32"
        );
        assert_eq!(prefix("192.0.2.7".parse().unwrap()).to_string(), "192.0.2.0/24");
        assert_eq!(
            prefix("2001:db8:1:2::9".parse().unwrap()).to_string(),
            "2001:db8:1::/48"
        );
    }
}
