//! Integration tests of the shared core.
#![allow(clippy::unwrap_used)]

mod accept;
mod acme;
mod front;
mod support;
mod tls;
mod bans;
mod fakes;
