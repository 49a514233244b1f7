//! Outgoing TLS: policies that hold, and the sums of each day's sessions.

use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::store::tls::{DayTally, MAX_TALLIES, StsPolicy, TlsReport};
use tasuki_proto::names::Domain;
use tasuki_proto::smtp::mta_sts::Policy;
use tasuki_proto::smtp::tlsrpt::{FailureDetail, ResultType, SessionPolicy, Tally};

use crate::support::benches;

fn policy(id: &str, expires: i64) -> StsPolicy {
    StsPolicy {
        id: id.into(),
        policy: Policy::parse(b"version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 60\n").unwrap(),
        expires: Timestamp(expires),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_kept_over_a_restart_until_their_time_is_over() {
    for bench in benches().await {
        let store = bench.open().await;
        let (one, two) = (
            Domain::parse("one.example").unwrap(),
            Domain::parse("two.example").unwrap(),
        );
        assert_eq!(store.sts_policy(&one).await.unwrap(), None);
        store
            .keep_sts_policy(&one, policy("a", 1000), Timestamp(1))
            .await
            .unwrap();
        store
            .keep_sts_policy(&one, policy("b", 2000), Timestamp(2))
            .await
            .unwrap();
        store.close().await;
        let store = bench.open().await;
        let kept = store.sts_policy(&one).await.unwrap().unwrap();
        assert_eq!(kept, policy("b", 2000));
        assert_eq!(kept.policy.max_age, Duration::from_secs(60));
        store
            .keep_sts_policy(&two, policy("c", 9000), Timestamp(2000))
            .await
            .unwrap();
        assert_eq!(store.sts_policy(&one).await.unwrap(), None);
        assert!(store.sts_policy(&two).await.unwrap().is_some());
    }
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn sessions(day: i64, name: &str, failure: Option<FailureDetail>, sessions: u64) -> DayTally {
    let policy = SessionPolicy::sts(&domain(name), &policy("a", 1).policy);
    DayTally {
        day,
        domain: domain(name),
        tally: Tally {
            policy,
            failure,
            sessions,
        },
    }
}

fn failure(reason: &str) -> FailureDetail {
    FailureDetail {
        sending_mta_ip: "2001:db8::1".parse().ok(),
        receiving_mx_hostname: Some("mx.one.example".into()),
        receiving_ip: "192.0.2.7".parse().ok(),
        ..FailureDetail::new(ResultType::CertificateExpired, reason)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_summed_by_day_domain_and_kind_and_outlive_a_restart() {
    for bench in benches().await {
        let store = bench.open().await;
        let first = vec![
            sessions(7, "one.example", None, 2),
            sessions(7, "one.example", Some(failure("x")), 1),
            sessions(7, "two.example", None, 1),
            sessions(8, "one.example", None, 9),
        ];
        store.add_tls_sessions(first).await.unwrap();
        let more = vec![
            sessions(7, "one.example", Some(failure("x")), 4),
            sessions(7, "one.example", None, 3),
        ];
        store.add_tls_sessions(more).await.unwrap();
        store.close().await;
        let store = bench.open().await;
        let mut found = store
            .tls_sessions(7, Some(&domain("one.example")), 10)
            .await
            .unwrap();
        found.sort_by_key(|tally| tally.tally.sessions);
        let expected = [
            sessions(7, "one.example", None, 5),
            sessions(7, "one.example", Some(failure("x")), 5),
        ];
        assert!(
            expected.iter().all(|tally| found.contains(tally)) && found.len() == 2,
            "{found:?}"
        );
        assert_eq!(store.tls_sessions(7, None, 10).await.unwrap().len(), 3);
        assert_eq!(store.tls_sessions(7, None, 1).await.unwrap().len(), 1);
        let names = ["one.example", "two.example"].map(domain);
        assert_eq!(store.tls_domains(7, None, 10).await.unwrap(), names);
        assert_eq!(
            store.tls_domains(7, Some(&names[0]), 10).await.unwrap(),
            names[1..]
        );
        store.forget_tls_sessions(8).await.unwrap();
        assert!(store.tls_domains(7, None, 10).await.unwrap().is_empty());
        assert_eq!(store.tls_domains(8, None, 10).await.unwrap(), names[..1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_with_ever_new_failures_fills_no_more_than_its_share() {
    for bench in benches().await {
        let store = bench.open().await;
        let many = |from: i64| {
            let new =
                (from..from + 150).map(|n| sessions(7, "one.example", Some(failure(&n.to_string())), 1));
            new.collect::<Vec<_>>()
        };
        store.add_tls_sessions(many(0)).await.unwrap();
        store.add_tls_sessions(many(1000)).await.unwrap();
        let found = store.tls_sessions(7, None, 1000).await.unwrap();
        assert_eq!(found.len() as i64, MAX_TALLIES + 1);
        assert_eq!(found.iter().map(|tally| tally.tally.sessions).sum::<u64>(), 300);
        let folded = found.iter().find(|tally| tally.tally.sessions > 1).unwrap();
        let bare = FailureDetail::new(ResultType::CertificateExpired, "");
        assert_eq!((&folded.tally.failure, folded.tally.sessions), (&Some(bare), 200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_taken_up_by_one_at_a_time_until_it_is_done() {
    for bench in benches().await {
        let store = bench.open().await;
        let name = domain("one.example");
        let take = async |now, until| {
            let taken = store
                .take_tls_report(7, &name, Timestamp(now), Timestamp(until))
                .await;
            taken.unwrap().map(|report| (report.tries, report.sent))
        };
        assert_eq!(take(100, 200).await, Some((1, vec![])));
        assert_eq!(take(150, 250).await, None);
        store
            .note_tls_report(7, &name, &["sent to a".into()], false)
            .await
            .unwrap();
        assert_eq!(take(200, 300).await, Some((2, vec!["sent to a".into()])));
        let sent = ["sent to a".to_owned(), "sent to b".to_owned()];
        store.note_tls_report(7, &name, &sent, true).await.unwrap();
        assert_eq!(take(9000, 9001).await, None);
        let report = TlsReport {
            tries: 2,
            sent: sent.to_vec(),
            is_done: true,
        };
        assert_eq!(store.tls_reports(7, 10).await.unwrap(), [(name.clone(), report)]);
        store.forget_tls_sessions(8).await.unwrap();
        assert!(store.tls_reports(7, 10).await.unwrap().is_empty());
    }
}
