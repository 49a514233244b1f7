//! The relays beside each other: each in a directory of its own, its queue on the same file system as the others'.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::postgres::Postgres;
use super::{NAME_SERVER, Place, Relay};
use crate::process::{Running, free_port, wait_for_port, wait_until};

pub(super) fn tasuki(place: &Place<'_>) -> Result<Relay> {
    let gateway = Tasuki::prepare(place, "")?;
    let mut running = gateway.serve(place)?;
    running.drain();
    gateway.ready()?;
    Ok(Relay {
        port: gateway.port,
        durable: true,
        running: Some(running),
        beside: None,
    })
}

/// The same with its store in a PostgreSQL of its own, at that one's defaults.
pub(super) fn tasuki_on_postgres(place: &Place<'_>) -> Result<Relay> {
    let database = Postgres::start(place.directory, place.log)?;
    let gateway = Tasuki::prepare(place, &database.url)?;
    let mut running = gateway.serve(place)?;
    running.drain();
    gateway.ready()?;
    Ok(Relay {
        port: gateway.port,
        durable: true,
        running: Some(running),
        beside: Some(database.running),
    })
}

/// A gateway that is configured and has its data directory.
pub(super) struct Tasuki {
    program: std::path::PathBuf,
    config: std::path::PathBuf,
    port: u16,
}

impl Tasuki {
    /// `store` is its URL, empty for the embedded one.
    pub(super) fn prepare(place: &Place<'_>, store: &str) -> Result<Self> {
        let port = free_port()?;
        let at = place.directory.display().to_string();
        let config = place.directory.join("tasuki.toml");
        let case = place.case;
        let mut text = include_str!("../../config/mail.toml")
            .replace("DIRECTORY", &at)
            .replace("PORT_NEXT_HOP", &place.next_hop.to_string())
            .replace("PORT_RELAY", &port.to_string())
            .replace("ROUTE", if case.domains > 1 { "direct" } else { "next" })
            .replace("TLS", if case.tls { "starttls" } else { "none" });
        if !store.is_empty() {
            text += &format!("\n[store]\nurl = \"{store}\"\n");
        }
        if case.tls {
            text += &format!(
                "\n[tls]\ncert = \"{at}/host.pem\"\nkey = \"{at}/host.key\"\nextra_ca = [\"{at}/ca.pem\"]\n"
            );
        }
        if case.domains > 1 {
            text += &format!(
                "\n[mail.dns]\nserver = \"{NAME_SERVER}\"\n\n[mail.delivery]\ndanger_private_addresses = true\n"
            );
        }
        if case.senders > 1000 {
            // Not the shipped default, which is 1,000 connections.
            text = text.replace(
                "[mail.submission]",
                &format!("max_connections = {}\n\n[mail.submission]", case.senders + 100),
            );
        }
        fs::write(&config, text)?;
        let gateway = Self {
            program: place.plan.program("tasuki")?,
            config,
            port,
        };
        done(
            "tasuki init",
            &mut gateway.command(&["init", "--host", "relay.bench.test"]),
        )?;
        Ok(gateway)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("TASUKI_CONFIG", &self.config).args(arguments);
        command
    }

    pub(super) fn serve(&self, place: &Place<'_>) -> Result<Running> {
        Running::start(&mut self.command(&["serve"]), place.log)
    }

    /// It listens, and knows the senders.
    fn ready(&self) -> Result<()> {
        wait_for_port(self.port)?;
        done(
            "tasuki service add",
            &mut self.command(&["service", "add", "bench", "--send-as", "bench.test"]),
        )
    }
}

/// The same command where the names of `sink.test` resolve: whoever asks the system's resolver asks the run's name server,
/// in a mount namespace of its own.
fn in_zone(place: &Place<'_>, command: Command) -> Result<Command> {
    if place.case.domains == 1 {
        return Ok(command);
    }
    let resolver = place.directory.join("resolv.conf");
    let (address, _port) = NAME_SERVER.split_once(':').context("an address with a port")?;
    fs::write(&resolver, format!("nameserver {address}\n"))?;
    let script = "mount --bind \"$0\" \"$(readlink -f /etc/resolv.conf)\" && exec \"$@\"";
    let mut within = Command::new("unshare");
    within.args(["--mount", "sh", "-c", script]).arg(&resolver);
    within.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => within.env(name, value),
            None => within.env_remove(name),
        };
    }
    Ok(within)
}

