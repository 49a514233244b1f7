//! A small internet: names in signed DNS (knot), mail servers at addresses of their own with one port, certificates of one
//! CA, and a web server for policies and reports.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tasuki_core::tls::TlsConfig;
use tasuki_smtp::MailConfig;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket},
    sync::Notify,
};

use crate::{
    knot::Knot,
    sink::{Script, Sink},
};

/// Keys and certificates.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) cert: CertificateDer<'static>,
    dir: tempfile::TempDir,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    SelfSigned,
}

impl Ca {
    pub(crate) fn make() -> Self {
        tasuki_core::tls::install_provider();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).unwrap();
        Self {
            cert: cert.der().clone(),
            issuer: Issuer::new(params, key),
            dir,
        }
    }

    fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// What a gateway must be told to believe this CA.
    pub(crate) fn trust(&self) -> TlsConfig {
        TlsConfig {
            extra_ca: vec![self.pem()],
            ..TlsConfig::default()
        }
    }

    /// A server's configuration, and its certificate.
    pub(crate) fn server(
        &self,
        names: &[&str],
        flaw: Flaw,
    ) -> (Arc<rustls::ServerConfig>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if flaw == Flaw::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let cert = match flaw {
            Flaw::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let cert = cert.unwrap().der().clone();
        let chain = vec![cert.clone(), self.cert.clone()];
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap());
        (Arc::new(config.unwrap()), cert)
    }
}

/// A web server that was asked something.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) host: String,
    /// Method and path.
    pub(crate) what: String,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

/// Answers by host; what it has nothing for is 404.
pub(crate) struct Web {
    pub(crate) port: u16,
    answers: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    arrived: Arc<Notify>,
}

/// The answer that has a policy.
pub(crate) fn policy(mode: &str, mx: &str) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
    format!("{head}version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: 604800\r\n")
}

impl Web {
    pub(crate) async fn start(tls: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            port: listener.local_addr().unwrap().port(),
            answers: Arc::default(),
            asked: Arc::default(),
            arrived: Arc::default(),
        };
        let (answers, asked, arrived) = (
            Arc::clone(&web.answers),
            Arc::clone(&web.asked),
            Arc::clone(&web.arrived),
        );
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut stream = BufReader::new(stream);
                let Some(request) = read(&mut stream).await else {
                    continue;
                };
                let missing = || "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
                let answer = answers
                    .lock()
                    .unwrap()
                    .get(&request.host)
                    .cloned()
                    .unwrap_or_else(missing);
                asked.lock().unwrap().push(request);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                arrived.notify_waiters();
            }
        });
        web
    }

    pub(crate) fn says(&self, host: &str, answer: String) {
        self.answers.lock().unwrap().insert(host.to_owned(), answer);
    }

    /// Waits until this many requests to a host have come.
    pub(crate) async fn wait(&self, host: &str, count: usize) -> Vec<Asked> {
        let all = async {
            loop {
                let arrived = self.arrived.notified();
                let asked = self.asked.lock().unwrap().clone();
                let of_host: Vec<_> = asked.into_iter().filter(|asked| asked.host == host).collect();
                if of_host.len() >= count {
                    return of_host;
                }
                arrived.await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), all).await;
        ended.unwrap_or_else(|_| panic!("{host} was not asked: {:?}", self.asked.lock().unwrap()))
    }
}

async fn read<S: tokio::io::AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Asked> {
    let (mut line, mut len) = (String::new(), 0);
    stream.read_line(&mut line).await.ok()?;
    let mut asked = Asked {
        host: String::new(),
        what: line.trim_end().trim_end_matches(" HTTP/1.1").to_owned(),
        content_type: String::new(),
        body: Vec::new(),
    };
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => asked.host = value.split(':').next().unwrap_or_default().to_owned(),
            "content-type" => asked.content_type = value.to_owned(),
            "content-length" => len = value.parse().ok()?,
            _ => {}
        }
    }
    asked.body = vec![0; len];
    stream.read_exact(&mut asked.body).await.ok()?;
    Some(asked)
}

/// Mail servers at 127.0.0.2 and so on, all at the same port.
pub(crate) struct Servers {
    pub(crate) port: u16,
    pub(crate) sinks: Vec<Sink>,
}

/// What a server offers, its TLS, and how it behaves.
pub(crate) type Plan = (&'static [&'static str], Option<Arc<rustls::ServerConfig>>, Script);

/// A server that does nothing special.
pub(crate) fn plain_plan(tls: Option<Arc<rustls::ServerConfig>>) -> Plan {
    (&["PIPELINING"], tls, Arc::new(|_| None))
}

impl Servers {
    pub(crate) async fn start(plans: Vec<Plan>) -> Self {
        let at = |n: usize| IpAddr::from(Ipv4Addr::new(127, 0, 0, u8::try_from(n + 2).unwrap()));
        let addrs: Vec<IpAddr> = (0..plans.len()).map(at).collect();
        let (port, listeners) = same_port(&addrs);
        let mut sinks = Vec::new();
        for ((offers, tls, script), listener) in plans.into_iter().zip(listeners) {
            sinks.push(Sink::on(listener, offers, tls, script));
        }
        Self { port, sinks }
    }

    /// How many mails all of them have.
    pub(crate) fn received(&self) -> usize {
        self.sinks.iter().map(|sink| sink.received().len()).sum()
    }
}

/// Listeners at these addresses with one port.
pub(crate) fn same_port(addrs: &[IpAddr]) -> (u16, Vec<TcpListener>) {
    let listen = |ip: IpAddr, port| {
        let socket = if ip.is_ipv6() {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        };
        let socket = socket?;
        socket.bind(SocketAddr::new(ip, port))?;
        socket.listen(128)
    };
    for _ in 0..100 {
        let first = listen(addrs[0], 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let rest: std::io::Result<Vec<_>> = addrs[1..].iter().map(|ip| listen(*ip, port)).collect();
        if let Ok(rest) = rest {
            return (port, std::iter::once(first).chain(rest).collect());
        }
    }
    panic!("no port is free at all of {addrs:?}")
}

/// Delivers by the MX records of this DNS, to these servers.
pub(crate) fn direct(config: &mut MailConfig, knot: &Knot, port: u16, web: &Web) {
    config.dns.server = Some(knot.addr);
    config.dns.trust_anchor = Some(knot.anchor.clone());
    config.delivery.mx_port = port;
    config.delivery.mta_sts_port = web.port;
    config.delivery.danger_private_addresses = true;
}
