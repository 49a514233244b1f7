//! How many connections one address holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::net::single;

/// Open connections by address. As large as the number of open connections at most.
#[derive(Debug, Clone, Default)]
pub(super) struct Caps(Arc<Mutex<HashMap<IpNet, usize>>>);

/// One counted connection; counts itself out.
#[derive(Debug)]
pub(super) struct Counted {
    caps: Caps,
    net: IpNet,
}

impl Caps {
    /// Counts a connection of `ip` in, unless it holds `limit` already.
    pub(super) fn enter(&self, ip: IpAddr, limit: usize) -> Option<Counted> {
        let net = single(ip);
        let mut open_by_net = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open_by_net.entry(net).or_insert(0);
        if *open >= limit {
            return None;
        }
        *open += 1;
        Some(Counted {
            caps: self.clone(),
            net,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open_by_net = self.caps.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open_by_net.get_mut(&self.net) {
            *open -= 1;
            if *open == 0 {
                open_by_net.remove(&self.net);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Caps;

    #[test]
    fn an_address_is_refused_at_its_limit_and_forgotten_when_it_left() {
        let caps = Caps::default();
        let ip = "2001:db8::1".parse().unwrap();
        let neighbour = "2001:db8::2".parse().unwrap();
        let a = caps.enter(ip, 2).unwrap();
        let _b = caps.enter(neighbour, 2).unwrap();
        assert!(caps.enter(ip, 2).is_none(), "one /64 counts as one");
        assert!(caps.enter("192.0.2.1".parse().unwrap(), 2).is_some());
        drop(a);
        assert!(caps.enter(ip, 2).is_some());
        assert_eq!(caps.0.lock().unwrap().len(), 1);
    }
}
