//! The accept loop at its limits.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tasuki_core::accept::Acceptor;
use tasuki_core::sockets::Sockets;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn a_peer_beyond_the_limit_waits_until_a_permit_comes_back() {
    let acceptor = Acceptor::bind(LOOPBACK, 2).unwrap();
    let addr = acceptor.local_addr();
    let _clients = [
        std::net::TcpStream::connect(addr).unwrap(),
        std::net::TcpStream::connect(addr).unwrap(),
        std::net::TcpStream::connect(addr).unwrap(),
    ];
    let first = timeout(LONG, acceptor.accept()).await.unwrap();
    let _second = timeout(LONG, acceptor.accept()).await.unwrap();
    assert_eq!(acceptor.open_connections(), 2);
    assert!(
        timeout(Duration::from_millis(50), acceptor.accept())
            .await
            .is_err(),
        "the third must wait"
    );
    drop(first.permit);
    let third = timeout(LONG, acceptor.accept()).await.unwrap();
    assert!(third.stream.nodelay().unwrap());
}

#[tokio::test]
async fn both_families_stand_side_by_side_on_one_port_and_mapped_peers_are_unmapped() {
    let wildcard: SocketAddr = "[::]:0".parse().unwrap();
    let both = Acceptor::bind(wildcard, 8).unwrap();
    let port = both.local_addr().port();
    let _client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let accepted = timeout(LONG, both.accept()).await.unwrap();
    assert_eq!(accepted.peer.ip(), Ipv4Addr::LOCALHOST);
    drop((accepted, both));

    let addrs = [
        ("", SocketAddr::from(([0, 0, 0, 0], port))),
        ("", SocketAddr::new("::".parse().unwrap(), port)),
    ];
    let apart = Acceptor::bind_all(&Sockets::default(), &addrs, 8).unwrap();
    assert_eq!(apart.len(), 2);
}

/// Port 0 is the same port for both only when it is named: binds both families until the port is free in both.
fn both_families(sockets: &Sockets) -> (u16, Vec<Acceptor>) {
    for _ in 0..50 {
        let probe = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let addrs = [
            ("mail", SocketAddr::from(([0, 0, 0, 0], port))),
            ("mail", SocketAddr::new("::".parse().unwrap(), port)),
        ];
        if let Ok(apart) = Acceptor::bind_all(sockets, &addrs, 8) {
            return (port, apart);
        }
    }
    panic!("no port is free in both families");
}

#[tokio::test]
async fn a_listener_of_ipv6_alone_is_not_taken_for_one_of_both_families() {
    let before = Sockets::default();
    let (port, apart) = both_families(&before);
    let given = before.hand_over();
    drop(apart);
    let after = Sockets::inherited(given);
    let wildcard = SocketAddr::new("::".parse().unwrap(), port);
    // It would be served by the socket of IPv6 alone, and nobody would take IPv4 any more.
    let error = Acceptor::bind_all(&after, &[("mail", wildcard)], 8).unwrap_err();
    assert_eq!(error.1.kind(), std::io::ErrorKind::AddrInUse, "{error:?}");
    let same = [
        ("mail", SocketAddr::from(([0, 0, 0, 0], port))),
        ("mail", wildcard),
    ];
    assert_eq!(Acceptor::bind_all(&after, &same, 8).unwrap().len(), 2);
}

#[test]
fn a_process_without_descriptors_sheds_and_then_accepts_again() {
    const CHILD: &str = "TASUKI_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_some() {
        return with_few_descriptors();
    }
    // A process of its own: the limit must not touch the tests beside this one.
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "accept::a_process_without_descriptors_sheds_and_then_accepts_again",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && text.contains("accepted again"),
        "{text}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn with_few_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let acceptor = Acceptor::bind(LOOPBACK, 1000).unwrap();
        let mut shed = std::net::TcpStream::connect(acceptor.local_addr()).unwrap();
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(64),
                maximum,
            },
        )
        .unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        // The loop runs into EMFILE, backs off, and at last closes the one that waits.
        let reader = tokio::task::spawn_blocking(move || shed.read(&mut [0; 1]));
        tokio::select! {
            _ = acceptor.accept() => panic!("there was no descriptor to accept with"),
            end = timeout(LONG, reader) => {
                let end = end.expect("the waiting peer is told").unwrap();
                assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
            }
        }
        hoard.truncate(hoard.len() - 4);
        let _client = std::net::TcpStream::connect(acceptor.local_addr()).unwrap();
        timeout(LONG, acceptor.accept()).await.expect("accepts again");
        println!("accepted again");
    });
}
