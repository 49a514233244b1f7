use std::net::IpAddr;

use super::{
    Answer, Asker, Known, Mechanism, Qualifier, Query, Record, SpfError, Survey, Verdict, evaluate, extended,
    is_spf, survey,
};

/// A small world: TXT, addresses, MX, PTR by name.
const WORLD: &[(&str, &str, &str)] = &[
    (
        "plain.org",
        "TXT",
        "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all",
    ),
    ("a.org", "TXT", "v=spf1 a mx:b.org ~all"),
    ("a.org", "A", "192.0.2.1"),
    ("b.org", "MX", "mx.b.org"),
    ("mx.b.org", "A", "192.0.2.2"),
    ("cidr.org", "TXT", "v=spf1 a:a.org/24 mx:b.org//64 -all"),
    ("inc.org", "TXT", "v=spf1 include:plain.org ?all"),
    ("redir.org", "TXT", "v=spf1 redirect=plain.org"),
    ("ends.org", "TXT", "v=spf1 ip4:198.51.100.1"),
    ("open.org", "TXT", "v=spf1 +all"),
    ("two.org", "TXT", "v=spf1 -all"),
    ("two.org", "TXT", "v=spf1 a -all"),
    ("wrong.org", "TXT", "v=spf1 ipv4:192.0.2.1 -all"),
    ("loop.org", "TXT", "v=spf1 include:loop.org -all"),
    ("lost.org", "TXT", "v=spf1 include:none.org -all"),
    ("void.org", "TXT", "v=spf1 a:n1.org a:n2.org a:n3.org -all"),
    ("mac.org", "TXT", "v=spf1 exists:%{ir}.%{v}.ok.%{d} -all"),
    ("1.2.0.192.in-addr.ok.mac.org", "A", "127.0.0.2"),
    ("ptr.org", "TXT", "v=spf1 ptr -all"),
    ("192.0.2.9", "PTR", "out.ptr.org"),
    ("out.ptr.org", "A", "192.0.2.9"),
    ("192.0.2.8", "PTR", "out.ptr.org"),
    ("broken.org", "TXT", "v=spf1 a:fail.org -all"),
    ("fail.org", "FAIL", ""),
    (
        "ten.org",
        "TXT",
        "v=spf1 a mx a a a a a include:plain.org include:inc.org -all",
    ),
    (
        "more.org",
        "TXT",
        "v=spf1 a mx a a a a a a include:inc.org ptr -all",
    ),
    ("other.org", "TXT", "nothing of the kind"),
];

fn look(query: &Query) -> Answer {
    let (name, kind) = match query {
        Query::Texts(name) => (name.clone(), "TXT"),
        Query::Addresses(name) => (name.clone(), "A"),
        Query::Hosts(name) => (name.clone(), "MX"),
        Query::Names(ip) => (ip.to_string(), "PTR"),
    };
    if WORLD.iter().any(|(n, k, _)| *n == name && *k == "FAIL") {
        return Answer::Failed("no answer".to_owned());
    }
    let found = WORLD.iter().filter(|(n, k, _)| *n == name && *k == kind);
    let texts: Vec<String> = found.map(|(_, _, value)| (*value).to_owned()).collect();
    match query {
        Query::Texts(_) => Answer::Texts(texts),
        Query::Addresses(_) => Answer::Addresses(texts.iter().map(|t| t.parse().unwrap()).collect()),
        Query::Hosts(_) | Query::Names(_) => Answer::Names(texts),
    }
}

/// Asks until everything is known; returns how often too.
fn ask<T>(mut about: impl FnMut(&Known) -> Result<T, Query>) -> (T, usize) {
    let mut known = Known::new();
    loop {
        match about(&known) {
            Ok(said) => return (said, known.len()),
            Err(query) => {
                let answer = look(&query);
                assert!(known.insert(query, answer).is_none(), "asked twice");
            }
        }
    }
}

fn verdict(domain: &str, ip: &str) -> Verdict {
    let asker = Asker {
        ip: ip.parse().unwrap(),
        domain: domain.to_owned(),
        helo: "out.example".to_owned(),
    };
    ask(|known| evaluate(&asker, known)).0
}

fn counted(domain: &str) -> Survey {
    ask(|known| survey(domain, known)).0
}

#[test]
fn records_say_who_may_send() {
    use Qualifier::{Fail, Neutral, Pass, SoftFail};
    for (domain, ip, wanted) in [
        ("plain.org", "192.0.2.77", Pass),
        ("plain.org", "198.51.100.1", Fail),
        ("plain.org", "2001:db8::5", Pass),
        ("a.org", "192.0.2.1", Pass),
        ("a.org", "192.0.2.2", Pass),
        ("a.org", "192.0.2.3", SoftFail),
        ("cidr.org", "192.0.2.200", Pass),
        ("inc.org", "192.0.2.9", Pass),
        // A fail of an included record is no match (RFC 7208 5.2).
        ("inc.org", "198.51.100.1", Neutral),
        ("redir.org", "192.0.2.9", Pass),
        ("redir.org", "198.51.100.1", Fail),
        ("ends.org", "192.0.2.1", Neutral),
        ("open.org", "203.0.113.1", Pass),
        ("mac.org", "192.0.2.1", Pass),
        ("mac.org", "192.0.2.2", Fail),
        ("ptr.org", "192.0.2.9", Pass),
        // Its name does not lead back.
        ("ptr.org", "192.0.2.8", Fail),
    ] {
        assert_eq!(verdict(domain, ip), Verdict::Said(wanted), "{domain} {ip}");
    }
    assert_eq!(verdict("other.org", "192.0.2.1"), Verdict::None);
}

