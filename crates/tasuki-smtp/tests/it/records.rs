//! What `tasuki mail dns` finds, in a real name server, by the real resolver.

use std::net::IpAddr;

use tasuki_core::{store::audit::Actor, tls::TlsConfig};
use tasuki_proto::{names::Domain, smtp::dkim::Algorithm};
use tasuki_smtp::{DnsRecord, DnsReport, KeyState, MailConfig, RecordState, RouteConfig, SmarthostConfig};

use crate::{
    knot::Knot,
    support::{House, plain_smarthost},
};

const ZONE: &str = "\
good.y.org. 300 MX 10 mx.good.y.org.\nmx.good.y.org. 300 A 192.0.2.1\n\
good.y.org. 300 TXT \"v=spf1 ip4:198.51.100.0/25 -all\"\ngood.y.org. 300 TXT \"unrelated\"\n\
_dmarc.good.y.org. 300 TXT \"v=DMARC1; p=reject; \" \"sp=quarantine\"\n\
lacks.y.org. 300 A 192.0.2.2\nlacks.y.org. 300 TXT \"v=spf1 a include:inner.y.org -all\"\n\
inner.y.org. 300 TXT \"v=spf1 ip4:192.0.2.0/24 ?all\"\n_dmarc.lacks.y.org. 300 TXT \"v=DMARC1; p=drop\"\n\
two.y.org. 300 MX 0 .\ntwo.y.org. 300 TXT \"v=spf1 -all\"\ntwo.y.org. 300 TXT \"v=spf1 ip4:198.51.100.7 -all\"\n\
_dmarc.two.y.org. 300 TXT \"v=DMARC1; p=none\"\n_dmarc.two.y.org. 300 TXT \"v=DMARC1; p=reject\"\n\
many.y.org. 300 TXT \"v=spf1 ip4:198.51.100.7 a mx a mx a mx a mx a mx a -all\"\n\
open.y.org. 300 TXT \"v=spf1 +all\"\nopen.y.org. 300 A 192.0.2.3\n\
strict.y.org. 300 TXT \"v=spf1 ip4:198.51.100.7 -all\"\n_dmarc.strict.y.org. 300 TXT \"v=DMARC1; p=none; adkim=s\"\n\
sub.strict.y.org. 300 A 192.0.2.4\n\
hosted.y.org. 300 A 192.0.2.5\nhosted.y.org. 300 TXT \"v=spf1 include:mailgun.org ~all\"\n\
ours.y.org. 300 MX 10 relay.example.\naway.y.org. 300 MX 10 mx.good.y.org.\nnull.y.org. 300 MX 0 .\n\
_smtp._tls.ours.y.org. 300 TXT \"v=TLSRPTv1; rua=mailto:tls@y.org\"\n_mta-sts.ours.y.org. 300 TXT \"v=STSv1; id=1;\"\n";

/// The gateway's own names, right and wrong.
const HOST: &str = "\
relay.example. 300 A 198.51.100.7\nrelay.example. 300 A 198.51.100.10\n\
7.100.51.198.in-addr.arpa. 300 PTR relay.example.\n8.100.51.198.in-addr.arpa. 300 PTR other.y.org.\n\
9.100.51.198.in-addr.arpa. 300 PTR relay.example.\n";

fn answers(knot: &Knot) -> impl FnOnce(&mut MailConfig) + use<> {
    let (addr, anchor) = (knot.addr, knot.anchor.clone());
    move |c| {
        c.dns.server = Some(addr);
        c.dns.trust_anchor = Some(anchor);
    }
}

async fn house(knot: &Knot, change: impl FnOnce(&mut MailConfig)) -> House {
    let answers = answers(knot);
    House::resolving(TlsConfig::default(), |c| {
        answers(c);
        change(c);
    })
    .await
}

fn domains(names: &[&str]) -> Vec<Domain> {
    names.iter().map(|name| Domain::parse(name).unwrap()).collect()
}

async fn report(house: &House, names: &[&str], addresses: &[&str]) -> DnsReport {
    let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    house
        .handle
        .dns_report(&domains(names), false, &addresses)
        .await
        .unwrap()
}

