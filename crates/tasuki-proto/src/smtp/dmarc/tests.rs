use super::{Dmarc, DmarcError, Policy};

fn find(texts: &[&str]) -> Result<Dmarc, DmarcError> {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    Dmarc::find(&texts)
}

#[test]
fn a_record_is_read_with_its_defaults() {
    let read = find(&["other", "v=DMARC1; p=Reject; rua=mailto:a@x.org, mailto:b@x.org;"]).unwrap();
    assert_eq!(read.policy, Policy::Reject);
    assert_eq!(read.subdomains, None);
    assert!(!read.strict_dkim && !read.strict_spf && !read.public_suffix);
    assert_eq!(read.reports, ["mailto:a@x.org", "mailto:b@x.org"]);
    let read = find(&["v = DMARC1;p=none;sp=quarantine;adkim=s;aspf=s;pct=50;x=y;psd=y"]).unwrap();
    assert_eq!(read.subdomains, Some(Policy::Quarantine));
    assert!(read.strict_dkim && read.strict_spf && read.public_suffix);
}

#[test]
fn what_receivers_would_not_use_is_told_apart() {
    let value = |text: &str| DmarcError::Value(text.to_owned());
    for (texts, wanted) in [
        (&[][..], DmarcError::Records(0)),
        // The version comes first, and in capitals (RFC 7489 6.3).
        (&["p=none; v=DMARC1"], DmarcError::Records(0)),
        (&["v=dmarc1; p=none"], DmarcError::Records(0)),
        (
            &["v=DMARC1; p=none", "v=DMARC1; p=reject"],
            DmarcError::Records(2),
        ),
        (&["v=DMARC1; rua=mailto:a@x.org"], DmarcError::NoPolicy),
        (&["v=DMARC1; p=refuse"], value("p=refuse")),
        (&["v=DMARC1; p=none; adkim=strict"], value("adkim=strict")),
        (&["v=DMARC1; p=none; oops"], DmarcError::Tag("oops".to_owned())),
    ] {
        assert_eq!(find(texts), Err(wanted), "{texts:?}");
    }
}
