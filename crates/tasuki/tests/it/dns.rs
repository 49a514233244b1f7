//! The DNS records of our mail by command, against a real name server (Debian's `knot`).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::gateway::{Gateway, HOST, LISTENERS};

/// A name server whose only zone is the root; ends with its test.
struct Names {
    addr: SocketAddr,
    server: Child,
    directory: TempDir,
}

impl Drop for Names {
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

/// A query for the root's SOA (RFC 1035 4.1).
const QUERY: &[u8] = b"\x12\x34\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x01";

impl Names {
    fn start(records: &str) -> Self {
        let (directory, addr) = (TempDir::new().unwrap(), free_addr());
        let path = directory.path();
        let config = format!(
            "server:\n  rundir: {dir}\n  listen: {ip}@{port}\ndatabase:\n  storage: {dir}/db\n\
             zone:\n- domain: .\n  storage: {dir}\n  file: root.zone\n",
            dir = path.display(),
            ip = addr.ip(),
            port = addr.port()
        );
        std::fs::create_dir(path.join("db")).unwrap();
        std::fs::write(path.join("knot.conf"), config).unwrap();
        let head =
            ". 300 SOA ns.test. h.test. 1 3600 900 86400 30\n. 300 NS ns.test.\nns.test. 300 A 127.0.0.1\n";
        std::fs::write(path.join("root.zone"), format!("{head}{records}")).unwrap();
        let log = std::fs::File::create(path.join("log")).unwrap();
        let mut command = program("knotd");
        command.arg("-c").arg(path.join("knot.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = command.spawn().expect("knotd of the package knot");
        let names = Self {
            addr,
            server,
            directory,
        };
        let started = Instant::now();
        while !names.answers() {
            let log = || std::fs::read_to_string(names.directory.path().join("log")).unwrap_or_default();
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "knot does not answer: {}",
                log()
            );
        }
        names
    }

    fn answers(&self) -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = [0; 512];
        socket.send_to(QUERY, self.addr).is_ok()
            // Flags and RCODE: an authoritative answer without error.
            && socket.recv(&mut buffer).is_ok_and(|len| len > 12 && buffer[3] & 15 == 0 && buffer[7] > 0)
    }
}

/// What stands behind `publish:` or in zone lines is published, so that the next look finds all well.
#[test]
fn what_the_command_prints_makes_its_own_check_succeed_once_it_is_published() {
    let before = Names::start(
        "shop.test. 300 MX 10 mx.shop.test.\nshop.test. 300 TXT \"v=spf1 mx -all\"\nmx.shop.test. 300 A 192.0.2.1\n",
    );
    let dns = |names: &Names| format!("[mail.dns]\nserver = \"{}\"\ndnssec = false\n", names.addr);
    let gateway = Gateway::start(&dns(&before));
    gateway.ok(&["mail", "dkim", "add", "shop.test", "--selector", "k"]);
    gateway.ok(&["service", "add", "app", "--send-as", "other.test"]);
    let address = ["--address", "203.0.113.5"];
    let dns_of = |more: &[&'static str]| [&["mail", "dns"][..], &address, more].concat();

    // Without a name, every domain with keys or grants.
    let all = gateway.ok(&dns_of(&[])).out;
    for line in [
        format!("missing  address  {HOST} A"),
        "missing  reverse  5.113.0.203.in-addr.arpa PTR".to_owned(),
        "differs  spf      shop.test TXT".to_owned(),
        "publish: v=spf1 mx ip4:203.0.113.5 -all".to_owned(),
        "missing  dkim     kr._domainkey.shop.test TXT".to_owned(),
        "missing  dmarc    _dmarc.shop.test TXT".to_owned(),
        "ok       mx       shop.test MX".to_owned(),
        "missing  mx       other.test MX".to_owned(),
        "tasuki mail dkim add other.test".to_owned(),
    ] {
        assert!(all.contains(&line), "{line}: {all}");
    }
    let one = gateway.run(&dns_of(&["shop.test", "--check"]));
    assert_eq!(one.code, 65, "{}", one.err);
    assert!(
        one.err.contains("6 records that are needed"),
        "{}{}",
        one.out,
        one.err
    );
    assert!(!one.out.contains("other.test"), "{}", one.out);
    let fields = gateway.ok(&dns_of(&["shop.test", "--zone", "text"])).out;
    assert!(
        fields.contains("ホスト名 host:  kr._domainkey.shop.test\n"),
        "{fields}"
    );
    // Nobody here knows that news.shop.test is a name in the zone shop.test: not the parent's `@` and `_dmarc`.
    let below = gateway.ok(&dns_of(&["news.shop.test", "--zone", "text"])).out;
    for name in ["news.shop.test", "_dmarc.news.shop.test", HOST] {
        assert!(
            below.contains(&format!("ホスト名 host:  {name}\n")),
            "{name}: {below}"
        );
    }
    assert!(
        below.contains("without the name of the zone") && !below.contains("host:  @"),
        "{below}"
    );
    assert!(
        fields.contains("内容 value:     v=DKIM1; k=rsa; p=MIIB"),
        "{fields}"
    );
    let zone = gateway.ok(&dns_of(&["shop.test", "--zone", "bind"])).out;
    assert!(
        zone.contains("kr._domainkey.shop.test. IN TXT ( \"v=DKIM1; k=rsa; p=MIIB"),
        "{zone}"
    );

    // A zone file as printed, comments included.
    let after = Names::start(&format!(
        "{zone}\nshop.test. 300 MX 10 mx.shop.test.\nmx.shop.test. 300 A 192.0.2.1\n"
    ));
    let (_, place) = gateway.stop();
    place.write(&format!(
        "{}\n[server]\nhost = \"{HOST}\"\n{LISTENERS}",
        dns(&after)
    ));
    let gateway = Gateway::serve(place);
    let well = gateway.run(&dns_of(&["shop.test", "--check"]));
    assert_eq!(well.code, 0, "{}{}", well.out, well.err);
    let report = gateway.ok(&dns_of(&["shop.test", "--json"])).json();
    assert_eq!(report["complete"], true, "{report}");
    for record in report["records"].as_array().unwrap() {
        assert_eq!(record["state"], "ok", "{record}");
    }
    // And the zone is the same, but for what needed no line of its own.
    assert_eq!(gateway.ok(&dns_of(&["shop.test", "--zone", "bind"])).out, zone);
}

#[test]
fn wrong_names_and_addresses_are_refused() {
    let gateway = Gateway::start("");
    for words in [
        &["mail", "dns", "not a domain"][..],
        &["mail", "dns", "x.test", "--address", "300.1.1.1"],
        &["mail", "dns", "x.test", "--zone", "djb"],
    ] {
        let said = gateway.run(words);
        assert!(
            [2, 64].contains(&said.code),
            "{words:?}: {} {}",
            said.code,
            said.err
        );
    }
}