fn done(what: &str, command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| what.to_owned())?;
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Lets other users, as which a peer's daemons run, reach their directories.
fn open_to_all(paths: &[&Path]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for path in paths {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

pub(super) fn postfix(place: &Place<'_>) -> Result<Relay> {
    let port = free_port()?;
    let etc = place.directory.join("postfix");
    let (spool, state) = (place.directory.join("spool"), place.directory.join("state"));
    for made in [&etc, &spool, &state] {
        fs::create_dir_all(made)?;
    }
    open_to_all(&[place.directory, &spool])?;
    let at = place.directory.display().to_string();
    done(
        "chown",
        Command::new("chown").args(["postfix", &format!("{at}/state")]),
    )?;
    let mut main = include_str!("../../config/postfix.cf").replace("DIRECTORY", &at);
    if place.case.domains == 1 {
        main += &format!(
            "relayhost = [127.0.0.1]:{}\nsmtp_dns_support_level = disabled\n",
            place.next_hop
        );
    }
    if place.case.tls {
        main += &format!(
            "smtpd_tls_cert_file = {at}/host.pem\nsmtpd_tls_key_file = {at}/host.key\n\
             smtpd_tls_security_level = may\nsmtp_tls_CAfile = {at}/ca.pem\nsmtp_tls_security_level = secure\n\
             smtp_tls_secure_cert_match = hostname\n"
        );
    }
    if place.case.size > 10_000_000 {
        main += "message_size_limit = 30000000\n";
    }
    fs::write(etc.join("main.cf"), main)?;
    fs::write(
        etc.join("master.cf"),
        include_str!("../../config/postfix-master.cf").replace("PORT_RELAY", &port.to_string()),
    )?;
    let etc = etc.display().to_string();
    done(
        "postfix check",
        Command::new("postfix").args(["-c", &etc, "check"]),
    )?;
    let mut master = Command::new("/usr/lib/postfix/sbin/master");
    master.args(["-c", &etc, "-d"]);
    let mut running = Running::start(&mut in_zone(place, master)?, place.log)?;
    running.drain();
    wait_for_port(port)?;
    wait_until("postfix's queue manager", Duration::from_secs(10), || {
        Ok(spool.join("public/qmgr").exists())
    })?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
        beside: None,
    })
}

/// Exim, unpacked from its package, which cannot be installed beside Postfix.
pub(super) fn exim(place: &Place<'_>) -> Result<Relay> {
    let port = free_port()?;
    let program = place.plan.tool("unpacked/usr/sbin/exim4")?;
    let libraries = place.plan.tool("unpacked/usr/lib/x86_64-linux-gnu")?;
    let spool = place.directory.join("spool");
    fs::create_dir_all(&spool)?;
    open_to_all(&[place.directory])?;
    done("chown", Command::new("chown").arg("Debian-exim").arg(&spool))?;
    let config = place.directory.join("exim.conf");
    let at = place.directory.display().to_string();
    let mut text = include_str!("../../config/exim.conf").to_owned();
    if place.case.tls {
        text = text
            .replace(
                "tls_advertise_hosts =\n",
                "tls_advertise_hosts = *\ntls_certificate = DIRECTORY/host.pem\ntls_privatekey = DIRECTORY/host.key\n",
            )
            .replace(
                "  hosts_try_fastopen =\n",
                "  hosts_try_fastopen =\n  hosts_require_tls = *\n  tls_verify_certificates = DIRECTORY/ca.pem\n  \
                 tls_verify_hosts = *\n",
            );
    }
    if place.case.domains > 1 {
        text = text
            .replace("driver = manualroute", "driver = dnslookup")
            .replace("  route_list = * 127.0.0.1\n", "")
            .replace("  port = PORT_NEXT_HOP\n", "");
    }
    fs::write(
        &config,
        text.replace("PROGRAM", &program.display().to_string())
            .replace("DIRECTORY", &at)
            .replace("PORT_RELAY", &port.to_string())
            .replace("PORT_NEXT_HOP", &place.next_hop.to_string()),
    )?;
    let mut daemon = Command::new(&program);
    daemon
        .env("LD_LIBRARY_PATH", &libraries)
        .arg("-C")
        .arg(&config)
        .args(["-bdf", "-q1m"]);
    let mut running = Running::start(&mut in_zone(place, daemon)?, place.log)?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
        beside: None,
    })
}

