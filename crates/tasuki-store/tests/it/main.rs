//! One contract suite; every test runs on SQLite and on PostgreSQL.

#![allow(clippy::unwrap_used)]

mod backup;
mod fedi;
mod files;
mod foreign;
mod full_disk;
mod gateway;
mod kill;
mod mail;
mod network;
mod orders;
mod outage;
mod plans;
mod postgres;
mod rows;
mod support;
mod suppress;
mod tls;
mod topics;
mod trail;
