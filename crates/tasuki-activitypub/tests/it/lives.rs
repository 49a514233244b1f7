//! Hosts that cannot be reached: suspended, found again, removed; and our own outage, which is nobody else's.

use std::time::Duration;

use crate::deliveries::until;
use crate::world::{Ground, Instance, Mood, PATIENCE, RelayUnderTest, Setup};

const ADMIN: (&str, &str) = ("admin", "socket");

fn host(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

async fn relay(suspend_after: Duration, prune_after: Duration) -> RelayUnderTest {
    let mut setup = Setup::default();
    (setup.config.suspend_after, setup.config.prune_after) = (suspend_after, prune_after);
    RelayUnderTest::start(&Ground::sqlite().await, setup).await
}

async fn subscribed(relay: &RelayUnderTest, n: usize) -> Vec<Instance> {
    let mut all = Vec::new();
    for _ in 0..n {
        let instance = Instance::start().await;
        instance.subscribe(relay).await;
        all.push(instance);
    }
    all
}

async fn is_suspended(relay: &RelayUnderTest, instance: &Instance) -> bool {
    let all = relay.handle.subscribers().await.unwrap();
    let one = all.into_iter().find(|one| one.host == host(instance));
    one.is_some_and(|one| one.suspended_at.is_some())
}

async fn wait_for_suspension(relay: &RelayUnderTest, instance: &Instance, wanted: bool) {
    let look = async {
        while is_suspended(relay, instance).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_is_suspended_and_comes_back_by_itself() {
    let relay = relay(Duration::from_millis(500), Duration::from_secs(86_400)).await;
    let all = subscribed(&relay, 4).await;
    let (author, dead) = (&all[0], &all[3]);
    dead.set_mood(Mood::Answers(502));
    author.publish(&relay, 1, true).await;
    wait_for_suspension(&relay, dead, true).await;
    assert!(
        relay.handle.dead_hosts().dead.is_empty(),
        "not long enough for that"
    );
    // What comes now is not for it.
    let while_away = author.publish(&relay, 2, true).await;
    all[1]
        .wait_for("the post", |got| got["id"] == while_away["id"])
        .await;
    dead.set_mood(Mood::Takes);
    // It publishes: it is there.
    dead.publish(&relay, 3, true).await;
    wait_for_suspension(&relay, dead, false).await;
    let last = author.publish(&relay, 4, true).await;
    dead.wait_for("the last post", |got| got["id"] == last["id"])
        .await;
    assert!(
        dead.received()
            .iter()
            .all(|got| got.json["id"] != while_away["id"])
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_removed_with_a_reject_one_a_day_and_all_when_confirmed() {
    let relay = relay(Duration::from_millis(300), Duration::from_millis(600)).await;
    // Dead ones that never answered since the relay looks: not together with others that did.
    let all = subscribed(&relay, 12).await;
    let dead = [&all[10], &all[11]];
    dead.iter().for_each(|one| one.set_mood(Mood::Answers(502)));
    all[0].publish(&relay, 1, true).await;
    let removed = |n: usize| relay.handle.status().active == 12 - n;
    until("one is removed by itself", || removed(1)).await;
    let listed = async {
        while relay.handle.dead_hosts().dead.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listed).await.unwrap();
    let report = relay.handle.dead_hosts();
    assert_eq!((report.dead.len(), report.allowance), (1, 0), "{report:?}");
    assert!(
        report.dead[0].last_error.as_ref().unwrap().contains("502"),
        "{report:?}"
    );
    let unconfirmed = relay.handle.prune(false, ADMIN).await.unwrap();
    assert!(unconfirmed.removed.is_empty() && removed(1));
    let confirmed = relay.handle.prune(true, ADMIN).await.unwrap();
    assert_eq!(confirmed.removed, [report.dead[0].host.clone()]);
    assert!(removed(2));
    for one in dead {
        one.set_mood(Mood::Takes);
        one.wait_for("the Reject", |got| got["type"] == "Reject").await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_many_fail_together_nobody_is_suspended_and_nothing_is_lost() {
    let relay = relay(Duration::from_millis(400), Duration::from_millis(800)).await;
    let all = subscribed(&relay, 6).await;
    all[1..].iter().for_each(|one| one.set_mood(Mood::Answers(502)));
    let create = all[0].publish(&relay, 1, true).await;
    until("the fault is seen to be ours", || {
        relay
            .health
            .conditions()
            .iter()
            .any(|(_, one)| one.sentence.contains("fail together"))
    })
    .await;
    assert!(
        relay
            .handle
            .prune(true, ADMIN)
            .await
            .unwrap_err()
            .to_string()
            .contains("fail together")
    );
    let tried = relay.counter("deliveries_retried_total");
    until("a few are tried on", || {
        relay.counter("deliveries_retried_total") > tried + 4
    })
    .await;
    for one in &all {
        assert!(!is_suspended(&relay, one).await);
    }
    all.iter().for_each(|one| one.set_mood(Mood::Takes));
    for one in &all[1..] {
        one.wait_for("the post", |got| got["id"] == create["id"]).await;
    }
    until("it is over", || relay.health.conditions().is_empty()).await;
    assert_eq!(relay.handle.status().active, 6);
    relay.stop().await;
}