/// The record of this kind and of a name that begins so.
#[track_caller]
fn of<'a>(report: &'a DnsReport, what: &str, name: &str) -> &'a DnsRecord {
    let mut found = report.records.iter();
    found
        .find(|record| record.what == what && record.name.starts_with(name))
        .unwrap_or_else(|| panic!("{what} {name}: {report:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_the_host_are_judged_by_name_address_and_back() {
    use RecordState::{Differs, Missing, Ok};
    let wrong = format!("_25._tcp.relay.example. 300 TLSA 3 1 1 {}\n", "00".repeat(32));
    let knot = Knot::start(&format!("{ZONE}{HOST}{wrong}")).await;
    let house = house(&knot, |_| {}).await;
    let all = ["198.51.100.7", "198.51.100.8", "198.51.100.9", "198.51.100.10"];
    let told = report(&house, &["good.y.org"], &all).await;
    let state = |what: &str, ip: &str| {
        let last = ip.rsplit('.').next().unwrap();
        let mut records = told.records.iter().filter(|record| record.what == what);
        let is_it = |record: &&DnsRecord| match what {
            "reverse" => record.name.starts_with(&format!("{last}.100.51.198.")),
            _ => record.value.as_deref() == Some(ip),
        };
        records.find(is_it).unwrap().state
    };
    for (ip, address, reverse) in [
        ("198.51.100.7", Ok, Ok),
        // Another name; the host does not lead there; no name.
        ("198.51.100.8", Differs, Differs),
        ("198.51.100.9", Differs, Differs),
        ("198.51.100.10", Ok, Missing),
    ] {
        assert_eq!(
            (state("address", ip), state("reverse", ip)),
            (address, reverse),
            "{ip}: {told:#?}"
        );
    }
    let nine = of(&told, "reverse", "9.");
    assert!(
        nine.says.contains("does not lead back to 198.51.100.9"),
        "{nine:?}"
    );
    assert_eq!(of(&told, "reverse", "8.").found, ["other.y.org"]);
    // TLSA records that are of another certificate keep mail away.
    assert_eq!(of(&told, "tlsa", "_25._tcp.relay.example").state, Differs);
    assert!(!told.complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_domains_that_send_are_told_apart_by_state() {
    use RecordState::{Differs, Missing, Ok, Warning};
    let knot = Knot::start(&format!("{ZONE}{HOST}")).await;
    let house = house(&knot, |_| {}).await;
    let names =
        ["good", "lacks", "two", "many", "open", "sub.strict", "nowhere"].map(|name| format!("{name}.y.org"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let strict = Domain::parse("strict.y.org").unwrap();
    let actor = Actor::gateway("test");
    let ed25519 = [Algorithm::Ed25519Sha256];
    house
        .handle
        .dkim_add(strict, &ed25519, None, &actor)
        .await
        .unwrap();
    let told = report(&house, &names, &["198.51.100.7"]).await;
    for (name, mx, spf, dmarc) in [
        ("good", Ok, Ok, Ok),
        ("lacks", Ok, Differs, Differs),
        ("two", Differs, Differs, Differs),
        ("many", Missing, Differs, Missing),
        ("open", Ok, Warning, Missing),
        ("sub.strict", Ok, Missing, Differs),
        ("nowhere", Missing, Missing, Missing),
    ] {
        let name = format!("{name}.y.org");
        let is = |what: &str, at: &str| of(&told, what, at).state;
        let states = (
            is("mx", &name),
            is("spf", &name),
            is("dmarc", &format!("_dmarc.{name}")),
        );
        assert_eq!(states, (mx, spf, dmarc), "{name}: {told:#?}");
    }
    let spf = |name: &str| of(&told, "spf", name);
    let lacks = spf("lacks.y.org");
    assert_eq!(
        lacks.value.as_deref(),
        Some("v=spf1 a include:inner.y.org ip4:198.51.100.7 -all")
    );
    assert!(lacks.says.contains("does not cover 198.51.100.7"), "{lacks:?}");
    assert!(
        spf("many.y.org").says.contains("11 lookups"),
        "{:?}",
        spf("many.y.org")
    );
    assert_eq!(
        spf("nowhere.y.org").value.as_deref(),
        Some("v=spf1 ip4:198.51.100.7 ~all")
    );
    assert_eq!(of(&told, "dmarc", "_dmarc.good.y.org").says, "p=reject");
    let inherited = of(&told, "dmarc", "_dmarc.sub.strict.y.org");
    assert!(inherited.says.contains("adkim=s"), "{inherited:?}");
    assert!(of(&told, "dmarc", "_dmarc.lacks").says.contains("p=drop"));
    assert!(
        of(&told, "dkim", "_domainkey.good.y.org")
            .says
            .contains("tasuki mail dkim add good.y.org")
    );
    assert!(!told.complete);
    // The name server is gone: nothing is claimed of the records.
    drop(knot);
    let told = report(&house, &["good.y.org"], &["198.51.100.7"]).await;
    for (what, name) in [
        ("spf", "good.y.org"),
        ("dmarc", "_dmarc"),
        ("mx", "good"),
        ("reverse", "7."),
    ] {
        assert_eq!(of(&told, what, name).state, RecordState::Unknown, "{told:#?}");
    }
    assert!(!told.complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_compared_with_what_is_published_and_with_all_right_the_report_is_complete() {
    use RecordState::{Differs, Missing, Ok, Warning};
    // The keys are made first; a second name server has their records.
    let first = Knot::start("").await;
    let mut house = house(&first, |_| {}).await;
    let domain = || Domain::parse("signed.y.org").unwrap();
    let both = [Algorithm::RsaSha256, Algorithm::Ed25519Sha256];
    let actor = Actor::gateway("test");
    let made = house
        .handle
        .dkim_add(domain(), &both, Some("k"), &actor)
        .await
        .unwrap();
    let next = house.handle.dkim_rotate(domain(), false, &actor).await.unwrap();
    let told = report(&house, &["signed.y.org"], &["198.51.100.7"]).await;
    for key in made
        .iter()
        .chain(next.iter().filter(|key| key.state == KeyState::Next))
    {
        let record = of(&told, "dkim", &key.name);
        assert_eq!(
            (record.state, record.value.as_deref()),
            (Missing, Some(key.record.as_str()))
        );
        // The next keys may wait.
        assert_eq!(record.needed, key.state == KeyState::Active, "{record:?}");
    }

    let at = |name: &str, text: &str| {
        tasuki_proto::smtp::zone::line(name, "TXT", text).replacen(" IN ", " 300 IN ", 1) + "\n"
    };
    let zone = |rsa: &str, ed25519: &str| {
        String::from(
            "relay.example. 300 A 198.51.100.7\n7.100.51.198.in-addr.arpa. 300 PTR relay.example.\n\
             signed.y.org. 300 A 192.0.2.9\nsigned.y.org. 300 TXT \"v=spf1 ip4:198.51.100.7 -all\"\n\
             _dmarc.y.org. 300 TXT \"v=DMARC1; p=none; sp=quarantine\"\n",
        ) + &at(&made[0].name, rsa)
            + &at(&made[1].name, ed25519)
    };
    // As published: the record cut in two strings.
    for (rsa, ed25519, states, complete) in [
        (made[0].record.clone(), made[1].record.clone(), (Ok, Ok), true),
        (
            made[1].record.clone(),
            format!("{}; t=y", made[1].record),
            (Differs, Warning),
            false,
        ),
    ] {
        let knot = Knot::start(&zone(&rsa, &ed25519)).await;
        let (_, dir) = house.stop().await;
        house = House::resolving_on(dir, answers(&knot)).await;
        let told = report(&house, &["signed.y.org"], &["198.51.100.7"]).await;
        let state = |n: usize| of(&told, "dkim", &made[n].name).state;
        assert_eq!((state(0), state(1)), states, "{told:#?}");
        assert_eq!(
            of(&told, "dmarc", "_dmarc.signed").says,
            "p=quarantine, from y.org"
        );
        assert_eq!(told.complete, complete, "{told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_smarthost_its_include_counts_and_our_addresses_do_not() {
    use RecordState::{Differs, Ok};
    let knot = Knot::start(&format!("{ZONE}{HOST}")).await;
    let house = house(&knot, |c| {
        let provider = |name: &str, preset: &str| SmarthostConfig {
            preset: Some(preset.to_owned()),
            username: Some("u".to_owned()),
            password: Some(tasuki_core::seal::Secret::new("p".to_owned())),
            ..SmarthostConfig {
                name: name.to_owned(),
                ..SmarthostConfig::default()
            }
        };
        let other = plain_smarthost("192.0.2.25:25".parse().unwrap());
        c.smarthosts = vec![provider("mg", "mailgun"), provider("google", "gmail"), other];
        let by_sender = |sender: &str, via: &str| RouteConfig {
            sender: Some(sender.to_owned()),
            via: via.to_owned(),
            ..RouteConfig::default()
        };
        c.routes = vec![
            by_sender("hosted.y.org", "mg"),
            by_sender("good.y.org", "google"),
            by_sender("lacks.y.org", "hop"),
        ];
    })
    .await;
    let told = report(&house, &["hosted.y.org", "good.y.org", "lacks.y.org"], &[]).await;
    let spf = |name: &str| of(&told, "spf", name);
    // mailgun.org itself is not in this world, so its record leads nowhere.
    assert_eq!(spf("hosted.y.org").state, Differs);
    assert!(
        spf("hosted.y.org").says.contains("mailgun.org has no SPF record"),
        "{told:#?}"
    );
    assert_eq!(
        spf("good.y.org").value.as_deref(),
        Some("v=spf1 ip4:198.51.100.0/25 include:_spf.google.com -all")
    );
    assert_eq!((spf("lacks.y.org").state, spf("lacks.y.org").needed), (Ok, false));
    assert!(
        spf("lacks.y.org")
            .says
            .contains("what hop wants in it is not known"),
        "{told:#?}"
    );
    assert!(
        told.records.iter().all(|record| record.what != "reverse"),
        "{told:#?}"
    );
    let notes = told.notes.join("\n");
    assert!(
        notes.contains("all mail of good.y.org goes through google"),
        "{notes}"
    );
    assert!(told.addresses.is_empty() && !notes.contains("NAT"), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_whose_mail_comes_here_need_an_mx_that_leads_here() {
    use RecordState::{Differs, Missing, Ok};
    let knot = Knot::start(&format!("{ZONE}{HOST}")).await;
    let house = house(&knot, |c| {
        c.relay_domains = domains(&["ours.y.org", "away.y.org", "null.y.org", "lost.y.org"]);
        // A pool of an address that nobody outside sees.
        c.sources = vec![tasuki_smtp::SourceConfig {
            name: "inside".to_owned(),
            addresses: vec![tasuki_smtp::SourceAddressConfig {
                ip: "127.0.0.1".parse().unwrap(),
                helo: None,
                weight: None,
            }],
        }];
        c.default_source = "inside".to_owned();
    })
    .await;
    let told = house
        .handle
        .dns_report(&domains(&["good.y.org"]), true, &[])
        .await
        .unwrap();
    for (name, mx, reports) in [
        ("ours", Ok, Ok),
        ("away", Differs, Missing),
        ("null", Differs, Missing),
        ("lost", Missing, Missing),
    ] {
        assert_eq!(of(&told, "mx", &format!("{name}.y.org")).state, mx, "{told:#?}");
        for (what, prefix) in [("tls-rpt", "_smtp._tls"), ("mta-sts", "_mta-sts")] {
            let record = of(&told, what, &format!("{prefix}.{name}.y.org"));
            assert_eq!((record.state, record.needed), (reports, false), "{record:?}");
        }
    }
    // The address is private: it is said, and nothing is claimed of SPF.
    assert!(told.addresses.is_empty());
    assert!(
        told.notes
            .iter()
            .any(|note| note.contains("127.0.0.1") && note.contains("--address"))
    );
    let spf = of(&told, "spf", "good.y.org");
    assert_eq!(spf.state, RecordState::Unknown, "{spf:?}");
}
