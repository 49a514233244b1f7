//! Who may join and who may publish: the one place where the engine asks.
//!
//! **Invariant:** closed by default. Without a rule only subscribers publish, and who subscribes is what `fediverse.mode`
//! says.

use std::net::IpAddr;

use tasuki_core::EngineKind;
use tasuki_core::acl::{Acl, Action, Answer, Question};
use tasuki_core::store::accounts::Principal;
use tasuki_core::store::fedi::ModerationEffect;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::subscription::Admission;
use tasuki_proto::names::Domain;

use crate::config::Mode;
use crate::moderation::Moderation;

/// What a host wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish<'a> {
    /// To join, or to go on receiving.
    Subscribe,
    /// To have something sent to everybody; `subscribed` is what the store says of it, `principal` who the host is among
    /// the accounts (an instance may hold the grant `fedi:publish`).
    Publish {
        subscribed: bool,
        principal: Option<&'a Principal>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Yes,
    /// An operator decides.
    Ask,
    /// No; why, in words for the peer.
    No(String),
}

impl Verdict {
    /// As the subscription machine wants it.
    pub(crate) fn admission(&self) -> Admission {
        match self {
            Self::Yes => Admission::Open,
            Self::Ask => Admission::Approval,
            Self::No(_) => Admission::Refused,
        }
    }
}

/// What decides.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) acl: &'a Acl,
    pub(crate) moderation: &'a Moderation,
    pub(crate) mode: Mode,
}

/// Decides about `host`, which runs `software` as far as known, asking from address `from`. Moderation comes first: what an
/// operator blocked by name is not let in by a rule about addresses.
pub(crate) fn decide(
    rules: Rules<'_>,
    host: &Authority,
    software: Option<&str>,
    from: Option<IpAddr>,
    wish: Wish<'_>,
) -> Verdict {
    let Rules {
        acl,
        moderation,
        mode,
    } = rules;
    for (rule, what) in [
        (moderation.host(host), host.to_string()),
        (moderation.software(software), format!("the software of {host}")),
    ] {
        match (rule.map(|rule| rule.effect), wish) {
            (Some(ModerationEffect::Block), _) => {
                return Verdict::No(format!("{what} is blocked by this relay"));
            }
            (Some(ModerationEffect::Limit), Wish::Publish { .. }) => {
                return Verdict::No(format!(
                    "{what} is limited by this relay: it receives and may not publish"
                ));
            }
            _ => {}
        }
    }
    let domain = Domain::parse(host.host()).ok();
    let answer = acl.decide(&Question {
        engine: EngineKind::Fediverse,
        action: match wish {
            Wish::Subscribe => Action::Subscribe,
            Wish::Publish { .. } => Action::Publish,
        },
        from,
        principal: match wish {
            Wish::Subscribe => None,
            Wish::Publish { principal, .. } => principal,
        },
        domain: domain.as_ref(),
    });
    match (answer, wish) {
        // The reason of a rule is the operator's; a peer only learns that there is one.
        (answer, _) if answer.is_denied() => {
            Verdict::No(format!("{host} is refused by a rule of this relay"))
        }
        (Answer::Rule { .. }, _) => Verdict::Yes,
        (Answer::Default, Wish::Publish { subscribed: true, .. }) => Verdict::Yes,
        (
            Answer::Default,
            Wish::Publish {
                principal: Some(p), ..
            },
        ) if p.may_publish() => Verdict::Yes,
        (Answer::Default, Wish::Publish { .. }) => Verdict::No(format!(
            "{host} is not subscribed to this relay: subscribe first, then publish"
        )),
        (Answer::Default, Wish::Subscribe) => match mode {
            Mode::Open => Verdict::Yes,
            Mode::Approval => Verdict::Ask,
            Mode::Allowlist => Verdict::No(format!("{host} is not on this relay's list of hosts")),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tasuki_core::accounts::{Grant, PrincipalKind, Role};
    use tasuki_core::acl::{Acl, Effect, Origin, RuleSpec};
    use tasuki_core::clock::Timestamp;
    use tasuki_core::ids::PrincipalId;
    use tasuki_core::store::accounts::Principal;
    use tasuki_proto::activitypub::ids::Authority;
    use tasuki_proto::names::Domain;

    use super::{Rules, Verdict, Wish, decide};
    use crate::config::Mode;
    use crate::moderation::Moderation;

    fn rule(effect: Effect, domain: &str) -> (Origin, RuleSpec) {
        let spec = RuleSpec {
            effect,
            engine: None,
            action: None,
            from: Vec::new(),
            principal: None,
            domain: Some(Domain::parse(domain).unwrap()),
            reason: "secret reason".into(),
        };
        (Origin::File(1), spec)
    }

    #[test]
    fn the_default_is_closed_and_rules_win() {
        let acl = Acl::new();
        let host = Authority::parse("a.example.org").unwrap();
        let moderation = Moderation::default();
        let ask = |acl: &Acl, mode, wish| {
            let rules = Rules {
                acl,
                moderation: &moderation,
                mode,
            };
            decide(rules, &host, None, None, wish)
        };
        let publish = |subscribed| Wish::Publish {
            subscribed,
            principal: None,
        };
        let (stranger, subscriber) = (publish(false), publish(true));
        let known = Principal {
            id: PrincipalId(1),
            name: "a.example.org".into(),
            kind: PrincipalKind::Instance,
            role: Role::default(),
            grants: vec![Grant::Publish],
            disabled: false,
            created_at: Timestamp(0),
        };
        let granted = Wish::Publish {
            subscribed: false,
            principal: Some(&known),
        };
        assert_eq!(ask(&acl, Mode::Open, granted), Verdict::Yes);
        assert!(matches!(ask(&acl, Mode::Open, stranger), Verdict::No(_)));
        assert_eq!(ask(&acl, Mode::Open, subscriber), Verdict::Yes);
        assert_eq!(ask(&acl, Mode::Open, Wish::Subscribe), Verdict::Yes);
        assert_eq!(ask(&acl, Mode::Approval, Wish::Subscribe), Verdict::Ask);
        assert!(matches!(
            ask(&acl, Mode::Allowlist, Wish::Subscribe),
            Verdict::No(_)
        ));

        acl.replace(vec![rule(Effect::Deny, "example.org")]);
        let Verdict::No(why) = ask(&acl, Mode::Open, subscriber) else {
            panic!("a denied host publishes");
        };
        assert!(!why.contains("secret reason"));
        assert!(matches!(ask(&acl, Mode::Open, Wish::Subscribe), Verdict::No(_)));

        acl.replace(vec![rule(Effect::Allow, "a.example.org")]);
        assert_eq!(ask(&acl, Mode::Allowlist, Wish::Subscribe), Verdict::Yes);
        assert_eq!(ask(&acl, Mode::Open, stranger), Verdict::Yes);
    }
}
