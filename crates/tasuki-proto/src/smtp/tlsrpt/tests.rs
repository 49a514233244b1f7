#![allow(clippy::unwrap_used)]

use super::*;
use crate::names::Mailbox;

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn midnight() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_459_468_800).unwrap()
}

/// The sessions of the example in RFC 8460, appendix B.
fn tallies() -> Vec<Tally> {
    let text = b"version: STSv1\nmode: testing\nmx: *.mail.company-y.example\nmax_age: 86400\n";
    let policy = SessionPolicy::sts(&domain("company-y.example"), &Policy::parse(text).unwrap());
    let failed = |result_type, from: &str, reason, sessions| {
        let detail = FailureDetail {
            sending_mta_ip: from.parse().ok(),
            receiving_mx_hostname: Some("mx1.mail.company-y.example".into()),
            receiving_ip: "203.0.113.58".parse().ok(),
            ..FailureDetail::new(result_type, reason)
        };
        Tally {
            policy: policy.clone(),
            failure: Some(detail),
            sessions,
        }
    };
    vec![
        Tally {
            policy: policy.clone(),
            failure: None,
            sessions: 5326,
        },
        failed(ResultType::CertificateExpired, "2001:db8:abcd:12::1", "", 100),
        failed(
            ResultType::ValidationFailure,
            "198.51.100.62",
            "proxy path length\r\nexceeded",
            3,
        ),
    ]
}

#[test]
fn a_report_has_the_members_of_rfc_8460_and_its_counts_add_up() {
    let json = write_json(&Report {
        organization: "Company-X",
        contact: "sts-reporting@company-x.example",
        id: "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
        start: midnight(),
        tallies: &tallies(),
    });
    let expected = serde_json::json!({
        "organization-name": "Company-X",
        "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
        "contact-info": "sts-reporting@company-x.example",
        "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
        "policies": [{
            "policy": {
                "policy-type": "sts",
                "policy-string": ["version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"],
                "policy-domain": "company-y.example",
                "mx-host": ["*.mail.company-y.example"],
            },
            "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 103},
            "failure-details": [
                {
                    "result-type": "certificate-expired",
                    "sending-mta-ip": "2001:db8:abcd:12::1",
                    "receiving-mx-hostname": "mx1.mail.company-y.example",
                    "receiving-ip": "203.0.113.58",
                    "failed-session-count": 100,
                },
                {
                    "result-type": "validation-failure",
                    "sending-mta-ip": "198.51.100.62",
                    "receiving-mx-hostname": "mx1.mail.company-y.example",
                    "receiving-ip": "203.0.113.58",
                    "failure-reason-code": "proxy path length??exceeded",
                    "failed-session-count": 3,
                },
            ],
        }],
    });
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&json).unwrap(),
        expected
    );
}

#[test]
fn what_a_domain_publishes_is_bounded_in_what_is_kept() {
    let long = SessionPolicy::tlsa(
        "mx.y.org",
        (0..500).map(|_| "3 1 0 ".to_owned() + &"ab".repeat(4096)),
    );
    assert_eq!((long.policy_string.len(), long.policy_string[0].len()), (64, 400));
    let detail = FailureDetail::new(ResultType::ValidationFailure, &"é".repeat(4096));
    assert_eq!(detail.failure_reason_code.unwrap(), "?".repeat(200));
    let text = format!(
        "version: STSv1\nmode: testing\nmax_age: 9\n{}",
        "mx: a.example\n".repeat(200)
    );
    let policy = SessionPolicy::sts(&domain("y.org"), &Policy::parse(text.as_bytes()).unwrap());
    assert_eq!(policy.policy_string.last().unwrap(), "max_age: 9");
}

#[test]
fn result_types_have_the_names_of_the_rfc_in_both_forms() {
    for result in [
        ResultType::StarttlsNotSupported,
        ResultType::CertificateHostMismatch,
        ResultType::CertificateExpired,
        ResultType::CertificateNotTrusted,
        ResultType::ValidationFailure,
        ResultType::TlsaInvalid,
        ResultType::DnssecInvalid,
        ResultType::DaneRequired,
        ResultType::StsPolicyFetchError,
        ResultType::StsPolicyInvalid,
        ResultType::StsWebpkiInvalid,
    ] {
        assert_eq!(serde_json::to_value(result).unwrap(), result.name());
    }
    for policy in [PolicyType::Tlsa, PolicyType::Sts, PolicyType::NoPolicyFound] {
        assert_eq!(serde_json::to_value(policy).unwrap(), policy.name());
    }
}

