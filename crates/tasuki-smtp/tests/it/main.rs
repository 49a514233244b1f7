//! The engine in process: real sockets on port 0, next hops that do as they are told, names from a table.
#![allow(clippy::unwrap_used)]

mod by_mx;
mod caps;
mod chunks;
mod dane;
mod deliver;
mod devices;
mod dkim;
mod dns;
mod explain;
mod failover;
mod faulty;
mod groups;
mod knot;
mod legacy;
mod mta_sts;
mod next_hops;
mod notices;
mod oauth;
mod orders;
mod pace;
mod proxied;
mod recipients;
mod release;
mod require_tls;
mod rewrite;
mod scram;
mod session;
mod sink;
mod sources;
mod support;
mod tls_policy;
mod tls_report;
mod wire;
mod world;
