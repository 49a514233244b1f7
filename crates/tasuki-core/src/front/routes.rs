//! Who answers for which name and protocol; replaced while the door is open.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tasuki_proto::client_hello::ClientHello;
use tokio::net::TcpStream;

use super::WebService;
use super::stream::Prefixed;
use crate::engine::{EngineKind, Shared};
use crate::net::ClientAddr;
use crate::shutdown::Shutdown;

/// Takes whole connections, undecrypted.
#[async_trait]
pub trait RawHandler: Send + Sync {
    /// Serves the connection to its end, or until `shutdown` begins and the protocol allows to stop.
    async fn handle(&self, connection: RawConnection, shutdown: Shutdown);
}

/// A connection whose ClientHello was read ahead.
#[derive(Debug)]
pub struct RawConnection {
    /// The stream from its very first byte (a PROXY header taken off).
    pub stream: Prefixed<TcpStream>,
    /// What the client asks for.
    pub hello: ClientHello,
    /// The client.
    pub client: ClientAddr,
}

/// Looks up names that are neither the gateway's own nor fixed: such guests come and go, so they are asked for with each
/// connection and request.
pub trait Guests: Send + Sync {
    /// Who serves `host` (in lower case).
    fn find(&self, host: &str) -> Option<Guest>;
}

/// Who serves a guest's name.
#[derive(Clone)]
pub enum Guest {
    /// TLS goes to it undecrypted; what comes without TLS is sent there by a redirect.
    Raw(Arc<dyn RawHandler>),
    /// Requests go to it; TLS ends here.
    Web(Route),
}

/// A web service and the engine it belongs to, whose bans hold for it.
#[derive(Clone)]
pub struct Route {
    /// Who answers.
    pub service: Arc<dyn WebService>,
    /// Whose bans are asked.
    pub engine: EngineKind,
}

#[derive(Clone, Default)]
struct Table {
    own_names: Vec<String>,
    own: Option<Route>,
    by_host: HashMap<String, Route>,
    raw_by_alpn: HashMap<Vec<u8>, Arc<dyn RawHandler>>,
    guests: Option<Arc<dyn Guests>>,
}

/// Where a TLS connection goes.
pub(super) enum Way {
    /// To this handler, undecrypted.
    Raw(Arc<dyn RawHandler>),
    /// TLS ends here.
    Ours,
    /// The client names somebody whom nobody here knows.
    Stranger,
}

/// Where a request goes.
#[derive(Clone)]
pub(super) enum Target {
    /// To this route; whether it is the own name.
    Route(Route, bool),
    /// The own name, but nothing is served on it.
    NothingThere,
    /// A name that is served by TLS alone, and not by ours.
    OnlyTls,
    /// Not our name.
    Unknown,
}

/// The table of routes; clones share it. Names are compared in lower case, without port.
#[derive(Clone, Default)]
pub struct Routes(Arc<ArcSwap<Table>>);

impl Routes {
    /// Gives the gateway's own name (`server.host`; without it any IP address and `localhost`) to a service.
    pub fn set_own(&self, route: Route) {
        self.change(|table| table.own = Some(route.clone()));
    }

    /// Gives `host` to a service.
    pub fn set_host(&self, host: &str, route: Route) {
        let host = normal(host);
        self.change(|table| {
            table.by_host.insert(host.clone(), route.clone());
        });
    }

    /// Gives every connection whose client offers the ALPN `protocol` to `handler`.
    pub fn set_raw_alpn(&self, protocol: &[u8], handler: Arc<dyn RawHandler>) {
        self.change(|table| {
            table.raw_by_alpn.insert(protocol.to_vec(), Arc::clone(&handler));
        });
    }

    /// Says who knows the guests' names.
    pub fn set_guests(&self, guests: Arc<dyn Guests>) {
        self.change(|table| table.guests = Some(Arc::clone(&guests)));
    }

    pub(super) fn set_own_names(&self, names: &[String]) {
        self.change(|table| table.own_names = names.to_vec());
    }

    /// A guest's name comes before its ALPN: the proofs of ACME for that name are the guest's own.
    pub(super) fn way(&self, hello: &ClientHello) -> Way {
        let table = self.0.load();
        let guest = match &hello.server_name {
            Some(name) => table.guest(name),
            None => None,
        };
        if let Some(Guest::Raw(handler)) = guest {
            return Way::Raw(handler);
        }
        let by_alpn = hello
            .alpn
            .iter()
            .find_map(|offered| table.raw_by_alpn.get(offered));
        if let Some(handler) = by_alpn {
            return Way::Raw(Arc::clone(handler));
        }
        match &hello.server_name {
            // Without a name of our own every name may be meant for us.
            Some(name) if guest.is_none() && !table.own_names.is_empty() && !table.has(name) => Way::Stranger,
            _ => Way::Ours,
        }
    }

    pub(super) fn web(&self, host: &str) -> Target {
        let table = self.0.load();
        if let Some(route) = table.by_host.get(host) {
            return Target::Route(route.clone(), false);
        }
        match (&table.own, table.is_own(host)) {
            (Some(route), true) => Target::Route(route.clone(), true),
            (None, true) => Target::NothingThere,
            (_, false) => match table.guest(host) {
                Some(Guest::Web(route)) => Target::Route(route, false),
                Some(Guest::Raw(_)) => Target::OnlyTls,
                None => Target::Unknown,
            },
        }
    }

    fn change(&self, change: impl Fn(&mut Table)) {
        self.0.rcu(|table| {
            let mut table = Table::clone(table);
            change(&mut table);
            table
        });
    }
}

impl Table {
    fn is_own(&self, host: &str) -> bool {
        if self.own_names.is_empty() {
            host == "localhost" || host.parse::<IpAddr>().is_ok()
        } else {
            self.own_names.iter().any(|own| own == host)
        }
    }

    /// Whether the host is ours to answer for, whoever answers.
    fn has(&self, host: &str) -> bool {
        self.is_own(host) || self.by_host.contains_key(host) || host == "localhost"
    }

    fn guest(&self, host: &str) -> Option<Guest> {
        let guests = self.guests.as_ref()?;
        // Nobody is a guest under a name of the house.
        (!self.has(host)).then(|| guests.find(host))?
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Routes")
    }
}

/// The names that are the gateway's own: `server.host`, and the host of its public URL.
pub(super) fn own_names(shared: &Shared) -> Vec<String> {
    let host = shared.host.iter().map(|host| host.as_str().to_owned());
    let url = shared
        .public_url
        .iter()
        .filter_map(|url| url::Url::parse(url).ok()?.host_str().map(normal));
    let mut names: Vec<String> = host.chain(url).collect();
    names.dedup();
    names
}

/// A host as it is compared: lower case, no final dot, no brackets.
pub(super) fn normal(host: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    host.to_ascii_lowercase()
}
