//! DANE (RFC 7672) with a signed root of our own, and what else real DNS says about mail servers.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tasuki_core::tls::TlsConfig;
use tasuki_smtp::{DnsConfig, Hickory, MailConfig, MxAnswer, Resolver as _, TlsLevel, TlsPolicyConfig};

use crate::{knot::Knot, sink::Sink, support::House, tls_policy::send};

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A mail server for `mx.good.y.org`, and what TLSA records could say of it.
struct Server {
    sink: Sink,
    cert: CertificateDer<'static>,
    ca: CertificateDer<'static>,
}

impl Server {
    async fn start() -> Self {
        tasuki_core::tls::install_provider();
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().der().clone();
        let issuer = Issuer::new(params, ca_key);
        let cert = CertificateParams::new(vec!["mx.ta.y.org".to_owned()]).unwrap();
        let cert = cert.signed_by(&key, &issuer).unwrap().der().clone();
        let server = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.clone(), ca.clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let script: crate::sink::Script = Arc::new(|_| None);
        let sink = Sink::with(&["PIPELINING"], Some(Arc::new(server)), script).await;
        Self { sink, cert, ca }
    }

    /// A domain of this name with this server, and these TLSA records.
    fn domain(&self, name: &str, tlsa: &[String]) -> String {
        let port = self.sink.addr.port();
        let mut zone =
            format!("{name}.y.org. 300 MX 10 mx.{name}.y.org.\nmx.{name}.y.org. 300 A 127.0.0.1\n");
        for record in tlsa {
            zone += &format!("_{port}._tcp.mx.{name}.y.org. 300 TLSA {record}\n");
        }
        zone
    }

    fn key(cert: &CertificateDer<'_>) -> Vec<u8> {
        let parsed = rustls::server::ParsedCertificate::try_from(cert).unwrap();
        parsed.subject_public_key_info().to_vec()
    }

    fn zone(&self) -> String {
        let (ee, ta) = (&self.cert, &self.ca);
        let sha256 = |octets: &[u8]| hex(digest(&SHA256, octets).as_ref());
        let sha512 = |octets: &[u8]| hex(digest(&SHA512, octets).as_ref());
        let other = "00".repeat(32);
        let domain = |name: &str, tlsa: &[String]| self.domain(name, tlsa);
        [
            // Usage, selector, matching type; the certificate is for mx.ta.y.org, which only a trust anchor cares about.
            domain("ee300", &[format!("3 0 0 {}", hex(ee))]),
            domain("ee301", &[format!("3 0 1 {}", sha256(ee))]),
            domain("ee302", &[format!("3 0 2 {}", sha512(ee))]),
            domain("ee310", &[format!("3 1 0 {}", hex(&Self::key(ee)))]),
            domain(
                "ee311",
                &[
                    format!("3 1 1 {other}"),
                    format!("3 1 1 {}", sha256(&Self::key(ee))),
                ],
            ),
            domain("ee312", &[format!("3 1 2 {}", sha512(&Self::key(ee)))]),
            domain(
                "ta",
                &[format!("2 0 1 {}", sha256(ta)), format!("2 0 0 {}", hex(ta))],
            ),
            domain("taname", &[format!("2 0 0 {}", hex(ta))]),
            domain("wrong", &[format!("3 1 1 {other}")]),
            domain("pkix", &[format!("1 1 1 {other}"), format!("0 0 1 {other}")]),
            domain("unknown", &[format!("3 1 9 {other}")]),
            domain("none", &[]),
            domain("private", &[format!("3 1 1 {other}")]),
            "null.y.org. 300 MX 0 .\nbare.y.org. 300 A 127.0.0.1\nalias.y.org. 300 CNAME none.y.org.\n"
                .to_owned(),
            "self.y.org. 300 MX 10 relay.example.\n".to_owned(),
        ]
        .concat()
    }
}

