//! Whole mail servers of other makes, before the gateway and behind it: Postfix, Exim, sendmail.
//!
//! Debian lets only one of them be installed: `scripts/test` installs Postfix and unpacks the others into `.tools/debian`.
//! Those run in namespaces of their own, with the users and the host name that they insist on, and end with the test.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::certificate::Certificate;
use super::mail::{Message, read_messages};
use super::process::{self, Running, tool, tool_as_root};
use super::{client, free_port, loopback, open_directory, root, wait_for_listener};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Postfix,
    Exim,
    Sendmail,
}

/// It accepts mail for `next.test` and `shop.test` into a Maildir, or hands everything on to the gateway.
pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    make: Make,
    directory: TempDir,
    running: Running,
}

impl MailServer {
    /// Behind the gateway.
    pub(crate) fn next_hop(make: Make) -> Self {
        Self::start(make, "next_hop", None)
    }

    /// Postfix behind the gateway, which takes mail over TLS only; its certificate for `localhost` is of [`Self::ca`].
    pub(crate) fn next_hop_over_tls() -> Self {
        Self::start(Make::Postfix, "next_hop_tls", None)
    }

    /// The certificate of the CA that gave it its own.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Before the gateway, whose relay listener is at `gateway`.
    pub(crate) fn upstream(make: Make, gateway: SocketAddr) -> Self {
        Self::start(make, "upstream", Some(gateway))
    }

    fn start(make: Make, role: &str, gateway: Option<SocketAddr>) -> Self {
        let directory = open_directory();
        let base = directory.path();
        let address = loopback(free_port());
        let fill = Fill {
            base,
            port: address.port(),
            gateway: gateway.map_or(0, |gateway| gateway.port()),
        };
        let mut command = match make {
            Make::Postfix => postfix(&fill, role),
            Make::Exim => exim(&fill, role),
            Make::Sendmail => sendmail(&fill, role),
        };
        let name = format!("{make:?} as {role}");
        let running = Running::start(&name, &mut command, &base.join("said"));
        wait_for_listener(&name, address);
        Self {
            address,
            make,
            directory,
            running,
        }
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        read_messages(&self.directory.path().join("mail/box/new"))
    }

    /// Its log, for the words of a failing test.
    pub(crate) fn log(&self) -> String {
        let files = ["maillog", "log/mainlog", "said"].map(|file| self.directory.path().join(file));
        files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {:?} wrote:\n{}", self.make, self.log());
        }
        if self.make == Make::Postfix {
            // master tells its children to end when it is asked to, not when it is killed.
            let _ = tool_as_root("postfix")
                .arg("-c")
                .arg(self.directory.path().join("conf"))
                .arg("stop")
                .stderr(std::process::Stdio::null())
                .status();
            process::signal(rustix::process::Signal::TERM, self.running.id());
        }
    }
}

/// What stands in the configurations' places.
struct Fill<'a> {
    base: &'a Path,
    port: u16,
    gateway: u16,
}

impl Fill<'_> {
    fn folders(&self, names: &[&str]) {
        for name in names {
            std::fs::create_dir_all(self.base.join(name)).unwrap();
        }
    }

    /// Copies a file of `tests/clients` with its places filled.
    fn write(&self, from: &str, to: &str, more: &[(&str, &Path)]) {
        let mut text = std::fs::read_to_string(client(from)).unwrap();
        text = text
            .replace("BASE", self.base.to_str().unwrap())
            .replace("PORT", &self.port.to_string())
            .replace("GATEWAY", &self.gateway.to_string());
        for (place, path) in more {
            text = text.replace(place, path.to_str().unwrap());
        }
        std::fs::write(self.base.join(to), text).unwrap();
    }

    /// Gives folders to the user that the server runs as.
    fn give(&self, owner: &str, names: &[&str]) {
        for name in names {
            process::succeed(
                tool_as_root("chown")
                    .arg("-R")
                    .arg(owner)
                    .arg(self.base.join(name)),
            );
        }
    }
}

