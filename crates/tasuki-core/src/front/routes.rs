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
    raw_by_name: HashMap<String, Arc<dyn RawHandler>>,
}

/// Where a request goes.
#[derive(Clone)]
pub(super) enum Target {
    /// To this route; whether it is the own name.
    Route(Route, bool),
    /// The own name, but nothing is served on it.
    NothingThere,
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

    /// Gives every TLS connection for `host` to `handler`, undecrypted.
    pub fn set_raw_name(&self, host: &str, handler: Arc<dyn RawHandler>) {
        let host = normal(host);
        self.change(|table| {
            table.raw_by_name.insert(host.clone(), Arc::clone(&handler));
        });
    }

    /// Takes `host` from whoever has it.
    pub fn remove_host(&self, host: &str) {
        let host = normal(host);
        self.change(|table| {
            table.by_host.remove(&host);
            table.raw_by_name.remove(&host);
        });
    }

    pub(super) fn set_own_names(&self, names: &[String]) {
        self.change(|table| table.own_names = names.to_vec());
    }

    pub(super) fn raw(&self, hello: &ClientHello) -> Option<Arc<dyn RawHandler>> {
        let table = self.0.load();
        let by_alpn = hello
            .alpn
            .iter()
            .find_map(|offered| table.raw_by_alpn.get(offered));
        let by_name = || {
            hello
                .server_name
                .as_ref()
                .and_then(|name| table.raw_by_name.get(name))
        };
        by_alpn.or_else(by_name).cloned()
    }

    pub(super) fn web(&self, host: &str) -> Target {
        let table = self.0.load();
        if let Some(route) = table.by_host.get(host) {
            return Target::Route(route.clone(), false);
        }
        let is_own = if table.own_names.is_empty() {
            host == "localhost" || host.parse::<IpAddr>().is_ok()
        } else {
            table.own_names.iter().any(|own| own == host)
        };
        match (&table.own, is_own) {
            (Some(route), true) => Target::Route(route.clone(), true),
            (None, true) => Target::NothingThere,
            (_, false) => Target::Unknown,
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
