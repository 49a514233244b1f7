//! End to end: the real programs as processes, clients and servers that nobody here wrote, only the wire.
//!
//! Nothing of ours is linked. What the tests need is installed by `scripts/test`; a tool that is missing
//! fails its test by name, nothing is skipped.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod accept;
mod acme;
mod agents;
mod backup;
mod bad_input;
mod balancers;
mod bedrock;
mod command_line;
mod crash;
mod crowd;
mod demo;
mod doctors;
mod durable;
mod far_ends;
mod fediverse;
mod filters;
mod home_host;
mod iceshrimp;
mod mail;
mod mail_servers;
mod moderation;
mod proxies;
mod readme;
mod restart;
mod screen;
mod second_relay;
mod seen;
mod shed;
mod squid;
mod stay;
mod storage;
mod support;
mod systems;
mod tidy;
mod topics;
mod trace;
mod tunnel;
mod two_gateways;
mod upgrade;
mod wake;
mod ways;
mod web;
