//! Policies of outgoing TLS.

use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::store::tls::StsPolicy;
use tasuki_proto::names::Domain;
use tasuki_proto::smtp::mta_sts::Policy;

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
