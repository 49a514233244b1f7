//! MTA-STS (RFC 8461): policies over HTTPS, and mail that keeps to them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tasuki_core::tls::TlsConfig;
use tasuki_smtp::{MailConfig, MxAnswer};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use crate::{
    sink::Sink,
    support::{House, Names},
    tls_policy::{Server, send, server_tls},
};

/// The web server of `mta-sts.y.org`.
struct Web {
    port: u16,
    answer: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
    ca: std::path::PathBuf,
    _keys: tempfile::TempDir,
}

fn page(policy: &str) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n";
    format!("{head}{policy}")
}

fn policy(mode: &str, mx: &str) -> String {
    page(&format!(
        "version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: 604800\r\n"
    ))
}

impl Web {
    async fn start(name: &str, answer: String) -> Self {
        let (tls, keys) = server_tls(name);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            port: listener.local_addr().unwrap().port(),
            answer: Arc::new(Mutex::new(answer)),
            asked: Arc::default(),
            ca: keys.path().join("ca.pem"),
            _keys: keys,
        };
        let (answer, asked) = (Arc::clone(&web.answer), Arc::clone(&web.asked));
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.server(&[]));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    asked.lock().unwrap().push("no TLS".into());
                    continue;
                };
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap_or(0) > 2 {
                    if line.starts_with("GET ") || line.to_ascii_lowercase().starts_with("host:") {
                        asked.lock().unwrap().push(line.trim().to_owned());
                    }
                    line.clear();
                }
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        web
    }

    fn says(&self, answer: String) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|line| !line.to_ascii_lowercase().starts_with("host:"))
            .count()
    }
}

fn names(texts: &Arc<Mutex<Vec<(String, String)>>>) -> Names {
    let at = || MxAnswer::Hosts(vec![(10, "mx.y.org".to_owned())]);
    let home = "127.0.0.1".parse().unwrap();
    Names(
        vec![("y.org", at()), ("x.org", at())],
        vec![("mx.y.org", home), ("mta-sts.y.org", home)],
        Arc::clone(texts),
    )
}

fn record(id: &str) -> Vec<(String, String)> {
    vec![("_mta-sts.y.org".into(), format!("v=STSv1; id={id};"))]
}

fn trust(web: &Web, server: &Server) -> TlsConfig {
    let mut trust = server.trust.clone();
    trust.extra_ca.push(web.ca.clone());
    trust
}

