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
