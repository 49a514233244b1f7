//! By which ways a domain's mail can leave.

use std::{collections::HashSet, sync::Arc};

use tasuki_proto::names::Domain;

use super::{Pool, SenderRule, Via, Ways};

/// A way out, and the pool of addresses that is used on it.
pub(crate) type Exit = (Via, Option<Arc<Pool>>);

impl Ways {
    /// The principals that routes name.
    pub(crate) fn principals(&self) -> HashSet<&str> {
        let named = self.routes.iter().filter_map(|route| route.principal.as_deref());
        named.collect()
    }

    /// All pools that mail may go out from.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let of_routes = self.routes.iter().filter_map(|route| route.source.as_ref());
        of_routes.chain(&self.default_source)
    }

    /// The ways by which mail from this domain can go to the world. Routes that lead to domains `inside` are left out, and
    /// those of principals who may not send as it.
    pub(crate) fn exits(&self, domain: &Domain, inside: &[Domain], may: &dyn Fn(&str) -> bool) -> Vec<Exit> {
        let mut exits = Vec::new();
        for route in &self.routes {
            let to_inside = route
                .domain
                .as_ref()
                .is_some_and(|to| inside.iter().any(|ours| to.is_within(ours)));
            let (some, whole) = match &route.sender {
                None => (true, true),
                Some(SenderRule::Domain(of)) => (domain.is_within(of), domain.is_within(of)),
                Some(SenderRule::Address(address)) => (address.domain() == Some(domain), false),
            };
            if to_inside || !some || !route.principal.as_deref().is_none_or(may) {
                continue;
            }
            let source = route.source.as_ref().or(self.default_source.as_ref());
            let exit = (route.via.clone(), source.cloned());
            exits.push(exit);
            // Whatever is less specific takes none of its mail.
            if whole && route.domain.is_none() && route.principal.is_none() {
                return exits;
            }
        }
        exits.push((self.default.clone(), self.default_source.clone()));
        exits
    }
}
