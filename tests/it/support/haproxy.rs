//! HAProxy as load balancer in front of the gateway, and as server at home.

use std::path::Path;

use super::process::{self, Running, tool};
use super::{loopback, wait_for_listener};

/// Starts it with these `listen` sections: a port, and the lines of its section. It logs a line "visitor ADDRESS" for each
/// connection that ends.
pub(crate) fn start(directory: &Path, name: &str, sections: &[(u16, String)]) -> Running {
    let mut text = String::from(
        "global\n  log stdout format raw local0\ndefaults\n  mode tcp\n  log global\n  log-format \"visitor %ci\"\n  \
         timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n",
    );
    for (number, (_, lines)) in sections.iter().enumerate() {
        text += &format!("listen section{number}\n");
        for line in lines.lines() {
            text += &format!("  {line}\n");
        }
    }
    let file = directory.join(format!("{name}.cfg"));
    std::fs::write(&file, text).unwrap();
    process::succeed(tool("haproxy").arg("-c").arg("-q").arg("-f").arg(&file));
    let log = directory.join(format!("{name}.log"));
    let running = Running::start(name, tool("haproxy").arg("-db").arg("-f").arg(&file), &log);
    for (port, _) in sections {
        wait_for_listener(name, loopback(*port));
    }
    running
}
