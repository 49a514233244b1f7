//! TLS reporting (RFC 8460): what is counted of sessions over real DNS, and the reports that tell of it.

use std::{collections::BTreeSet, process::Stdio, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use tasuki_core::{events::What, store::audit::Actor};
use tasuki_proto::{names::Domain, smtp::dkim::Algorithm};
use tasuki_smtp::{TlsLevel, TlsPolicyConfig};
use tokio::io::AsyncWriteExt as _;

use crate::{
    knot::Knot,
    support::House,
    tls_policy::send,
    world::{Ca, Flaw, Servers, Web, direct, plain_plan, policy},
};

/// Domain, policy type, result type, sessions.
type Line = (String, String, String, u64);

fn line(domain: &str, policy: &str, result: &str, sessions: u64) -> Line {
    (domain.into(), policy.into(), result.into(), sessions)
}

/// What is counted today.
async fn counted(house: &House) -> BTreeSet<Line> {
    let (_, days) = house.handle.tls_day(None, None).await.unwrap();
    let mut lines = BTreeSet::new();
    for day in days {
        for result in day.policies.as_array().unwrap() {
            let policy = result["policy"]["policy-type"].as_str().unwrap();
            let good = result["summary"]["total-successful-session-count"]
                .as_u64()
                .unwrap();
            if good > 0 {
                lines.insert(line(&day.domain, policy, "success", good));
            }
            for detail in result["failure-details"].as_array().into_iter().flatten() {
                let failure = detail["result-type"].as_str().unwrap();
                let sessions = detail["failed-session-count"].as_u64().unwrap();
                lines.insert(line(&day.domain, policy, failure, sessions));
            }
        }
    }
    lines
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A domain `NAME.y.org` with a server at 127.0.0.`at`, and if so a record of an MTA-STS policy.
fn domain(name: &str, at: u8, has_sts: bool) -> String {
    let mut zone = format!("{name}.y.org. 300 MX 10 mx.{name}.y.org.\nmx.{name}.y.org. 300 A 127.0.0.{at}\n");
    if has_sts {
        zone += &format!(
            "_mta-sts.{name}.y.org. 300 TXT \"v=STSv1; id=1;\"\nmta-sts.{name}.y.org. 300 A 127.0.0.1\n"
        );
    }
    zone
}

const GOOD: u8 = 2;
const EXPIRED: u8 = 3;
const STRANGER: u8 = 4;
const PLAIN: u8 = 5;
const BROKEN: u8 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_result_is_counted_and_a_policy_in_testing_stops_nothing() {
    let ca = Ca::make();
    let names = [
        "ee", "unusable", "none", "sts", "tried", "strict", "badmx", "noweb", "badtext", "badweb",
    ];
    let hosts: Vec<String> = names.iter().map(|name| format!("mx.{name}.y.org")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let (good, cert) = ca.server(&hosts, Flaw::None);
    let (expired, _) = ca.server(&["mx.expired.y.org"], Flaw::Expired);
    let (stranger, _) = ca.server(&["mx.stranger.y.org"], Flaw::SelfSigned);
    let (broken, _) = ca.server(&["mx.broken.y.org"], Flaw::None);
    let mut plans = vec![
        plain_plan(Some(good)),
        plain_plan(Some(expired)),
        plain_plan(Some(stranger)),
        plain_plan(None),
        plain_plan(Some(broken)),
    ];
    plans[4].2 = Arc::new(|line| (line == "handshake").then(|| "close".into()));
    let servers = Servers::start(plans).await;
    let sts = [
        "sts",
        "tried",
        "wrongname",
        "expired",
        "stranger",
        "tryplain",
        "broken",
        "strict",
        "badmx",
        "noweb",
        "badtext",
    ];
    let web_names: Vec<String> = sts.iter().map(|name| format!("mta-sts.{name}.y.org")).collect();
    let web_names: Vec<&str> = web_names.iter().map(String::as_str).collect();
    let web = Web::start(ca.server(&web_names, Flaw::None).0).await;
    let says =
        |name: &str, mode: &str, mx: &str| web.says(&format!("mta-sts.{name}.y.org"), policy(mode, mx));
    says("sts", "enforce", "mx.sts.y.org");
    for name in ["tried", "wrongname", "expired", "stranger", "tryplain", "broken"] {
        says(name, "testing", &format!("mx.{name}.y.org"));
    }
    says("badmx", "testing", "other.badmx.y.org");
    says("strict", "enforce", "mx.strict.y.org");
    web.says("mta-sts.badtext.y.org", policy("sometimes", "mx.badtext.y.org"));
    let tlsa =
        |name: &str, record: String| format!("_{}._tcp.mx.{name}.y.org. 300 TLSA {record}\n", servers.port);
    let other = "00".repeat(32);
    let zone = [
        domain("ee", GOOD, false),
        tlsa("ee", format!("3 0 1 {}", hex(digest(&SHA256, &cert).as_ref()))),
        domain("wrong", GOOD, false),
        tlsa("wrong", format!("3 1 1 {other}")),
        domain("unusable", GOOD, false),
        tlsa("unusable", format!("1 1 1 {other}")),
        domain("none", GOOD, false),
        domain("clear", PLAIN, false),
        domain("sts", GOOD, true),
        domain("tried", GOOD, true),
        domain("wrongname", GOOD, true),
        domain("expired", EXPIRED, true),
        domain("stranger", STRANGER, true),
        domain("tryplain", PLAIN, true),
        domain("broken", BROKEN, true),
        domain("badmx", GOOD, true),
        domain("strict", PLAIN, true),
        domain("noweb", GOOD, true),
        domain("badtext", GOOD, true),
        domain("badweb", GOOD, true),
    ]
    .concat();
    let knot = Knot::start(&zone).await;
    let house = House::resolving(ca.trust(), |c| {
        direct(c, &knot, servers.port, &web);
        c.tls_policy = vec![TlsPolicyConfig {
            domains: vec!["plain.org".parse().unwrap()],
            level: TlsLevel::DaneOnly,
            mx: vec![],
        }];
    })
    .await;
    house.next_morning();
    let mut events = house.events.subscribe();
    let delivered = [
        "ee",
        "unusable",
        "none",
        "clear",
        "sts",
        "tried",
        "wrongname",
        "expired",
        "stranger",
        "tryplain",
        "broken",
        "badmx",
        "noweb",
        "badtext",
        "badweb",
    ];
    for (n, name) in delivered.iter().enumerate() {
        send(&house, &format!("b@{name}.y.org")).await;
        house
            .until("the delivery", |l| {
                l.figure("delivered_recipients_total") == n as i64 + 1
            })
            .await;
    }
    assert_eq!(servers.received(), delivered.len());
    for (n, to) in ["wrong.y.org", "strict.y.org", "bogus.org", "plain.org"]
        .iter()
        .enumerate()
    {
        send(&house, &format!("b@{to}")).await;
        house.until("the deferral", |l| l.errors().len() == n + 1).await;
    }
    assert_eq!(servers.received(), delivered.len(), "what must wait waits");
    let expected = [
        line("ee.y.org", "tlsa", "success", 1),
        line("wrong.y.org", "tlsa", "certificate-not-trusted", 1),
        line("unusable.y.org", "tlsa", "tlsa-invalid", 1),
        line("bogus.org", "tlsa", "dnssec-invalid", 1),
        line("plain.org", "tlsa", "dane-required", 1),
        line("none.y.org", "no-policy-found", "success", 1),
        line("clear.y.org", "no-policy-found", "starttls-not-supported", 1),
        line("sts.y.org", "sts", "success", 1),
        line("tried.y.org", "sts", "success", 1),
        line("wrongname.y.org", "sts", "certificate-host-mismatch", 1),
        line("expired.y.org", "sts", "certificate-expired", 1),
        line("stranger.y.org", "sts", "certificate-not-trusted", 1),
        line("tryplain.y.org", "sts", "starttls-not-supported", 1),
        line("broken.y.org", "sts", "validation-failure", 1),
        line("badmx.y.org", "sts", "validation-failure", 1),
        line("strict.y.org", "sts", "starttls-not-supported", 1),
        line("noweb.y.org", "sts", "sts-policy-fetch-error", 1),
        line("badtext.y.org", "sts", "sts-policy-invalid", 1),
        line("badweb.y.org", "sts", "sts-webpki-invalid", 1),
    ];
    assert_eq!(counted(&house).await, BTreeSet::from(expected));
    // Where it was, and under which policy.
    let strict = Domain::parse("strict.y.org").unwrap();
    let (_, days) = house.handle.tls_day(None, Some(&strict)).await.unwrap();
    let result = &days[0].policies[0];
    assert_eq!(result["policy"]["policy-string"][1], "mode: enforce");
    assert_eq!(result["policy"]["mx-host"][0], "mx.strict.y.org");
    let detail = &result["failure-details"][0];
    assert_eq!(detail["receiving-mx-hostname"], "mx.strict.y.org");
    assert_eq!(
        (detail["receiving-ip"].as_str(), detail["sending-mta-ip"].as_str()),
        (Some("127.0.0.5"), Some("127.0.0.1"))
    );
    // The operator hears of each server once, and of those with a policy only.
    send(&house, "c@strict.y.org").await;
    house.until("the deferral", |l| l.errors().len() == 5).await;
    let failing: Vec<String> = house
        .handle
        .tls_failing()
        .iter()
        .map(|f| f.domain.clone())
        .collect();
    assert!(failing.contains(&"strict.y.org".to_owned()) && !failing.contains(&"clear.y.org".to_owned()));
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let What::TlsFailing { domain, result, .. } = event.what {
            told.push((domain, result));
        }
    }
    told.retain(|(domain, _)| domain == "strict.y.org");
    assert_eq!(told, [("strict.y.org".to_owned(), "starttls-not-supported")]);
    assert_eq!(
        house.labelled(
            "tls_sessions_total",
            "policy=\"sts\",result=\"starttls-not-supported\""
        ),
        3
    );
}

/// What a reader that nobody here wrote makes of a mail or file with a report.
async fn read_by_python(what: &str, octets: &[u8]) -> serde_json::Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients/tlsrpt.py");
    let mut python = tokio::process::Command::new("python3")
        .args([script, what])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 of the package python3");
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(octets).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(20), python.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "the reader refuses it");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_days_report_goes_to_the_places_that_the_domain_names_and_is_not_reported_itself() {
    let ca = Ca::make();
    let (good, _) = ca.server(&["mx.a.y.org", "mx.quiet.y.org"], Flaw::None);
    let (expired, _) = ca.server(&["mx.rep.y.org"], Flaw::Expired);
    let servers = Servers::start(vec![plain_plan(Some(good)), plain_plan(Some(expired))]).await;
    let names = ["mta-sts.a.y.org", "mta-sts.rep.y.org", "reports.y.org"];
    let web = Web::start(ca.server(&names, Flaw::None).0).await;
    web.says("mta-sts.a.y.org", policy("enforce", "mx.a.y.org"));
    // Mail to the reports' own domain waits for a better certificate. Reports do not.
    web.says("mta-sts.rep.y.org", policy("enforce", "mx.rep.y.org"));
    let rua = format!("mailto:tls@rep.y.org,https://reports.y.org:{}/in?x=1", web.port);
    let zone = [
        domain("a", GOOD, true),
        domain("quiet", GOOD, false),
        domain("rep", EXPIRED, true),
        format!("_smtp._tls.a.y.org. 300 TXT \"v=TLSRPTv1; rua={rua}\"\nreports.y.org. 300 A 127.0.0.1\n"),
        "_smtp._tls.rep.y.org. 300 TXT \"v=TLSRPTv1; rua=mailto:tls@rep.y.org\"\n".to_owned(),
    ]
    .concat();
    let knot = Knot::start(&zone).await;
    let house = House::resolving(ca.trust(), |c| {
        direct(c, &knot, servers.port, &web);
        c.tls_reports.from = Some("tls-reports@x.org".parse().unwrap());
        c.tls_reports.organization = "X".into();
        c.tls_reports.spread = Duration::ZERO;
    })
    .await;
    house.next_morning();
    let x_org = Domain::parse("x.org").unwrap();
    assert_eq!(house.handle.tls_reports_unsigned().await, Some(x_org.clone()));
    let keys = house
        .handle
        .dkim_add(x_org, &[Algorithm::RsaSha256], None, &Actor::gateway("test"))
        .await;
    assert_eq!(keys.unwrap().len(), 1);
    assert_eq!(house.handle.tls_reports_unsigned().await, None);
    for (n, to) in ["b@a.y.org", "b@quiet.y.org"].into_iter().enumerate() {
        send(&house, to).await;
        house
            .until("the delivery", |l| {
                l.figure("delivered_recipients_total") == n as i64 + 1
            })
            .await;
    }
    assert!(
        counted(&house)
            .await
            .contains(&line("a.y.org", "sts", "success", 1))
    );
    house.handle.retry_now();
    // The web server has no answer yet, so that place is tried again, and the other is not.
    house.clock.advance(Duration::from_secs(86_400));
    house.handle.retry_now();
    let mail = servers.sinks[1].wait(1).await.remove(0);
    web.wait("reports.y.org", 1).await;
    house
        .until("the failure", |_| {
            house.labelled("tls_reports_total", "result=\"failed\"") == 1
        })
        .await;
    web.says(
        "reports.y.org",
        "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n".into(),
    );
    house.handle.retry_now();
    house.clock.advance(Duration::from_secs(3700));
    house.handle.retry_now();
    let posted = web.wait("reports.y.org", 2).await.remove(1);
    house
        .until("the report", |_| {
            house.labelled("tls_reports_total", "result=\"sent\"") == 2
        })
        .await;
    assert_eq!(servers.sinks[1].received().len(), 1, "the mail is not repeated");
    assert_eq!(
        (mail.from.as_str(), mail.to, mail.tls),
        ("", vec!["tls@rep.y.org".to_owned()], true)
    );
    assert!(
        mail.text.starts_with("DKIM-Signature:") && mail.text.contains("d=x.org;"),
        "{}",
        mail.text
    );
    assert_eq!(
        (posted.what.as_str(), posted.content_type.as_str()),
        ("POST /in?x=1", "application/tlsrpt+gzip")
    );
    let by_mail = read_by_python("mail", mail.text.as_bytes()).await;
    assert_eq!(by_mail, read_by_python("file", &posted.body).await);
    assert_eq!(by_mail["organization-name"], "X");
    assert_eq!(by_mail["contact-info"], "tls-reports@x.org");
    let result = &by_mail["policies"][0];
    assert_eq!(result["policy"]["policy-domain"], "a.y.org");
    assert_eq!(result["summary"]["total-successful-session-count"], 1);
    // Nothing is known of the session that brought the report, neither today nor to those who list.
    assert_eq!(counted(&house).await, BTreeSet::new());
    assert!(house.handle.tls_failing().is_empty());
    house.clock.advance(Duration::from_secs(86_400));
    house.handle.retry_now();
    house.nothing_is_lost(0).await;
    assert_eq!(servers.received(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_report_goes_out_unless_somebody_is_named_to_send_it() {
    let ca = Ca::make();
    let (good, _) = ca.server(&["mx.a.y.org"], Flaw::None);
    let servers = Servers::start(vec![plain_plan(Some(good))]).await;
    let web = Web::start(ca.server(&["mta-sts.a.y.org"], Flaw::None).0).await;
    let zone =
        domain("a", GOOD, false) + "_smtp._tls.a.y.org. 300 TXT \"v=TLSRPTv1; rua=mailto:tls@a.y.org\"\n";
    let knot = Knot::start(&zone).await;
    let house = House::resolving(ca.trust(), |c| {
        direct(c, &knot, servers.port, &web);
        c.delivery.idle = Duration::from_millis(1);
    })
    .await;
    house.next_morning();
    send(&house, "b@a.y.org").await;
    house
        .until("the delivery", |l| l.figure("delivered_recipients_total") == 1)
        .await;
    let name = Domain::parse("a.y.org").unwrap();
    let file = house.handle.tls_report(None, &name).await.unwrap();
    let report = read_by_python("file", &file.gzip).await;
    assert_eq!(report["contact-info"], "postmaster@relay.example");
    assert!(
        file.name.starts_with("relay.example!a.y.org!") && file.name.ends_with(".json.gz"),
        "{}",
        file.name
    );
    house.clock.advance(Duration::from_secs(86_400));
    house.handle.retry_now();
    // A mail of today shows that the reporter had its turn.
    send(&house, "c@a.y.org").await;
    servers.sinks[0].wait(2).await;
    let today = house.handle.tls_day(None, None).await.unwrap();
    assert_eq!(today.1.len(), 1);
    assert!(
        servers.sinks[0]
            .received()
            .iter()
            .all(|mail| !mail.from.is_empty())
    );
}
