//! `tasuki`: the gateway and its command line.
//!
//! `cli` reads the arguments; `app` puts the gateway together (read it first); `admin` is the API that the command
//! line speaks; `demo` shows everything on one machine.

mod admin;
mod app;
mod backup;
mod cli;
mod config;
mod data;
mod demo;
mod exit;
mod first_start;
mod log;
mod notify;
mod place;
mod reload;
mod runtime;

fn main() -> std::process::ExitCode {
    cli::run()
}
