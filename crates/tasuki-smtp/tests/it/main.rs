//! The engine in process: real sockets on port 0, next hops that do as they are told, names from a table.
#![allow(clippy::unwrap_used)]

mod caps;
mod chunks;
mod dane;
mod deliver;
mod devices;
mod dkim;
mod dns;
mod explain;
mod faulty;
mod groups;
mod knot;
mod legacy;
mod mta_sts;
mod oauth;
mod orders;
mod pace;
mod proxied;
mod recipients;
mod release;
mod rewrite;
mod scram;
mod session;
mod sink;
mod sources;
mod support;
mod tls_policy;
mod wire;
