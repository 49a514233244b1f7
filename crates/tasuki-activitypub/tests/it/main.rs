//! The engine in this process, with small instances on loopback that sign and check.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod accounts;
mod authors;
mod backlog;
mod brake;
mod deliveries;
mod documents;
mod filters;
mod forms;
mod idle;
mod lives;
mod memory;
mod moderating;
mod opt_outs;
mod pitfalls;
mod rotation;
mod rows;
mod selfservice;
mod signatures;
mod subscribing;
mod table;
mod takeover;
mod topics;
mod trust;
mod world;
