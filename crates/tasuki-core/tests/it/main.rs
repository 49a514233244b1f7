//! Integration tests of the shared core.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod accept;
mod accounts;
mod acme;
mod bans;
mod events;
mod fakes;
mod front;
mod metrics;
mod secrets;
mod support;
mod tls;