#[test]
fn a_record_names_the_places_for_reports() {
    let check = |records: &[&str], expect: Result<&[&str], TlsRptError>| {
        let texts: Vec<String> = records.iter().map(|text| (*text).to_owned()).collect();
        let found = destinations(&texts).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        let expect = expect.map(|all| all.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(found, expect, "{records:?}");
    };
    check(
        &["v=TLSRPTv1; rua=mailto:reports@example.com"],
        Ok(&["mailto:reports@example.com"]),
    );
    check(
        &[
            "other",
            "v=TLSRPTv1;rua=https://reporting.example.com/v1/tlsrpt , mailto:a@b.example?subject=x;ext=1",
        ],
        Ok(&["https://reporting.example.com/v1/tlsrpt", "mailto:a@b.example"]),
    );
    check(
        &["v=TLSRPTv1 ; rua=MAILTO:a%2Cb@c.example"],
        Err(TlsRptError::NoDestination),
    );
    check(
        &["v=TLSRPTv1 ; rua=MAILTO:a%21b@c.example"],
        Ok(&["mailto:a!b@c.example"]),
    );
    check(&[], Err(TlsRptError::Records(0)));
    check(
        &["v=TLSRPTv10; rua=mailto:a@b.example"],
        Err(TlsRptError::Records(0)),
    );
    check(
        &["v=TLSRPTv1; rua=mailto:a@b.example", "v=TLSRPTv1;"],
        Err(TlsRptError::Records(2)),
    );
    for bad in [
        "http://x.example/",
        "https://u:p@x.example/",
        "mailto:",
        "mailto:%zz@x.example",
        "ftp:x",
        "",
    ] {
        check(
            &[&format!("v=TLSRPTv1; rua={bad}")],
            Err(TlsRptError::NoDestination),
        );
    }
    let many: Vec<String> = (0..9).map(|n| format!("mailto:a{n}@b.example")).collect();
    assert_eq!(
        destinations(&[format!("v=TLSRPTv1; rua={}", many.join(","))])
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn the_mail_of_a_report_has_its_form_and_asks_for_no_tls() {
    let report: Vec<u8> = (0..=255).collect();
    let text = write_mail(&ReportMail {
        from: &Mailbox::parse("tls@x.org").unwrap(),
        to: &Mailbox::parse("reports@y.org").unwrap(),
        domain: &domain("y.org"),
        submitter: &domain("relay.example"),
        id: "20160401.abc",
        start: midnight(),
        date: midnight(),
        unique: "u1",
        report: &report,
    });
    let text = String::from_utf8(text).unwrap();
    assert!(text.lines().all(|line| line.len() <= 998) && !text.replace("\r\n", "").contains(['\r', '\n']));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.replace("\r\n\t", " ").replace("\r\n ", " ");
    for field in [
        "Subject: Report Domain: y.org Submitter: relay.example Report-ID: <20160401.abc@relay.example>",
        "TLS-Report-Domain: y.org",
        "TLS-Report-Submitter: relay.example",
        "TLS-Required: No",
        "Auto-Submitted: auto-generated",
        "Content-Type: multipart/report; report-type=\"tlsrpt\"; boundary=\"=_tasuki_u1\"",
    ] {
        assert!(head.lines().any(|line| line == field), "{field} in {head}");
    }
    assert!(body.contains("filename=\"relay.example!y.org!1459468800!1459555199!20160401.abc.json.gz\"\r\n"));
    assert!(
        body.contains("\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n")
    );
    let encoded = body
        .split("\r\n\r\n")
        .nth(4)
        .unwrap()
        .split("\r\n\r\n")
        .next()
        .unwrap();
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded.replace("\r\n", ""))
        .unwrap();
    assert_eq!(decoded, report);
}
