//! The real program, spawned: the command line, the admin API, the life of the process, the demo.
#![allow(clippy::unwrap_used)]
// Deadlines around processes that have no clock of ours.
#![allow(clippy::disallowed_methods)]

mod access;
mod accounts;
mod admin_api;
mod commands;
mod demo;
mod dkim;
mod dns;
mod gateway;
mod life;
mod mail_queue;
mod mistakes;
mod moderation;
mod smarthosts;
mod suppress;
mod takeover;
mod tls_report;
