//! REQUIRETLS on the way out, as RFC 8689 4.2.1 has it.

use std::sync::Arc;

use tasuki_smtp::{MxAnswer, TlsLevel, TlsPolicyConfig};

use crate::{
    knot::Knot,
    sink::{Received, Script},
    support::{House, Names},
    tls_policy::require,
    world::{Ca, Flaw, Plan, Servers, Web, direct, plain_plan, policy},
};

/// A server that promises REQUIRETLS.
fn promising(tls: Arc<rustls::ServerConfig>) -> Plan {
    (&["PIPELINING", "REQUIRETLS"], Some(tls), Arc::new(|_| None))
}

fn says(notice: &Received, domain: &str, status: &str) {
    let fields = format!("Final-Recipient: rfc822; b@{domain}\r\nAction: failed\r\nStatus: {status}\r\n");
    assert!(notice.text.contains(&fields), "{}", notice.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_proved_and_a_certificate_for_it_are_asked_and_nothing_more() {
    let ca = Ca::make();
    let names = ["mx.signed.y.org", "bare.y.org", "mx.other.y.org"];
    let (good, _) = ca.server(&names, Flaw::None);
    let (stranger, _) = ca.server(&["mx.stranger.y.org"], Flaw::SelfSigned);
    let servers = Servers::start(vec![promising(good), promising(stranger), plain_plan(None)]).await;
    let web = Web::start(ca.server(&["nowhere.y.org"], Flaw::None).0).await;
    let zone = "signed.y.org. 300 MX 10 mx.signed.y.org.\nmx.signed.y.org. 300 A 127.0.0.2\n\
                bare.y.org. 300 A 127.0.0.2\n\
                stranger.y.org. 300 MX 10 mx.stranger.y.org.\nmx.stranger.y.org. 300 A 127.0.0.3\n\
                clear.y.org. 300 MX 10 mx.clear.y.org.\nmx.clear.y.org. 300 A 127.0.0.4\n\
                away.y.org. 300 MX 10 mx.away.y.org.\nmx.away.y.org. 300 A 127.0.0.99\n\
                away.y.org. 300 MX 20 mx.clear.y.org.\n";
    let knot = Knot::start(zone).await;
    let house = House::resolving(ca.trust(), |c| {
        direct(c, &knot, servers.port, &web);
        // Notices go where they can be seen.
        c.smarthosts = vec![crate::support::plain_smarthost(servers.sinks[2].addr)];
        c.routes = vec![tasuki_smtp::RouteConfig {
            domain: Some("x.org".parse().unwrap()),
            via: "hop".into(),
            ..tasuki_smtp::RouteConfig::default()
        }];
    })
    .await;
    // A signed MX record is enough for the name, TLSA records are not needed; without an MX record the domain's own name is.
    for (n, domain) in ["signed.y.org", "bare.y.org"].into_iter().enumerate() {
        require(&house, &format!("b@{domain}")).await;
        assert!(servers.sinks[0].wait(n + 1).await[n].tls, "{domain}");
    }
    let notices = &servers.sinks[2];
    // The certificate is nobody's; there is no TLS at all.
    for (n, (domain, status)) in [("stranger.y.org", "5.7.10"), ("clear.y.org", "5.7.10")]
        .into_iter()
        .enumerate()
    {
        require(&house, &format!("b@{domain}")).await;
        says(&notices.wait(n + 1).await[n], domain, status);
    }
    // One server is only away, so it is tried again.
    require(&house, "b@away.y.org").await;
    house.until("the deferral", |l| l.errors().len() == 1).await;
    assert_eq!(notices.received().len(), 2);
    // DNSSEC that is forged proves nothing, and does not bring mail back either.
    require(&house, "b@bogus.org").await;
    house.until("the deferral", |l| l.errors().len() == 2).await;
    let all: Vec<_> = servers.sinks.iter().flat_map(|sink| sink.commands()).collect();
    let mails = all.iter().filter(|c| c.starts_with("MAIL FROM:<a@x.org>"));
    assert_eq!(mails.count(), 2, "no other server saw anything of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_server_that_nobody_vouches_for_does_not_get_it() {
    let ca = Ca::make();
    let (good, _) = ca.server(&["mx.y.org"], Flaw::None);
    let servers = Servers::start(vec![promising(good)]).await;
    let web = Web::start(ca.server(&["mta-sts.y.org"], Flaw::None).0).await;
    let names = || {
        let at = MxAnswer::Hosts(vec![(10, "mx.y.org".to_owned())]);
        let record = ("_mta-sts.y.org".to_owned(), "v=STSv1; id=1;".to_owned());
        Names(
            vec![("y.org", at.clone()), ("x.org", at)],
            vec![
                ("mx.y.org", "127.0.0.2".parse().unwrap()),
                ("mta-sts.y.org", "127.0.0.1".parse().unwrap()),
            ],
            Arc::new(std::sync::Mutex::new(vec![record])),
        )
    };
    let rule = |mx: &[&str]| TlsPolicyConfig {
        domains: vec!["y.org".parse().unwrap()],
        level: TlsLevel::Verify,
        mx: mx.iter().map(|mx| mx.parse().unwrap()).collect(),
    };
    let with = async |rule: Option<TlsPolicyConfig>| {
        House::with(names(), ca.trust(), |c| {
            c.delivery.mx_port = servers.port;
            c.delivery.danger_private_addresses = true;
            c.delivery.mta_sts_port = web.port;
            c.tls_policy = rule.into_iter().collect();
        })
        .await
    };
    // An unsigned MX record may name anybody, whose certificate is good for his own name.
    let house = with(Some(rule(&[]))).await;
    require(&house, "b@y.org").await;
    says(&servers.sinks[0].wait(1).await[0], "y.org", "5.7.30");
    let house = with(Some(rule(&["mx.y.org"]))).await;
    require(&house, "b@y.org").await;
    assert_eq!(servers.sinks[0].wait(2).await[1].to, ["b@y.org"]);
    // MTA-STS names servers in testing, too, and asks for a certificate of the name then as ever.
    web.says("mta-sts.y.org", policy("testing", "mx.y.org"));
    let house = with(None).await;
    require(&house, "b@y.org").await;
    assert_eq!(servers.sinks[0].wait(3).await[2].to, ["b@y.org"]);
    web.says("mta-sts.y.org", policy("testing", "mx.other.example"));
    let house = with(None).await;
    require(&house, "b@y.org").await;
    says(&servers.sinks[0].wait(4).await[3], "y.org", "5.7.30");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_keep_the_promise_is_passed_over_and_if_none_can_the_mail_comes_back() {
    let ca = Ca::make();
    let (tls, _) = ca.server(&["mx1.y.org", "mx2.y.org", "mx1.z.org"], Flaw::None);
    let refusing: Script = Arc::new(|line| {
        line.ends_with("REQUIRETLS")
            .then(|| "550 5.7.30 REQUIRETLS support required".into())
    });
    let offers: &'static [&'static str] = &["PIPELINING", "REQUIRETLS"];
    let servers = Servers::start(vec![(offers, Some(Arc::clone(&tls)), refusing), promising(tls)]).await;
    let hosts =
        |list: &[(u16, &str)]| MxAnswer::Hosts(list.iter().map(|(p, h)| (*p, (*h).to_owned())).collect());
    let names = Names(
        vec![
            ("y.org", hosts(&[(10, "mx1.y.org"), (20, "mx2.y.org")])),
            ("z.org", hosts(&[(10, "mx1.z.org")])),
            ("x.org", hosts(&[(10, "mx2.y.org")])),
        ],
        vec![
            ("mx1.y.org", "127.0.0.2".parse().unwrap()),
            ("mx2.y.org", "127.0.0.3".parse().unwrap()),
            ("mx1.z.org", "127.0.0.2".parse().unwrap()),
        ],
        Arc::default(),
    );
    let house = House::with(names, ca.trust(), |c| {
        c.delivery.mx_port = servers.port;
        c.delivery.danger_private_addresses = true;
        c.tls_policy = vec![TlsPolicyConfig {
            domains: vec!["y.org".parse().unwrap(), "z.org".parse().unwrap()],
            level: TlsLevel::Verify,
            mx: vec!["*.y.org".parse().unwrap(), "*.z.org".parse().unwrap()],
        }];
    })
    .await;
    require(&house, "b@y.org").await;
    assert_eq!(servers.sinks[1].wait(1).await[0].to, ["b@y.org"]);
    require(&house, "b@z.org").await;
    says(&servers.sinks[1].wait(2).await[1], "z.org", "5.7.30");
    house.nothing_is_lost(0).await;
    // Nothing is wrong with the route, so other mail goes on at once.
    assert!(
        house
            .handle
            .status()
            .lanes
            .iter()
            .all(|lane| lane.rests_s.is_none()),
        "{:?}",
        house.handle.status()
    );
}