/// OpenSMTPD, unpacked from its package. Its spool has a fixed place, which `scripts/bench` puts on our file system.
pub(super) fn opensmtpd(place: &Place<'_>) -> Result<Relay> {
    let port = free_port()?;
    let program = place.plan.tool("unpacked/usr/sbin/smtpd")?;
    let libraries = place.plan.tool("unpacked/usr/lib/x86_64-linux-gnu")?;
    let config = place.directory.join("smtpd.conf");
    let text = include_str!("../../config/smtpd.conf");
    fs::write(
        &config,
        text.replace("PORT_RELAY", &port.to_string())
            .replace("PORT_NEXT_HOP", &place.next_hop.to_string()),
    )?;
    let mut daemon = Command::new(&program);
    daemon
        .env("LD_LIBRARY_PATH", &libraries)
        .arg("-d")
        .arg("-f")
        .arg(&config);
    let mut running = Running::start(&mut in_zone(place, daemon)?, place.log)?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: false,
        running: Some(running),
        beside: None,
    })
}

pub(super) fn haraka(place: &Place<'_>) -> Result<Relay> {
    let port = free_port()?;
    let program = place.plan.tool("haraka/node_modules/Haraka/bin/haraka")?;
    let home = place.directory.join("haraka");
    let (config, plugins) = (home.join("config"), home.join("plugins"));
    for made in [&config, &plugins, &home.join("queue")] {
        fs::create_dir_all(made)?;
    }
    let next_hop = place.next_hop.to_string();
    let case = place.case;
    let mut plugin = include_str!("../../config/haraka-plugin.js").replace("PORT_NEXT_HOP", &next_hop);
    if case.domains > 1 {
        plugin = plugin
            .lines()
            .filter(|line| !line.contains("hook_get_mx"))
            .collect::<Vec<_>>()
            .join("\n");
    }
    if case.tls {
        fs::copy(place.directory.join("host.pem"), config.join("tls_cert.pem"))?;
        fs::copy(place.directory.join("host.key"), config.join("tls_key.pem"))?;
        // It does not find the sink's certificate good, whatever CA it is told of.
        fs::write(config.join("tls.ini"), "[outbound]\nrejectUnauthorized=false\n")?;
    }
    for (path, text) in [
        (
            config.join("smtp.ini"),
            format!("listen=127.0.0.1:{port}\nnodes=0\n"),
        ),
        (config.join("log.ini"), "[main]\nlevel=info\n".to_owned()),
        (config.join("me"), "haraka.bench.test\n".to_owned()),
        (
            config.join("plugins"),
            if case.tls { "tls\nbench\n" } else { "bench\n" }.to_owned(),
        ),
        (
            config.join("outbound.ini"),
            format!("concurrency_max=20\nenable_tls={}\nlocal_mx_ok=true\n", case.tls),
        ),
        (plugins.join("bench.js"), plugin),
    ] {
        fs::write(path, text)?;
    }
    // Without its own file it knows no greeting.
    let shipped = place
        .plan
        .tool("haraka/node_modules/Haraka/config/connection.ini")?;
    fs::copy(shipped, config.join("connection.ini"))?;
    let mut server = Command::new("node");
    server
        .arg(&program)
        .arg("-c")
        .arg(&home)
        .env_remove("NODE_OPTIONS");
    let mut running = Running::start(&mut in_zone(place, server)?, place.log)?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
        beside: None,
    })
}
