//! A real name server with a signed root of its own (Debian's `knot`), as the resolver's whole world.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Ends with its test.
pub(crate) struct Knot {
    pub(crate) addr: SocketAddr,
    /// The root's key, for `mail.dns.trust_anchor`.
    pub(crate) anchor: std::path::PathBuf,
    server: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

fn keymgr(dir: &Path, zone: &str, args: &[&str]) -> String {
    let mut command = program("keymgr");
    command.arg("-c").arg(dir.join("knot.conf")).arg(zone).args(args);
    let output = command.output().expect("keymgr of the package knot");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A port that was free a moment ago, for TCP and UDP.
fn free_addr() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

impl Knot {
    /// Serves the root, `org` and `y.org`, all signed, and what is in `y.org` besides: lines of a zone file. Also
    /// `plain.org`, which is not signed, and `bogus.org`, whose signatures are of another key than `org` says,
    /// and `broken.org`, about which it can only say SERVFAIL. Lines of other names go into the root itself.
    pub(crate) async fn start(records: &str) -> Self {
        let is_inside = |line: &&str| {
            line.split(' ')
                .next()
                .is_some_and(|name| name.ends_with("y.org."))
        };
        let (inside, of_root): (Vec<&str>, Vec<&str>) = records.lines().partition(is_inside);
        let (inside, of_root) = (inside.join("\n") + "\n", of_root.join("\n") + "\n");
        let dir = tempfile::tempdir().unwrap();
        let (addr, path) = (free_addr(), dir.path());
        let zones = ["root", "org", "y.org", "bogus.org"];
        let name = |zone: &str| {
            if zone == "root" {
                ".".to_owned()
            } else {
                format!("{zone}.")
            }
        };
        let mut config = format!(
            "server:\n  rundir: {dir}\n  listen: {ip}@{port}\ndatabase:\n  storage: {dir}/db\n\
             log:\n- target: stderr\n  any: warning\n\
             policy:\n- id: p\n  algorithm: ecdsap256sha256\n  single-type-signing: on\n  manual: on\n\
             template:\n- id: default\n  storage: {dir}\n  zonefile-sync: -1\n  zonefile-load: difference-no-serial\n  \
             journal-content: all\nzone:\n- domain: plain.org.\n  file: plain.org.zone\n- domain: broken.org.\n  file: missing.zone\n",
            dir = path.display(),
            ip = addr.ip(),
            port = addr.port()
        );
        for zone in zones {
            let name = name(zone);
            config +=
                &format!("- domain: {name}\n  file: {zone}.zone\n  dnssec-signing: on\n  dnssec-policy: p\n");
        }
        std::fs::create_dir(path.join("db")).unwrap();
        std::fs::write(path.join("knot.conf"), config).unwrap();
        for zone in zones {
            keymgr(
                path,
                &name(zone),
                &["generate", "algorithm=ecdsap256sha256", "ksk=yes", "zsk=yes"],
            );
        }
        let ds = |zone: &str| {
            let all = keymgr(path, &name(zone), &["ds"]);
            all.lines()
                .find(|line| line.contains(" 13 2 "))
                .unwrap()
                .to_owned()
        };
        let head = |zone: &str| {
            let name = name(zone);
            format!("{name} 300 SOA ns.y.org. h.y.org. 1 3600 900 86400 30\n{name} 300 NS ns.y.org.\n")
        };
        let wrong = ds("y.org").replace("y.org.", "bogus.org.");
        let org = format!(
            "y.org. 300 NS ns.y.org.\nplain.org. 300 NS ns.y.org.\nbogus.org. 300 NS ns.y.org.\n{}\n{wrong}\n",
            ds("y.org")
        );
        let others = |zone: &str| format!("{zone}. 300 MX 10 mx.{zone}.\nmx.{zone}. 300 A 127.0.0.1\n");
        for (zone, text) in [
            ("root", format!("org. 300 NS ns.y.org.\n{}\n{of_root}", ds("org"))),
            ("org", org),
            ("y.org", format!("ns.y.org. 300 A 127.0.0.1\n{inside}")),
            ("plain.org", others("plain.org")),
            ("bogus.org", others("bogus.org")),
        ] {
            std::fs::write(path.join(format!("{zone}.zone")), head(zone) + &text).unwrap();
        }
        let anchor = path.join("root.key");
        let key = keymgr(path, ".", &["dnskey"]);
        std::fs::write(&anchor, key.trim().replace(". DNSKEY", ". 300 IN DNSKEY") + "\n").unwrap();
        let mut command = program("knotd");
        command.arg("-c").arg(path.join("knot.conf"));
        let log = std::fs::File::create(path.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = command.spawn().expect("knotd of the package knot");
        let knot = Self {
            addr,
            anchor,
            server,
            _dir: dir,
        };
        knot.answers().await;
        knot
    }

    /// Waits until all zones are signed and served.
    async fn answers(&self) {
        let all = async {
            for zone in ["root", "org", "y.org", "bogus.org", "plain.org"] {
                while !self.serves(zone).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let log = || std::fs::read_to_string(self.anchor.with_file_name("log")).unwrap_or_default();
        let ended = tokio::time::timeout(Duration::from_secs(20), all).await;
        assert!(ended.is_ok(), "knot does not answer: {}", log());
    }

    async fn serves(&self, zone: &str) -> bool {
        use hickory_resolver::proto::{
            op::{Message, Query, ResponseCode},
            rr::{Name, RecordType},
        };
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let name = if zone == "root" {
            Name::root()
        } else {
            Name::from_ascii(format!("{zone}.")).unwrap()
        };
        let mut query = Message::query();
        query.add_query(Query::query(name, RecordType::SOA));
        let _ = socket.send_to(&query.to_vec().unwrap(), self.addr).await;
        let mut buffer = [0; 4096];
        let answer = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await;
        let Ok(Ok(len)) = answer else { return false };
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        answer.metadata.response_code == ResponseCode::NoError && !answer.answers.is_empty()
    }
}
