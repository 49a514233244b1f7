//! The first start, and what `serve` tells the person who started it.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use tasuki_core::EngineKind;
use tasuki_core::accounts::{Accounts, Grant, MakeError, PrincipalKind, Role};
use tasuki_core::files;
use tasuki_core::seal::Secret;
use tasuki_core::store::accounts::Principal;
use tasuki_core::store::{Actor, StoreError};

use crate::admin::{FIRST_ADMIN, new_password};
use crate::config::Config;
use crate::exit::{self, Fail, Outcome, chain};
use crate::place::DataDir;

/// Bound listeners by name.
pub(crate) type Listeners = BTreeMap<String, SocketAddr>;

/// Where the first password of `admin` went.
pub(crate) enum FirstPassword {
    /// There is an admin already.
    NotNeeded,
    /// To be printed: somebody is watching.
    Shown(String),
    /// Into this file, for the owner alone.
    Written(PathBuf),
}

/// Makes the user `admin` if the store knows nobody yet. The password is given back for a terminal, and otherwise
/// written to a file: a log is no place for it.
pub(crate) async fn ensure_admin(accounts: &Accounts, data: &DataDir) -> Outcome<FirstPassword> {
    let people = accounts
        .principals()
        .await
        .map_err(|e| Fail::new(exit::UNAVAILABLE, format!("the store: {}", chain(&e))))?;
    if people.iter().any(|p| p.kind == PrincipalKind::Person) {
        return Ok(FirstPassword::NotNeeded);
    }
    let password = new_password();
    let shown = std::io::stdout().is_terminal();
    let path = data.initial_password();
    if !shown {
        // Before the user exists: a password that nobody can read would lock everybody out.
        files::write_private(&path, format!("{password}\n").as_bytes()).map_err(|e| {
            Fail::new(
                exit::CANT_CREATE,
                format!("{} cannot be written: {e}", path.display()),
            )
        })?;
    }
    let secret = Secret::new(password.clone());
    let made = accounts
        .create_person(
            FIRST_ADMIN,
            &secret,
            Role::Admin,
            Vec::new(),
            &Actor::gateway("start"),
        )
        .await;
    match made {
        Ok(_) if shown => Ok(FirstPassword::Shown(password)),
        Ok(_) => Ok(FirstPassword::Written(path)),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            match error {
                // Another gateway of the same store was faster.
                MakeError::Store(StoreError::Conflict(_)) => Ok(FirstPassword::NotNeeded),
                error => Err(Fail::new(
                    exit::UNAVAILABLE,
                    format!("the first user: {}", chain(&error)),
                )),
            }
        }
    }
}

/// What to print about the first password.
pub(crate) fn password_lines(first: &FirstPassword) -> Vec<String> {
    match first {
        FirstPassword::NotNeeded => Vec::new(),
        FirstPassword::Shown(password) => vec![
            format!("The user {FIRST_ADMIN} was made. Its password, shown only now: {password}"),
            format!("Change it with: tasuki user passwd {FIRST_ADMIN}"),
        ],
        FirstPassword::Written(path) => vec![
            format!(
                "The user {FIRST_ADMIN} was made; its password is in {}",
                path.display()
            ),
            format!(
                "The file is deleted when the password is first used or changed: tasuki user passwd {FIRST_ADMIN}"
            ),
        ],
    }
}

/// What a person can do now, in the order in which newcomers ask.
pub(crate) fn banner(
    config: &Config,
    listeners: &Listeners,
    public_url: Option<&str>,
    data: &DataDir,
) -> Vec<String> {
    let mut lines = vec![format!(
        "Tasuki {} is running. Data: {}",
        env!("CARGO_PKG_VERSION"),
        data.path().display()
    )];
    for (name, addr) in listeners {
        lines.push(format!("  {name:<20} {addr}"));
    }
    if config.has(EngineKind::Mail) {
        lines.push(String::new());
        lines.push(
            "Mail: make an account for a program that sends; it prints a login and a command to try it:"
                .to_owned(),
        );
        lines.push("  tasuki service add shop --send-as example.org".to_owned());
    }
    if config.has(EngineKind::Fediverse) {
        lines.push(String::new());
        match public_url {
            Some(url) => {
                lines.push("Fediverse: the admin of an instance adds this relay:".to_owned());
                lines.push(format!("  {url}/inbox    (Mastodon, Misskey and their kin)"));
                lines.push(format!("  {url}/actor    (Pleroma, Akkoma)"));
            }
            None => {
                lines.push("Fediverse: instances cannot subscribe yet, the relay has no public name. Add to tasuki.toml:".to_owned());
                lines.push("  [server]".to_owned());
                lines.push("  host = \"relay.example.org\"".to_owned());
            }
        }
    }
    if config.has(EngineKind::Tunnel) {
        lines.push(String::new());
        lines.push(
            "Tunnel: make a code for a Minecraft server at home; it prints the one command to run there:"
                .to_owned(),
        );
        lines.push("  tasuki tunnel enroll home".to_owned());
    }
    lines.push(String::new());
    lines.push("How it is doing: tasuki status    Stop: Ctrl-C".to_owned());
    lines
}

/// Where agents dial: the public name if there is one, and the port that is bound.
pub(crate) fn tunnel_address(config: &Config, listeners: &Listeners) -> String {
    let bound = listeners
        .get("tunnel.quic")
        .copied()
        .unwrap_or(config.tunnel.quic.listen);
    match &config.server.host {
        // A name that nobody outside can resolve is of no use to an agent on this machine.
        Some(host) if !bound.ip().is_loopback() => format!("{host}:{}", bound.port()),
        _ => shown(bound).to_string(),
    }
}

/// Where agents find the front door, if it is not where they look for it by themselves: port 443 of the same host.
pub(crate) fn tls_address(config: &Config, listeners: &Listeners) -> Option<String> {
    let bound = *listeners.get("front.https")?;
    if bound.port() == 443 {
        return None;
    }
    let tunnel = tunnel_address(config, listeners);
    let (host, _) = tunnel.rsplit_once(':')?;
    Some(format!("{host}:{}", bound.port()))
}

/// A wildcard address as one that can be connected to.
fn shown(addr: SocketAddr) -> SocketAddr {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, addr.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, addr.port()).into(),
        other => other,
    }
}

/// A command that hands in a first mail over STARTTLS as this service.
pub(crate) fn mail_command(
    config: &Config,
    listeners: &Listeners,
    data: &DataDir,
    service: Option<(&Principal, &str)>,
) -> Option<String> {
    let (service, password) = service?;
    let addr = shown(*listeners.get("mail.submission")?);
    let domain = service.grants.iter().find_map(|grant| match grant {
        Grant::SendAs(domain) => Some(domain.to_string()),
        Grant::SendAsAny => Some("example.org".to_owned()),
        _ => None,
    })?;
    let from = format!("{}@{domain}", service.name.split('@').next().unwrap_or("test"));
    let own_certificate = config.tls.cert.is_some() || config.tls.acme.enabled;
    let trust = if own_certificate {
        String::new()
    } else {
        format!(" --cacert {}", data.keys().join("ca.pem").display())
    };
    Some(format!(
        "printf 'From: {from}\\r\\nTo: you@example.com\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n' | curl --ssl-reqd{trust} \
         --url smtp://{addr} --user '{}:{password}' --mail-from {from} --mail-rcpt you@example.com --upload-file -",
        service.name
    ))
}
