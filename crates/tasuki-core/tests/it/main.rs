//! Integration tests of the shared core.
#![allow(clippy::unwrap_used)]

mod accept;
mod tls;