#[test]
fn what_cannot_be_used_is_permanent_and_what_did_not_answer_is_not() {
    for (domain, part) in [
        ("two.org", "2 SPF records"),
        ("wrong.org", "is no term"),
        ("loop.org", "more than 10 lookups"),
        ("lost.org", "include:none.org leads to no SPF record"),
        ("void.org", "more than 2 of its names"),
    ] {
        match verdict(domain, "203.0.113.1") {
            Verdict::Permanent(why) => assert!(why.contains(part), "{domain}: {why}"),
            other => panic!("{domain}: {other:?}"),
        }
    }
    let failed = Verdict::Temporary("no answer".to_owned());
    assert_eq!(verdict("broken.org", "192.0.2.1"), failed);
}

#[test]
fn lookups_are_counted_through_included_records() {
    let ten = counted("ten.org");
    assert_eq!((ten.lookups, ten.problem.clone()), (10, None), "{ten:?}");
    assert_eq!(ten.reaches, ["plain.org", "inc.org", "plain.org"]);
    assert_eq!(ten.all, Some(Qualifier::Fail));
    let more = counted("more.org");
    assert_eq!(more.lookups, 11);
    assert_eq!(
        more.problem.as_deref(),
        Some("it takes 11 lookups, 10 are allowed")
    );
    assert_eq!(counted("inc.org").all, Some(Qualifier::Neutral));
    assert_eq!(counted("redir.org").all, Some(Qualifier::Fail));
    assert_eq!(counted("ends.org").all, None);
    // One that leads to itself ends.
    let (around, questions) = ask(|known| survey("loop.org", known));
    assert_eq!(questions, 1);
    assert!(around.problem.unwrap().contains("more than 40"));
    assert_eq!(counted("lost.org").problem.unwrap(), "none.org has no SPF record");
}

#[test]
fn terms_are_read_by_the_grammar() {
    for good in [
        "v=spf1",
        "V=SPF1 A MX -ALL",
        "v=spf1  a:x.org/24//64 ",
        "v=spf1 a//64",
        "v=spf1 include:%{d2}.x.org exp=why.%{d} unknown=%{i}",
        "v=spf1 ip6:::/0 ip4:0.0.0.0/0",
        "v=spf1 exists:%{l1r-}.x.org. ptr:x.org",
    ] {
        assert!(is_spf(good) && Record::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "v=spf1 all:x.org",
        "v=spf1 include",
        "v=spf1 include:",
        "v=spf1 a:x.org/33",
        "v=spf1 a/08",
        "v=spf1 ip4:2001:db8::1",
        "v=spf1 ip4:192.0.2.1/33",
        "v=spf1 ip6:192.0.2.1",
        "v=spf1 mx:localhost",
        "v=spf1 include:%{x}.org",
        "v=spf1 include:100%.org",
        "v=spf1 include:1.2.3.4",
        "v=spf1 redirect=a.org redirect=b.org",
        "v=spf1 a,mx",
        "v=spf1 --all",
    ] {
        assert!(Record::parse(bad).is_err(), "{bad}");
    }
    assert!(!is_spf("v=spf10 a") && !is_spf("v=spf1;a") && !is_spf(" v=spf1"));
    let twice = Record::parse("v=spf1 exp=a.org exp=b.org");
    assert_eq!(twice, Err(SpfError::Twice("exp")));
    let read = Record::parse("v=spf1 a:%{d/}.org/24 -all").unwrap();
    let Mechanism::A(spec, 24, 128) = &read.terms[0].mechanism else {
        panic!("{read:?}")
    };
    assert_eq!(spec.as_deref(), Some("%{d/}.org"));
}

#[test]
fn macros_in_ipv6_have_nibbles_and_long_names_lose_labels_from_the_left() {
    let asker = Asker {
        ip: "2001:db8::1".parse::<IpAddr>().unwrap(),
        domain: "strong-bad.example.org".to_owned(),
        helo: "h.example".to_owned(),
    };
    let expand = |spec: &str| super::macros::expand(spec, &asker, "example.org");
    // RFC 7208 7.4 has the like.
    assert_eq!(expand("%{d1r}.%{o2}.%{h}"), "example.example.org.h.example");
    assert_eq!(expand("%{o1r-}.x.org"), "strong.x.org");
    assert_eq!(expand("%{l}.%%.%{v}.x.org"), "postmaster.%.ip6.x.org");
    assert!(expand("%{i}.x.org").starts_with("2.0.0.1.0.d.b.8.0."));
    let long = expand(&format!("{}x.org", "%{i}.".repeat(6)));
    assert!(long.len() <= 253 && long.ends_with(".x.org"), "{long}");
}

#[test]
fn what_is_missing_goes_before_the_end() {
    let more = ["ip4:192.0.2.1".to_owned(), "include:p.org".to_owned()];
    for (record, wanted) in [
        (None, "v=spf1 ip4:192.0.2.1 include:p.org ~all"),
        (
            Some("v=spf1 mx -all"),
            "v=spf1 mx ip4:192.0.2.1 include:p.org -all",
        ),
        (
            Some("v=spf1 redirect=x.org"),
            "v=spf1 ip4:192.0.2.1 include:p.org redirect=x.org",
        ),
        (Some("v=spf1 a"), "v=spf1 a ip4:192.0.2.1 include:p.org"),
    ] {
        let made = extended(record, &more);
        assert_eq!(made, wanted);
        assert!(Record::parse(&made).is_ok(), "{made}");
    }
}
