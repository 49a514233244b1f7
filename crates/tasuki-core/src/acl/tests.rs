#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use tasuki_proto::names::Domain;

use super::{Acl, Action, Answer, Effect, Origin, Question, RuleSpec};
use crate::engine::EngineKind;
use crate::ids::RuleId;

fn rule(effect: Effect, domain: Option<&str>, from: &[&str]) -> RuleSpec {
    RuleSpec {
        effect,
        engine: None,
        action: None,
        from: from.iter().map(|net| net.parse().unwrap()).collect(),
        principal: None,
        domain: domain.map(|d| d.parse().unwrap()),
        reason: "a test".to_owned(),
    }
}

fn ask(acl: &Acl, domain: Option<&str>, from: Option<&str>) -> Answer {
    let domain: Option<Domain> = domain.map(|d| d.parse().unwrap());
    acl.decide(&Question {
        engine: EngineKind::Fediverse,
        action: Action::Subscribe,
        from: from.map(|ip| ip.parse::<IpAddr>().unwrap()),
        principal: None,
        domain: domain.as_ref(),
    })
}

#[test]
fn a_domain_rule_covers_subdomains_at_label_boundaries() {
    let acl = Acl::new();
    acl.replace(vec![(
        Origin::File(1),
        rule(Effect::Deny, Some("bad.example"), &[]),
    )]);
    for within in ["bad.example", "a.bad.example", "a.b.BAD.example"] {
        assert!(ask(&acl, Some(within), None).is_denied(), "{within}");
    }
    for outside in ["notbad.example", "bad.example.org", "example"] {
        assert_eq!(ask(&acl, Some(outside), None), Answer::Default, "{outside}");
    }
    assert_eq!(ask(&acl, None, None), Answer::Default);
}

#[test]
fn the_first_rule_that_matches_decides_and_tells_where_it_stands_and_why() {
    let acl = Acl::new();
    let origin = Origin::Store(RuleId(7));
    acl.replace(vec![
        (Origin::File(1), rule(Effect::Allow, None, &["192.0.2.0/25"])),
        (origin.clone(), rule(Effect::Deny, None, &["192.0.2.0/24"])),
    ]);
    assert!(ask(&acl, None, Some("192.0.2.1")).is_allowed());
    assert!(ask(&acl, None, Some("::ffff:192.0.2.1")).is_allowed());
    let denied = Answer::Rule {
        effect: Effect::Deny,
        origin,
        reason: "a test".to_owned(),
    };
    assert_eq!(ask(&acl, None, Some("192.0.2.200")), denied);
    assert_eq!(ask(&acl, None, Some("198.51.100.1")), Answer::Default);
    assert_eq!(ask(&acl, None, None), Answer::Default);
}

#[test]
fn a_rule_for_another_engine_action_or_principal_says_nothing() {
    let acl = Acl::new();
    let deny = || rule(Effect::Deny, None, &[]);
    let other = [
        RuleSpec {
            engine: Some(EngineKind::Mail),
            ..deny()
        },
        RuleSpec {
            action: Some(Action::Publish),
            ..deny()
        },
        RuleSpec {
            principal: Some("alice".to_owned()),
            ..deny()
        },
    ];
    acl.replace(other.into_iter().map(|r| (Origin::File(1), r)).collect());
    assert_eq!(ask(&acl, Some("a.example"), Some("192.0.2.1")), Answer::Default);
}

#[test]
fn rules_that_do_not_name_the_admin_action_or_name_an_engine_say_nothing_about_the_admin_api() {
    let everything = rule(Effect::Deny, None, &["0.0.0.0/0"]);
    let of_an_engine = RuleSpec {
        engine: Some(EngineKind::Mail),
        action: Some(Action::Admin),
        ..everything.clone()
    };
    let named = RuleSpec {
        action: Some(Action::Admin),
        ..everything.clone()
    };
    let question = Question {
        engine: EngineKind::Mail,
        action: Action::Admin,
        from: Some("192.0.2.1".parse().unwrap()),
        principal: None,
        domain: None,
    };
    let acl = Acl::new();
    acl.replace(vec![
        (Origin::File(1), everything),
        (Origin::File(2), of_an_engine),
    ]);
    assert_eq!(acl.decide(&question), Answer::Default);
    acl.replace(vec![(Origin::File(3), named)]);
    assert!(acl.decide(&question).is_denied());
}

#[test]
fn every_action_is_asked_about_by_an_engine_except_the_admin_api() {
    for action in Action::ALL {
        assert_eq!(action.engines().is_empty(), action == Action::Admin, "{action:?}");
        let written = serde_json::to_value(action).unwrap();
        assert_eq!(written, action.name(), "the name in rules");
    }
}
