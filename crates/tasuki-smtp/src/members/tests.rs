#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::*;
use crate::config::{SmarthostConfig, Ways};

#[test]
fn members_are_tried_by_health_then_latency_then_as_configured() {
    let hop = |name: &str| SmarthostConfig {
        name: name.into(),
        host: Some("192.0.2.1".into()),
        ..SmarthostConfig::default()
    };
    let ways = Ways::new(&[hop("a"), hop("b"), hop("c")], &[], &[], "direct").unwrap();
    let group: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| Arc::clone(&ways.members(name).unwrap()[0]))
        .collect();
    let members = Members::default();
    let now = Instant::now();
    let order = |now| {
        let all = members.in_order(&group, now);
        all.iter().map(|s| s.name.to_string()).collect::<String>()
    };
    assert_eq!(order(now), "abc");
    members.works(&group[0], Duration::from_millis(80));
    members.works(&group[1], Duration::from_millis(20));
    assert_eq!(order(now), "cba", "what is not measured yet is measured first");
    members.works(&group[2], Duration::from_millis(90));
    assert_eq!(order(now), "bac");
    let minute = Duration::from_secs(60);
    assert_eq!(members.failed(&group[1], |_| now + 2 * minute), 1);
    assert_eq!(members.failed(&group[1], |n| now + n * minute), 2);
    members.failed(&group[0], |_| now + minute);
    assert_eq!(order(now), "cab", "who rests comes last");
    assert_eq!(order(now + 3 * minute), "bac", "and returns by itself");
    assert!(members.works(&group[1], Duration::from_millis(20)));
    assert!(!members.works(&group[1], Duration::from_millis(20)));
    members.unblock();
    assert_eq!(order(now), "bac");
}
