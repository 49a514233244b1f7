//! How many connections each address holds now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tasuki_core::net::single;

/// The table. It has an entry for each address with a connection, so it is as bounded as the connections are.
#[derive(Debug, Clone, Default)]
pub(crate) struct PerAddress(Arc<Mutex<HashMap<IpNet, usize>>>);

/// One counted connection; leaves the table when dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    table: PerAddress,
    net: IpNet,
}

impl PerAddress {
    /// Counts a connection from `ip`, unless it has `max` already.
    pub(crate) fn enter(&self, ip: IpAddr, max: usize) -> Option<Counted> {
        let net = single(ip);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(net).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted {
            table: self.clone(),
            net,
        })
    }

    /// Whether `ip` has a connection.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.contains_key(&single(ip))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut table = self.table.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.net) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.net);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PerAddress;

    #[test]
    fn an_address_has_its_own_count_and_leaves_nothing_behind() {
        let counts = PerAddress::default();
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held: Vec<_> = (0..3).map(|_| counts.enter(a, 3).unwrap()).collect();
        assert!(counts.enter(a, 3).is_none());
        assert!(counts.enter(b, 3).is_some());
        assert!(counts.has(a) && !counts.has(b));
        drop(held);
        assert!(counts.enter(a, 3).is_some());
        assert!(counts.0.lock().unwrap().is_empty());
    }
}
