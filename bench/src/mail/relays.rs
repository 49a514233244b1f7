//! The relays beside each other: each in a directory of its own, its queue on the same file system as the others'.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{NAME_SERVER, Place, Relay};
use crate::process::{Running, free_port, wait_for_port, wait_until};

pub(super) fn tasuki(place: &Place<'_>) -> Result<Relay> {
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
    if case.tls {
        text += &format!(
            "\n[tls]\ncert = \"{at}/host.pem\"\nkey = \"{at}/host.key\"\nextra_ca = [\"{at}/ca.pem\"]\n"
        );
    }
    if case.domains > 1 {
        text += &format!(
            "\n[mail.dns]\nserver = \"{NAME_SERVER}\"\n\n[mail.delivery]\nmx_port = {}\ndanger_private_addresses = true\n",
            place.next_hop
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
    let program = place.plan.program("tasuki")?;
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("TASUKI_CONFIG", &config).args(arguments);
        command
    };
    done("tasuki init", &mut ours(&["init", "--host", "relay.bench.test"]))?;
    let mut running = Running::start(&mut ours(&["serve"]), place.log)?;
    running.drain();
    wait_for_port(port)?;
    done(
        "tasuki service add",
        &mut ours(&["service", "add", "bench", "--send-as", "*"]),
    )?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
    })
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
    if place.case.domains > 1 {
        main += &format!("smtp_tcp_port = {}\n", place.next_hop);
    } else {
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
    let mut running = Running::start(
        Command::new("/usr/lib/postfix/sbin/master").args(["-c", &etc, "-d"]),
        place.log,
    )?;
    running.drain();
    wait_for_port(port)?;
    wait_until("postfix's queue manager", Duration::from_secs(10), || {
        Ok(spool.join("public/qmgr").exists())
    })?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
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
    fs::write(
        &config,
        include_str!("../../config/exim.conf")
            .replace("PROGRAM", &program.display().to_string())
            .replace("DIRECTORY", &place.directory.display().to_string())
            .replace("PORT_RELAY", &port.to_string())
            .replace("PORT_NEXT_HOP", &place.next_hop.to_string()),
    )?;
    let mut running = Running::start(
        Command::new(&program)
            .env("LD_LIBRARY_PATH", &libraries)
            .arg("-C")
            .arg(&config)
            .args(["-bdf", "-q1m"]),
        place.log,
    )?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
    })
}

/// OpenSMTPD, unpacked from its package. Its spool has a fixed place, which `scripts/bench` puts on our file system.
pub(super) fn opensmtpd(place: &Place<'_>) -> Result<Relay> {
    let port = free_port()?;
    let program = place.plan.tool("unpacked/usr/sbin/smtpd")?;
    let libraries = place.plan.tool("unpacked/usr/lib/x86_64-linux-gnu")?;
    let config = place.directory.join("smtpd.conf");
    fs::write(
        &config,
        include_str!("../../config/smtpd.conf")
            .replace("PORT_RELAY", &port.to_string())
            .replace("PORT_NEXT_HOP", &place.next_hop.to_string()),
    )?;
    let mut running = Running::start(
        Command::new(&program)
            .env("LD_LIBRARY_PATH", &libraries)
            .arg("-d")
            .arg("-f")
            .arg(&config),
        place.log,
    )?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: false,
        running: Some(running),
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
    for (path, text) in [
        (
            config.join("smtp.ini"),
            format!("listen=127.0.0.1:{port}\nnodes=0\n"),
        ),
        (config.join("log.ini"), "[main]\nlevel=info\n".to_owned()),
        (config.join("me"), "haraka.bench.test\n".to_owned()),
        (config.join("plugins"), "bench\n".to_owned()),
        (
            config.join("outbound.ini"),
            "concurrency_max=20\nenable_tls=false\nlocal_mx_ok=true\n".to_owned(),
        ),
        (
            plugins.join("bench.js"),
            include_str!("../../config/haraka-plugin.js").replace("PORT_NEXT_HOP", &next_hop),
        ),
    ] {
        fs::write(path, text)?;
    }
    // Without its own file it knows no greeting.
    let shipped = place
        .plan
        .tool("haraka/node_modules/Haraka/config/connection.ini")?;
    fs::copy(shipped, config.join("connection.ini"))?;
    let mut running = Running::start(
        Command::new("node")
            .arg(&program)
            .arg("-c")
            .arg(&home)
            .env_remove("NODE_OPTIONS"),
        place.log,
    )?;
    running.drain();
    wait_for_port(port)?;
    Ok(Relay {
        port,
        durable: true,
        running: Some(running),
    })
}
