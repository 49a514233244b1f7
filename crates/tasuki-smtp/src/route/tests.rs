#![allow(clippy::unwrap_used)]

use tasuki_core::Shared;

use super::*;
use crate::config::{MailConfig, RouteConfig, SmarthostConfig};

fn d(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn servers(answer: MxAnswer) -> Result<Vec<String>, Reply> {
    mail_servers(answer, &d("dest.example"), &d("relay.example"), 1)
}

fn hosts(list: &[(u16, &str)]) -> MxAnswer {
    MxAnswer::Hosts(list.iter().map(|(p, h)| (*p, (*h).to_owned())).collect())
}

#[test]
fn mail_servers_are_tried_in_their_order() {
    let sorted = servers(hosts(&[(20, "c"), (10, "b"), (5, "a")])).unwrap();
    assert_eq!(sorted, ["a", "b", "c"]);
    let firsts: std::collections::HashSet<_> = (0..50)
        .map(|seed| {
            mail_servers(hosts(&[(10, "a"), (10, "b")]), &d("x.org"), &d("y.org"), seed).unwrap()[0].clone()
        })
        .collect();
    assert_eq!(firsts.len(), 2, "equal preferences take turns");
}

#[test]
fn a_domain_that_takes_no_mail_is_known() {
    assert_eq!(servers(MxAnswer::Null).unwrap_err().code, 556);
    assert_eq!(
        servers(MxAnswer::NoDomain)
            .unwrap_err()
            .enhanced
            .unwrap()
            .to_string(),
        "5.1.2"
    );
    assert_eq!(servers(MxAnswer::Implicit).unwrap(), ["dest.example"]);
}

#[test]
fn mail_never_goes_round_in_circles() {
    assert_eq!(
        servers(hosts(&[(10, "relay.example"), (20, "other")])).unwrap_err(),
        LOOP
    );
    assert_eq!(
        servers(hosts(&[(5, "better"), (10, "relay.example"), (10, "equal")])).unwrap(),
        ["better"]
    );
    let own = mail_servers(MxAnswer::Implicit, &d("relay.example"), &d("relay.example"), 1);
    assert_eq!(own.unwrap_err(), LOOP);
}

#[test]
fn the_longest_route_wins() {
    let smarthost = |name: &str| SmarthostConfig {
        name: name.into(),
        host: Some("192.0.2.1".into()),
        ..SmarthostConfig::default()
    };
    let route = |domain: &str, via: &str| RouteConfig {
        domain: Some(d(domain)),
        via: via.into(),
        source: None,
        ..RouteConfig::default()
    };
    let config = MailConfig {
        smarthosts: vec![smarthost("a"), smarthost("b")],
        routes: vec![route("x.org", "a"), route("sub.x.org", "direct")],
        default_route: "b".into(),
        ..MailConfig::default()
    };
    let settings = Settings::new(&config, &Shared::default()).unwrap();
    let lane = |to: &str| lane_of(&settings, &Mailbox::parse(to).unwrap()).0;
    assert_eq!(lane("u@x.org"), "via:a");
    assert_eq!(lane("u@deep.sub.x.org"), "mx:deep.sub.x.org");
    assert_eq!(lane("u@y.org"), "via:b");
    assert_eq!(lane("u@[192.0.2.1]"), "via:b");
    assert!(matches!(
        next_hop(&settings, &LaneKey("via:gone".into())),
        Err(RouteError::Unknown(_))
    ));
    assert!(matches!(
        next_hop(&settings, &LaneKey("mx:x.org".into())),
        Ok(NextHop::Mx(_))
    ));
}