fn postfix(fill: &Fill, role: &str) -> Command {
    fill.folders(&["conf", "queue", "data", "mail"]);
    fill.write(&format!("postfix/{role}.cf"), "conf/main.cf", &[]);
    fill.write("postfix/master.cf", "conf/master.cf", &[]);
    if role == "next_hop_tls" {
        let made = Certificate::issue(fill.base, &["localhost"]);
        std::fs::rename(made.both, fill.base.join("tls.pem")).unwrap();
    }
    // Postfix's master runs as root, and its helpers as two other users.
    fill.give("root", &["."]);
    fill.give("postfix", &["data"]);
    fill.give("nobody", &["mail"]);
    let mut command = tool_as_root("postfix");
    command.arg("-c").arg(fill.base.join("conf")).arg("start-fg");
    command
}

fn exim(fill: &Fill, role: &str) -> Command {
    let program = apart("usr/sbin/exim4");
    fill.folders(&["spool", "log", "mail"]);
    fill.write(
        &format!("exim/{role}.conf"),
        "exim.conf",
        &[("PROGRAM", &program)],
    );
    // Debian's Exim does not start without a user of this name.
    for (file, line) in [
        (
            "passwd",
            "Debian-exim:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
        ),
        ("group", "Debian-exim:x:65534:\n"),
    ] {
        let system = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap();
        std::fs::write(fill.base.join(file), system + line).unwrap();
    }
    fill.give("nobody:nogroup", &["spool", "log", "mail"]);
    in_a_world_of_its_own(fill.base, &["passwd", "group"], role, |command| {
        command
            .arg(program)
            .arg("-C")
            .arg(fill.base.join("exim.conf"))
            .args(["-bdf", "-q1m"]);
    })
}

fn sendmail(fill: &Fill, role: &str) -> Command {
    let macros = apart("usr/share/sendmail/cf");
    fill.folders(&["conf", "queue", "mail/box/new", "mail/box/tmp"]);
    fill.write("sendmail/common.m4", "conf/common.m4", &[]);
    fill.write(
        &format!("sendmail/{role}.mc"),
        "conf/sendmail.mc",
        &[("MACROS", &macros)],
    );
    let made = process::succeed(tool("m4").arg(fill.base.join("conf/sendmail.mc")));
    std::fs::write(fill.base.join("conf/sendmail.cf"), made).unwrap();
    std::fs::write(fill.base.join("switch"), "hosts files\n").unwrap();
    // It waits a minute for a name of its own that resolves, and takes every name of its address for its own.
    let hosts = format!("127.0.0.1 {} localhost\n", name_of(role));
    std::fs::write(fill.base.join("hosts"), hosts).unwrap();
    let deliver = fill.base.join("conf/deliver");
    std::fs::copy(client("sendmail/deliver"), &deliver).unwrap();
    std::fs::set_permissions(deliver, std::fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["new", "tmp"] {
        let folder = fill.base.join("mail/box").join(folder);
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    fill.give("root", &["queue", "conf"]);
    let program = apart("usr/libexec/sendmail/sendmail");
    in_a_world_of_its_own(fill.base, &["hosts"], role, |command| {
        command
            .arg(program)
            .arg("-C")
            .arg(fill.base.join("conf/sendmail.cf"))
            .args(["-bD", "-q1m"]);
    })
}

/// The host name of a server.
fn name_of(role: &str) -> &'static str {
    if role == "upstream" {
        "front.test"
    } else {
        "next.test"
    }
}

/// A program of `.tools/debian`, or a folder in it.
fn apart(path: &str) -> PathBuf {
    let path = root().join(".tools/debian").join(path);
    assert!(
        path.exists(),
        "{} is not installed: run `scripts/test --install`",
        path.display()
    );
    path
}

/// Runs a program with these files of `base` in place of those in `/etc`, and a host name that fits. All its processes end
/// when its standard input does.
fn in_a_world_of_its_own(
    base: &Path,
    files: &[&str],
    role: &str,
    program: impl FnOnce(&mut Command),
) -> Command {
    let name = if role == "upstream" {
        "front.test"
    } else {
        "next.test"
    };
    let mounts: String = files
        .iter()
        .map(|file| {
            format!(
                "{} --bind {}/{file} /etc/{file} && ",
                process::find("mount").display(),
                base.display()
            )
        })
        .collect();
    let script = format!(
        "{mounts}{} {name} || exit 1\n\"$@\" &\ncat >/dev/null",
        process::find("hostname").display()
    );
    let mut command = tool_as_root("unshare");
    command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child"]);
    command.args(["sh", "-c", &script, "sh"]);
    program(&mut command);
    command
}