fn direct(config: &mut MailConfig, web: &Web, sink: &Sink) {
    config.delivery.mx_port = sink.addr.port();
    config.delivery.mta_sts_port = web.port;
    config.delivery.danger_private_addresses = true;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enforced_policy_outlives_its_record_its_web_server_and_a_restart() {
    let server = Server::start("mx.y.org").await;
    let web = Web::start("mta-sts.y.org", policy("enforce", "*.y.org")).await;
    let texts = Arc::new(Mutex::new(record("1")));
    let trust = trust(&web, &server);
    let house = House::with(names(&texts), trust.clone(), |c| direct(c, &web, &server.sink)).await;
    send(&house, "b@y.org").await;
    assert!(server.sink.wait(1).await[0].tls);
    let asked = web.asked.lock().unwrap().clone();
    assert_eq!(asked[0], "GET /.well-known/mta-sts.txt HTTP/1.1");
    assert_eq!(asked[1].to_ascii_lowercase(), "host: mta-sts.y.org");
    // A new id brings a new policy.
    web.says(policy("enforce", "mx.other.example"));
    *texts.lock().unwrap() = record("2");
    house.clock.advance(Duration::from_secs(400));
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    let errors = house.look().await.errors();
    let why = "450 4.7.10 the MTA-STS policy of y.org names other mail servers than the domain's MX records do (mx.y.org)";
    assert_eq!(errors, [why]);
    assert_eq!(web.asked(), 2);
    // It is gone from the DNS and from the web, and holds all the same.
    texts.lock().unwrap().clear();
    web.says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into());
    house.clock.advance(Duration::from_secs(400));
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 2).await;
    let (_, dir) = house.stop().await;
    let house = House::on_with(dir, names(&texts), trust, |c| direct(c, &web, &server.sink)).await;
    house.handle.retry_now();
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 3).await;
    assert_eq!((server.sink.received().len(), web.asked()), (1, 2));
    // Until its time is over.
    house.clock.advance(Duration::from_secs(604_800));
    send(&house, "c@y.org").await;
    server.sink.wait(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enforced_policy_needs_a_certificate_for_the_server() {
    let server = Server::start("mx.other.example").await;
    let web = Web::start("mta-sts.y.org", policy("enforce", "mx.y.org")).await;
    let texts = Arc::new(Mutex::new(record("1")));
    let house = House::with(names(&texts), trust(&web, &server), |c| {
        direct(c, &web, &server.sink)
    })
    .await;
    send(&house, "b@y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    let errors = house.look().await.errors();
    let start = "450 4.7.10 the MTA-STS policy of y.org is not met by mx.y.org: TLS with mx.y.org failed";
    assert!(errors[0].starts_with(start), "{errors:?}");
    // The same in testing stops nothing.
    web.says(policy("testing", "mx.nowhere.example"));
    *texts.lock().unwrap() = record("2");
    house.clock.advance(Duration::from_secs(400));
    send(&house, "c@y.org").await;
    assert!(server.sink.wait(1).await[0].tls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_proper_policy_is_none() {
    let good = "version: STSv1\r\nmode: enforce\r\nmx: mx.nowhere.example\r\nmax_age: 604800\r\n";
    let status = |line: &str, more: &str| {
        format!("HTTP/1.1 {line}\r\nContent-Type: text/plain\r\nConnection: close\r\n{more}\r\n{good}")
    };
    let server = Server::start("mx.y.org").await;
    let mut sent = 0;
    for (name, answer) in [
        (
            "mta-sts.y.org",
            status(
                "301 Moved",
                "Location: https://mta-sts.y.org/.well-known/mta-sts.txt\r\n",
            ),
        ),
        ("mta-sts.y.org", status("404 Not Found", "")),
        ("mta-sts.y.org", status("201 Created", "")),
        ("mta-sts.y.org", page(good).replace("text/plain", "text/html")),
        (
            "mta-sts.y.org",
            page(good).replace("Content-Type: text/plain; charset=utf-8\r\n", ""),
        ),
        (
            "mta-sts.y.org",
            page(&format!("{good}{}", "x: y\r\n".repeat(11_000))),
        ),
        (
            "mta-sts.y.org",
            page("version: STSv1\r\nmode: enforce\r\nmax_age: 604800\r\n"),
        ),
        ("mta-sts.y.org", "nonsense".to_owned()),
        ("mta-sts.y.org", String::new()),
        // The certificate is for another name.
        ("y.org", page(good)),
    ] {
        let web = Web::start(name, answer.clone()).await;
        let texts = Arc::new(Mutex::new(record("1")));
        let house = House::with(names(&texts), trust(&web, &server), |c| {
            direct(c, &web, &server.sink)
        })
        .await;
        send(&house, "b@y.org").await;
        sent += 1;
        server.sink.wait(sent).await;
        assert_eq!(web.asked(), 1, "{answer:.60}");
        house.nothing_is_lost(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_says_so_goes_whatever_the_policy_asks() {
    let server = Server::start("mx.other.example").await;
    let web = Web::start("mta-sts.y.org", policy("enforce", "mx.y.org")).await;
    let texts = Arc::new(Mutex::new(record("1")));
    let house = House::with(names(&texts), trust(&web, &server), |c| {
        direct(c, &web, &server.sink)
    })
    .await;
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    // RFC 8689 4.2.2: to report a broken policy, for one.
    client
        .mail(
            "a@x.org",
            &["b@y.org"],
            "Subject: hi\r\ntls-required: NO\r\n\r\nx",
        )
        .await;
    server.sink.wait(1).await;
    client
        .mail("a@x.org", &["b@y.org"], "Subject: hi\r\n\r\nTLS-Required: No")
        .await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
}