fn direct(config: &mut MailConfig, knot: &Knot, sink: &Sink) {
    config.dns.server = Some(knot.addr);
    config.dns.trust_anchor = Some(knot.anchor.clone());
    config.delivery.mx_port = sink.addr.port();
    config.delivery.danger_private_addresses = true;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_to_servers_whose_certificate_signed_dns_names_and_to_no_others() {
    let server = Server::start().await;
    let knot = Knot::start(&server.zone()).await;
    let rule = |domain: &str, level| TlsPolicyConfig {
        domains: vec![domain.parse().unwrap()],
        level,
        mx: vec![],
    };
    let house = House::resolving(TlsConfig::default(), |c| {
        direct(c, &knot, &server.sink);
        c.tls_policy = vec![
            rule("private.y.org", TlsLevel::Encrypt),
            rule("plain.org", TlsLevel::DaneOnly),
        ];
    })
    .await;
    let good = [
        "ee300", "ee301", "ee302", "ee310", "ee311", "ee312", "ta", "pkix", "unknown", "none", "private",
    ];
    for (n, name) in good.into_iter().enumerate() {
        send(&house, &format!("b@{name}.y.org")).await;
        let received = server.sink.wait(n + 1).await;
        assert!(received[n].tls, "{name}");
        assert_eq!(received[n].to, [format!("b@{name}.y.org")]);
    }
    let dane =
        |name: &str| format!("450 4.7.10 DANE for {name}.y.org is not met by mx.{name}.y.org: TLS with ");
    for (n, (to, why)) in [
        ("wrong.y.org", dane("wrong")),
        ("taname.y.org", dane("taname")),
        ("bogus.org", "DNSSEC validation failed".to_owned()),
        (
            "plain.org",
            "(mail.tls_policy: dane-only) is not met: the servers have no TLSA records".to_owned(),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        send(&house, &format!("b@{to}")).await;
        house.until("the deferral", |l| l.errors().len() == n + 1).await;
        let errors = house.look().await.errors();
        assert!(
            errors.iter().any(|error| error.contains(&why)),
            "{to}: {errors:?}"
        );
    }
    assert_eq!(server.sink.received().len(), good.len());
    assert_eq!(house.figure("bounced_recipients_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_name_servers_say_where_mail_goes() {
    let server = Server::start().await;
    let knot = Knot::start(&server.zone()).await;
    let dns = DnsConfig {
        server: Some(knot.addr),
        ..DnsConfig::default()
    };
    let resolver = Hickory::new(&dns).unwrap();
    let hosts = |host: &str| MxAnswer::Hosts(vec![(10, host.to_owned())]);
    assert_eq!(resolver.mx("null.y.org").await.unwrap(), MxAnswer::Null);
    assert_eq!(resolver.mx("bare.y.org").await.unwrap(), MxAnswer::Implicit);
    assert_eq!(resolver.mx("nowhere.y.org").await.unwrap(), MxAnswer::NoDomain);
    assert_eq!(resolver.mx("alias.y.org").await.unwrap(), hosts("mx.none.y.org"));
    assert_eq!(resolver.mx("none.y.org").await.unwrap(), hosts("mx.none.y.org"));
    let house = House::resolving(TlsConfig::default(), |c| direct(c, &knot, &server.sink)).await;
    send(&house, "b@bare.y.org").await;
    send(&house, "b@alias.y.org").await;
    server.sink.wait(2).await;
    send(&house, "b@self.y.org").await;
    house
        .until("the bounce", |l| l.figure("bounced_recipients_total") == 1)
        .await;
    // SERVFAIL says nothing, and nothing bounces.
    send(&house, "b@broken.org").await;
    house
        .until("the deferral", |l| {
            l.errors().iter().any(|e| e.contains("broken.org"))
        })
        .await;
    assert_eq!(house.figure("bounced_recipients_total"), 1);
}

/// The CNAME records of a chain, and what is at its end.
fn chain(names: &[&str], end: &str) -> String {
    let links = names
        .windows(2)
        .map(|pair| format!("{}. 300 CNAME {}.\n", pair[0], pair[1]));
    links.collect::<String>() + &format!("{}. 300 {end}\n", names[names.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tlsa_records_are_found_at_the_end_of_cname_chains() {
    let server = Server::start().await;
    let port = server.sink.addr.port();
    let sha256 = |cert: &CertificateDer<'_>| hex(digest(&SHA256, cert).as_ref());
    let right = format!("TLSA 3 0 1 {}", sha256(&server.cert));
    let wrong = format!("TLSA 3 0 1 {}", "00".repeat(32));
    let at = |host: &str| format!("_{port}._tcp.{host}");
    let mx = |name: &str, host: &str| format!("{name}.y.org. 300 MX 10 {host}.\n");
    let home = "A 127.0.0.1";
    let zone = [
        // The records themselves are elsewhere, as those of whole hosters are.
        mx("tlsa", "mx.tlsa.y.org"),
        chain(&["mx.tlsa.y.org"], home),
        chain(
            &[&at("mx.tlsa.y.org"), "one.dane.y.org", "two.dane.y.org"],
            &right,
        ),
        mx("badtlsa", "mx.badtlsa.y.org"),
        chain(&["mx.badtlsa.y.org"], home),
        chain(
            &[&at("mx.badtlsa.y.org"), "one.bad.y.org", "two.bad.y.org"],
            &wrong,
        ),
        // The server is an alias: the records are those of the name that it stands for (RFC 7672 2.2.3) ...
        mx("alias", "mx.alias.y.org"),
        chain(&["mx.alias.y.org", "more.alias.y.org", "real.alias.y.org"], home),
        chain(&[&at("real.alias.y.org")], &right),
        chain(&[&at("mx.alias.y.org")], &wrong),
        mx("badalias", "mx.badalias.y.org"),
        chain(&["mx.badalias.y.org", "real.badalias.y.org"], home),
        chain(&[&at("real.badalias.y.org")], &wrong),
        // ... or, if that has none, its own.
        mx("own", "mx.own.y.org"),
        chain(&["mx.own.y.org", "real.own.y.org"], home),
        chain(&[&at("mx.own.y.org")], &wrong),
        // The alias is signed, and what it stands for is not.
        mx("out", "mx.out.y.org"),
        chain(&["mx.out.y.org"], "CNAME mx.plain.org."),
        chain(&[&at("mx.out.y.org")], &wrong),
        // With a trust anchor the certificate is for the name that has the records.
        mx("anchor", "mx.anchor.y.org"),
        chain(&["mx.anchor.y.org"], "CNAME mx.ta.y.org."),
        server.domain("ta", &[format!("2 0 0 {}", hex(&server.ca))]),
    ]
    .concat();
    let knot = Knot::start(&zone).await;
    let house = House::resolving(TlsConfig::default(), |c| direct(c, &knot, &server.sink)).await;
    for (n, name) in ["tlsa", "alias", "anchor"].into_iter().enumerate() {
        send(&house, &format!("b@{name}.y.org")).await;
        house
            .until("the delivery", |l| {
                l.figure("delivered_recipients_total") == n as i64 + 1
            })
            .await;
        assert!(server.sink.wait(n + 1).await[n].tls, "{name}");
    }
    for (n, name) in ["badtlsa", "badalias", "own", "out"].into_iter().enumerate() {
        send(&house, &format!("b@{name}.y.org")).await;
        house.until("the deferral", |l| l.errors().len() == n + 1).await;
        let errors = house.look().await.errors();
        let why = format!("450 4.7.10 DANE for {name}.y.org is not met");
        assert!(
            errors.iter().any(|error| error.starts_with(&why)),
            "{name}: {errors:?}"
        );
    }
    assert_eq!(server.sink.received().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dane_decides_where_a_domain_has_a_policy_too() {
    let server = Server::start().await;
    let ca = crate::world::Ca::make();
    let names = ["mta-sts.good.y.org", "mta-sts.bad.y.org"];
    let web = crate::world::Web::start(ca.server(&names, crate::world::Flaw::None).0).await;
    // The policy asks for a CA that nobody trusts, and then for any server with a good certificate: neither counts.
    web.says(names[0], crate::world::policy("enforce", "other.good.y.org"));
    web.says(names[1], crate::world::policy("enforce", "mx.bad.y.org"));
    let sts = |name: &str| {
        format!("_mta-sts.{name}.y.org. 300 TXT \"v=STSv1; id=1;\"\nmta-sts.{name}.y.org. 300 A 127.0.0.1\n")
    };
    let right = hex(digest(&SHA256, &server.cert).as_ref());
    let zone = [
        server.domain("good", &[format!("3 0 1 {right}")]),
        server.domain("bad", &[format!("3 0 1 {}", "00".repeat(32))]),
        sts("good"),
        sts("bad"),
    ]
    .concat();
    let knot = Knot::start(&zone).await;
    let house = House::resolving(ca.trust(), |c| {
        direct(c, &knot, &server.sink);
        c.delivery.mta_sts_port = web.port;
    })
    .await;
    send(&house, "b@good.y.org").await;
    assert!(server.sink.wait(1).await[0].tls);
    send(&house, "b@bad.y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    let errors = house.look().await.errors();
    assert!(
        errors[0].contains("DANE for bad.y.org is not met by mx.bad.y.org"),
        "{errors:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_there_are_no_records_is_asked_once_for_as_long_as_the_zone_says() {
    use hickory_resolver::proto::{op::Message, rr::RecordType};
    let zone = "none.y.org. 300 MX 10 mx.none.y.org.\nmx.none.y.org. 300 A 127.0.0.1\n";
    let knot = Knot::start(zone).await;
    // Between the resolver and the name server, to see what is asked.
    let relay = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let asked: Arc<std::sync::Mutex<Vec<(String, RecordType)>>> = Arc::default();
    let (seen, front, behind) = (Arc::clone(&asked), Arc::clone(&relay), knot.addr);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = front.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let question = &query.queries[0];
            seen.lock()
                .unwrap()
                .push((question.name().to_ascii(), question.query_type()));
            let (octets, front) = (buffer[..len].to_vec(), Arc::clone(&front));
            tokio::spawn(async move {
                let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&octets, behind).await.unwrap();
                let mut answer = [0; 4096];
                if let Ok(len) = socket.recv(&mut answer).await {
                    let _ = front.send_to(&answer[..len], from).await;
                }
            });
        }
    });
    let resolver = Hickory::new(&DnsConfig {
        server: Some(relay.local_addr().unwrap()),
        trust_anchor: Some(knot.anchor.clone()),
        ..DnsConfig::default()
    })
    .unwrap();
    for (domain, host) in [("none.y.org", "mx.none.y.org"), ("plain.org", "mx.plain.org")] {
        assert!(resolver.tlsa(domain, host, 25).await.unwrap().records.is_empty());
        let first = std::mem::take(&mut *asked.lock().unwrap());
        assert!(!first.is_empty());
        for _ in 0..5 {
            assert!(resolver.tlsa(domain, host, 25).await.unwrap().records.is_empty());
        }
        let again = std::mem::take(&mut *asked.lock().unwrap());
        assert!(again.is_empty(), "{domain}: {again:?} after {first:?}");
    }
}
